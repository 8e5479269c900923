"""Predictor: an image of any size in, labels or scores of that size out.

By default nothing of size K x H x W is ever held: labels come straight from the coarse scores (`ops.upsample_argmax`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray

from fullyconv import ops
from fullyconv.errors import DataError, UsageError

__all__ = ["Predictor", "as_array", "refuse_untrained", "resize_image"]

PRECISIONS = ("fp32", "bf16")
SCALES = (0.75, 1.0, 1.25)
Image = Any  # H W C array, PIL image, or {modality: one of these}


@final
class Predictor:
    """Labels every pixel of an image with a trained network.

    model: an `FCN` (`fullyconv.load`, `fullyconv.create`), on any device; it is put into channels-last layout.
    precision: "fp32", or "bf16" where the processor computes it natively (else `UsageError`).

    Raises `DataError` when the network was never trained: score weights all exactly 0, or a trunk of zeros.
    """

    def __init__(self, model: Any, precision: str = "fp32") -> None:
        refuse_untrained(model)
        self.model = model.to(memory_format=torch.channels_last)
        self.device: torch.device = next(model.parameters()).device
        self.precision = _precision(precision, self.device)

    @property
    def heads(self) -> dict[str, int]:
        """Head -> number of classes, the main head first."""
        return dict(self.model.heads)

    @property
    def tiling(self) -> dict[str, Any]:
        """How images are cut: {"tile": core (H, W) in pixels or None, "halo": pixels, "exact": whether tiles give the
        whole image's scores}."""
        return {"tile": None, "halo": 0, "exact": True}

    def __call__(self, image: Image) -> Any:
        """image -> labels H W (uint8, uint16 above 255 classes); {head: labels} if the network has several heads.

        image: H W C uint8, uint16 or float array in the range of the training images (8-bit ones: 0..255), a PIL
        image, or {modality: image}, concatenated along C in the order of the network's inputs.
        """
        return self._one_or_all(self.labels(image))

    def labels(self, image: Image) -> dict[str, NDArray[Any]]:
        """image -> {head: labels H W}, uint8 (uint16 above 255 classes)."""
        return self._upsampled(image, lambda s, k, g: _label_array(ops.upsample_argmax(s, **g), k))

    def scores(self, image: Image) -> Any:
        """image -> unnormalised scores, float32 K H W; {head: scores} if the network has several heads."""
        return self._one_or_all(self._upsampled(image, lambda s, k, g: ops.upsample(s, **g)[0].float().cpu().numpy()))

    def confident_labels(self, image: Image) -> dict[str, tuple[NDArray[Any], NDArray[np.float32]]]:
        """image -> {head: (labels H W, probability of that label H W float32 in 0..1)}."""

        def both(scores: torch.Tensor, classes: int, geometry: dict[str, Any]) -> tuple[Any, Any]:
            labels, confidence = ops.upsample_softmax_max(scores, **geometry)
            return _label_array(labels, classes), confidence[0].float().cpu().numpy()

        return self._upsampled(image, both)

    def augmented_labels(
        self, image: Image, variants: Sequence[str]
    ) -> dict[str, tuple[NDArray[Any], NDArray[np.float32]]]:
        """Labels and confidence by the mean probability over `variants`: "flip" (mirrored too), "scales" (0.75, 1,
        1.25; all combinations). Unlike the plain labels this holds K x H x W probabilities.
        """
        array = as_array(image, getattr(self.model, "inputs", None))
        total: dict[str, torch.Tensor] = {}
        count = 0
        for scale in SCALES if "scales" in variants else (1.0,):
            for mirrored in (False, True) if "flip" in variants else (False,):
                for head, probabilities in self._variant(array, scale, mirrored).items():
                    total[head] = total[head] + probabilities if head in total else probabilities
                count += 1
        best = {h: (p / count).max(0) for h, p in total.items()}
        return {h: (_label_array(b.indices[None], self.heads[h]), b.values.cpu().numpy()) for h, b in best.items()}

    def _variant(self, array: NDArray[Any], scale: float, mirrored: bool) -> dict[str, torch.Tensor]:
        """{head: K H W probabilities} of a scaled, mirrored image, laid back onto the image."""
        height, width = array.shape[:2]
        size = (max(1, round(height * scale)), max(1, round(width * scale)))
        variant = array if scale == 1 else resize_image(array, size)
        variant = np.ascontiguousarray(variant[:, ::-1]) if mirrored else variant
        out = {}
        for head, scores in self._upsampled(variant, lambda s, k, g: ops.upsample(s, **g)).items():
            back = scores.flip(3) if mirrored else scores
            if scale != 1:
                back = torch.nn.functional.interpolate(back, (height, width), mode="bilinear", align_corners=False)
            out[head] = back[0].softmax(0)
        return out

    def _upsampled(self, image: Image, upsample: Any) -> dict[str, Any]:
        array = as_array(image, getattr(self.model, "inputs", None))
        size = array.shape[:2]
        x = torch.from_numpy(self.model.preprocessing(array))[None].to(self.device, memory_format=torch.channels_last)
        geometry = self.model.geometry(*size)
        at = {"size": size, "stride": geometry.stride, "offset": geometry.offset, "border": geometry.border}
        with torch.inference_mode(), evaluating(self.model), self._autocast():
            coarse = self.model.coarse(x)
        with torch.inference_mode():
            return {h: upsample(coarse[h].float(), k, at) for h, k in self.heads.items()}

    def _autocast(self) -> Any:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def _one_or_all(self, by_head: dict[str, Any]) -> Any:
        return next(iter(by_head.values())) if len(by_head) == 1 else by_head


def as_array(image: Image, inputs: Sequence[str] | None = None) -> NDArray[Any]:
    """Any accepted image -> H W C array in its stored range; `DataError` when it cannot be one.

    inputs: the order of modalities for a mapping (its own order when None).
    """
    if isinstance(image, Mapping):
        return _concatenated(image, tuple(inputs or image))
    if hasattr(image, "getbands"):  # PIL: alpha and palettes are not measurements
        image = np.asarray(image if image.mode in ("RGB", "F", "I", "I;16") else image.convert("RGB"))
    array = np.asarray(image)
    array = array[..., None] if array.ndim == 2 else array
    if array.ndim != 3 or 0 in array.shape or array.dtype.kind not in "uif":
        raise DataError(
            f"An image of shape {array.shape} and type {array.dtype} cannot be labelled; give H x W x C numbers."
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise DataError("The image holds NaN or infinite values; replace them before labelling it.")
    return array


def resize_image(image: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """image H W C -> `size` (H, W), bilinear and antialiased, in its own dtype (integers rounded)."""
    from PIL import Image

    planes = [
        np.asarray(Image.fromarray(image[..., c].astype(np.float32)).resize(size[::-1], Image.Resampling.BILINEAR))
        for c in range(image.shape[2])
    ]
    out = np.stack(planes, axis=-1)
    return np.rint(out).astype(image.dtype) if image.dtype.kind in "ui" else out


def _concatenated(image: Mapping[str, Any], inputs: tuple[str, ...]) -> NDArray[Any]:
    if set(inputs) != set(image):
        raise DataError(f"The network takes {', '.join(inputs)}; the image has {', '.join(image)}; give exactly those.")
    planes = [as_array(image[m]) for m in inputs]
    if len({p.shape[:2] for p in planes}) > 1:
        sizes = ", ".join(f"{m} {p.shape[0]}x{p.shape[1]}" for m, p in zip(inputs, planes, strict=True))
        raise DataError(f"The inputs of one image differ in size ({sizes}); align them.")
    return planes[0] if len(planes) == 1 else np.concatenate([p.astype(np.float32) for p in planes], axis=-1)


def refuse_untrained(model: Any) -> None:
    """`DataError` when a head's score weights, or all weights of the trunk, are exactly 0: it would label at random."""
    scores = [p for p in model.head_parameters() if p.ndim == 4 and p.shape[2:] == (1, 1)]
    if scores and not any(bool(p.detach().any()) for p in scores):
        raise DataError("The score layers were never trained (every weight is 0); train the network or load weights.")
    trunk = [p for p in model.trunk_parameters() if p.ndim > 1]
    if trunk and not any(bool(p.detach().any()) for p in trunk):
        raise DataError("Every weight of the trunk is 0, so all images look alike to it; load its weights.")


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """`model` in evaluation mode (no dropout, fixed batch statistics), afterwards as it was."""
    if not model.training:
        yield
        return
    model.eval()
    try:
        yield
    finally:
        model.train()


def _precision(precision: str, device: torch.device) -> str:
    if precision not in PRECISIONS:
        raise UsageError(f"The precision {precision!r} is unknown; choose from {', '.join(PRECISIONS)}.")
    if precision == "bf16" and not _native_bf16(device):
        raise UsageError(f"This {device.type} has no bfloat16 arithmetic, it would only be slower; use fp32.")
    return precision


def _native_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16") or able.get("bf16"))


def _label_array(labels: torch.Tensor, classes: int) -> NDArray[Any]:
    return labels[0].cpu().numpy().astype(np.uint8 if classes <= 255 else np.uint16, copy=False)
