"""Prediction and training steps of everyday networks: ours beside torchvision and segmentation_models.pytorch.

    python benchmarks/peers.py [--size 500 500] [--train-size 360 480] [--rounds 7] [--rivals PYTHON] [--json FILE]

Same image, 21 classes, each network in its own process with its own defaults (rivals: contiguous float32, no_grad,
full scores, argmax; ours: `Predictor`, and a step in channels last with the loss from coarse scores; what `train` does
beside that, `train_step.py` measures). FLOPs are printed beside the times, since
the networks are not equally large. PYTHON: an environment made from requirements/rivals.lock.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import contest
from inference import CLASSES, photo

OURS = ("fcn32s-resnet50", "fcn8s-resnet18", "fcn8s-mobilenet_v3_large", "fcn4s-resnet18")
RIVALS = ("torchvision fcn_resnet50", "smp Unet resnet18", "smp FPN resnet18")


def rival(name: str) -> Any:
    if name.startswith("torchvision"):
        import torchvision

        return torchvision.models.segmentation.fcn_resnet50(weights=None, weights_backbone=None, num_classes=CLASSES)
    import segmentation_models_pytorch as smp

    return getattr(smp, name.split()[1])("resnet18", encoder_weights=None, classes=CLASSES)


def padded(height: int, width: int) -> tuple[int, int]:
    """SMP's networks take multiples of 32 only."""
    return -(-height // 32) * 32, -(-width // 32) * 32


def flops(network: Any, *size: int) -> float:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 3, *size))
    return counter.get_total_flops() / 1e9


def predicting(name: str, height: int, width: int) -> tuple[Callable[[], Any], float]:
    import numpy as np
    import torch

    image = photo(height, width)
    if name in OURS:
        import fullyconv as fc
        from fullyconv.cost import estimate

        model = fc.create(name, CLASSES, quiet=True).eval()
        with torch.no_grad():
            for p in model.head_parameters():
                p.normal_(0, 0.01)
        predictor = fc.Predictor(model)
        return lambda: predictor(image), estimate(model, height, width).flops / 1e9
    network = rival(name).eval()
    size = padded(height, width) if name.startswith("smp") else (height, width)
    mean, std = np.array([0.485, 0.456, 0.406]) * 255, np.array([0.229, 0.224, 0.225]) * 255

    def call() -> Any:
        x = torch.zeros(1, 3, *size)
        x[0, :, :height, :width] = torch.from_numpy(((image - mean) / std).transpose(2, 0, 1))
        with torch.no_grad():
            scores = network(x)
        scores = scores["out"] if isinstance(scores, dict) else scores
        return scores[0, :, :height, :width].argmax(0).numpy()

    return call, flops(network, *size)


def training(name: str, height: int, width: int, batch: int) -> Callable[[], Any]:
    import torch

    labels = torch.randint(0, CLASSES, (batch, height, width))
    if name in OURS:
        import fullyconv as fc
        from fullyconv import ops

        model = fc.create(name, CLASSES, quiet=True).to(memory_format=torch.channels_last).train()
        at = model.geometry(height, width)
        optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)
        x = torch.randn(batch, 3, height, width).contiguous(memory_format=torch.channels_last)

        def loss() -> Any:
            scores = model.coarse(x)["semantic"]
            return ops.upsample_cross_entropy(scores, labels, at.stride, at.offset, border=at.border)

    else:
        size = padded(height, width) if name.startswith("smp") else (height, width)
        network = rival(name).train()
        optimizer = torch.optim.SGD(network.parameters(), 1e-3, momentum=0.9)
        x = torch.randn(batch, 3, *size)

        def loss() -> Any:
            scores = network(x)
            scores = scores["out"] if isinstance(scores, dict) else scores
            return torch.nn.functional.cross_entropy(scores[..., :height, :width], labels)

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return step


def run(arguments: argparse.Namespace, work: str, size: tuple[int, int]) -> dict[str, Any]:
    contestants = []
    for name in (*OURS, *RIVALS):
        python = arguments.rivals if name in RIVALS else sys.executable
        command = [python, __file__, "--worker", name, "--work", work, "--size", str(size[0]), str(size[1])]
        contestants.append(contest.Contestant(name, command, {} if name in RIVALS else contest.HUGE))
    found = contest.with_ratios(contest.compete(contestants, arguments.rounds), RIVALS[0])
    contest.show(f"{work}, {size[0]}x{size[1]}, beside {RIVALS[0]}", found)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--size", type=int, nargs=2, default=(500, 500), metavar=("H", "W"))
    parser.add_argument("--train-size", type=int, nargs=2, default=(360, 480), metavar=("H", "W"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--rivals", default=sys.executable, metavar="PYTHON")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    contest.hold_back(parser)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker and arguments.work == "training step":
        return contest.answer(training(arguments.worker, *arguments.size, 2))
    if arguments.worker:
        call, work = predicting(arguments.worker, *arguments.size)
        return contest.answer(call, gflop=round(work, 1))
    result: dict[str, Any] = {"machine": contest.machine()}
    result["prediction"] = run(arguments, "prediction", tuple(arguments.size))
    result["training step"] = run(arguments, "training step", tuple(arguments.train_size))
    return contest.finish(result, arguments.json)


if __name__ == "__main__":
    main()
