"""Draw ground from above (fields, woods, water, roofs): a folder to train on and a GeoTIFF, for scenes.md.

python docs/ground.py DIR        DIR/patches (train, val) and DIR/scene.tif (pixels of 0.5 m, a corner without data)
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter
from rasterio.transform import from_origin

NAMES = ("field", "wood", "water", "roof")
COLOURS = ((186, 170, 110), (52, 88, 48), (50, 78, 110), (150, 90, 80))


def ground(height: int, width: int, rng: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """(image H W 3, labels H W)."""
    labels = Image.new("L", (width, height), 0)
    draw = ImageDraw.Draw(labels)
    for _ in range(height * width // 30_000 + 1):
        x, y, r = rng.integers(0, width), rng.integers(0, height), rng.integers(30, 110)
        angles = np.sort(rng.uniform(0, 6.28, 14))
        radii = r * rng.uniform(0.6, 1.1, 14)
        points = np.stack([x + radii * np.cos(angles), y + radii * np.sin(angles)], 1)
        draw.polygon([tuple(p) for p in points], fill=1)
    at = rng.uniform(0, height)
    bends = [(x, at + 60 * np.sin(x / 170 + at)) for x in range(-20, width + 40, 20)]
    draw.line(bends, fill=2, width=int(rng.integers(18, 34)), joint="curve")
    for _ in range(height * width // 12_000 + 1):
        x, y, w, h = rng.integers(0, width), rng.integers(0, height), rng.integers(12, 30), rng.integers(12, 26)
        draw.rectangle([x, y, x + w, y + h], fill=3)
    ids = np.asarray(labels)
    image = np.asarray(COLOURS, float)[ids]
    rows = np.where(ids == 0, 9 * np.sin(np.arange(height)[:, None] / 3 + np.arange(width)[None] / 11), 0)
    leaves = np.where(ids == 1, rng.normal(0, 16, ids.shape), 0)
    shadow = np.roll(ids == 3, (3, 3), (0, 1)) & (ids != 3)
    image = (image + (rows + leaves)[..., None] + rng.normal(0, 7, image.shape)) * np.where(shadow, 0.5, 1)[..., None]
    smooth = Image.fromarray(image.clip(1, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(0.8))
    return np.maximum(np.asarray(smooth), 1), ids


def main(out: Path) -> None:
    for split, count, seed in (("train", 60, 1), ("val", 8, 2)):
        rng = np.random.default_rng(seed)
        for kind in ("images", "labels"):
            (out / "patches" / kind / split).mkdir(parents=True, exist_ok=True)
        for n in range(count):
            image, ids = ground(192, 192, rng)
            Image.fromarray(image).save(out / "patches/images" / split / f"{n:03}.png")
            Image.fromarray(ids).save(out / "patches/labels" / split / f"{n:03}.png")
    (out / "patches/classes.txt").write_text("\n".join(NAMES) + "\n")
    image, _ = ground(1200, 1500, np.random.default_rng(3))
    image = image.copy()
    image[np.add.outer(np.arange(1200), np.arange(1500)) < 450] = 0
    with rasterio.open(
        out / "scene.tif", "w", driver="GTiff", height=1200, width=1500, count=3, dtype="uint8", nodata=0,
        crs="EPSG:32633", transform=from_origin(399_960.5, 5_300_040, 0.5, 0.5), tiled=True, compress="deflate",
    ) as file:  # fmt: skip
        file.write(np.moveaxis(image, -1, 0))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
