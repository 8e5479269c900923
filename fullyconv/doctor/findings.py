"""A finding, and the table of all kinds of findings with their levels and remedies."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final

from fullyconv.errors import printable

__all__ = ["KINDS", "Finding", "Level", "finding"]

Level = Literal["error", "warning", "info"]


@final
@dataclass(frozen=True)
class Finding:
    """One thing that is wrong: `files` concerned (two for a pair), the `message` with its value, the `remedy`.

    count: pixels or images concerned, 0 where neither applies; place: (row, column) to look at.
    """

    kind: str
    level: Level
    files: tuple[Path, ...]
    message: str
    remedy: str
    count: int = 0
    value: str = ""
    place: tuple[int, int] | None = None

    def to_json(self) -> dict[str, Any]:
        """{"kind", "level", "file" or "files", "message", "remedy", "count", "value"}."""
        names = [printable(f) for f in self.files]
        where: dict[str, Any] = {"file": names[0] if names else ""} if len(names) < 2 else {"files": names}
        rest = {"message": self.message, "remedy": self.remedy, "count": self.count, "value": self.value}
        return {"kind": self.kind, "level": self.level, **where, **rest}


KINDS: dict[str, tuple[Level, str]] = {
    "no-data": ("error", "Mend this first: nothing else can be checked before."),
    "no-labels": ("error", "Add label maps of the images' names in labels/; without them nothing can be learned."),
    "missing-file": ("error", "Correct the list, or put the file back."),
    "missing-extra": ("error", "Install it as it says, then check again."),
    "empty-file": ("error", "Copy the file again from its source, or take the pair away."),
    "unreadable-file": ("error", "Mend it as the line says, or take the pair away."),
    "label-numbers": ("error", "Store class ids from 0 up, one whole number a pixel; the file itself is sound."),
    "image-without-label": ("error", "Add the label, or take the image away."),
    "label-without-image": ("error", "Add the image, or take the label away."),
    "input-missing": ("error", "Add the missing input, or take the image away."),
    "unread-file": ("warning", "Convert it: PNG, JPEG, WebP, TIFF and BMP are read, labels best as PNG."),
    "duplicate-stem": ("error", "Keep one of the files; pairs are found by the name without its ending."),
    "case-twins": ("warning", "Rename one: on Windows and macOS they are the same file."),
    "size-mismatch": ("error", "Make image and label the same size; export the label again from the original."),
    "exif-rotation": ("error", "Turn the label as viewers show the image, or save the image turned, without EXIF."),
    "exif-orientation": ("warning", "Look whether image and label are turned alike; save the image without EXIF."),
    "jpeg-label": ("error", "Export labels as PNG: JPEG changes their values."),
    "interpolated-label": ("error", "Resize labels with nearest neighbour and without smoothing, and export again."),
    "colour-label": ("error", "Give the colours in classes.txt (name r g b), or store class ids."),
    "grey-rgb-label": ("warning", "Its three channels are equal and one is read; store ids as 8-bit grey PNG."),
    "alpha-label": ("error", "Store labels without alpha, as class ids in 8- or 16-bit grey."),
    "unknown-colour": ("error", "Add the colour to classes.txt (!name r g b to ignore it), or repaint it."),
    "colours-inferred": ("warning", "Write classes.txt (name r g b) so that the ids stay as they are."),
    "binary-0-255": ("error", "Write classes.txt with two lines: background = 0 and foreground = 255 (your names)."),
    "grey-levels": ("error", "Write classes.txt with a line name = value for each of the values, 255 too."),
    "id-out-of-range": ("error", "Correct the pixels, add the class to classes.txt, or use the ignore value."),
    "off-by-one-ids": ("error", "Subtract 1 from the labels, or write classes.txt with lines name = 1, name = 2, ..."),
    "ids-start-at-one": ("warning", "If 0 means nothing, write classes.txt with !none = 0 and name = value lines."),
    "one-class": ("error", "Label at least two classes: with one there is nothing to tell apart."),
    "nothing-labelled": ("error", "Label something: of ignored pixels alone nothing is learned."),
    "all-ignored-label": ("warning", "Label something in it, or take the pair away."),
    "constant-label": ("warning", "Check that the image really shows one class only."),
    "near-empty-foreground": ("warning", "Use class weights (class_weights = 'median-frequency') or smaller crops."),
    "stray-value": ("warning", "Correct the pixels, or, if it is a class, list all in classes.txt (name = value)."),
    "sparse-ids": ("warning", "Write classes.txt with a line name = value for each of them: they become 0, 1, 2, ..."),
    "unused-class": (
        "warning",
        "Add images of it, or list the other classes alone in classes.txt (name = value).",
    ),
    "rare-class": ("warning", "Use class weights, or add images of it."),
    "class-missing-from-val": ("warning", "Move images of it into val: there its score means nothing."),
    "class-missing-from-train": ("warning", "Move images of it into train: it cannot be learned."),
    "duplicate-across-splits": ("error", "Keep it in one split only: the measured score would be too good."),
    "duplicate-in-split": ("warning", "Keep one of them."),
    "near-duplicate-across-splits": ("warning", "Put frames of one video, or copies, into the same split."),
    "group-across-splits": ("warning", "Keep a group (video, patient, scene) in one split."),
    "16-bit-image": (
        "warning",
        "It is scaled to 8 bits; if all images have 16, folder,bands=true:PATH keeps them.",
    ),
    "cmyk-image": ("warning", "Save it as RGB: its colours are converted without a profile."),
    "alpha-image": ("warning", "Save it without alpha: transparency is dropped."),
    "animated-image": ("warning", "Save the frames one by one: only the first is used."),
    "blank-image": ("warning", "Look at it: every pixel has the same colour."),
    "extreme-size": ("warning", "Look at it, or cut it into tiles."),
    "palette-inconsistent": ("warning", "Check that the same id means the same class in both files."),
    "mixed-bands": ("error", "Save all images with the same bands and bits, or take the others away."),
    "invalid-pixels": (
        "warning",
        "Nothing need be done; if they hold data after all, correct the declared nodata value.",
    ),
    "palette-permuted": ("error", "Write classes.txt with a line name r g b for each class: they are read by it."),
    "nodata-in-label": ("warning", "If it is a class, write classes.txt with a line name = value for each class."),
    "scene-partly-labelled": ("warning", "Label the rest, or look whether the labels lie where they should."),
    "scene-hardly-labelled": ("warning", "Look at the labels and the nodata value; or take the scene away."),
    "unlike-scene": ("warning", "Look whether sensor, season, scale and order of the bands are the other scenes'."),
    "shifted-label": ("warning", "Lay the label over the image: it seems moved. Export it again if so."),
    "non-utf8-name": ("warning", "Rename it in plain letters and digits."),
    "odd-name": ("warning", "Rename it without control characters."),
    "symlink-outside": ("warning", "Copy the file into the data set: elsewhere the link leads nowhere."),
}
"""kind -> (level, remedy)."""


def finding(
    kind: str,
    files: Iterable[Path],
    message: str,
    count: int = 0,
    value: object = "",
    place: tuple[int, int] | None = None,
    level: Level | None = None,
) -> Finding:
    """The finding of a kind in the table, the first file's name before the message; level: other than the table's."""
    default, remedy = KINDS[kind]
    files = tuple(files)
    text = f"{printable(files[0])}: {message}" if files else message
    return Finding(kind, level or default, files, text + ".", remedy, count, str(value), place)
