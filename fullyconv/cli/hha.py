"""`fullyconv hha`: depth images -> HHA images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["hha"]


def hha(
    depth: Annotated[list[Path], typer.Argument(help="Depth images (16-bit PNG or TIFF, 0 = missing) or folders.")],
    camera: Annotated[str, typer.Option(help="'nyud', or a JSON file with fx fy cx cy in pixels (1-based).")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the HHA images.")],
    depth_unit: Annotated[
        float,
        typer.Option(help="Stored units a metre: 1000 for millimetres, 10000 for NYUDv2; or metres a unit: 0.001."),
    ] = 1000.0,
    raw: Annotated[
        Path | None,
        typer.Option(help="The unfilled depth (a file, or a folder of the same names): its holes are left out."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of a line a file.")] = False,
) -> None:
    """Encode depth as disparity, height above ground and angle with gravity (8-bit RGB PNG)."""
    import json
    import sys

    from fullyconv.files.outputs import Outputs
    from fullyconv.terminal import progress_line, say

    pairs, notes = _outputs(depth, out)
    for note in notes:
        say(f"note: {note}")
    unit = _units_a_metre(depth_unit)
    raws = [_raw_of(raw, source, Path(f"{name}.png"), len(pairs)) for source, name in pairs]
    plan = Outputs(out, [*(source for source, _ in pairs), *(r for r in raws if r is not None)])
    names = [plan.claim(f"{name}.png") for _, name in pairs]
    line = None if as_json or not sys.stderr.isatty() else progress_line("encoding", False)
    written = []
    for (source, _), unfilled, name in zip(pairs, raws, names, strict=True):
        written.append(plan.write(name, _encoded(source, camera, unit, unfilled)))
        if line:
            line(len(written), len(pairs))
        if not as_json:
            print(written[-1])
    if as_json:
        print(json.dumps({"files": [str(target) for target in written]}))


def _outputs(sources: Sequence[Path], out: Path) -> tuple[list[tuple[Path, str]], list[str]]:
    """Every depth file with the name of its PNG: its stem, below its folder's own tree when a folder was given; and
    notes of what the folders hold besides."""
    from fullyconv.predict.sources import named_sources

    return named_sources(sources, out, (".png", ".tif", ".tiff"), "an HHA image")


def _raw_of(raw: Path | None, source: Path, name: Path, count: int) -> Path | None:
    from fullyconv.errors import MissingInput, UsageError

    if raw is None:
        return None
    if not raw.exists():
        raise MissingInput(f"{raw} does not exist; give the unfilled depth, a file or a folder of the same names.")
    if raw.is_dir():
        found = next((p for p in (raw / name, raw / source.name) if p.is_file()), None)
        if found is None:
            raise MissingInput(f"{raw} holds no raw depth for {source} ({raw / name}); name both alike.")
        return found
    if count > 1:
        raise UsageError(f"--raw {raw} is one file but there are {count} depth images; give a folder of raw depth.")
    return raw


def _doubt(source: Path, metres: NDArray[np.float64]) -> None:
    """Say on stderr what looks like a wrong unit: HHA is made for rooms and streets."""
    import sys

    import numpy as np

    if not metres.size:
        print(f"warning: {source} has no depth at all: every pixel is 0.", file=sys.stderr)
    elif not 0.2 <= (middle := float(np.median(metres))) <= 200:
        print(f"warning: half of {source} is within {middle:.3g} m; check --depth-unit.", file=sys.stderr)


def _units_a_metre(value: float) -> float:
    from fullyconv.errors import UsageError

    if not 0 < value < float("inf"):
        raise UsageError(f"--depth-unit {value} is not a unit; give stored units a metre, such as 1000.")
    return value if value >= 1 else 1 / value


def _encoded(source: Path, camera: str, unit: float, raw: Path | None) -> bytes:
    """The HHA image of a depth file as PNG."""
    from fullyconv.data.hha import encode, read_camera, read_depth
    from fullyconv.images import encode_png

    depth = read_depth(source, unit)
    _doubt(source, depth[depth > 0])
    intrinsics = read_camera(camera, (depth.shape[0], depth.shape[1]))
    return encode_png(encode(depth, intrinsics, None if raw is None else read_depth(raw, unit)))
