"""The paper's dense-prediction experiments: shift-and-stitch, patch sampling as loss masking, bounds by resolution.

Each is a function that returns rows for a table; `fullyconv experiment NAME` prints them.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fullyconv import metrics, models, ops
from fullyconv.data.base import Dataset
from fullyconv.errors import DataError, UsageError

__all__ = [
    "PAPER_BOUNDS",
    "chain",
    "coarse_labels",
    "filter_rarefaction",
    "keep_cells",
    "patch_sampling",
    "shift_and_stitch",
    "stitching",
    "upper_bounds",
]


# -- shift-and-stitch = filter rarefaction (paper, section 3.2) --------------------------------------------------------


def chain(depth: int = 2, channels: int = 8, seed: int = 0, integers: bool = True) -> nn.Sequential:
    """An unpadded network of `depth` blocks (conv 3x3, ReLU, max pool 2x2) and a 3x3 convolution; stride 2 ** depth.

    With `integers` the weights are whole numbers, so that float64 sums are exact whatever their order.
    """
    generator = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = []
    c = 3
    for _ in range(depth):
        layers += [nn.Conv2d(c, channels, 3), nn.ReLU(), nn.MaxPool2d(2, 2)]
        c = channels
    network = nn.Sequential(*layers, nn.Conv2d(c, 5, 3)).double()
    for p in network.parameters():
        values = torch.randint(-2, 3, p.shape, generator=generator).double()
        p.data = values if integers else torch.randn(p.shape, generator=generator).double()
    return network.eval()


def _stride(layer: nn.Module) -> int:
    value: Any = getattr(layer, "stride", 1) if isinstance(layer, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d) else 1
    return int(value[0] if isinstance(value, tuple) else value)


def shift_and_stitch(network: nn.Sequential, x: Tensor) -> Tensor:
    """Outputs at every pixel by f^2 passes over shifted inputs, interlaced (f: the network's stride). x N C H W.

    Output (y, x) belongs to the window whose top left pixel is (y, x). The slow twin of `filter_rarefaction`. Errors:
    UsageError when the image does not hold a window at every shift.
    """
    f, field = 1, 1
    for layer in network:
        kernel: Any = getattr(layer, "kernel_size", 1)
        field += ((kernel[0] if isinstance(kernel, tuple) else kernel) - 1) * f
        f *= _stride(layer)
    if min(x.shape[2:]) < field + f - 1:
        raise UsageError(f"Windows of {field} pixels shifted by up to {f - 1} need a side of at least {field + f - 1}.")
    parts: dict[tuple[int, int], Tensor] = {(i, j): network(x[:, :, i:, j:]) for i in range(f) for j in range(f)}
    rows = sum(parts[i, 0].shape[2] for i in range(f))
    columns = sum(parts[0, j].shape[3] for j in range(f))
    first = parts[0, 0]
    out = first.new_empty(first.shape[0], first.shape[1], rows, columns)
    for (i, j), part in parts.items():
        out[:, :, i::f, j::f] = part
    return out


def filter_rarefaction(network: nn.Sequential) -> nn.Sequential:
    """The à trous twin: strides become 1 and every later filter is spread by what was removed (zeros in between).

    Errors: UsageError for padding or average pooling, which have no such twin here.
    """
    layers: list[nn.Module] = []
    spread = 1
    for layer in network:
        twin: Any = copy.deepcopy(layer)
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d):
            if layer.padding not in (0, (0, 0)):
                raise UsageError("Shifted windows see other padding than the image's; give an unpadded network.")
            if isinstance(layer, nn.Conv2d):
                twin.stride, twin.dilation = (1, 1), (spread, spread)
            else:
                twin.stride, twin.dilation, twin.ceil_mode = 1, spread, False
            spread *= _stride(layer)
        elif isinstance(layer, nn.AvgPool2d):
            raise UsageError("Average pooling cannot be dilated; give a network of convolutions and max pooling.")
        layers.append(twin)
    return nn.Sequential(*layers)


def stitching(depths: Sequence[int] = (1, 2, 3), size: int = 64, seed: int = 0) -> list[dict[str, Any]]:
    """Rows {stride, passes, output, difference, stitch_s, rarefied_s}: the two computations, and max |diff| of them."""
    rows = []
    for depth in depths:
        network = chain(depth, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        x = torch.randint(0, 256, (1, 3, size, size), generator=generator).double()
        with torch.inference_mode():
            start = time.perf_counter()
            stitched = shift_and_stitch(network, x)
            middle = time.perf_counter()
            rarefied = filter_rarefaction(network)(x)
            end = time.perf_counter()
        difference = float((stitched - rarefied).abs().max())
        rows.append(
            {
                "stride": 2**depth,
                "passes": 4**depth,
                "output": f"{stitched.shape[2]}x{stitched.shape[3]}",
                "difference": difference,
                "stitch_s": middle - start,
                "rarefied_s": end - middle,
            }
        )
    return rows


# -- patch sampling is loss sampling (paper, sections 3.4 and 4.4) -----------------------------------------------------


def keep_cells(labels: Tensor, stride: int, p: float, ignore: int, generator: torch.Generator) -> Tensor:
    """Labels N H W of which each `stride` x `stride` cell is kept with probability p and ignored otherwise.

    Sampling patches is nothing else: a patch is a cell of the final layer with its receptive field.
    """
    n, height, width = labels.shape
    keep = torch.rand(n, 1, -(-height // stride), -(-width // stride), generator=generator) < p
    pixels = keep.repeat_interleave(stride, 2).repeat_interleave(stride, 3)[:, 0, :height, :width]
    return torch.where(pixels, labels, torch.as_tensor(ignore, dtype=labels.dtype))


@final
@dataclass(frozen=True)
class _Images:
    images: Tensor  # N C H W, preprocessed
    labels: Tensor  # N H W int64


def _images(data: Dataset, model: models.FCN, size: tuple[int, int], limit: int) -> _Images:
    """Up to `limit` images, each cropped to `size` at its top left."""
    images: list[Tensor] = []
    labels: list[Tensor] = []
    for sample in data:
        if sample.image.shape[0] >= size[0] and sample.image.shape[1] >= size[1] and len(images) < limit:
            label = next(iter(sample.labels.values()))
            images.append(torch.from_numpy(model.preprocessing(sample.image[: size[0], : size[1]])))
            labels.append(torch.from_numpy(label[: size[0], : size[1]].astype(np.int64)))
    if not images:
        raise DataError(f"No image of {data.root} is at least {size[0]}x{size[1]} (HxW); give a smaller --size.")
    return _Images(torch.stack(images), torch.stack(labels))


def patch_sampling(
    data: Dataset,
    network: str = "fcn16s-squeezenet1_0",
    weights: str | None = None,
    keep: Sequence[float] = (1.0, 0.5, 0.25),
    steps: int = 60,
    batch: int = 2,
    size: tuple[int, int] = (96, 128),
    rate: float = 1e-3,
    images: int = 64,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Rows {p, step, seconds, loss}: training with each cell of the loss kept with probability p, on 1/p more images.

    Every p starts from the same weights (Adam at `rate`) and sees as many labelled pixels a step; `loss` is the mean
    over all pixels of one fixed set of images, at five times in the course.
    """
    taxonomy = data.taxonomy
    rows = []
    for p in keep:
        model = models.create(network, taxonomies={"semantic": taxonomy}, weights=weights, seed=seed, quiet=True)
        given = _images(data, model, size, images)
        geometry = model.geometry(*size)
        optimiser = torch.optim.Adam(model.parameters(), rate)
        generator = torch.Generator().manual_seed(seed)
        spent = 0.0
        for step in range(steps + 1):
            if step % max(1, steps // 4) == 0:
                rows.append({"p": p, "step": step, "seconds": spent, "loss": _loss_on(model, given, taxonomy.ignore)})
            start = time.perf_counter()
            chosen = torch.randint(len(given.images), (max(1, round(batch / p)),), generator=generator)
            labels = given.labels[chosen]
            if p < 1:
                labels = keep_cells(labels, int(geometry.stride), p, taxonomy.ignore, generator)
            optimiser.zero_grad(set_to_none=True)
            _loss(model.train(), given.images[chosen], labels, taxonomy.ignore).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            spent += time.perf_counter() - start
    return rows


def _loss(model: models.FCN, images: Tensor, labels: Tensor, ignore: int) -> Tensor:
    g = model.geometry(images.shape[2], images.shape[3])
    scores = next(iter(model.coarse(images).values()))
    loss: Tensor = ops.upsample_cross_entropy(scores, labels, g.stride, g.offset, border=g.border, ignore=ignore)
    return loss


def _loss_on(model: models.FCN, given: _Images, ignore: int) -> float:
    with torch.inference_mode():
        return float(_loss(model.eval(), given.images[:8], given.labels[:8], ignore))


# -- what coarse output alone costs (paper, section 5 / appendix A) ----------------------------------------------------

# Downsampling factor -> mean IU of the best possible prediction (PASCAL VOC 2011 validation subset).
PAPER_BOUNDS = {128: 50.9, 64: 73.3, 32: 86.1, 16: 92.8, 8: 96.4, 4: 98.5}


def coarse_labels(
    label: NDArray[np.integer], factor: int, classes: int, ignore: int, method: str = "nearest"
) -> NDArray[Any]:
    """label H W downsampled by `factor` and upsampled again, H W; every pixel has a class.

    "nearest": each factor x factor cell takes its centre pixel's class; "vote": its commonest. A cell whose centre is
    ignored votes; one without any class is 0. (The paper does not say how it resampled.)
    """
    height, width = label.shape
    row, column = np.arange(height) // factor, np.arange(width) // factor
    cells = int(column[-1]) + 1
    valid = label != ignore
    where = (row[:, None] * cells + column[None, :])[valid]
    counts = np.bincount(
        where * classes + label[valid].astype(np.int64), minlength=(int(row[-1]) + 1) * cells * classes
    )
    coarse = counts.reshape(-1, cells, classes).argmax(2).astype(label.dtype)
    if method == "nearest":
        y = np.minimum(np.arange(coarse.shape[0]) * factor + factor // 2, height - 1)
        x = np.minimum(np.arange(cells) * factor + factor // 2, width - 1)
        centre = label[np.ix_(y, x)]
        coarse = np.where(centre == ignore, coarse, centre)
    elif method != "vote":
        raise UsageError(f"{method!r} is no way to downsample labels; choose nearest or vote.")
    result: NDArray[Any] = coarse[row[:, None], column[None, :]]
    return result


def upper_bounds(
    data: Dataset, factors: Iterable[int] = tuple(PAPER_BOUNDS), methods: Sequence[str] = ("nearest", "vote")
) -> list[dict[str, Any]]:
    """Rows {factor, nearest, vote, paper}: mean IU in percent of labels that went through a coarser grid."""
    head, taxonomy = next(iter(data.taxonomies.items()))
    factors, k = list(factors), len(taxonomy)
    tables = {(f, m): np.zeros((k, k), np.int64) for f in factors for m in methods}
    for record in data.records:
        label = data.read_labels(record, head)
        for (f, m), table in tables.items():
            table += metrics.confusion(label, coarse_labels(label, f, k, taxonomy.ignore, m), k, taxonomy.ignore)
    if not any(t.any() for t in tables.values()):
        raise DataError(f"{data.root} ({data.split}) holds no labelled pixel; give a labelled split.")
    return [
        {"factor": f, **{m: 100 * metrics.mean_iu(tables[f, m]) for m in methods}, "paper": PAPER_BOUNDS.get(f)}
        for f in factors
    ]
