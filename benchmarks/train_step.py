"""Images learned a second: our step against a plain torchvision (and segmentation_models.pytorch) model on one trunk.

    python benchmarks/train_step.py [--size 360 480] [--batch 4] [--rounds 5] [--trunk mobilenet_v2] [--out FILE.json]

Rivals are what their own training scripts run: torchvision's FCN head on the trunk's last feature map (references/
segmentation), or SMP's FPN with that encoder where it is installed; contiguous tensors, fp32, interpolate + cross
entropy. Every variant takes its turn in each round of one process; the figures are medians. Our networks do more
work (skips down to stride 8 or 4), which is said with their pixels' strides.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from fullyconv import models, ops
from fullyconv.recipes import read
from fullyconv.train.course import training_mode
from fullyconv.train.optimisation import optimizer_for
from fullyconv.train.step import Batch, gradients
from fullyconv.train.world import World

CLASSES = 12


def ours(name: str, batch: Batch, precision: str) -> Callable[[], object]:
    """A step of `fullyconv train`: uint8 in, optimiser's step done."""
    recipe = read(None, {"model": name, "precision": precision, "batch_size": len(batch.images)})
    model = models.create(name, classes=CLASSES, quiet=True).to(memory_format=torch.channels_last)
    training_mode(model, recipe)
    optimizer, world = optimizer_for(model, recipe), World(0, 1, torch.device("cpu"))
    scaler = torch.amp.GradScaler("cpu", enabled=False)

    def step() -> None:
        gradients(model, [batch], recipe, world, {}, scaler)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def plain(model: nn.Module, batch: Batch) -> Callable[[], object]:
    """The same with the rivals' loop: normalised float NCHW in, full-size scores, torch's cross entropy."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters())
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    labels = torch.from_numpy(batch.labels["semantic"]).long()

    def step() -> None:
        x = (torch.from_numpy(batch.images).permute(0, 3, 1, 2).contiguous() / 255 - mean.view(3, 1, 1)) / std.view(
            3, 1, 1
        )
        scores: Any = model(x)
        scores = scores["out"] if isinstance(scores, dict) else scores
        F.cross_entropy(scores, labels, ignore_index=255).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


class TorchvisionFCN(nn.Module):
    """torchvision's `_SimpleSegmentationModel` with its FCNHead on a trunk whose classifier is left out."""

    def __init__(self, trunk: str) -> None:
        super().__init__()
        import torchvision
        from torchvision.models.segmentation.fcn import FCNHead

        net = getattr(torchvision.models, trunk)(weights=None)
        self.features = net.features if hasattr(net, "features") else nn.Sequential(*list(net.children())[:-2])
        with torch.no_grad():
            channels = self.features(torch.zeros(1, 3, 64, 64)).shape[1]
        self.head = FCNHead(channels, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.interpolate(self.head(self.features(x)), size=x.shape[-2:], mode="bilinear", align_corners=False)


class Padded(nn.Module):
    """A network that takes multiples of 32 only, fed as its users must: padded below and right, the scores cut."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[-2:]
        scores: torch.Tensor = self.network(F.pad(x, (0, -width % 32, 0, -height % 32)))
        return scores[..., :height, :width]


def variants(trunk: str, batch: Batch) -> dict[str, Callable[[], object]]:
    finest = 16 if trunk.startswith("squeezenet") else 32
    found = {
        f"fullyconv fcn{s}s-{trunk} {p}": ours(f"fcn{s}s-{trunk}", batch, p)
        for s in (finest, 8, 4)
        for p in ("fp32", "bf16")
    }
    found["torchvision FCNHead, stride 32, fp32"] = plain(TorchvisionFCN(trunk), batch)
    try:
        import segmentation_models_pytorch as smp

        found["smp FPN, stride 4, fp32"] = plain(Padded(smp.FPN(trunk, encoder_weights=None, classes=CLASSES)), batch)
    except ImportError:
        print("segmentation_models_pytorch is not installed; its row is left out", file=sys.stderr)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=2, default=(360, 480))
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--trunk", default="mobilenet_v2")
    parser.add_argument("--out")
    a = parser.parse_args()
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (a.batch, *a.size, 3)).astype(np.uint8)
    labels = {"semantic": rng.integers(0, CLASSES, (a.batch, *a.size)).astype(np.uint8)}
    steps = variants(a.trunk, Batch(images, labels, tuple(map(str, range(a.batch)))))
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for round_number in range(a.rounds + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if round_number:  # the first warms up
                seconds[name].append(time.perf_counter() - start)
    rates = {name: round(a.batch / statistics.median(s), 2) for name, s in seconds.items()}
    result = {
        "images_per_second": rates,
        "size": a.size,
        "batch": a.batch,
        "machine": f"{torch.backends.cpu.get_cpu_capability()} {platform.machine()}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "loss": ops.choose("upsample_cross_entropy", torch.zeros(1, CLASSES, 8, 8)),
    }
    print(json.dumps(result, indent=1))
    if a.out:
        with open(a.out, "w", encoding="utf-8") as file:
            json.dump(result, file, indent=1)


if __name__ == "__main__":
    main()
