"""Training steps: ours beside the same network in plain torch and beside others' networks on the same trunk.

    python benchmarks/train_step.py [--trunk resnet18] [--size 360 480] [--batch 4] [--rounds 7] [--rivals PYTHON]
                                    [--threads 1] [--precisions fp32] [--width avx2] [--json FILE]

Ours is a step of `fullyconv train`: bytes in, optimiser's step done, the allocator as on its command line. The plain
rival is the same FCN-8s as everyone writes it: contiguous float32, full-size scores by interpolation, torch's cross
entropy, default allocator; for VGG16 it is pip's torchfcn FCN8s (pad 100), in the environment PYTHON made from
requirements/rivals.lock. Others: torchvision's FCN head on the trunk's last map, SMP's FPN, where they are installed.
Each has its own process, all take turns, figures are medians.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import contest

CLASSES = 12
SMP_NAMES = {"mobilenet_v3_large": "timm-mobilenetv3_large_100", "efficientnet_lite0": "timm-tf_efficientnet_lite0"}
PLAIN, TORCHFCN, TORCHVISION, SMP = "plain FCN-8s fp32", "torchfcn FCN8s fp32", "torchvision FCNHead", "smp FPN"


def data(batch: int, height: int, width: int) -> tuple[Any, Any]:
    """Images N H W 3 and labels N H W, bytes."""
    import numpy as np

    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (batch, height, width, 3)).astype(np.uint8)
    return images, rng.integers(0, CLASSES, (batch, height, width)).astype(np.uint8)


def ours(name: str, precision: str, padding: str, images: Any, labels: Any) -> Callable[[], object]:
    """A step of `fullyconv train`."""
    import torch

    from fullyconv import allocator, models
    from fullyconv.recipes import read_recipe
    from fullyconv.train.context import training_mode
    from fullyconv.train.optimisation import optimizer_for
    from fullyconv.train.process_group import ProcessGroup
    from fullyconv.train.step import Batch, gradients

    allocator.keep_freed()
    batch = Batch(images, {"semantic": labels}, tuple(map(str, range(len(images)))))
    recipe = read_recipe(None, {"model": name, "precision": precision, "batch_size": len(images), "optimizer": "sgd"})
    model = models.create(name, classes=CLASSES, quiet=True, padding=padding or None)
    model = model.to(memory_format=torch.channels_last)
    training_mode(model, recipe)
    allocator.give_back()
    optimizer, group = optimizer_for(model, recipe), ProcessGroup(0, 1, torch.device("cpu"))
    scaler = torch.amp.GradScaler("cpu", enabled=False)

    def step() -> None:
        gradients(model, [batch], recipe, group, {}, scaler)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def plain(network: Any, images: Any, labels: Any) -> Callable[[], object]:
    """The rivals' loop: normalised float NCHW in, full-size scores, torch's cross entropy, SGD with momentum."""
    import torch
    import torch.nn.functional as F

    network.train()
    optimizer = torch.optim.SGD(network.parameters(), 1e-10, momentum=0.9)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    truth = torch.from_numpy(labels).long()

    def step() -> None:
        x = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous() / 255
        scores: Any = network((x - mean.view(3, 1, 1)) / std.view(3, 1, 1))
        scores = scores["out"] if isinstance(scores, dict) else scores
        F.cross_entropy(scores, truth, ignore_index=255).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def plain_fcn(trunk: str) -> Any:
    """The network of ours, its scores interpolated."""
    import torch
    import torch.nn.functional as F

    from fullyconv import models

    network = models.create(f"fcn8s-{trunk}", classes=CLASSES, quiet=True)

    class Plain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: Any) -> Any:
            coarse = self.network.coarse(x)["semantic"]
            return F.interpolate(coarse, size=x.shape[-2:], mode="bilinear", align_corners=False)

    return Plain()


def torchfcn() -> Any:
    from inference import torchfcn_class

    return torchfcn_class()(n_class=CLASSES)


def torchvision_fcn(trunk: str) -> Any:
    """torchvision's `_SimpleSegmentationModel` with its FCNHead on a trunk whose classifier is left out."""
    import torch
    import torchvision
    from torchvision.models.segmentation.fcn import FCNHead

    whole = getattr(torchvision.models, trunk)(weights=None)
    features = whole.features if hasattr(whole, "features") else torch.nn.Sequential(*list(whole.children())[:-2])
    with torch.no_grad():
        channels = features(torch.zeros(1, 3, 64, 64)).shape[1]

    class TorchvisionFCN(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features, self.head = features, FCNHead(channels, CLASSES)

        def forward(self, x: Any) -> Any:
            scores = self.head(self.features(x))
            return torch.nn.functional.interpolate(scores, size=x.shape[-2:], mode="bilinear", align_corners=False)

    return TorchvisionFCN()


def smp_fpn(trunk: str) -> Any:
    """Fed as its users must feed a network that takes multiples of 32 only: padded, the scores cut."""
    import segmentation_models_pytorch as smp
    import torch

    encoder = SMP_NAMES.get(trunk, trunk)

    class Padded(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = smp.FPN(encoder, encoder_weights=None, classes=CLASSES)

        def forward(self, x: Any) -> Any:
            height, width = x.shape[-2:]
            padded = torch.nn.functional.pad(x, (0, -width % 32, 0, -height % 32))
            return self.network(padded)[..., :height, :width]

    return Padded()


def contestants(trunk: str, precisions: Sequence[str]) -> list[str]:
    """The rival that ratios are to comes first of the rivals. torchvision has no EfficientNet-Lite."""
    if trunk == "vgg16":
        own = [f"fullyconv fcn8s-vgg16 {p} {padding}" for padding in ("paper", "same") for p in precisions]
        return [*own, TORCHFCN]
    others = [PLAIN, *([] if "lite" in trunk else [TORCHVISION]), SMP]
    return [*(f"fullyconv fcn8s-{trunk} {p}" for p in precisions), *others]


def worker(who: str, trunk: str, size: tuple[int, int], batch: int) -> None:
    images, labels = data(batch, *size)
    if who.startswith("fullyconv"):
        _, name, precision, *padding = who.split()
        return contest.answer(ours(name, precision, "".join(padding), images, labels))
    made = {PLAIN: lambda: plain_fcn(trunk), TORCHFCN: torchfcn, TORCHVISION: lambda: torchvision_fcn(trunk)}
    return contest.answer(plain(made.get(who, lambda: smp_fpn(trunk))(), images, labels))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--trunk", default="resnet18")
    parser.add_argument("--size", type=int, nargs=2, default=(360, 480), metavar=("H", "W"))
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, help="all cores, unless given")
    parser.add_argument("--precisions", nargs="+", default=("fp32", "bf16"), help="those of ours that take part")
    parser.add_argument("--rivals", default=sys.executable, metavar="PYTHON")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    contest.hold_back(parser)
    a = parser.parse_args()
    if a.worker:
        return worker(a.worker, a.trunk, tuple(a.size), a.batch)
    before, taking_part = contest.machine(), []
    for name in contestants(a.trunk, a.precisions):
        mine = name.startswith("fullyconv")
        python = a.rivals if name in (TORCHFCN, SMP) else sys.executable
        command = [python, __file__, "--worker", name, "--trunk", a.trunk, "--batch", str(a.batch), "--size"]
        path = {"PYTHONPATH": os.pathsep.join(map(str, sys.path))} if python == sys.executable else {}
        threads = {"OMP_NUM_THREADS": str(a.threads)} if a.threads else {}
        settings = {**path, **threads, **(contest.HUGE if mine else {})}
        taking_part.append(contest.Contestant(name, [*command, *map(str, a.size)], settings))
    found = contest.compete(taking_part, a.rounds)
    rival = TORCHFCN if a.trunk == "vgg16" else PLAIN
    for figures in found.values():
        if "ms" in figures:
            figures["images_per_second"] = round(a.batch * 1000 / figures["ms"], 2)
    contest.with_ratios(found, rival)
    contest.show(f"training step, {a.trunk}, {a.size[0]}x{a.size[1]}, batch {a.batch}, beside {rival}", found)
    facts = {"trunk": a.trunk, "size": list(a.size), "batch": a.batch, "threads": a.threads}
    return contest.beside({**facts, "machine": before, "figures": found}, a.json, tuple(facts))


if __name__ == "__main__":
    main()
