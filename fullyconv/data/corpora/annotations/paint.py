"""What the readers of annotations share: classes from names, painting in order, files named by a foreign file."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, final
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

from fullyconv import files, images
from fullyconv.data.base import Record
from fullyconv.data.corpora.annotations.raster import Patch, Size
from fullyconv.data.corpora.layout import SUFFIXES
from fullyconv.errors import DataError, MissingInput, UsageError, printable
from fullyconv.files.outputs import safe_name
from fullyconv.taxonomy import Colour, Taxonomy, voc_palette

__all__ = ["BACKGROUND", "MOST_PAINTED", "Painter", "classes_of", "find_image", "paint", "read_rgb", "within_measure"]

BACKGROUND = "background"
IGNORED = -1


def classes_of(names: Iterable[str], colours: Mapping[str, Colour] | None = None) -> tuple[Taxonomy, dict[str, int]]:
    """A taxonomy of background and `names` in their order, and name -> id; a class named background is class 0."""
    listed = list(dict.fromkeys(names))
    nothing = [n for n in listed if n.lower() in (BACKGROUND, "_background_")]
    rest = [n for n in listed if n not in nothing]
    every = (BACKGROUND, *rest)
    default = voc_palette(len(every))
    palette = tuple((colours or {}).get(n, default[k]) for k, n in enumerate(every))
    ids = {n: k for k, n in enumerate(every)}
    return Taxonomy(every, palette), {**ids, **dict.fromkeys((*nothing, "_background_"), 0)}


MOST_PAINTED = 1 << 32  # pixels of all shapes of an image, or 100 times the image's: some ten seconds


def paint(
    size: Size, regions: Iterable[tuple[int, Patch]], taxonomy: Taxonomy, most: int = MOST_PAINTED
) -> NDArray[Any]:
    """`regions` (id or IGNORED, patch) painted one over the other on background: later ones cover earlier ones."""
    labels = np.zeros(size, np.uint8 if taxonomy.ignore <= 255 else np.uint16)
    for k, patch in within_measure(size, regions, most):
        patch.of(labels)[patch.covered] = taxonomy.ignore if k == IGNORED else k
    return labels


def within_measure(
    size: Size, regions: Iterable[tuple[int, Patch]], most: int = MOST_PAINTED
) -> Iterator[tuple[int, Patch]]:
    """`regions` as they come; DataError once their boxes are more pixels than any drawing has: `most`, or 100 times the
    image's."""
    most, worked = max(most, 100 * size[0] * size[1]), 0
    for number, (k, patch) in enumerate(regions):
        worked += max(patch.covered.size, patch.worked)
        if worked > most:
            raise DataError(
                f"Its first {number + 1} shapes span {worked} pixels, {worked // (size[0] * size[1])} times the "
                f"image's {size[0]}x{size[1]} (HxW); {most} are painted at most: leave out shapes that others cover."
            )
        yield k, patch


@final
@dataclass(frozen=True)
class Painter:
    """Reads labels by painting: `entries[name]` is what a record's file says, `draw` turns it into (size, patches)."""

    taxonomy: Taxonomy
    entries: Mapping[str, Any]
    draw: Callable[[Any, Mapping[str, int]], tuple[Size, Iterable[tuple[int, Patch]]]]
    ids: Mapping[str, int]

    def __call__(self, record: Record, head: str) -> NDArray[Any]:
        try:
            size, regions = self.draw(self.entries[record.name], self.ids)
            return paint(size, regions, self.taxonomy)
        except DataError as error:
            raise DataError(f"{printable(record.labels.get(head, record.name))}, {record.name}: {error}") from error
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
            raise DataError(
                f"{printable(record.labels.get(head, record.name))}, {record.name}: a shape is not as its format says "
                f"({type(error).__name__}: {printable(error)}); correct it where it was drawn."
            ) from error


def listed_name(name: str, file: Path) -> str:
    """What a listed image is called: as it is listed, or by its file where it is listed by an address or by a path of
    another machine."""
    plain = name.replace("\\", "/")
    away = PurePosixPath(plain).is_absolute() or PureWindowsPath(plain).drive or "://" in plain
    return file.name if away or file.suffix != PurePosixPath(plain).suffix else name


def unique_names(listed: Sequence[str]) -> list[str]:
    """A record name for each image: its path without suffix, or (a/1_jpg, a/1_png) with it where stems are shared."""
    plain = [PurePosixPath(safe_name(n.replace("\\", "/"))) for n in listed]
    short = [(p.with_suffix("") if p.suffix.lower() in SUFFIXES else p).as_posix() for p in plain]
    shared = Counter(short)
    named: dict[str, int] = dict.fromkeys((n for n in short if shared[n] == 1), 1)
    found: list[str] = []
    for path, name in zip(plain, short, strict=True):
        if shared[name] > 1:
            name = bare = f"{name}_{path.suffix[1:]}" if path.suffix.lower() in SUFFIXES else name
            while name in named:
                named[bare] = named.get(bare, 1) + 1
                name = f"{bare}-{named[bare]}"
            named[name] = 1
        found.append(name)
    return found


def refuse_shared(found: Iterable[tuple[str, Path]], source: Path) -> None:
    """MissingInput where images of different names turned out to be one file: whose labels are they?"""
    stated: dict[Path, str] = {}
    for name, file in found:
        other = stated.setdefault(file, name)
        if other != name:
            raise MissingInput(
                f"{printable(source)} names {printable(other)[:200]!r} and {printable(name)[:200]!r}, and "
                f"only {printable(file)} is there; put both images there under the folders that it names."
            )


def checked_size(height: object, width: object) -> Size:
    """(H, W) from a foreign file, or DataError. Whole numbers may be written as 480.0."""
    height, width = (int(v) if isinstance(v, float) and v.is_integer() else v for v in (height, width))
    if type(height) is int and type(width) is int and min(height, width) > 0 and height * width <= images.pixel_cap():
        return height, width
    text = "x".join(
        "?" if isinstance(v, int) and v.bit_length() > 99 else printable(str(v)[:20]) for v in (height, width)
    )
    raise DataError(f"The size {text} (HxW) is no image's; correct it.")


def inside(folder: Path, name: str) -> Path:
    """`folder`/`name` for a name from a foreign file; DataError if it leads out of the folder."""
    plain = name.replace("\\", "/")
    if _leads_out(plain):
        raise DataError(
            f"The image {printable(name)[:200]!r} lies outside {printable(folder)}; put it inside and export again."
        )
    return folder / plain


def find_image(name: str, folders: Sequence[Path], by_name: Mapping[str, Path], source: Path) -> Path:
    """The image a foreign file names: below one of `folders`, else the one file of that name, however the path before
    it was written on another machine (a drive, an address, %20 for a blank, capitals)."""
    meant = _names_meant(name)
    for plain in meant:
        for folder in folders:
            if not _leads_out(plain) and os.path.isfile(folder / plain):  # False for names that no file can have
                return folder / plain
    bare = [PurePosixPath(plain).name for plain in meant]
    found = next((by_name[n] for of in (str, str.lower) for n in map(of, bare) if n in by_name), None)
    if found is None:
        inside(folders[0], name)
        raise MissingInput(
            f"{printable(source)} names the image {printable(name)[:200]!r}, which is not in "
            f"{printable(folders[0])}; put it there, or say where the images are (KIND,images=PATH:EXPORT)."
        )
    return found


def _names_meant(name: str) -> list[str]:
    """A name as it stands with / for \\, then as the path of an address, then with its %20 as blanks."""
    plain = name.replace("\\", "/")
    path = re.sub(r"[?#].*", "", plain) if re.match(r"\w{2,}://", plain) else plain
    return list(dict.fromkeys((plain, path, unquote(path))))


def _leads_out(plain: str) -> bool:
    path = PurePosixPath(plain)
    drive = PureWindowsPath(plain).drive
    return not plain or path.is_absolute() or bool(drive) or ".." in path.parts or "\0" in plain


def by_name(files: Iterable[Path]) -> dict[str, Path]:
    """file name -> file, for the names that only one file has; in small letters too, where only one has it so."""
    exact: dict[str, list[Path]] = {}
    small: dict[str, list[Path]] = {}
    for file in files:
        exact.setdefault(file.name, []).append(file)
        small.setdefault(file.name.lower(), []).append(file)
    return {n: some[0] for found in (small, exact) for n, some in found.items() if len(some) == 1}


def image_folder(root: Path, images_option: str | Path | None) -> Path:
    """Where images are looked for: the folder a user names, else `root`'s."""
    if images_option is None:
        return root
    folder = Path(images_option)
    if not folder.is_dir():
        raise MissingInput(f"{printable(folder)} is no folder; give the one with the images (images=PATH).")
    return folder


def one_of(value: str, known: Sequence[str], what: str) -> str:
    if value not in known:
        raise UsageError(f"{what} is {printable(value)!r}; choose {' or '.join(known)}.")
    return value


def read_rgb(record: Record, modality: str) -> NDArray[Any]:
    """A record's image H W 3; a labelme file's own image where its input is the JSON file."""
    file = record.inputs[modality]
    if file.suffix.lower() in SUFFIXES:
        return images.read_image(file)
    import base64
    import binascii

    try:
        data = base64.b64decode(files.read_json(file)["imageData"], validate=True)
    except (KeyError, TypeError, binascii.Error, ValueError) as error:
        raise DataError(f"{printable(file)} holds no image and names none that is there; add the image.") from error
    return images.read_image(data)
