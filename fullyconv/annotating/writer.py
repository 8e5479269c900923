"""What the writers of annotations share: claiming names, classes as the readers number them, files that grow."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, final

import numpy as np
from numpy.typing import NDArray

from fullyconv.errors import DataError, UsageError, printable
from fullyconv.files.disk import make_directory, storage_errors
from fullyconv.files.outputs import Outputs, unique_name
from fullyconv.images import image_info
from fullyconv.taxonomy import Colour, Taxonomy

__all__ = ["Classes", "Growing", "ImagePlace", "Writer"]

Size = tuple[int, int]
_NO_TEXT = "\ufffe\uffff"  # what XML cannot hold; bytes of a name that are no UTF-8 are lone surrogates
_NOTHING = ("background", "_background_")


@final
class Classes:
    """A taxonomy as annotation tools have it: class 0 is what nobody drew, the others follow in their order.

    `number[k]` is the id of our class k there: 0 for one called background, which is not drawn.
    """

    def __init__(self, taxonomy: Taxonomy, reserved: tuple[str, ...] = ()) -> None:
        self.taxonomy = taxonomy
        drawn = [k for k, name in enumerate(taxonomy.names) if name.lower() not in _NOTHING]
        for k in drawn:
            _refuse_name(taxonomy.names[k], reserved)
        self.drawn = drawn
        self.names = tuple(taxonomy.names[k] for k in drawn)
        self.colours: tuple[Colour, ...] = tuple(taxonomy.palette[k] for k in drawn)
        place = {k: i for i, k in enumerate(drawn, 1)}
        self.number = [place.get(k, 0) for k in range(len(taxonomy))]

    def name(self, k: int) -> str:
        return self.taxonomy.names[k]

    @property
    def undrawn(self) -> set[int]:
        """Our ids of what is background there."""
        return {k for k, number in enumerate(self.number) if number == 0}


def _refuse_name(name: str, reserved: tuple[str, ...]) -> None:
    fault = (
        "is empty or has blanks at its ends"
        if not name.strip() or name != name.strip()
        else "holds characters that cannot be shown"
        if not name.isprintable()
        else "means what is left out of learning there"
        if name.lower() in reserved
        else ""
    )
    if fault:
        raise DataError(f"The class name {printable(name)[:100]!r} {fault}; give the class another name first.")


@final
@dataclass(frozen=True)
class ImagePlace:
    """One image of an export: its name, its file below the folder, and the further files claimed for it."""

    name: str
    file: str
    further: tuple[str, ...] = ()


@final
class Growing:
    """A claimed file that is written piece by piece and gets its name when it is whole."""

    def __init__(self, plan: Outputs, name: str) -> None:
        self._plan, self._name = plan, name
        make_directory(plan.folder)
        self._part = plan.folder / f".{name.rpartition('/')[2]}.partial"
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        with storage_errors("Writing", self._part):
            self._file = os.fdopen(os.open(self._part, flags, 0o666), "wb")

    def write(self, text: str) -> None:
        with storage_errors("Writing", self._part):
            self._file.write(text.encode())

    def publish(self) -> Path:
        with storage_errors("Writing", self._part):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
        return self._plan.publish(self._name, self._part)

    def drop(self) -> None:
        """Leave nothing, where it was not published."""
        if not self._file.closed:
            self._file.close()
            self._part.unlink(missing_ok=True)


class Writer(ABC):
    """One export below a folder. `notes`: what was decided or left out, to be said to the user."""

    reserved: tuple[str, ...] = ()  # class names that mean something else there
    folder = "images"  # of the images
    flat = False  # whether all images lie in one folder, whatever their names are

    def __init__(self, plan: Outputs, taxonomy: Taxonomy, model: str = "") -> None:
        self.plan, self.model = plan, printable(model)
        self.classes = Classes(taxonomy, self.reserved)
        self.turned = self.ignored = 0
        self._taken: set[str] = set()

    def claim(self, name: str, suffix: str) -> ImagePlace:
        """Take the names of an image's files; `suffix` (".jpg") is its own. DataError for a name that is no text."""
        if any(c in _NO_TEXT or "\ud800" <= c <= "\udfff" for c in name):
            raise DataError(
                f"The image name {printable(name)[:200]!r} is no text that files can hold; rename the image."
            )
        if self.flat and "/" in name:
            name = name.replace("/", "_")
        name = unique_name(name, self._taken) if self.flat else name
        file = self.plan.claim(*([self.folder] if self.folder else []), f"{name}{suffix}")
        return ImagePlace(name, file, self.claim_further(name))

    def claim_further(self, name: str) -> tuple[str, ...]:
        return ()

    def add(
        self,
        place: ImagePlace,
        image: bytes,
        labels: NDArray[np.integer],
        confidence: NDArray[np.float32] | None = None,
    ) -> list[Path]:
        """Write an image, as it is, with its labels H W (ids or the ignore value); returns the files written.

        confidence: each label's probability, 0..1, where a network gave it. Labels are of the image as it is shown.
        """
        info = image_info(image)
        size = (int(labels.shape[0]), int(labels.shape[1]))
        if info.size != size:
            raise DataError(
                f"{printable(place.name)} has {info.size[0]}x{info.size[1]} (HxW) pixels and a label map of "
                f"{size[0]}x{size[1]}; give labels of the image's size."
            )
        self.turned += info.orientation != 1
        ignored = int((labels == self.classes.taxonomy.ignore).sum())
        self.ignored += ignored
        written = [self.plan.write(place.file, image)]
        return written + self.annotate(place, labels, confidence, ignored > 0)

    @abstractmethod
    def annotate(
        self, place: ImagePlace, labels: NDArray[np.integer], confidence: NDArray[np.float32] | None, ignoring: bool
    ) -> list[Path]:
        """Write what is drawn on an image. ignoring: whether `labels` hold the ignore value."""

    @abstractmethod
    def finish(self) -> list[Path]:
        """Write what the export has once; returns those files."""

    def close(self) -> None:  # noqa: B027 - most formats have nothing open
        """Leave no unfinished file."""

    @property
    def notes(self) -> list[str]:
        """What the user should know of the labels as a whole."""
        note = (
            f"{self.turned} images are turned by their EXIF tag: labels are of the turned image, as viewers show it; "
            "programs that pass over the tag would show them beside it."
        )
        return [note] if self.turned else []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def refuse_more_classes(classes: Classes, most: int, where: str) -> None:
    """UsageError for more classes than the format has values for."""
    if len(classes.names) > most:
        raise UsageError(f"{where} has room for {most} classes, these are {len(classes.names)}; choose another format.")
