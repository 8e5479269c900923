"""`fullyconv predict`: images in, label maps of the same names and sizes out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fullyconv.cli.options import Device, MaxMemory, MaxPixels, Precision, Tile
from fullyconv.errors import DataError, UsageError, printable
from fullyconv.terminal import say

if TYPE_CHECKING:
    from fullyconv.predict import Predictor
    from fullyconv.predict.machines import Machines

__all__ = ["predict"]

MANY = 16  # images for which it pays to find out which engine is quicker


def predict(
    model: Annotated[str, typer.Argument(help="Model or run directory, or an exported file.")],
    images: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Images, or folders of them; before them further runs, whose probabilities are averaged.",
            show_default=False,
        ),
    ] = None,
    *,
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
        str,
        typer.Option(
            metavar="gpkg|geojson|geoparquet", help="Rasters: also the areas as polygons.", show_default=False
        ),
    ] = "",
    tolerance: Annotated[
        float, typer.Option(min=0, help="Polygons: how far borders may move, in map units; neighbours keep one border.")
    ] = 0,
    least_area: Annotated[
        float,
        typer.Option(
            "--min-area", min=0, help="Smaller areas join a neighbour: pixels, with --polygons square map units."
        ),
    ] = 0,
    resolution: Annotated[
        str,
        typer.Option(
            help="Slides, OME-TIFF, Zarr: the level read, by micrometres a pixel (0.5) or reduction (4x).",
            show_default=False,
        ),
    ] = "",
    frames: Annotated[bool, typer.Option("--frames", help="Videos: also label maps, NAME/NUMBER.png.")] = False,
    every: Annotated[int, typer.Option(min=1, help="Videos: label one frame of so many; the others keep it.")] = 1,
    smooth: Annotated[
        float, typer.Option(min=0, max=0.99, help="Videos: share of what earlier frames said, 0 to 0.99.")
    ] = 0,
    source: Annotated[
        str,
        typer.Option(help="A camera instead of images: 0, 1, ... or /dev/video0; Ctrl-C ends it.", show_default=False),
    ] = "",
    seconds: Annotated[float, typer.Option(min=0, help="Camera: end after so many seconds; 0: at Ctrl-C.")] = 0,
    tile: Tile = 0,
    max_memory: MaxMemory = "",
    precision: Precision = "auto",
    engine: Annotated[
        str,
        typer.Option(
            help="torch, onnxruntime, or auto: for 16 photos or more, or a video, what is measured to be quicker here. "
            "ray: torch on the machines of a cluster."
        ),
    ] = "auto",
    device: Device = "auto",
    max_pixels: MaxPixels = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Leave out what an earlier run finished, unchanged since.")
    ] = (False),
    address: Annotated[
        str,
        typer.Option(help="Ray: a running cluster, HOST:PORT or auto; else this machine.", show_default=False),
    ] = "",
    workers: Annotated[int, typer.Option(min=0, help="Ray: processes that label; 0: as many as fit.")] = 0,
    cores: Annotated[int, typer.Option(min=1, help="Ray: cores of each worker.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of a line a file.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Label every pixel of images with a trained model."""
    import json

    from fullyconv.cli.evaluate import predictor
    from fullyconv.predict.annotation_files import label_for_tool
    from fullyconv.predict.ensemble import Ensemble
    from fullyconv.predict.label_sources import LabelOptions, label_sources
    from fullyconv.predict.sources import InputFiles, find_sources
    from fullyconv.rasters.levels import Resolution

    options = LabelOptions(
        overlay, confidence, probabilities, polygons, tolerance, least_area, frames, every, smooth, quiet,
        Resolution.parse(resolution),
    )  # fmt: skip
    if source:
        others = [*(images or []), tool, confidence, probabilities, polygons, least_area, resume, engine == "ray"]
        if any(others):
            raise UsageError("--source labels a camera alone: no images, and of the options for videos only.")
        from fullyconv.predict.camera_files import label_camera
        from fullyconv.predict.video_files import VideoOptions

        ready = predictor(model, device=device, tile=tile, max_memory=max_memory, precision=precision, quiet=quiet)
        made = label_camera(ready, source, out, VideoOptions(overlay, frames, every, smooth, quiet), seconds)
        paths = [str(p) for what, p in made]
        print(json.dumps({"files": paths, "failed": []}) if as_json else "\n".join(paths))
        return
    if not images or seconds:
        raise UsageError("Name the images to label, or a camera with --source 0 (--seconds is about cameras).")
    if tool and engine == "ray":
        raise UsageError(f"--as {tool} works in this process; leave out --engine ray.")
    if tool:
        _refuse_with_tool(tool, confidence, probabilities, bool(polygons), frames, resume)
    more, images = _further_models(images)
    if more and tool:
        raise UsageError(f"--as {tool} takes one network; leave the others out, or leave out --as.")
    sources = find_sources(images, out, options.resolution)
    for note in () if quiet else sources.notes:
        say(f"note: {note}")
    if tool and (large := sorted(sources.videos | sources.rasters)):
        raise UsageError(
            f"{printable(large[0])} is {'a video' if large[0] in sources.videos else 'read by windows, as maps are'}, "
            f"and --as {tool} is for photos; label it without --as."
        )
    how: dict[str, Any] = {"device": device, "tile": tile, "max_memory": max_memory, "precision": precision}
    how["engine"] = _engine(engine, len(sources.pairs), bool(sources.videos), bool(sources.rasters or max_memory))
    ready = predictor(model, **how, quiet=quiet)
    together = Ensemble([ready, *(predictor(str(m), **how, quiet=quiet) for m in more)]) if more else ready
    further = {name: Path(folder) for name, _, folder in (g.partition("=") for g in inputs or [])}
    if tool:
        reading = InputFiles(ready.inputs or ("rgb",), further)
        label_for_tool(tool, ready, sources.pairs, out, reading, as_json=as_json, quiet=quiet)
        return
    machines = _machines(engine, [model, *map(str, more)], ready, device, address, workers, cores)
    done = label_sources(together, sources, out, options, inputs=further, resume=resume, machines=machines)
    if as_json:
        print(json.dumps({"files": [str(p) for _, p in done.written], "failed": [printable(p) for p in done.failed]}))
    else:
        print("\n".join(str(p) for what, p in done.written if what != "overlay"))
    if done.failed:
        first = printable(done.failed[0])
        raise DataError(f"{len(done.failed)} of {done.images} images could not be labelled ({first}); see above.")


def _engine(asked: str, images: int, videos: bool, by_windows: bool) -> str:
    """ "auto" as torch where measuring engines would take longer than it can save, and for rasters, whose labels do not
    depend on where a window lies to the last bit."""
    from fullyconv.errors import UnknownName

    if asked not in ("auto", "torch", "onnxruntime", "ray"):
        raise UnknownName("engine", asked, ("auto", "torch", "onnxruntime", "ray"))
    if asked == "ray":
        return "torch"
    return "torch" if asked == "auto" and (by_windows or (images < MANY and not videos)) else asked


def _machines(
    engine: str, models: list[str], ready: Predictor, device: str, address: str, workers: int, cores: int
) -> Machines | None:
    """The machines to work on; UsageError for options without an engine, MissingExtra where it is not installed."""
    if engine != "ray":
        if address or workers or cores > 1:
            raise UsageError("--address, --workers and --cores are about --engine ray; add it, or leave them out.")
        return None
    from functools import partial

    from fullyconv.predict.machines import Machines
    from fullyconv.predict.ray_pool import RayPool, ray_or_missing

    ray_or_missing()
    tile = ready.tiling["tile"]
    start = partial(RayPool, address=address, workers=workers, cores=cores)
    where = device if device != "auto" else str(ready.device).partition(":")[0]
    return Machines(tuple(models), where, tuple(tile) if tile else None, start)


def _further_models(paths: list[Path]) -> tuple[list[Path], list[Path]]:
    """(runs, models and exported files that stand before the images, the images)."""
    from fullyconv.checkpoint import model_of

    first = 0
    while first < len(paths) and (
        paths[first].suffix == ".onnx"
        or (paths[first].is_dir() and (model_of(paths[first]) / "MANIFEST.json").is_file())
    ):
        first += 1
    if first == len(paths):
        raise UsageError("Name the images after the networks: fullyconv predict RUN RUN photos/ -o out/.")
    return paths[:first], paths[first:]


def _refuse_with_tool(tool: str, *others: bool) -> None:
    """UsageError for options that are about label maps."""
    from fullyconv.annotating import require_format

    require_format(tool)
    names = ("--confidence", "--probabilities", "--polygons", "--frames", "--resume")
    for name, given in zip(names, others, strict=True):
        if given:
            raise UsageError(f"--as {tool} writes annotations alone; leave out {name}, or leave out --as.")
