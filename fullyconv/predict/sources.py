"""What is labelled: image files, rasters and videos below what was given, and how one becomes the network's input."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from numpy.typing import NDArray

from fullyconv.data.corpora.bands import read_bands
from fullyconv.data.corpora.folder_parts import label_maps
from fullyconv.data.validity import read_valid
from fullyconv.errors import DataError, MissingExtra, MissingInput, UsageError, printable
from fullyconv.files.listing import Listing, list_below
from fullyconv.files.outputs import folded_name, safe_name
from fullyconv.images import read_image
from fullyconv.rasters.gdal import BIG, FINEST, kind_of, read_by_windows
from fullyconv.rasters.levels import Resolution
from fullyconv.rasters.microscopy import SLIDES
from fullyconv.rasters.zarr_files import is_zarr

__all__ = ["InputFiles", "Sources", "find_sources", "images_in", "named_sources"]

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
RASTERS = (*SUFFIXES, ".vrt", *BIG, *SLIDES)
VIDEOS = (".mp4", ".mkv", ".mov", ".avi", ".webm", ".m4v")


@final
@dataclass(frozen=True)
class Sources:
    """(file, name of its results) of everything to label; which of them are videos, which are read by windows; and
    what a user should know of the rest."""

    pairs: Sequence[tuple[Path, str]]
    videos: frozenset[Path] = frozenset()
    rasters: frozenset[Path] = frozenset()
    notes: Sequence[str] = ()


def find_sources(given: Sequence[Path], out: Path, resolution: Resolution = FINEST) -> Sources:
    """Images, rasters and videos among `given` files and below `given` folders, none of results in `out`; a Zarr, which
    is a folder, is one of them.

    MissingInput for what is not there or holds no images, UsageError for two of one name, MissingExtra for what an
    optional package reads; all before anything is labelled.
    """
    pairs, notes = named_sources(given, out, (*RASTERS, *VIDEOS), stores=is_zarr)
    rasters, note = _rasters(pairs, resolution)
    return Sources(pairs, _videos(pairs), rasters, (*notes, *note))


def named_sources(
    sources: Sequence[Path],
    out: Path,
    suffixes: Sequence[str] = SUFFIXES,
    what: str = "a label map",
    stores: Callable[[Path], bool] | None = None,
) -> tuple[list[tuple[Path, str]], list[str]]:
    """Every image with the name (relative, without suffix) its outputs get, and notes of what folders hold besides.
    stores: says which folders count as one image.
    Refuses clashes before work starts; takes time in proportion to the images."""
    pairs: list[tuple[Path, str]] = []
    notes: list[str] = []
    for source in sources:
        if is_zarr(source):
            pairs.append((source, source.stem))
        elif source.is_dir():
            listed = images_in(source, suffixes, out, stores)
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


def images_in(
    folder: Path, suffixes: Sequence[str], out: Path, stores: Callable[[Path], bool] | None = None
) -> Listing:
    """The images below a folder, without label maps and those of the folder of results inside it; MissingInput for
    none. stores: as of `named_sources`."""
    same = out.is_dir() and out.samefile(folder)
    found = list_below(folder, suffixes, None if same else out, stores)
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


def _videos(pairs: Sequence[tuple[Path, str]]) -> frozenset[Path]:
    """The sources that are videos; MissingExtra where PyAV is not installed."""
    found = frozenset(source for source, _ in pairs if source.suffix.lower() in VIDEOS)
    if found and importlib.util.find_spec("av") is None:
        raise MissingExtra(f"Reading {printable(min(found))}", "video", "av")
    return found


def _needs(path: Path, asked: Resolution) -> tuple[str, str, bool]:
    """(module that reads `path` by windows, its extra, whether it could be read whole instead); ("", "", True) for what
    is read whole."""
    kind = kind_of(path, asked)
    if kind == "geo":
        return "rasterio", "geo", read_by_windows(path)[1]
    module = {"zarr": "zarr", "slide": "tiffslide", "tiff": "tifffile"}.get(kind, "")
    return module, "zarr" if kind == "zarr" else "slides", kind in ("", "tiff") and not asked


def _rasters(pairs: Sequence[tuple[Path, str]], asked: Resolution) -> tuple[frozenset[Path], list[str]]:
    """The sources that are read by windows. Without rasterio those that can be read whole are, which a note says."""
    found, plain = set(), []
    for source, _ in pairs:
        try:
            module, extra, whole = _needs(source, asked)
        except (DataError, MissingInput):
            continue  # the decoder names what is wrong with it
        lacking = [m for m in (module, "rasterio") if module and importlib.util.find_spec(m) is None]
        if lacking and not whole:
            raise MissingExtra(f"Reading {printable(source)} by windows", extra, lacking[0])
        if module and not lacking:
            found.add(source)
        elif module:
            plain.append(source)
    if not plain:
        return frozenset(found), []
    note = (
        f"{len(plain)} images say where on a map they lie ({printable(plain[0])}), and their label maps will not: "
        "install it with  pip install 'fullyconv[geo]'."
    )
    return frozenset(found), [note]


@final
class InputFiles:
    """How an image file, and those of its name in the folders of further modalities, become the network's input."""

    def __init__(self, modalities: Sequence[str], folders: Mapping[str, Path]) -> None:
        """modalities: in the network's order. UsageError unless `folders` has one for each but the first."""
        if set(folders) != set(modalities[1:]):
            wanted = " ".join(f"--input {m}=FOLDER" for m in modalities[1:]) or "no --input"
            raise UsageError(
                f"This network takes {', '.join(modalities)}: give images for {modalities[0]} and {wanted}."
            )
        self._first, self._folders = modalities[0], dict(folders)
        self.invalid: dict[Path, tuple[int, int]] = {}  # what was read: (pixels without data, pixels)

    def files(self, source: Path) -> list[Path]:
        """The files that are read for `source`, as far as they are there."""
        further = (_beside(source, folder) for folder in self._folders.values())
        return [source, *(file for file in further if file is not None)]

    def read(self, source: Path) -> Any:
        """What a `Predictor` takes: H W C, or {modality: H W C}."""
        planes = {self._first: self._plane(source, self._first)}
        for modality, folder in self._folders.items():
            found = _beside(source, folder)
            if found is None:
                raise MissingInput(
                    f"{printable(folder)} has no {modality} image named {printable(source.stem)}; name both alike."
                )
            planes[modality] = self._plane(found, modality)
        return planes if self._folders or self._first in ("depth", "bands") else planes[self._first]

    def _plane(self, file: Path, modality: str) -> NDArray[Any]:
        """Depth as stored (one band), bands as stored; everything else as RGB."""
        if modality == "bands":
            image = read_bands(file)
        else:
            image = read_image(file, mode="bands")[..., :1] if modality == "depth" else read_image(file)
        image, invalid = read_valid(image, file)
        if invalid is not None:
            self.invalid[file] = int(invalid.sum()), int(invalid.size)
        return image


def invalid_note(invalid: Mapping[Path, tuple[int, int]], most: int = 3) -> str:
    """Which images hold pixels without data, and what their labels are worth there; "" where none does."""
    shown = [f"{printable(f)}: {n} of {whole} pixels" for f, (n, whole) in sorted(invalid.items())[:most]]
    more = f", and {len(invalid) - most} more" if len(invalid) > most else ""
    if not invalid:
        return ""
    return (
        f"{len(invalid)} images hold pixels without data ({'; '.join(shown)}{more}): NaN, infinite, or declared so; "
        "the network saw the mean of the others there, and the labels there mean nothing."
    )


def _beside(source: Path, folder: Path) -> Path | None:
    return next((p for s in SUFFIXES if (p := folder / f"{source.stem}{s}").is_file()), None)
