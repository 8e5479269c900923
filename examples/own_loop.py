"""A training loop of your own: the network is a `torch.nn.Module`, and its loss never holds N x K x H x W.

python examples/own_loop.py [--steps 20]
"""

import argparse

import numpy as np
import torch

import fullyconv as fc
from fullyconv import ops


def discs(count: int, size: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images float32 N 3 size size and labels int64 N size size: a bright disc (class 1) on noise (class 0)."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:size, :size]
    centres, radii = random.uniform(size / 4, 3 * size / 4, (count, 2)), random.uniform(size / 8, size / 4, count)
    labels = np.stack([(rows - r) ** 2 + (columns - c) ** 2 < d * d for (r, c), d in zip(centres, radii, strict=True)])
    images = random.normal(0, 0.5, (count, 3, size, size)) + 2 * labels[:, None]
    return torch.from_numpy(images.astype(np.float32)), torch.from_numpy(labels.astype(np.int64))


def main(steps: int) -> list[float]:
    torch.manual_seed(0)
    model = fc.create("fcn8s-resnet18", classes=2, quiet=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    images, labels = discs(8, 64, seed=0)
    geometry = model.geometry(64, 64)  # where the coarse scores lie on the image
    losses = []
    for _ in range(steps):
        coarse = model.coarse(images)["semantic"]  # N K h w, an eighth of the image's size
        loss = ops.upsample_cross_entropy(
            coarse, labels, geometry.stride, geometry.offset, border=geometry.border, ignore=255
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f} in {steps} steps")

    model.eval()
    with torch.no_grad():
        coarse = model.coarse(images)["semantic"]
    found = ops.upsample_argmax(coarse, (64, 64), geometry.stride, geometry.offset, border=geometry.border)
    print(f"{float((found == labels).float().mean()):.1%} of the pixels are right")
    return losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20)
    main(parser.parse_args().steps)
