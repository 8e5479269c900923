"""VRTs, GDAL's tables of other files, read by us and told to GDAL anew.

GDAL's own reader of them takes elements in any capitals, and runs, warps or fetches what they ask for. So a file is
parsed here, only what a mosaic of TIFFs needs is kept, and GDAL sees that alone, with the files' full paths.
"""

from __future__ import annotations

import math
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from fullyconv.errors import DataError, printable
from fullyconv.files.reading import read_ends, read_text

__all__ = ["MOST_BANDS", "TIFFS", "mosaic"]

MOST = 64 << 20  # bytes of a VRT
MOST_BANDS = 4096
MOST_TIMES = 100  # that a band's files together may cover it
MOST_SIDE = (1 << 31) - 1  # GDAL's own
TIFFS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_TEXT = {  # what stands for itself, wherever GDAL writes it
    "SRS", "GeoTransform", "Metadata", "MDI", "GCPList", "GCP", "NoDataValue", "NODATA", "ColorInterp", "ColorTable",
    "Entry", "Description", "UnitType", "Offset", "Scale", "CategoryNames", "Category", "SourceBand", "SrcRect",
    "DstRect", "ScaleOffset", "ScaleRatio", "ColorTableComponent", "Exponent", "SrcMin", "SrcMax", "DstMin", "DstMax",
    "LUT", "UseMaskBand", "Clamp", "SourceProperties",
}  # fmt: skip
_HOLDING = {"VRTDataset", "VRTRasterBand", "MaskBand", "SimpleSource", "ComplexSource", *_TEXT}
_LEFT_OUT = {"OverviewList", "Overview", "Histograms", "BlockXSize", "BlockYSize", "HideNoDataValue"}
_SPARED = {"blockXSize", "blockYSize", "BlockXSize", "BlockYSize", "shared"}  # attributes that GDAL does without
_COUNTED = ("rasterXSize", "rasterYSize", "RasterXSize", "RasterYSize", "xOff", "yOff", "xSize", "ySize")


def mosaic(path: Path) -> tuple[str, list[Path]]:
    """(a VRT of the same pixels that names its files by their full paths, those files).

    Raises DataError for one that is made of other files than TIFFs of this machine, or that computes or warps.
    """
    text = read_text(path, MOST)
    if "<!DOCTYPE" in text.upper():
        raise DataError(f"{printable(path)} declares a document type, which GDAL does not write; build it anew.")
    try:
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError, RecursionError) as error:
        raise DataError(
            f"{printable(path)} is no VRT ({printable(error)[:100]}); build it with gdalbuildvrt."
        ) from error
    if root.tag != "VRTDataset" or root.get("subClass"):
        raise _computes(path)
    if (bands := len(root.findall("VRTRasterBand"))) > MOST_BANDS:
        raise DataError(f"{printable(path)} has {bands} bands; at most {MOST_BANDS} are read: leave some out.")
    files: list[Path] = []
    known: dict[tuple[str, bool], Path] = {}
    made = _kept(path, root, files, known)
    _refuse_overlaps(path, root)
    if not files:
        raise DataError(f"{printable(path)} names no plain file; build it with gdalbuildvrt from TIFFs.")
    return ElementTree.tostring(made, "unicode"), files


def _computes(path: Path) -> DataError:
    return DataError(f"{printable(path)} computes or warps; write it as a GeoTIFF first (gdal_translate).")


def _kept(path: Path, one: Element, files: list[Path], known: dict[tuple[str, bool], Path]) -> Element:
    if one.get("subClass"):
        raise _computes(path)
    made = Element(one.tag, {k: v for k, v in one.attrib.items() if k not in _SPARED})
    made.text = one.text if one.tag in _TEXT else None
    _refuse_endless(path, one)
    for inner in one:
        if inner.tag == "SourceFilename":
            name = Element("SourceFilename", relativeToVRT="0")
            name.text = str(_part(path, inner, files, known))
            made.append(name)
        elif inner.tag == "Metadata" and inner.get("format"):
            continue  # XML within
        elif inner.tag in _HOLDING:
            made.append(_kept(path, inner, files, known))
        elif inner.tag not in _LEFT_OUT:
            raise _computes(path)
    return made


def _refuse_endless(path: Path, one: Element) -> None:
    """DataError for sizes and places that are no finite numbers, or none that GDAL counts by."""
    for key in _COUNTED:
        if (value := one.get(key)) is not None:
            try:
                sound = math.isfinite(float(value)) and abs(float(value)) <= MOST_SIDE
            except ValueError:
                sound = False
            if not sound:
                raise DataError(f"{printable(path)} has {key} = {printable(value)[:40]}; build it with gdalbuildvrt.")


def _refuse_overlaps(path: Path, root: Element) -> None:
    """DataError where each window would be read from one file over and over."""
    area = float(root.get("rasterXSize", 0)) * float(root.get("rasterYSize", 0))
    for band in root.iter("VRTRasterBand"):
        shown = 0.0
        for source in band:
            place = source.find("DstRect")
            if source.tag in ("SimpleSource", "ComplexSource"):
                sides = [area, 1.0] if place is None else [float(place.get(k, 0)) for k in ("xSize", "ySize")]
                shown += min(abs(sides[0] * sides[1]), area)
        if shown > MOST_TIMES * area:
            raise DataError(f"{printable(path)} shows files over {MOST_TIMES} times over its pixels; build it anew.")


def _part(path: Path, one: Element, files: list[Path], known: dict[tuple[str, bool], Path]) -> Path:
    """The file that a source names; whatever else GDAL would take for a name is refused."""
    name, relative = (one.text or "").strip(), one.get("relativeToVRT") == "1"
    if (name, relative) in known:
        return known[name, relative]
    if name.lower().startswith("/vsi") or "://" in name or "\0" in name:
        raise DataError(f"{printable(path)} names files that lie elsewhere than on this machine; fetch them first.")
    part = (path.parent / name if relative else Path(name)).absolute()
    if not name or read_ends(part, 4) not in TIFFS:
        raise DataError(f"{printable(path)} is made of {printable(part)}, which is no TIFF; only those are read.")
    known[name, relative] = part
    files.append(part)
    return part
