"""Any image classifier as a dense scorer with the same weights (paper, section 3.1, figure 2), and the proof of it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any, final

import torch
from torch import Tensor, fx, nn

from fullyconv.arguments import TILE, WHOLE, takes
from fullyconv.convolutionalisation.analysis import analyse, called, trace_shared
from fullyconv.convolutionalisation.rewriting import densify
from fullyconv.errors import DataError, InternalError, UsageError

__all__ = ["DenseScorer", "Proof", "convolutionalise"]

Pair = tuple[int, int]
TOLERANCE = 1e-4  # of the largest |score|: what float32 summation in another order may cost
PAST = 26_880  # pixels added to measure the stride: a multiple of every usual one (2^8 * 3 * 5 * 7)


@final
@dataclass(frozen=True)
class Proof:
    """What was compared, and what came out. Differences are max |diff| in the classifier's own score units.

    `native`: dense scorer and classifier on one image of `input_size`. `windows`: cells of a larger image, each
    against the classifier on its crop (cell (i, j) <-> the window of `input_size` at (i * stride, j * stride)).
    `unpadded`: the same comparison with all zero padding taken out of both networks, where that is possible.
    """

    input_size: Pair
    stride: Pair
    scale: float  # largest |score| of the classifier in these comparisons
    native: float
    windows: int
    window_difference: float
    correlation: float  # of cells and windows, each class's mean over the windows taken out
    agreement: float  # share of windows whose best class is the same
    unpadded: float | None
    padded: tuple[str, ...]  # layers that pad: a window's own border is zeros to the classifier alone
    whole_image: tuple[str, ...]  # operations that stay global: they look at the whole image, not at the window
    kept_whole: tuple[str, ...]  # modules whose forward branches on the image's size ("same" padding computed from it)

    @property
    def exact(self) -> bool:
        """Whether every cell equals the classifier on its window (to float32 rounding)."""
        return self.window_difference <= TOLERANCE * self.scale

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"exact": self.exact}

    def __str__(self) -> str:
        native, stride = ("x".join(map(str, pair)) for pair in (self.input_size, self.stride))
        lines = [f"native size {native}: max |diff| {self.native:.3g} (scores to {self.scale:.3g})"]
        lines.append(
            f"{self.windows} windows of a larger image, stride {stride}: max |diff| {self.window_difference:.3g}, "
            f"correlation {self.correlation:.3f}, same best class {self.agreement:.0%}"
        )
        if self.unpadded is not None:
            lines.append(f"zero padding taken out of both, on windows: max |diff| {self.unpadded:.3g}")
        if self.padded and not self.exact:
            lines.append(
                f"cells differ from crops because {len(self.padded)} layers pad (first: {self.padded[0]}): beyond a "
                "crop's border the classifier sees zeros, the dense scorer the image"
            )
        if self.kept_whole:
            lines.append(f"kept whole, as they branch on the image's size: {', '.join(self.kept_whole)}")
        lines += [f"stays global: {name}" for name in self.whole_image]
        return "\n".join(lines)


@final
class DenseScorer(nn.Module):
    """x float32 N C H W -> scores N K h w: one cell for every window of `input_size`, `stride` pixels apart.

    1 x 1 at the native size. Parameters are the classifier's own tensors under the classifier's own names
    (`body.` in front). `proof` says how far it equals the classifier.
    """

    def __init__(self, body: fx.GraphModule, input_size: Pair) -> None:
        super().__init__()
        self.body = body
        self.input_size = input_size
        self.stride = (0, 0)
        self.proof: Proof | None = None

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[2] < self.input_size[0] or x.shape[3] < self.input_size[1]:
            raise DataError(
                f"An image of shape {tuple(x.shape)} does not hold one window of {self.input_size[0]}x"
                f"{self.input_size[1]} (HxW); give N x C x H x W with H and W at least that."
            )
        scores: Tensor = self.body(x)
        return scores


@takes(input_size=TILE, channels=WHOLE, windows=WHOLE)
def convolutionalise(
    classifier: nn.Module,
    input_size: int | Pair = 224,
    *,
    channels: int = 3,
    windows: int = 3,
    image: Tensor | None = None,
) -> DenseScorer:
    """Turn a classifier that ends in pooling, flatten and linear layers into a dense scorer with the same weights.

    classifier: N C H W -> N K, any torch module that torch.fx can trace; it is not changed. input_size: the size (or
    (H, W)) that it was trained at: the window that slides. windows: the proof compares up to windows x windows crops,
    half a window apart, of `image` (1 C H W in the classifier's own convention; seeded noise when none is given).

    Linear layers become convolutions, global pooling becomes a sliding average (or maximum) over the native window.
    Squeeze-excitation and other looks at the whole image stay global; `.proof` names them. Errors: UsageError for
    self-attention, batch norm in train mode, untraceable forwards and heads that cannot slide; InternalError when the
    two disagree where they must not.

    >>> conv, pool = torch.nn.Conv2d(3, 8, 3, 2, 1), torch.nn.AdaptiveAvgPool2d(1)
    >>> classifier = torch.nn.Sequential(conv, torch.nn.ReLU(), pool, torch.nn.Flatten(), torch.nn.Linear(8, 4))
    >>> dense = fc.convolutionalise(classifier.eval(), 32)
    >>> dense(torch.zeros(1, 3, 48, 64)).shape
    torch.Size([1, 4, 9, 17])
    """
    if not isinstance(classifier, nn.Module):
        raise UsageError(f"A classifier is a torch module, not {type(classifier).__name__}; give the network itself.")
    size = (input_size, input_size) if isinstance(input_size, int) else (int(input_size[0]), int(input_size[1]))
    _refuse_batch_statistics(classifier)
    reading = analyse(trace_shared(classifier), channels, size)
    classify = fx.GraphModule(reading.graph, copy.deepcopy(reading.graph.graph)).eval()
    densify(reading)
    dense = DenseScorer(reading.graph, size).eval()
    dense.stride = _stride(dense, channels)
    dense.proof = _prove(dense, classify, channels, windows, tuple(reading.gates), image)
    return dense


def _refuse_batch_statistics(classifier: nn.Module) -> None:
    for name, module in classifier.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            if module.running_mean is None:
                raise UsageError(
                    f"{name} normalises by the batch at hand, so that one image's scores depend on others'."
                )
            if module.training:
                raise UsageError(f"{name} is batch norm in train mode; call classifier.eval() first.")


# -- stride ------------------------------------------------------------------------------------------------------------


def _cells(dense: DenseScorer, channels: int, size: Pair) -> Pair:
    """The map's size for an image's, without computing (meta tensors)."""
    state = {n: t.to("meta") for n, t in (*dense.named_parameters(), *dense.named_buffers())}
    with torch.no_grad():
        scores = torch.func.functional_call(dense, state, (torch.empty(1, channels, *size, device="meta"),))
    return scores.shape[2], scores.shape[3]


def _stride(dense: DenseScorer, channels: int) -> Pair:
    """Pixels from one cell's window to the next's, measured; refuses scorers whose map does not grow."""
    height, width = dense.input_size
    try:
        rows, columns = _cells(dense, channels, (height + PAST, width + PAST))
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        raise UsageError(
            f"The classifier works at {height}x{width} (HxW) only ({str(error).splitlines()[0][:200]}); "
            "one whose layers are tied to an image size cannot slide."
        ) from error
    if rows < 2 or columns < 2 or PAST % (rows - 1) or PAST % (columns - 1):
        raise UsageError(
            f"The classifier's map for an image {PAST} pixels larger is {rows}x{columns} cells: some operation looks "
            "at the whole image or scales with it, so there is no window to slide."
        )
    return PAST // (rows - 1), PAST // (columns - 1)


# -- proof -------------------------------------------------------------------------------------------------------------


def _image(channels: int, size: Pair, like: nn.Module) -> Tensor:
    """A seeded image with structure at every scale, so that its windows differ: noise from coarse to fine, summed."""
    generator = torch.Generator().manual_seed(0)
    image = torch.zeros(1, channels, *size)
    cells = 4
    while cells < max(size):
        noise = torch.randn(1, channels, cells, cells, generator=generator)
        image += nn.functional.interpolate(noise, size, mode="bilinear", align_corners=False)
        cells *= 2
    example = next(like.parameters(), image)
    return image.to(example.device, example.dtype)


@final
@dataclass(frozen=True)
class _Compared:
    """Scores of n cells and of the classifier on their windows, both n x K."""

    cells: Tensor
    crops: Tensor

    @property
    def difference(self) -> float:
        return float((self.cells - self.crops).abs().max())

    @property
    def correlation(self) -> float:
        a, b = ((t - t.mean(0)).double() for t in (self.cells, self.crops))
        norm = float(a.norm() * b.norm())
        return float((a * b).sum()) / norm if norm else float("nan")


def _compare(
    dense: nn.Module, classify: nn.Module, image: Tensor, size: Pair, stride: Pair, places: Sequence[Pair]
) -> _Compared:
    """Cells (i, j) in `places` against the classifier on the windows of `size` at (i, j) * stride."""
    crops = [(i * stride[0], j * stride[1]) for i, j in places]
    with torch.no_grad():
        scores = dense(image)[0]
        cells = torch.stack([scores[:, i, j] for i, j in places])
        return _Compared(
            cells, torch.cat([classify(image[:, :, y : y + size[0], x : x + size[1]]).flatten(1) for y, x in crops])
        )


def _places(cells: Pair, windows: int, apart: Pair) -> list[Pair]:
    """Up to windows x windows cells of a map, `apart` cells from each other where there is room, else evenly."""
    axes = []
    for n, gap in zip(cells, apart, strict=True):
        gap = min(gap, max(1, (n - 1) // max(1, windows - 1)))
        axes.append(range(0, min(n, gap * (windows - 1) + 1), gap))
    return [(i, j) for i in axes[0] for j in axes[1]]


def _prove(
    dense: DenseScorer,
    classify: fx.GraphModule,
    channels: int,
    windows: int,
    gates: tuple[str, ...],
    image: Tensor | None,
) -> Proof:
    size, stride = dense.input_size, dense.stride
    apart = (max(1, size[0] // stride[0] // 2), max(1, size[1] // stride[1] // 2))
    if image is None:
        sides = tuple(size[a] + (windows - 1) * apart[a] * stride[a] for a in (0, 1))
        image = _image(channels, (sides[0], sides[1]), dense)
    native = _compare(dense, classify, image[:, :, : size[0], : size[1]], size, stride, [(0, 0)])
    places = _places(_cells(dense, channels, (image.shape[2], image.shape[3])), windows, apart)
    larger = _compare(dense, classify, image, size, stride, places)
    bare = None if gates or _kept_whole(dense.body) else _unpadded(dense, classify, channels)
    proof = Proof(
        input_size=size,
        stride=stride,
        scale=float(torch.cat([native.crops, larger.crops]).abs().max()),
        native=native.difference,
        windows=len(places),
        window_difference=larger.difference,
        correlation=larger.correlation,
        agreement=float((larger.cells.argmax(1) == larger.crops.argmax(1)).double().mean()),
        unpadded=None if bare is None else bare.difference,
        padded=tuple(f"{n.target if n.op == 'call_module' else n.name}" for n in _padding(dense.body)),
        whole_image=gates,
        kept_whole=_kept_whole(dense.body),
    )
    _hold(proof, bare)
    return proof


def _hold(proof: Proof, bare: _Compared | None) -> None:
    """What must be equal is: the native size always; every window where nothing pads; every window without padding."""
    wrong = {"at the native size": (proof.native, proof.scale)}
    if bare is not None:
        wrong["on windows without padding"] = (bare.difference, float(bare.crops.abs().max()))
    if not (proof.padded or proof.whole_image or proof.kept_whole):
        wrong["on its windows"] = (proof.window_difference, proof.scale)
    for where, (difference, scale) in wrong.items():
        if not difference <= TOLERANCE * scale:
            raise InternalError(f"The dense scorer differs from its classifier {where} by {difference:.3g}; report it.")


# -- padding -----------------------------------------------------------------------------------------------------------


def _padding(body: fx.GraphModule) -> list[fx.Node]:
    """The nodes that look beyond their input's border."""
    return [n for n in body.graph.nodes if _pads(body, n)]


def _pads(body: fx.GraphModule, node: fx.Node) -> bool:
    name = called(body, node)
    if node.op == "call_module":
        return getattr(body.get_submodule(str(node.target)), "padding", 0) not in (0, (0, 0), "valid")
    place = {"conv2d": 4, "max_pool2d": 3, "avg_pool2d": 3}.get(name)
    if place is None:
        return name == "pad"
    padding: Any = node.kwargs.get("padding", node.args[place] if len(node.args) > place else 0)
    return padding not in (0, (0, 0), [0, 0], "valid")


def _kept_whole(body: fx.GraphModule) -> tuple[str, ...]:
    """The modules that could not be traced into and are none of torch's own."""
    modules = {str(n.target): body.get_submodule(str(n.target)) for n in body.graph.nodes if n.op == "call_module"}
    return tuple(name for name, m in modules.items() if not type(m).__module__.startswith("torch."))


def _unpadded(dense: DenseScorer, classify: fx.GraphModule, channels: int) -> _Compared | None:
    """2 x 2 windows with every layer's padding taken out of both networks.

    None where that cannot be done: branches that meet would differ in size (residual nets), or a function pads.
    """
    memo: dict[int, Any] = {id(t): t for t in chain(dense.parameters(), dense.buffers())}
    bare = copy.deepcopy(dense, memo)
    padding = _padding(bare.body)
    if not padding or any(n.op != "call_module" for n in padding):
        return None
    for node in padding:
        module: Any = bare.body.get_submodule(str(node.target))
        module.padding = (0, 0) if isinstance(module, nn.Conv2d) else 0
    size = _smallest(bare, channels)
    if size is None:
        return None
    twin = fx.GraphModule(bare.body, copy.deepcopy(classify.graph)).eval()
    bare.input_size = size
    image = _image(channels, (size[0] + bare.stride[0], size[1] + bare.stride[1]), dense)
    return _compare(bare, twin, image, size, bare.stride, [(0, 0), (0, 1), (1, 0), (1, 1)])


def _smallest(dense: DenseScorer, channels: int) -> Pair | None:
    """The smallest image, up to four native ones a side, that gives one cell."""
    height, width = dense.input_size

    def fits(extra: int) -> bool:
        try:
            return _cells(dense, channels, (height + extra, width + extra)) >= (1, 1)
        except (RuntimeError, ValueError):  # a map smaller than its kernel, or branches of different size
            return False

    low, high = 0, 3 * max(height, width)
    if height != width or not fits(high):
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle + 1, high)
    return (height + low, width + low)
