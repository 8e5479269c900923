"""Images and labels that no files hold: any sequence of (image, label), such as a torch `Dataset`, as a `Dataset`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from fullyconv.arguments import WHOLE
from fullyconv.data.base import Dataset, Record
from fullyconv.errors import DataError, FullyconvError, UsageError
from fullyconv.images.labels import whole_ids
from fullyconv.taxonomy import Taxonomy

__all__ = ["as_taxonomy", "from_pairs"]


def from_pairs(pairs: object, classes: int | Sequence[str] | Taxonomy | None, split: str = "train") -> Dataset:
    """`pairs[i]` = (image, label), i = 0..len(pairs) - 1, as a data set; pair i is called by its number, "000017".

    image: H W C or H W array, PIL image, or tensor (C H W, as torch has them). Three bytes a pixel are colours; any
    other numbers are bands, whose mean and spread are measured. label: H W ids 0..K-1 (array, PIL image, tensor; also
    1 H W), the taxonomy's ignored value (255 for up to 255 classes) for pixels that do not count.
    classes: how many, their names, or a `Taxonomy`.
    Raises UsageError for what is no such sequence, DataError for a first pair that cannot be read.
    """
    if isinstance(pairs, str | bytes | Mapping) or not (hasattr(pairs, "__len__") and hasattr(pairs, "__getitem__")):
        raise UsageError(
            f"Images to learn from are a path, a Dataset or a sequence of (image, label), not "
            f"{type(pairs).__name__}; give list(...) of what can only be iterated."
        )
    if not len(pairs):
        raise DataError("There are 0 pairs of image and label; nothing can be learned from them.")
    taxonomy = as_taxonomy(classes)
    reader = _Pairs(pairs, len(taxonomy), taxonomy.ignore)
    first = reader.image(0)
    reader.label(0)
    colour = first.dtype == np.uint8 and first.shape[2] == 3
    main = "rgb" if colour else "bands"
    kind = f"{first.shape[2]} channel{'s' * (first.shape[2] > 1)} of {first.dtype}"
    notes = () if colour else (f"the images have {kind}: they are read by their bands, with measured mean and spread.",)
    return Dataset(
        kind="pairs",
        root=Path(type(pairs).__name__),
        split=split,
        records=[Record(f"{i:06d}", {}) for i in range(len(pairs))],
        taxonomies={"semantic": taxonomy},
        read_input=reader.read_input,
        read_labels=reader.read_labels,
        inputs=(main,),
        notes=notes,
    )


def as_taxonomy(classes: int | Sequence[str] | Taxonomy | None) -> Taxonomy:
    """How many classes, or their names, as a taxonomy; UsageError without either."""
    if isinstance(classes, Taxonomy):
        return classes
    if WHOLE.fits(classes):
        if int(classes) < 2:  # type: ignore[arg-type]
            raise UsageError(f"classes = {classes}; a network tells at least 2 apart.")
        return Taxonomy.numbered(int(classes))  # type: ignore[arg-type]
    given: Any = classes
    if isinstance(given, np.ndarray) and given.dtype.kind == "U" and given.ndim == 1:
        classes = given.tolist()
    if isinstance(classes, list | tuple) and classes:
        return Taxonomy(tuple(classes))
    shown = repr(classes) if classes is None or isinstance(classes, str | bool | float) else type(classes).__name__
    raise UsageError(
        f"Pairs of image and label come without class names, and classes = {shown}; give how many there are, such "
        'as classes=3, or their names: classes=["background", "disc", "square"].'
    )


@final
@dataclass(frozen=True)
class _Pairs:
    """The two functions of a data set; a class, so that worker processes can be given it."""

    pairs: Any
    classes: int
    ignore: int

    def read_input(self, record: Record, modality: str) -> NDArray[Any]:
        del modality
        return self.image(int(record.name))

    def read_labels(self, record: Record, head: str) -> NDArray[Any]:
        del head
        return self.label(int(record.name))

    def image(self, index: int) -> NDArray[Any]:
        where = f"image {index}"
        image = self._pair(index)[0]
        array = _array(image, where)
        if array.ndim == 3 and hasattr(image, "detach"):
            if array.shape[0] > 4 >= array.shape[2]:
                raise DataError(
                    f"{where} is a tensor of the shape {array.shape}, its channels last as it seems; give tensors "
                    "C x H x W (image.permute(2, 0, 1)), or H x W x C arrays."
                )
            array = np.moveaxis(array, 0, -1)
        array = array[..., None] if array.ndim == 2 else array
        if array.ndim != 3 or 0 in array.shape or array.dtype.kind not in "uif":
            raise DataError(f"{where} has the shape {array.shape} of {array.dtype}; give H x W x C numbers.")
        if array.shape[0] in (1, 3) and array.shape[0] < array.shape[2] and not hasattr(image, "detach"):
            raise DataError(
                f"{where} has the shape {array.shape}, its channels first as it seems; give H x W x C arrays "
                "(image.transpose(1, 2, 0)) or tensors C x H x W."
            )
        if array.dtype.kind in "if" and array.dtype != np.float32:
            array = array.astype(np.float32)
        return np.ascontiguousarray(array)

    def label(self, index: int) -> NDArray[Any]:

        where = f"the label of image {index}"
        array = _array(self._pair(index)[1], where)
        array = array[0] if array.ndim == 3 and array.shape[0] == 1 else array
        array = array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
        if array.ndim != 2 or array.dtype.kind not in "buif":
            raise DataError(f"{where} has the shape {array.shape} of {array.dtype}; give H x W class ids.")
        ids = whole_ids(array.astype(np.uint8) if array.dtype == bool else array, None, where)[0]
        if (strange := (ids >= self.classes) & (ids != self.ignore)).any():
            raise DataError(
                f"{where} holds {int(ids[strange][0])}, but there are {self.classes} classes (0..{self.classes - 1}) "
                f"and {self.ignore} is ignored; correct the labels, or classes=."
            )
        return ids

    def _pair(self, index: int) -> tuple[Any, Any]:
        try:
            pair = self.pairs[index]
        except FullyconvError:
            raise
        except Exception as error:
            raise DataError(
                f"Item {index} of {len(self.pairs)} could not be read ({type(error).__name__}: {error}); see that "
                f"data[{index}] gives (image, label)."
            ) from error
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            found = f"{len(pair)} things" if isinstance(pair, tuple | list) else type(pair).__name__
            raise DataError(f"Item {index} is {found}, not (image, label); give pairs.")
        return pair[0], pair[1]


def _array(value: object, where: str) -> NDArray[Any]:
    """A tensor, PIL image or array as an array."""
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    try:
        array: NDArray[Any] = np.asarray(value)
    except (TypeError, ValueError) as error:
        raise DataError(f"{where} is a {type(value).__name__}; give an array, a tensor or a PIL image.") from error
    if array.dtype == object or array.dtype.kind in "SU":
        raise DataError(f"{where} is a {type(value).__name__}; give an array, a tensor or a PIL image.")
    return array
