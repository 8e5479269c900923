"""What each path of `fullyconv.engine` is worth by itself: processor time of the same result without it.

    python benchmarks/paths.py [--only winograd window] [--rounds 5] [--threads 1] [--json FILE]

One process; the two sides of a row take turns, one turn each is not counted, figures are medians of processor time,
which other programs disturb least. "without" is what would compute it if the path were deleted: torch's own
convolution, or the path that comes next. A row is left out where the processor lacks the instructions.
A path that gains less than a tenth on every processor measured is to be deleted.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import contest
import torch
import torch.nn.functional as F
from torch import Tensor

Call = Callable[[], object]
Row = tuple[str, str, str, Call, Call]  # path, what it computes, what would compute it otherwise; with, without


def layer(shape: tuple[int, int, int, int], cells: tuple[int, int], stride: int = 1) -> tuple[Any, ...]:
    """(x, weight, bias, what is asked of the convolution, its padding); x is what a ReLU gives, channels last."""
    from fullyconv.engine.spec import ConvolutionSpec

    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=draw) / shape[1] ** 0.5
    weight = weight.contiguous(memory_format=torch.channels_last)
    x = torch.rand((1, shape[1], *cells), generator=draw).contiguous(memory_format=torch.channels_last)
    bias, padding = torch.randn(shape[0], generator=draw), [shape[2] // 2 if shape[2] == 3 else 0] * 2

    def plain(x: Tensor, padding: Any) -> Tensor:
        return F.conv2d(x, weight, bias, stride, padding)

    return x, weight, bias, ConvolutionSpec((stride,) * 2, (1, 1), 1, False, True, plain), padding


def convolutions() -> Iterator[Row]:
    from fullyconv.engine.convolution import Packed, Product, SplitBytes, Winograd, has_byte_products

    cases: tuple[tuple[str, type[Any], type[Any] | None, tuple[int, int, int, int], tuple[int, int], int], ...] = (
        ("winograd, transform kept", Winograd, Packed, (64, 64, 3, 3), (90, 120), 1),
        ("winograd, transform kept", Winograd, Packed, (128, 128, 3, 3), (45, 60), 1),
        ("winograd, transform kept", Winograd, Packed, (256, 256, 3, 3), (45, 60), 1),
        ("winograd, transform made", Winograd, Packed, (512, 512, 3, 3), (45, 60), 1),
        ("packed", Packed, None, (256, 128, 3, 3), (90, 120), 2),
        ("packed", Packed, None, (512, 512, 3, 3), (12, 15), 1),
        ("product, 1x1", Product, None, (512, 128, 1, 1), (45, 60), 1),
        ("product, 1x1", Product, None, (512, 2048, 1, 1), (12, 15), 1),
        ("product, fc6", Product, None, (4096, 512, 7, 7), (13, 16), 1),
        *((("split bytes", SplitBytes, Packed, (512, 512, 3, 3), (45, 60), 1),) if has_byte_products() else ()),
    )
    for name, path, other, shape, cells, stride in cases:
        x, weight, bias, spec, padding = layer(shape, cells, stride)
        ours = path(weight, bias, spec)
        rival = other(weight, bias, spec) if other else spec.plain
        what = f"{shape[2]}x{shape[3]}, {shape[1]} -> {shape[0]} channels, {cells[0]}x{cells[1]} cells, stride {stride}"
        calls = [_call(torch.inference_mode, f, x, padding) for f in (ours, rival)]
        yield name, what, other.__name__ if other else "F.conv2d", calls[0], calls[1]


def learning() -> Iterator[Row]:
    from fullyconv.engine.autograd import fast_convolutions

    for name, shape, cells in (
        ("winograd, learning", (256, 256, 3, 3), (45, 60)),
        ("product, learning fc6", (4096, 512, 7, 7), (13, 16)),
    ):
        x, weight, bias, _, padding = layer(shape, cells)
        tensors = [t.requires_grad_() for t in (x, weight, bias)]

        def step(tensors: list[Tensor] = tensors, padding: list[int] = padding) -> None:
            y = F.conv2d(*tensors, (1, 1), padding, (1, 1), 1)  # as torch.nn.Conv2d calls it
            torch.autograd.grad(y, tensors, torch.ones_like(y))

        def fast(step: Call = step) -> None:
            with fast_convolutions():
                step()

        what = f"{shape[2]}x{shape[3]}, {shape[1]} -> {shape[0]} channels, {cells[0]}x{cells[1]} cells, gradients too"
        yield name, what, "F.conv2d", fast, step


def networks() -> Iterator[Row]:
    from fullyconv import models
    from fullyconv.engine.prepare import prepare
    from fullyconv.processor import instruction_sets

    for name, path, size in (
        ("folding and all of the above", "fcn8s-resnet18", (360, 480)),
        ("folding and all of the above", "fcn8s-mobilenet_v2", (360, 480)),
        ("window", "fcn8s-vgg16", (224, 224)),
    ):
        model = models.create(path, classes=21, quiet=True).eval()
        x = torch.rand(1, 3, *size).contiguous(memory_format=torch.channels_last)
        what = f"{path}, {size[0]}x{size[1]}"
        ours = prepare(model)
        rival: Any = prepare(model, window=False) if name == "window" else model.coarse
        calls = [_call(torch.inference_mode, f, x) for f in (ours, rival)]
        yield name, what, "all cells" if name == "window" else "the network as it is", calls[0], calls[1]
        if name == "window" and {"avx512_bf16", "amx_bf16"} & set(instruction_sets()):
            yield "bfloat16", what, "float32", _call(torch.inference_mode, prepare(model, "bf16"), x), calls[0]


def _call(context: Callable[[], Any], function: Callable[..., Any], *given: Any) -> Call:
    def call() -> None:
        with context():
            function(*given)

    return call


def measured(ours: Call, rival: Call, rounds: int) -> tuple[float, float]:
    """Milliseconds of processor time of both, medians."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(1 + rounds):
        for call, kept in zip((ours, rival), times, strict=True):
            begun = time.process_time()
            call()
            kept.append(1000 * (time.process_time() - begun))
    first, second = (statistics.median(kept[1:]) for kept in times)
    return first, second


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[], help="paths whose names begin so")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    rows = []
    print("| path | computes | without it | with, ms | without, ms | times less |\n|---|---|---|---|---|---|")
    for source in (convolutions, learning, networks):
        for path, what, without, ours, rival in source():
            if a.only and not path.startswith(tuple(a.only)):
                continue
            first, second = measured(ours, rival, a.rounds)
            rows.append({"path": path, "computes": what, "without": without, "cpu_ms": round(first, 2),
                         "cpu_ms_without": round(second, 2), "times_less_cpu": round(second / first, 2)})  # fmt: skip
            print(f"| {path} | {what} | {without} | {first:.1f} | {second:.1f} | {second / first:.2f} |", flush=True)
    if a.json:
        kept = {"machine": contest.machine(), "threads": a.threads, "rounds": a.rounds, "rows": rows}
        a.json.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
