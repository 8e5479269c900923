"""Images a second and core: decoding, augmenting and both, beside torchvision.transforms.v2 in the same run.

    python benchmarks/data.py [camvid:PATH] [--images 60] [--crop 240 320]

CPU seconds of one thread, so that other work on the machine does not count. One JSON object goes to stdout.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fullyconv.data import open_dataset, scenes
from fullyconv.data.base import Dataset
from fullyconv.data.cache import cached
from fullyconv.data.transforms import Augmentation, augment, generator
from fullyconv.preprocessing import IMAGENET

FILL, IGNORE = IMAGENET.mean_pixel(), {"semantic": 255}


def rate(work: Callable[[int], Any], count: int, repeat: int = 5) -> float:
    """Calls a CPU second, the best of `repeat` rounds."""
    work(0)
    best = 0.0
    for _ in range(repeat):
        start = time.process_time()
        for i in range(count):
            work(i)
        best = max(best, count / (time.process_time() - start))
    return round(best, 1)


def ours(dataset: Dataset, count: int, crop: tuple[int, int]) -> dict[str, float]:
    samples = [dataset[i] for i in range(count)]
    geometric = Augmentation(crop=crop, scale=(0.5, 2.0), flip=0.5)
    colour = Augmentation(crop=crop, scale=(0.5, 2.0), flip=0.5, brightness=0.3, contrast=0.3, saturation=0.3)

    def change(a: Augmentation, i: int) -> None:
        augment(samples[i], a, generator(0, 0, i), fill=FILL, ignore=IGNORE)

    def both(source: Dataset, i: int) -> None:
        augment(source[i], geometric, generator(0, 0, i), fill=FILL, ignore=IGNORE)

    with tempfile.TemporaryDirectory() as folder:
        quick = cached(dataset, folder)
        return {
            "decode": rate(lambda i: dataset[i], count),
            "scale + crop + flip": rate(lambda i: change(geometric, i), count),
            "scale + crop + flip + colour": rate(lambda i: change(colour, i), count),
            "decode + augment": rate(lambda i: both(dataset, i), count),
            "cached + augment": rate(lambda i: both(quick, i), count),
        }


def torchvision_v2(dataset: Dataset, count: int, crop: tuple[int, int]) -> dict[str, float]:
    import torch
    from torchvision import io, tv_tensors
    from torchvision.transforms import v2

    torch.set_num_threads(1)
    sample = dataset[0]
    steps: list[Any] = [
        v2.ScaleJitter(sample.image.shape[:2], (0.5, 2.0), antialias=True),
        v2.RandomCrop(crop, pad_if_needed=True, fill={tv_tensors.Image: 124, tv_tensors.Mask: 255}),
        v2.RandomHorizontalFlip(0.5),
    ]
    geometric, colour = v2.Compose(steps), v2.Compose([*steps, v2.ColorJitter(0.3, 0.3, 0.3)])
    files = [(str(r.inputs["rgb"]), str(r.labels["semantic"])) for r in dataset.records[:count]]

    def read(i: int) -> tuple[Any, Any]:
        image, label = (io.read_file(f) for f in files[i])
        return (
            tv_tensors.Image(io.decode_image(image, io.ImageReadMode.RGB)),
            tv_tensors.Mask(io.decode_image(label, io.ImageReadMode.UNCHANGED)[0]),
        )

    pairs = [read(i) for i in range(count)]
    return {
        "decode": rate(read, count),
        "scale + crop + flip": rate(lambda i: geometric(*pairs[i]), count),
        "scale + crop + flip + colour": rate(lambda i: colour(*pairs[i]), count),
        "decode + augment": rate(lambda i: geometric(*read(i)), count),
    }


def first(dataset: Dataset, count: int) -> Dataset:
    from dataclasses import replace

    return replace(dataset, records=dataset.records[:count])


def main() -> None:
    shared = os.environ.get("FULLYCONV_SHARED")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", default=f"camvid:{shared}/data/camvid" if shared else "")
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--crop", type=int, nargs=2, default=(240, 320))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if not given.data:
            scenes.write(Path(folder) / "scenes", train=given.images, val=1, size=(360, 480))
        dataset = first(open_dataset(given.data or f"folder:{folder}/scenes", heads=["semantic"]), given.images)
        count = min(given.images, len(dataset))
        results = {
            "fullyconv": ours(dataset, count, tuple(given.crop)),
            "torchvision.transforms.v2": torchvision_v2(dataset, count, tuple(given.crop)),
        }
    mine, theirs = results.values()
    print(
        json.dumps(
            {
                "unit": "images per CPU second of one thread",
                "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "numpy": np.__version__},
                "data": given.data or "procedural scenes",
                "images": count,
                "crop": list(given.crop),
                "results": results,
                "ratio": {k: round(mine[k] / theirs[k], 2) for k in theirs},
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
