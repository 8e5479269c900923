"""Predictor: an image of any size in, labels or scores of that size out, whole or in tiles.

Nothing of size K x H x W is ever held for labels: they come straight from the coarse scores (`ops.upsample_argmax`).

What computes is a backend: torch for networks, onnxruntime for exported files, which need no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np
from numpy.typing import NDArray

from fullyconv.arguments import TEXT, TILE, maybe, takes
from fullyconv.errors import DataError, UsageError, printable
from fullyconv.predict.inputs import Image, as_array, fitted, refuse_scaled, refuse_unlike, resize_image
from fullyconv.predict.tiling import Backend, Readout, plan_tiles, read_tiles, read_whole
from fullyconv.runtime.exported import ExportedNetwork, is_exported
from fullyconv.taxonomy import Taxonomy

if TYPE_CHECKING:
    from fullyconv.models import FCN
    from fullyconv.models.interface import SegmentationModel

__all__ = ["Predictor", "as_array", "open_network", "refuse_untrained", "resize_image"]

SCALES = (0.75, 1.0, 1.25)  # of the image: the middle three of what the field averages, at 3.1 times the cost of one
MOST_AT_ONCE = 16  # images of a list that go through the network together


@final
class Predictor:
    """Labels every pixel of an image with a trained network.

    model: an `FCN` (`fullyconv.load`, `fullyconv.create`), on any device, which is put into channels-last layout; or
    the directory of a model or a run; or the name of a file that `fullyconv export` wrote, which needs no torch.
    tile: pixels (or (H, W)) of the output computed at a time; what a pixel's label depends on is read round it, so
    labels are those of the whole image and memory is the tile's. Networks with unbounded context are blended over
    overlapping tiles instead, which `tiling` says.
    precision: "fp32", or "bf16" where the processor computes it natively (else `UsageError`), or "auto": bf16 where
    it is native and measured to be quicker. `precision` is what was chosen, `chosen` why (empty where it was given).

    Raises `DataError` when the network was never trained: score weights all exactly 0, or a trunk of zeros; and for an
    exported file that is damaged or not ours.

    >>> label = fc.Predictor(model)
    >>> label(image).shape == image.shape[:2]
    True
    >>> [ids.shape for ids in label([image, image[:20]])]
    [(40, 48), (20, 48)]
    """

    @takes(tile=maybe(TILE), precision=TEXT)
    def __init__(
        self,
        model: SegmentationModel | ExportedNetwork | str | Path,
        tile: int | tuple[int, int] | None = None,
        precision: str = "fp32",
    ) -> None:
        model = open_network(model) if isinstance(model, str | Path) else model
        self._backend = _backend(model, precision)
        self._plan = plan_tiles(model, tile)
        self.before_window: Callable[[], None] | None = None  # called before a window is computed; may raise

    @property
    def model(self) -> SegmentationModel | ExportedNetwork:
        """The network: its `heads`, `preprocessing` and geometry, and what else it has."""
        return self._backend.network

    @property
    def device(self) -> Any:
        return self._backend.device

    @property
    def precision(self) -> str:
        return self._backend.precision

    @property
    def chosen(self) -> str:
        return self._backend.chosen

    @property
    def backend(self) -> Backend:
        return self._backend

    @property
    def heads(self) -> dict[str, int]:
        """Head -> number of classes, the main head first."""
        return dict(self.model.heads)

    @property
    def taxonomies(self) -> dict[str, Taxonomy]:
        """Head -> the classes the network tells apart; numbered ones for a network that carries no names."""
        known = getattr(self.model, "taxonomies", {})
        return {head: known.get(head) or Taxonomy.numbered(k) for head, k in self.heads.items()}

    @property
    def inputs(self) -> tuple[str, ...] | None:
        """The modalities the network takes, in the order they lie along C; None where it does not say."""
        return self._backend.inputs

    @property
    def tiling(self) -> dict[str, Any]:
        """How images are cut: {"tile": core [H, W] in pixels or None, "context": pixels read round it, "blended":
        whether overlapping tiles are averaged, "exact": whether the whole image's scores are proven to come out}."""
        return self._plan.to_json()

    def __call__(self, image: Image) -> Any:
        """image -> labels H W (uint8, uint16 above 255 classes); {head: labels} if the network has several heads.

        image: the path of an image; an H W C uint8, uint16 or float array in the range of the training images (8-bit
        ones: 0..255), grey ones H W too; a PIL image; or {modality: image}, concatenated along C in the order of the
        network's inputs. A list or tuple of images of any sizes gives a list; small ones of one size go through the
        network together, which may round scores otherwise (about 1e-5) than one by one. An iterator of images gives a
        generator that reads on as it is asked, one by one.
        """
        if isinstance(image, list | tuple):
            return self._list(image)
        if isinstance(image, Iterator):
            return (self(one) for one in image)
        return self._one_or_all(self.labels(image))

    def __repr__(self) -> str:
        name = printable(getattr(self.model, "name", type(self.model).__name__))
        heads = ", ".join(f"{head}: {k} classes" for head, k in self.heads.items())
        return f"Predictor({name}, {heads}, {self.device}, {self.precision})"

    def labels(self, image: Image) -> dict[str, NDArray[Any]]:
        """image -> {head: labels H W}, uint8 (uint16 above 255 classes)."""
        return {h: labels for h, (labels,) in self._read(image, "labels").items()}

    def scores(self, image: Image) -> Any:
        """image -> unnormalised scores, float32 K H W; {head: scores} if the network has several heads."""
        return self._one_or_all({h: scores for h, (scores,) in self._read(image, "scores").items()})

    def confident_labels(self, image: Image) -> dict[str, tuple[NDArray[Any], NDArray[np.float32]]]:
        """image -> {head: (labels H W, probability of that label H W float32 in 0..1)}."""
        return {h: (labels, confidence) for h, (labels, confidence) in self._read(image, "confident labels").items()}

    def augmented_labels(
        self, image: Image, variants: Sequence[str]
    ) -> dict[str, tuple[NDArray[Any], NDArray[np.float32]]]:
        """Labels and confidence by the mean probability over `variants`: "flip" (mirrored too), "scales" (0.75, 1,
        1.25; all combinations). Unlike the plain labels this holds K x H x W probabilities.
        """
        array = self._array(image)
        total: dict[str, NDArray[np.float32]] = {}
        count = 0
        for scale in SCALES if "scales" in variants else (1.0,):
            for mirrored in (False, True) if "flip" in variants else (False,):
                for head, probabilities in self._variant(array, scale, mirrored).items():
                    total[head] = total[head] + probabilities if head in total else probabilities
                count += 1
        kind = {h: np.uint8 if k <= 255 else np.uint16 for h, k in self.heads.items()}
        mean = {h: p / np.float32(count) for h, p in total.items()}
        return {h: (m.argmax(0).astype(kind[h]), m.max(0)) for h, m in mean.items()}

    def _variant(self, array: NDArray[np.number], scale: float, mirrored: bool) -> dict[str, NDArray[np.float32]]:
        """{head: K H W probabilities} of a scaled, mirrored image, laid back onto the image."""
        height, width = array.shape[:2]
        size = (max(1, round(height * scale)), max(1, round(width * scale)))
        variant = array if scale == 1 else resize_image(array, size)
        variant = variant[:, ::-1] if mirrored else variant
        read = self._read(variant, "scores")
        return {h: self._backend.probabilities(scores, mirrored, (height, width)) for h, (scores,) in read.items()}

    def _list(self, images: Sequence[Image]) -> list[Any]:
        """Labels of each; images of one size wait for each other, of all sizes together no more than `held` pixels."""
        answers: list[Any] = [None] * len(images)
        waiting: dict[tuple[int, int], list[tuple[int, NDArray[Any]]]] = {}

        def label(some: list[tuple[int, NDArray[np.number]]]) -> None:
            for (i, _), labels in zip(some, self._read_together([array for _, array in some]), strict=True):
                answers[i] = self._one_or_all(labels)

        for i, image in enumerate(images):
            if isinstance(image, list | tuple | Iterator):
                answers[i] = self(image)
                continue
            array = self._checked(image)
            size = (array.shape[0], array.shape[1])
            group = waiting.setdefault(size, [])
            group.append((i, array))
            if len(group) >= self._at_once(size):
                label(waiting.pop(size))
            elif sum(len(g) * h * w for (h, w), g in waiting.items()) > 4 * self._backend.batch_pixels:
                label(waiting.pop(max(waiting, key=lambda s: len(waiting[s]) * s[0] * s[1])))
        for group in waiting.values():
            label(group)
        return answers

    def _at_once(self, size: tuple[int, int]) -> int:
        """How many images of a size the network is given together: those it would otherwise cut or that fill it, 1."""
        core = self._plan.core
        whole = core is None or (size[0] <= core[0] and size[1] <= core[1])
        return max(1, min(MOST_AT_ONCE, self._backend.batch_pixels // (size[0] * size[1]))) if whole else 1

    def _read_together(self, arrays: Sequence[NDArray[np.number]]) -> list[dict[str, NDArray[Any]]]:
        """{head: labels} of checked images of one size."""
        if len(arrays) == 1:
            return [{h: labels for h, (labels,) in self._read_checked(arrays[0], "labels").items()}]
        if self.before_window:
            self.before_window()
        with self._backend.computing():
            coarse = self._backend.coarse_of(np.stack([self.model.preprocessing(array) for array in arrays]))
            return [
                {h: labels for h, (labels,) in read_whole(self._backend, arrays[0].shape, scores, "labels").items()}
                for scores in ({h: s[i : i + 1] for h, s in coarse.items()} for i in range(len(arrays)))
            ]

    def _read(self, image: Image, readout: Readout) -> dict[str, tuple[NDArray[Any], ...]]:
        return self._read_checked(self._checked(image), readout)

    def _checked(self, image: Image) -> NDArray[Any]:
        """Any accepted image as an H W C array in the range that the network takes; else `DataError`."""
        array = self._array(image)
        mean = float(self.model.preprocessing.mean_pixel().max())
        colours = self.inputs is None or set(self.inputs) <= {"rgb", "hha"}
        refuse_scaled(array, mean, 255 if colours and 2 < mean <= 255 and not self.model.preprocessing.log else 0)
        if self.inputs == ("bands",):
            refuse_unlike(array, self.model.preprocessing)
        return array

    def _read_checked(self, array: NDArray[np.number], readout: Readout) -> dict[str, tuple[NDArray[Any], ...]]:
        with self._backend.computing():
            if self._plan.core is None and (found := self._backend.whole(array, readout)) is not None:
                return found
            return read_tiles(self._backend, array, self._plan, readout, self.before_window)

    def _array(self, image: Image) -> NDArray[Any]:
        """Any accepted image as an H W C array of the network's channels."""
        channels, inputs = self.model.preprocessing.channels, self.inputs
        colour = channels == 3 and inputs in (None, ("rgb",))
        return fitted(as_array(image, inputs), channels, colour)

    def _one_or_all(self, by_head: Mapping[str, object]) -> Any:
        return next(iter(by_head.values())) if len(by_head) == 1 else by_head


def refuse_untrained(model: SegmentationModel) -> None:
    """`DataError` when a head's score weights, or all weights of the trunk, are exactly 0: it would label at random."""
    scores = [p for p in model.head_parameters() if p.ndim == 4 and p.shape[2:] == (1, 1)]
    if scores and not any(_any(p) for p in scores):
        raise DataError("The score layers were never trained (every weight is 0); train the network or load weights.")
    trunk = [p for p in model.trunk_parameters() if p.ndim > 1]
    if trunk and not any(_any(p) for p in trunk):
        raise DataError("Every weight of the trunk is 0, so all images look alike to it; load its weights.")


def _any(weight: Any) -> bool:
    """Whether a number is not 0; looked at in parts, since torch's own `any` copies what it is asked about."""
    return any(bool(part.any()) for part in weight.detach().flatten().split(1 << 16))


def open_network(name: str | Path, device: str = "cpu") -> FCN | ExportedNetwork:
    """The network of an exported file (without torch, on the CPU), or of a model or run directory, on `device`."""
    if is_exported(name):
        return ExportedNetwork(name)
    from fullyconv.models import load

    return load(name).to(device)


def _backend(model: SegmentationModel | ExportedNetwork, precision: str) -> Backend:
    if isinstance(model, ExportedNetwork):
        from fullyconv.runtime.backend import RuntimeBackend

        return RuntimeBackend(model, precision)
    if not all(hasattr(model, name) for name in ("head_parameters", "preprocessing", "coarse")):
        raise UsageError(f"A Predictor needs a network, not {type(model).__name__}; give it fullyconv.load(DIRECTORY).")
    refuse_untrained(model)
    from fullyconv.predict.eager import EagerBackend

    return EagerBackend(model, precision)
