"""`fullyconv predict`: images in, label maps of the same names and sizes out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fullyconv.cli.options import MaxPixels

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fullyconv.files.listing import Listing
    from fullyconv.files.outputs import Outputs
    from fullyconv.predict import Predictor

__all__ = ["predict"]

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
RASTERS = (*SUFFIXES, ".vrt")
VIDEOS = (".mp4", ".mkv", ".mov", ".avi", ".webm", ".m4v")


def predict(
    model: Annotated[str, typer.Argument(help="Model or run directory, or an exported file.")],
    images: Annotated[list[Path], typer.Argument(help="Images, or folders of them.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the label maps: NAME.png, palette of classes.")],
    tool: Annotated[
        str,
        typer.Option(
            "--as",
            metavar="TOOL",
            show_default=False,
            help="Instead of label maps, what an annotation tool opens: labelme, cvat, labelstudio, coco, "
            "coco-polygons or voc.",
        ),
    ] = "",
    overlay: Annotated[bool, typer.Option(help="Also the image under its labels: overlay/NAME.jpg.")] = True,
    confidence: Annotated[bool, typer.Option("--confidence", help="Also confidence/NAME.png, 0..255.")] = False,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Also probabilities/NAME.npy, float32 K H W.")
    ] = False,
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", metavar="NAME=FOLDER", help="Where a further modality lies, such as depth=FOLDER."),
    ] = None,
    polygons: Annotated[
        str, typer.Option(metavar="gpkg|geojson", help="Rasters: also the areas as polygons.", show_default=False)
    ] = "",
    tolerance: Annotated[
        float, typer.Option(min=0, help="Polygons: how far borders may move, in map units; neighbours keep one border.")
    ] = 0,
    least_area: Annotated[
        float,
        typer.Option("--min-area", min=0, help="Polygons: smaller areas (square map units) join a neighbour."),
    ] = 0,
    frames: Annotated[bool, typer.Option("--frames", help="Videos: also label maps, NAME/NUMBER.png.")] = False,
    every: Annotated[int, typer.Option(min=1, help="Videos: label one frame of so many; the others keep it.")] = 1,
    smooth: Annotated[
        float, typer.Option(min=0, max=0.99, help="Videos: share of what earlier frames said, 0 to 0.99.")
    ] = 0,
    tile: Annotated[int, typer.Option(help="Compute in tiles of this many pixels; 0: whole images.")] = 0,
    max_memory: Annotated[
        str, typer.Option(help="Choose the tile for this much, such as 2GiB.", show_default=False)
    ] = "",
    precision: Annotated[
        str, typer.Option(help="auto, fp32 or bf16: auto takes bf16 where the processor has it and it is quicker.")
    ] = "auto",
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto.")] = "auto",
    max_pixels: MaxPixels = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Leave out what an earlier run finished, unchanged since.")
    ] = (False),
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of a line a file.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Label every pixel of images with a trained model."""
    import json
    from concurrent.futures import Future, ThreadPoolExecutor

    from fullyconv.cli.evaluate import predictor, progress_line
    from fullyconv.cli.predict_annotations import label_for_tool
    from fullyconv.cli.predict_jobs import Finished, read_ahead
    from fullyconv.cli.predict_rasters import RasterOptions, claim_raster, label_raster, sort_out
    from fullyconv.cli.predict_video import VideoOptions, claim_video, label_video, videos_among
    from fullyconv.errors import DataError, MissingInput, UsageError, printable
    from fullyconv.files.outputs import Outputs
    from fullyconv.terminal import say

    if polygons:
        from fullyconv.rasters.polygons import require_polygons

        require_polygons(polygons)
    elif tolerance or least_area:
        raise UsageError("--tolerance and --min-area are about polygons; add --polygons gpkg.")
    if tool:
        _refuse_with_tool(tool, confidence, probabilities, bool(polygons), frames, resume)
    pairs, notes = outputs(images, out, (*RASTERS, *VIDEOS))
    for note in () if quiet else notes:
        say(f"note: {note}")
    videos = videos_among(pairs, VIDEOS)
    rasters = sort_out(pairs, quiet)
    if polygons and len(rasters) < len(pairs):
        other = next(source for source, _ in pairs if source not in rasters)
        raise UsageError(f"{printable(other)} is no raster with a place on a map, so it gets no polygons.")
    if tool and (large := sorted(videos | rasters)):
        raise UsageError(
            f"{printable(large[0])} is {'a video' if large[0] in videos else 'read by windows, as maps are'}, and "
            f"--as {tool} is for photos; label it without --as."
        )
    options = RasterOptions(overlay, confidence, probabilities, polygons, tolerance, least_area, quiet)
    ready = predictor(model, device=device, tile=tile, max_memory=max_memory, precision=precision, quiet=quiet)
    needed = ready.inputs or ("rgb",)
    further = _further(needed, inputs or [])
    if tool:
        read = _files_read(pairs, further)
        label_for_tool(tool, ready, pairs, out, lambda s: _read(s, needed, further), read, as_json=as_json, quiet=quiet)
        return
    plan = Outputs(out, _files_read(pairs, further))
    heads = list(ready.heads)
    film = VideoOptions(overlay, frames, every, smooth, quiet)
    claimed: list[Any] = [
        claim_video(plan, source, name, film)
        if source in videos
        else claim_raster(plan, heads, name, options)
        if source in rasters
        else _claim(plan, heads, name, overlay, confidence, probabilities)
        for source, name in pairs
    ]
    finished = Finished(plan.folder, _job(ready, options, film, tile, max_memory))
    jobs = list(zip(pairs, claimed, strict=True))
    if resume:
        left = [job for job in jobs if not finished.holds(*_done(job, plan, further))]
        say(f"{len(jobs) - len(left)} of {len(jobs)} images were finished by an earlier run.")
        jobs = left
    line = progress_line("labelling", quiet)
    written: list[tuple[str, Path]] = []
    failed: list[str] = []

    def store(job: Any, answers: Any) -> None:
        """Write an image's results and remember it; in a thread of its own, while the next image is labelled."""
        written.extend(answers() if callable(answers) else answers)
        finished.add(*_done(job, plan, further)[:2])

    def settle(most: int) -> None:
        while len(writing) > most:
            writing.pop(0).result()

    plain = read_ahead(
        jobs, lambda job: job[0][0] not in videos | rasters, lambda job: _read(job[0][0], needed, further)
    )
    writing: list[Future[None]] = []
    with ThreadPoolExecutor(1) as writer:
        for done, (job, image) in enumerate(plain, 1):
            (source, name), names = job
            try:
                if source in videos or source in rasters:
                    settle(0)
                    store(
                        job,
                        label_video(ready, source, name, plan, names, film)
                        if source in videos
                        else label_raster(ready, source, plan, names, options),
                    )
                else:
                    writing.append(writer.submit(store, job, _answers(ready, image(), plan, names)))
            except (DataError, MissingInput) as error:  # one damaged image does not end a folder of them
                say(f"error: {error}")
                failed.append(printable(source))
            settle(2)
            if line:
                line(done, len(jobs))
        settle(0)
    if as_json:
        print(json.dumps({"files": [str(p) for _, p in written], "failed": failed}))
    else:
        print("\n".join(str(p) for what, p in written if what != "overlay"))
    if failed:
        raise DataError(f"{len(failed)} of {len(jobs)} images could not be labelled ({failed[0]}); see above.")


def _refuse_with_tool(tool: str, *others: bool) -> None:
    """UsageError for options that are about label maps."""
    from fullyconv.annotating import require_format
    from fullyconv.errors import UsageError

    require_format(tool)
    names = ("--confidence", "--probabilities", "--polygons", "--frames", "--resume")
    for name, given in zip(names, others, strict=True):
        if given:
            raise UsageError(f"--as {tool} writes annotations alone; leave out {name}, or leave out --as.")


def outputs(
    sources: Sequence[Path], out: Path, suffixes: Sequence[str] = SUFFIXES, what: str = "a label map"
) -> tuple[list[tuple[Path, str]], list[str]]:
    """Every image with the name (relative, without suffix) its outputs get, and notes of what folders hold besides.
    Refuses clashes before work starts; takes time in proportion to the images."""
    from fullyconv.errors import MissingInput, UsageError, printable
    from fullyconv.files.outputs import folded_name, safe_name

    pairs: list[tuple[Path, str]] = []
    notes: list[str] = []
    for source in sources:
        if source.is_dir():
            listed = images_in(source, suffixes, out)
            pairs += [(p, p.relative_to(source).with_suffix("").as_posix()) for p in listed.files]
            notes += [note] if (note := listed.note(source)) else []
        elif source.exists():
            pairs.append((source, source.stem))
        else:
            raise MissingInput(f"{printable(source)} does not exist; give images or a folder of them.")
    pairs = [(image, safe_name(name)) for image, name in pairs]
    named: dict[str, Path] = {}
    for image, name in pairs:
        if (other := named.setdefault(folded_name(name), image)) is not image:
            raise UsageError(
                f"Two images are named {printable(name)} ({printable(other)} and {printable(image)}) and would "
                f"share {what}; write them into two folders."
            )
    return pairs, notes


def images_in(folder: Path, suffixes: Sequence[str], out: Path) -> Listing:
    """The images below a folder, without label maps and those of the folder of results inside it; MissingInput for
    none."""
    from fullyconv.data.corpora.folder_parts import label_maps
    from fullyconv.errors import MissingInput, printable
    from fullyconv.files.listing import list_below

    same = out.is_dir() and out.samefile(folder)
    found = list_below(folder, suffixes, None if same else out)
    maps = label_maps(found.files, folder)
    for file in sorted(maps):
        found.leave("label maps", file.relative_to(folder).as_posix())
    found.files = [file for file in found.files if file not in maps]
    if not found.files:
        note = found.note(folder).rstrip(".")
        raise MissingInput(
            f"{printable(folder)} holds no images ({', '.join(suffixes)}){f', {note}' if note else ''}; "
            "give a folder of images."
        )
    return found


def _further(needed: Sequence[str], given: Sequence[str]) -> dict[str, Path]:
    """Folders of the modalities after the first."""
    from fullyconv.errors import UsageError

    folders = {name: Path(folder) for name, _, folder in (g.partition("=") for g in given)}
    if set(folders) != set(needed[1:]):
        wanted = " ".join(f"--input {m}=FOLDER" for m in needed[1:]) or "no --input"
        raise UsageError(f"This network takes {', '.join(needed)}: give images for {needed[0]} and {wanted}.")
    return folders


def _files_read(pairs: Sequence[tuple[Path, str]], further: dict[str, Path]) -> list[Path]:
    """Every file that is going to be read, as far as it is there."""
    more = (_beside(source, folder) for folder in further.values() for source, _ in pairs)
    return [*(source for source, _ in pairs), *(file for file in more if file is not None)]


def _beside(source: Path, folder: Path) -> Path | None:
    return next((p for s in SUFFIXES if (p := folder / f"{source.stem}{s}").is_file()), None)


def _read(source: Path, needed: Sequence[str], further: dict[str, Path]) -> Any:
    from fullyconv.errors import MissingInput, printable

    planes = {needed[0]: _plane(source, needed[0])}
    for modality, folder in further.items():
        found = _beside(source, folder)
        if found is None:
            raise MissingInput(
                f"{printable(folder)} has no {modality} image named {printable(source.stem)}; name both alike."
            )
        planes[modality] = _plane(found, modality)
    return planes if further or needed[0] in ("depth", "bands") else planes[needed[0]]


def _plane(file: Path, modality: str) -> NDArray[Any]:
    """Depth as stored (one band), bands as stored; everything else as RGB."""
    from fullyconv.data.corpora.bands import read_bands
    from fullyconv.data.validity import read_valid
    from fullyconv.images import read_image

    if modality == "bands":
        return read_valid(read_bands(file), file)[0]
    image = read_image(file, mode="bands")[..., :1] if modality == "depth" else read_image(file)
    return read_valid(image, file)[0]


Files = dict[tuple[str, str], str]  # (what, head) -> the name claimed for it


def _claim(
    plan: Outputs, heads: Sequence[str], name: str, overlay: bool, confidence: bool, probabilities: bool
) -> Files:
    """The files of one image: the main head's label map under the image's own name, the others' in folders."""
    from fullyconv.files.outputs import one_part

    found: Files = {}
    for i, head in enumerate(heads):
        folder = [] if i == 0 else [one_part(head, "The head")]
        found["labels", head] = plan.claim(*folder, f"{name}.png")
        if overlay and i == 0:
            found["overlay", head] = plan.claim("overlay", f"{name}.jpg")
        if confidence:
            found["confidence", head] = plan.claim("confidence", *folder, f"{name}.png")
        if probabilities:
            found["probabilities", head] = plan.claim("probabilities", *folder, f"{name}.npy")
    return found


def _job(ready: Predictor, *options: Any) -> str:
    """sha256 of the network and of the options that change what is written."""
    from dataclasses import asdict, is_dataclass

    from fullyconv.rasters.journal import job_key

    chosen = [{**asdict(o), "quiet": True} if is_dataclass(o) and not isinstance(o, type) else o for o in options]
    return job_key({"model": ready.backend.identity(), "precision": ready.precision, "options": chosen})


def _done(job: Any, plan: Outputs, further: dict[str, Path]) -> tuple[list[Path], str, list[Path]]:
    """(files that an image is read from, its name, files that are written for it)."""
    (source, name), names = job
    beside = [p for folder in further.values() if (p := _beside(source, folder))]
    return [source, *beside], name, [plan.folder / n for n in names.values()]


def _answers(ready: Predictor, image: Any, plan: Outputs, names: Files) -> Callable[[], list[tuple[str, Path]]]:
    """Label one image; what is left to do, encoding and writing what was claimed for it, as a function that gives
    (what, file)."""
    import numpy as np

    from fullyconv.drawing import encode_jpeg, overlay
    from fullyconv.images import encode_label, encode_png

    sure = any(what == "confidence" for what, _ in names)
    found = ready.confident_labels(image) if sure else {h: (v, None) for h, v in ready.labels(image).items()}
    shares = _probabilities(ready, image) if any(what == "probabilities" for what, _ in names) else {}

    def write() -> list[tuple[str, Path]]:
        first = next(iter(image.values())) if isinstance(image, dict) else image
        data: dict[tuple[str, str], bytes] = {}
        for head, (labels, probability) in found.items():
            palette = ready.taxonomies[head].palette
            data["labels", head] = encode_label(labels, palette)
            if ("overlay", head) in names:
                data["overlay", head] = encode_jpeg(overlay(first, labels, palette))
            if probability is not None:
                data["confidence", head] = encode_png(np.rint(probability * 255).astype(np.uint8))
        data |= shares
        return [(key[0], plan.write(names[key], content)) for key, content in data.items()]

    return write


def _probabilities(ready: Predictor, image: Any) -> dict[tuple[str, str], bytes]:
    from io import BytesIO

    import numpy as np

    scores = ready.scores(image)
    files = {}
    for head, s in (scores if isinstance(scores, dict) else {next(iter(ready.heads)): scores}).items():
        data = BytesIO()
        np.save(data, ready.backend.probabilities(s, False, s.shape[1:]))
        files["probabilities", head] = data.getvalue()
    return files
