"""On a GPU: prediction and training step, time and memory, beside torchvision's FCN and torch.compile.

    python benchmarks/gpu.py [--size 500 500] [--batch 8] [--rounds 20] [--json FILE]

All variants take their turn in each round of one process; medians of synchronised times and the peak of
torch.cuda.max_memory_allocated above what the variant's weights take. Needs an NVIDIA GPU and torchvision.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import contest
import torch
import torch.nn.functional as F

import fullyconv as fc
from fullyconv import ops
from fullyconv.engine.prepare import prepare

CLASSES = 21
Call = Callable[[], Any]


def ours_predicting(name: str, x: torch.Tensor, precision: str) -> Call:
    model = scored(name)
    at, ready = model.geometry(x.shape[2], x.shape[3]), prepare(model.eval(), precision)
    size = (x.shape[2], x.shape[3])

    @torch.inference_mode()
    def call() -> Any:
        return ops.upsample_argmax(ready(x)["semantic"], size, at.stride, at.offset, at.border)

    return call


def scored(name: str) -> Any:
    model = fc.create(name, CLASSES, quiet=True).cuda().to(memory_format=torch.channels_last)
    with torch.no_grad():
        for p in model.head_parameters():
            p.normal_(0, 0.01)
    return model


def torchvision_fcn() -> Any:
    import torchvision

    found = torchvision.models.segmentation.fcn_resnet50(weights=None, weights_backbone=None, num_classes=CLASSES)
    return found.cuda()


def plain_predicting(network: Any, x: torch.Tensor, bf16: bool) -> Call:
    @torch.inference_mode()
    def call() -> Any:
        with torch.autocast("cuda", torch.bfloat16, enabled=bf16):
            return network(x)["out"].argmax(1)

    return call


def training(scores: Call, parameters: Any, loss: Callable[[torch.Tensor], torch.Tensor]) -> Call:
    optimizer = torch.optim.SGD(parameters, 1e-3, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.bfloat16):
            found = scores()
        loss(found.float()).backward()
        optimizer.step()

    return step


def variants(size: tuple[int, int], batch: int) -> dict[str, dict[str, Call]]:
    """{work: {variant: call}}; the first of each is the rival to compare with."""
    x = torch.randn(1, 3, *size, device="cuda")
    many = torch.randn(batch, 3, *size, device="cuda").contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, CLASSES, (batch, *size), device="cuda")
    theirs, ours = torchvision_fcn(), scored("fcn32s-resnet50")
    at = ours.geometry(*size)
    vgg = scored("fcn8s-vgg16").eval()

    def fused(s: torch.Tensor) -> torch.Tensor:
        return ops.upsample_cross_entropy(s, labels, at.stride, at.offset, border=at.border)

    return {
        "prediction, ResNet-50": {
            "torchvision bf16": plain_predicting(torchvision_fcn().eval(), x, True),
            "torchvision bf16, compiled": plain_predicting(torch.compile(torchvision_fcn().eval()), x, True),
            "fcn32s-resnet50 bf16": ours_predicting("fcn32s-resnet50", x, "bf16"),
        },
        "prediction, FCN-8s-VGG16": {
            "plain, fp32": plain_predicting(vgg, x, False),
            "plain, compiled, fp32": plain_predicting(torch.compile(vgg), x, False),
            "prepared, fp32": ours_predicting("fcn8s-vgg16", x, "fp32"),
            "prepared, bf16": ours_predicting("fcn8s-vgg16", x, "bf16"),
        },
        "training step, ResNet-50, bf16": {
            "torchvision": training(
                lambda: theirs(many)["out"], theirs.parameters(), lambda s: F.cross_entropy(s, labels)
            ),
            "fcn32s-resnet50": training(lambda: ours.coarse(many)["semantic"], ours.parameters(), fused),
        },
    }


def measure(calls: dict[str, Call], rounds: int) -> dict[str, dict[str, Any]]:
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    peaks: dict[str, float] = {}
    for done in range(rounds + 3):
        for name, call in calls.items():
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            held, start = torch.cuda.memory_allocated(), time.perf_counter()
            call()
            torch.cuda.synchronize()
            if done >= 3:  # compiled and tuned by then
                seconds[name].append(time.perf_counter() - start)
                peaks[name] = (torch.cuda.max_memory_allocated() - held) / (1 << 20)
    return {
        name: {"ms": round(statistics.median(s) * 1000, 3), "peak_mib": round(peaks[name])}
        for name, s in seconds.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--size", type=int, nargs=2, default=(500, 500), metavar=("H", "W"))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("There is no GPU that torch can use here; run this where there is one.")
    result: dict[str, Any] = {"machine": {**contest.machine(), "gpu": torch.cuda.get_device_name()}}
    for work, calls in variants(tuple(arguments.size), arguments.batch).items():
        result[work] = contest.with_ratios(measure(calls, arguments.rounds), next(iter(calls)))
        contest.show(work, result[work])
    contest.finish(result, arguments.json)


if __name__ == "__main__":
    main()
