"""Images a second and core: decoding, augmenting and both, beside torchvision.transforms.v2 in the same run.

    python benchmarks/data.py [camvid:PATH] [--images 60] [--crop 240 320] [--json FILE]

CPU seconds of one thread, so that other work on the machine does not count. Both sides are asked in turn, the best of
several rounds counts. Both read the same files, scale by 0.5..2 with antialiasing, crop and mirror.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import contest

from fullyconv import scenes
from fullyconv.data import open_dataset
from fullyconv.data.base import Dataset
from fullyconv.data.pipeline.cache import cached
from fullyconv.data.pipeline.transforms import Augmentation, augment, generator
from fullyconv.preprocessing import IMAGENET

FILL, IGNORE = IMAGENET.mean_pixel(), {"semantic": 255}


Calls = dict[str, Callable[[int], Any]]


def rates(contestants: dict[str, Calls], count: int, rounds: int = 7) -> dict[str, dict[str, float]]:
    """Calls a CPU second, the best of `rounds`, through all contestants in turn."""
    least: dict[tuple[str, str], float] = {}
    for done in range(rounds + 1):
        for name, calls in contestants.items():
            for what, call in calls.items():
                start = time.process_time()
                for i in range(count):
                    call(i)
                if done:  # the first round compiles and fills caches
                    least[name, what] = min(least.get((name, what), math.inf), time.process_time() - start)
    return {name: {what: round(count / least[name, what], 1) for what in calls} for name, calls in contestants.items()}


def ours(dataset: Dataset, count: int, crop: tuple[int, int], folder: str) -> Calls:
    samples = [dataset[i] for i in range(count)]
    geometric = Augmentation(crop=crop, scale=(0.5, 2.0), flip=0.5)
    colour = Augmentation(crop=crop, scale=(0.5, 2.0), flip=0.5, brightness=0.3, contrast=0.3, saturation=0.3)

    def change(a: Augmentation, i: int) -> None:
        augment(samples[i], a, generator(0, 0, i), fill=FILL, ignore=IGNORE)

    def both(source: Dataset, i: int) -> None:
        augment(source[i], geometric, generator(0, 0, i), fill=FILL, ignore=IGNORE)

    quick = cached(dataset, folder)
    return {
        "decode": lambda i: dataset[i],
        "scale + crop + flip": lambda i: change(geometric, i),
        "scale + crop + flip + colour": lambda i: change(colour, i),
        "decode + augment": lambda i: both(dataset, i),
        "cached + augment": lambda i: both(quick, i),
    }


def torchvision_v2(dataset: Dataset, count: int, crop: tuple[int, int]) -> Calls:
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
        "decode": read,
        "scale + crop + flip": lambda i: geometric(*pairs[i]),
        "scale + crop + flip + colour": lambda i: colour(*pairs[i]),
        "decode + augment": lambda i: geometric(*read(i)),
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
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if not given.data:
            scenes.write_scenes(Path(folder) / "scenes", train=given.images, val=1, size=(360, 480))
        dataset = first(open_dataset(given.data or f"folder:{folder}/scenes", heads=["semantic"]), given.images)
        count, crop = min(given.images, len(dataset)), tuple(given.crop)
        sides = {
            "fullyconv": ours(dataset, count, crop, f"{folder}/cache"),
            "torchvision.transforms.v2": torchvision_v2(dataset, count, crop),
        }
        result = {
            "unit": "images per CPU second of one thread",
            "machine": contest.machine(),
            "versions": {name: version(name) for name in ("numpy", "pillow", "numba", "torchvision")},
            "data": given.data.partition(":")[0] or "procedural scenes",
            "size": list(dataset.image(0).shape[:2]),
            "images": count,
            "crop": list(crop),
            "results": rates(sides, count),
        }
    mine, theirs = result["results"].values()
    result["ratio"] = {what: round(mine[what] / theirs[what], 2) for what in theirs}
    print(json.dumps(result, indent=2))
    contest.finish(result, given.json)


if __name__ == "__main__":
    main()
