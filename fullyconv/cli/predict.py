"""`fullyconv predict`: pictures in, label maps of the same names and sizes out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fullyconv.cli.options import MaxPixels

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["predict"]

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")


def predict(
    model: Annotated[str, typer.Argument(help="Model or run directory.")],
    pictures: Annotated[list[Path], typer.Argument(help="Pictures, or folders of them.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the label maps: NAME.png, palette of classes.")],
    overlay: Annotated[bool, typer.Option(help="Also the picture under its labels: overlay/NAME.jpg.")] = True,
    confidence: Annotated[bool, typer.Option("--confidence", help="Also confidence/NAME.png, 0..255.")] = False,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Also probabilities/NAME.npy, float32 K H W.")
    ] = False,
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", metavar="NAME=FOLDER", help="Where a further modality lies, such as depth=FOLDER."),
    ] = None,
    tile: Annotated[int, typer.Option(help="Compute in tiles of this many pixels; 0: whole images.")] = 0,
    max_memory: Annotated[
        str, typer.Option(help="Choose the tile for this much, such as 2GiB.", show_default=False)
    ] = "",
    precision: Annotated[
        str, typer.Option(help="auto, fp32 or bf16: auto takes bf16 where the processor has it and it is quicker.")
    ] = "auto",
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto.")] = "auto",
    max_pixels: MaxPixels = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of a line a file.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Label every pixel of pictures with a trained model."""
    import json
    import sys

    from fullyconv.cli.evaluate import predictor, progress_line
    from fullyconv.errors import DataError, MissingInput, printable

    pairs = outputs(pictures, out)
    ready = predictor(model, device=device, tile=tile, max_memory=max_memory, precision=precision, quiet=quiet)
    further = _further(ready.inputs or ("rgb",), inputs or [])
    line = progress_line("labelling", quiet)
    written, failed = [], []
    for done, (source, name) in enumerate(pairs, 1):
        try:
            image = _read(source, ready.inputs or ("rgb",), further)
            written += _write(ready, image, out, name, overlay, confidence, probabilities)
        except (DataError, MissingInput) as error:  # one damaged picture does not end a folder of them
            print(f"error: {error}", file=sys.stderr)
            failed.append(printable(source))
        if line:
            line(done, len(pairs))
    if as_json:
        print(json.dumps({"files": [str(p) for p in written], "failed": failed}))
    else:
        print("\n".join(str(p) for p in written if p.parent != out / "overlay"))
    if failed:
        raise DataError(f"{len(failed)} of {len(pairs)} pictures could not be labelled ({failed[0]}); see above.")


def outputs(sources: Sequence[Path], out: Path) -> list[tuple[Path, Path]]:
    """Every picture with the name (relative, without suffix) its outputs get. Refuses clashes before work starts."""
    from fullyconv.errors import MissingInput, UsageError

    pairs: list[tuple[Path, Path]] = []
    for source in sources:
        if source.is_dir():
            files = sorted(p for p in source.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
            files = [p for p in files if not p.is_relative_to(out)] if out != source else files
            if not files:
                raise MissingInput(f"{source} holds no pictures ({', '.join(SUFFIXES)}); give a folder of pictures.")
            pairs += [(p, p.relative_to(source).with_suffix("")) for p in files]
        elif source.exists():
            pairs.append((source, Path(source.stem)))
        else:
            raise MissingInput(f"{source} does not exist; give pictures or a folder of them.")
    names = [name for _, name in pairs]
    if twice := next((n for n in names if names.count(n) > 1), None):
        raise UsageError(f"Two pictures are named {twice} and would share a label map; label them into two folders.")
    for source, name in pairs:
        target = out / f"{name}.png"
        if target.exists() and target.samefile(source):
            raise UsageError(f"{source} would be overwritten by its own label map; choose another folder with -o.")
    return pairs


def _further(needed: Sequence[str], given: Sequence[str]) -> dict[str, Path]:
    """Folders of the modalities after the first."""
    from fullyconv.errors import UsageError

    folders = {name: Path(folder) for name, _, folder in (g.partition("=") for g in given)}
    if set(folders) != set(needed[1:]):
        wanted = " ".join(f"--input {m}=FOLDER" for m in needed[1:]) or "no --input"
        raise UsageError(f"This network takes {', '.join(needed)}: give pictures for {needed[0]} and {wanted}.")
    return folders


def _read(source: Path, needed: Sequence[str], further: dict[str, Path]) -> Any:
    from fullyconv.errors import MissingInput

    planes = {needed[0]: _plane(source, needed[0])}
    for modality, folder in further.items():
        found = next((p for s in SUFFIXES if (p := folder / f"{source.stem}{s}").is_file()), None)
        if found is None:
            raise MissingInput(f"{folder} has no {modality} picture named {source.stem}; name both alike.")
        planes[modality] = _plane(found, modality)
    return planes if further or needed[0] in ("depth", "bands") else planes[needed[0]]


def _plane(file: Path, modality: str) -> NDArray[Any]:
    """Depth as stored (one band), bands as stored; everything else as RGB."""
    from fullyconv.data.bands import read_bands
    from fullyconv.images import read_image

    if modality == "bands":
        return read_bands(file)
    return read_image(file, mode="bands")[..., :1] if modality == "depth" else read_image(file)


def _write(
    ready: Any, image: Any, out: Path, name: Path, overlay: bool, confidence: bool, probabilities: bool
) -> list[Path]:
    """Write what was asked for one image; the main head's label map under the picture's own name."""
    import numpy as np

    from fullyconv.images import encode_label, encode_png

    found = ready.confident_labels(image) if confidence else {h: (v, None) for h, v in ready.labels(image).items()}
    files: list[tuple[Path, bytes]] = []
    for i, (head, (labels, sure)) in enumerate(found.items()):
        folder = Path() if i == 0 else Path(head)
        palette = ready.model.taxonomies[head].palette
        files.append((folder / f"{name}.png", encode_label(labels, palette)))
        if overlay and i == 0:
            files.append((Path("overlay") / f"{name}.jpg", overlaid(image, labels, palette)))
        if sure is not None:
            files.append(
                (Path("confidence") / folder / f"{name}.png", encode_png(np.rint(sure * 255).astype(np.uint8)))
            )
    if probabilities:
        files += _probabilities(ready, image, name)
    return [_written(out / path, data) for path, data in files]


def _probabilities(ready: Any, image: Any, name: Path) -> list[tuple[Path, bytes]]:
    from io import BytesIO

    import numpy as np
    import torch

    scores = ready.scores(image)
    files = []
    for i, (head, s) in enumerate((scores if isinstance(scores, dict) else {"": scores}).items()):
        data = BytesIO()
        np.save(data, torch.from_numpy(s).softmax(0).numpy())
        files.append((Path("probabilities") / (Path() if i == 0 else Path(head)) / f"{name}.npy", data.getvalue()))
    return files


def overlaid(image: Any, labels: NDArray[Any], palette: Sequence[Sequence[int]]) -> bytes:
    """The picture with its labels' colours over it, half and half, as JPEG."""
    import numpy as np

    from fullyconv.evaluation.keep import jpeg, viewable

    shown = viewable(next(iter(image.values())) if isinstance(image, dict) else image)
    colours = np.asarray(palette, np.uint16)[labels]
    return jpeg(((shown.astype(np.uint16) + colours) // 2).astype(np.uint8), 90)


def _written(path: Path, data: bytes) -> Path:
    from fullyconv.files import atomic_write

    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, data)
    return path
