"""`fullyconv hha`: depth pictures -> HHA pictures."""

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
    depth: Annotated[list[Path], typer.Argument(help="Depth pictures (16-bit PNG or TIFF, 0 = missing) or folders.")],
    camera: Annotated[str, typer.Option(help="'nyud', or a JSON file with fx fy cx cy in pixels (1-based).")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the HHA pictures.")],
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

    pairs = _outputs(depth, out)
    unit = _units_a_metre(depth_unit)
    out.mkdir(parents=True, exist_ok=True)
    for i, (source, target) in enumerate(pairs):
        _encode_file(source, target, camera, unit, _raw_of(raw, source, target.relative_to(out), len(pairs)))
        if sys.stderr.isatty():
            print(f"\r{i + 1}/{len(pairs)}", end="\n" if i + 1 == len(pairs) else "", file=sys.stderr)
        if not as_json:
            print(target)
    if as_json:
        print(json.dumps({"files": [str(target) for _, target in pairs]}))


def _outputs(sources: Sequence[Path], out: Path) -> list[tuple[Path, Path]]:
    """Every depth file with the PNG it becomes: its stem, below its folder's own tree when a folder was given."""
    from fullyconv.errors import MissingInput, UsageError

    pairs: list[tuple[Path, Path]] = []
    for source in sources:
        if source.is_dir():
            files = sorted(
                p for p in source.rglob("*") if p.suffix.lower() in (".png", ".tif", ".tiff") and p.is_file()
            )
            if not files:
                raise MissingInput(f"{source} holds no PNG or TIFF; give depth pictures or a folder of them.")
            pairs += [(p, (out / p.relative_to(source)).with_suffix(".png")) for p in files]
        elif source.exists():
            pairs.append((source, out / f"{source.stem}.png"))
        else:
            raise MissingInput(f"{source} does not exist; give depth pictures or a folder of them.")
    if len({target for _, target in pairs}) < len(pairs):
        raise UsageError("Two depth pictures have the same name and would overwrite each other; run them apart.")
    clash = next((s for s, t in pairs if t.exists() and t.samefile(s)), None)
    if clash is not None:
        raise UsageError(f"{clash} would be overwritten by its own HHA picture; choose another folder with -o.")
    return pairs


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
        raise UsageError(f"--raw {raw} is one file but there are {count} depth pictures; give a folder of raw depth.")
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


def _encode_file(source: Path, target: Path, camera: str, unit: float, raw: Path | None) -> None:
    from fullyconv.data.hha import encode, read_camera, read_depth
    from fullyconv.images import encode_png

    depth = read_depth(source, unit)
    _doubt(source, depth[depth > 0])
    intrinsics = read_camera(camera, (depth.shape[0], depth.shape[1]))
    picture = encode(depth, intrinsics, None if raw is None else read_depth(raw, unit))
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(encode_png(picture))
