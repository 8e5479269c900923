"""The rivals of first_day.py, in an environment of their own (requirements/rivals.lock): torch, timm, torchvision, smp.

    python first_day_rivals.py WHICH FOLDER SECONDS WEIGHTS OUT

FOLDER: train/*.npz and val/*.npz with `image` (H x W x C) and `label` (H x W, 255 ignored). Trains for SECONDS of this
process's processor time, over which the rate's schedule runs, then writes OUT/NAME.npz with `label` for every image of
val, and prints one JSON line. Every rival starts from the same ImageNet weights (EfficientNet-Lite0, timm's names).

smp: segmentation_models.pytorch's multiclass example: crops of 320 of images scaled by 0.5..1.5, mirrored, brightness
changed, batches of 8, Adam, cosine; predicted at the image's own size, padded to multiples of 32.
torchvision: references/segmentation: the shorter side 260..1040, crops of 480, mirrored, batches of 8, SGD 0.01
(momentum 0.9, decay 1e-4), poly 0.9; predicted with the shorter side at 520, brought back to the image's own size.
"""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

IGNORE, BATCH = 255, 8


class Pairs:
    """A folder's images and labels, all in memory; images are given as the network takes them."""

    def __init__(self, folder: Path, mean: Any, std: Any) -> None:
        self.names = sorted(path.stem for path in folder.glob("*.npz"))
        self.mean, self.std, self.stored = mean, std, []
        for name in self.names:
            with np.load(folder / f"{name}.npz") as pair:
                self.stored.append((pair["image"], pair["label"]))

    def __getitem__(self, i: int) -> tuple[Any, Any]:
        image, label = self.stored[i]
        return (image.astype(np.float32) - self.mean) / self.std, label


def cut(image: Any, label: Any, scale: float, side: int, rng: np.random.Generator) -> tuple[Any, Any]:
    """Scaled, mirrored by half, padded to at least `side` (0, ignored) and cut to side x side."""
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    image = np.atleast_3d(cv2.resize(image, size, interpolation=cv2.INTER_LINEAR))
    label = cv2.resize(label, size, interpolation=cv2.INTER_NEAREST)
    if rng.random() < 0.5:
        image, label = image[:, ::-1], label[:, ::-1]
    down, right = (max(0, side - n) for n in label.shape)
    image = np.pad(image, ((0, down), (0, right), (0, 0)))
    label = np.pad(label, ((0, down), (0, right)), constant_values=IGNORE)
    top, left = (int(rng.integers(n - side + 1)) for n in label.shape)
    return image[top : top + side, left : left + side], label[top : top + side, left : left + side]


def tensor(image: Any) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def trunk_weights(path: str, bands: int) -> dict[str, Tensor]:
    state: dict[str, Tensor] = torch.load(path, weights_only=True)
    if bands != 3:
        from timm.models import adapt_input_conv

        state["conv_stem.weight"] = adapt_input_conv(bands, state["conv_stem.weight"])
    return state


def load(trunk: nn.Module, state: dict[str, Tensor]) -> None:
    """All of the trunk's tensors, or an error: a rival that started from less would be no rival."""
    missing = trunk.load_state_dict({k: v for k, v in state.items() if k in trunk.state_dict()}, strict=False)
    lacking = [k for k in missing.missing_keys if not k.endswith("num_batches_tracked")]
    assert not lacking, lacking


class Smp:
    def __init__(self, facts: dict[str, Any], weights: str, architecture: str = "Unet", rate: float = 1e-3) -> None:
        import segmentation_models_pytorch as smp

        classes, bands, self.side = facts["classes"], len(facts["mean"]), round(320 * facts["scale"])
        name = "tu-tf_efficientnet_lite0"
        self.net = getattr(smp, architecture)(name, encoder_weights=None, in_channels=bands, classes=classes)
        load(self.net.encoder.model, trunk_weights(weights, bands))
        self.dice = smp.losses.DiceLoss("multiclass", from_logits=True, ignore_index=IGNORE)
        self.optimizer, self.top = torch.optim.Adam(self.net.parameters(), rate), rate

    def rate(self, progress: float) -> float:
        return 1e-5 + (self.top - 1e-5) * (1 + math.cos(math.pi * progress)) / 2

    def sample(self, image: Any, label: Any, rng: np.random.Generator) -> tuple[Any, Any]:
        image, label = cut(image, label, rng.uniform(0.5, 1.5), self.side, rng)
        return image * rng.uniform(0.8, 1.2) + rng.uniform(-0.2, 0.2), label

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        scores = self.net(x)
        return functional.cross_entropy(scores, y, ignore_index=IGNORE) + self.dice(scores, y)

    def label(self, x: Tensor) -> Tensor:
        h, w = x.shape[1:]
        padded = functional.pad(x[None], (0, -w % 32, 0, -h % 32))
        return self.net(padded)[0, :, :h, :w].argmax(0)


class Torchvision:
    def __init__(self, facts: dict[str, Any], weights: str) -> None:
        from torchvision.models.segmentation.lraspp import LRASPP

        classes, bands, self.scale = facts["classes"], len(facts["mean"]), facts["scale"]
        trunk = timm.create_model(
            "tf_efficientnet_lite0", features_only=True, in_chans=bands, output_stride=16, out_indices=(2, 4)
        )
        load(trunk, trunk_weights(weights, bands))

        class Backbone(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.trunk = trunk

            def forward(self, x: Tensor) -> dict[str, Tensor]:
                return dict(zip(("low", "high"), self.trunk(x), strict=True))

        low, high = trunk.feature_info.channels()
        self.net = LRASPP(Backbone(), low, high, classes)
        self.optimizer = torch.optim.SGD(self.net.parameters(), 0.01, momentum=0.9, weight_decay=1e-4)

    def rate(self, progress: float) -> float:
        return 0.01 * (1 - progress) ** 0.9

    def sample(self, image: Any, label: Any, rng: np.random.Generator) -> tuple[Any, Any]:
        return cut(image, label, self.scale * rng.integers(260, 1041) / min(label.shape), round(480 * self.scale), rng)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return functional.cross_entropy(self.net(x)["out"], y, ignore_index=IGNORE)

    def label(self, x: Tensor) -> Tensor:
        scale = 520 * self.scale / min(x.shape[1:])
        size = [round(n * scale) for n in x.shape[1:]]
        scores = self.net(functional.interpolate(x[None], size, mode="bilinear", antialias=True))["out"]
        return functional.interpolate(scores, x.shape[1:], mode="bilinear")[0].argmax(0)


def rival(which: str, facts: dict[str, Any], weights: str) -> Any:
    if which == "torchvision LRASPP":
        return Torchvision(facts, weights)
    _, architecture, *rate = which.split()
    return Smp(facts, weights, architecture, *map(float, rate))


def main(which: str, folder: str, seconds: str, weights: str, out: str) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    root, facts = Path(folder), json.loads((Path(folder) / "facts.json").read_text())
    train, val = (
        Pairs(root / split, np.float32(facts["mean"]), np.float32(facts["std"])) for split in ("train", "val")
    )
    contestant = rival(which, facts, weights)
    rng, queue, step = np.random.default_rng(0), [], 0
    begun, budget = time.process_time(), float(seconds)
    contestant.net.train()
    while (progress := (time.process_time() - begun) / budget) < 1:
        for group in contestant.optimizer.param_groups:
            group["lr"] = contestant.rate(progress)
        while len(queue) < min(BATCH, len(train.names)):
            queue += rng.permutation(len(train.names)).tolist()
        chosen, queue = queue[:BATCH], queue[BATCH:]
        samples = [contestant.sample(*train[i], rng) for i in chosen]
        x = torch.stack([tensor(image) for image, _ in samples])
        y = torch.stack([torch.from_numpy(np.ascontiguousarray(label)).long() for _, label in samples])
        contestant.optimizer.zero_grad()
        contestant.loss(x, y).backward()
        contestant.optimizer.step()
        step += 1
    spent = time.process_time() - begun
    contestant.net.eval()
    Path(out).mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        for i, name in enumerate(val.names):
            label = contestant.label(tensor(val[i][0])).to(torch.uint8).numpy()
            np.savez_compressed(Path(out) / f"{name}.npz", label=label)
    print(json.dumps({"steps": step, "cpu_seconds": round(spent, 1)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
