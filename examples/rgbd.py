"""Colour and depth: early fusion (four channels) of drawn scenes whose depth tells what colour does not.

python examples/rgbd.py [--steps 40]
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np

import fullyconv as fc
from fullyconv import scenes
from fullyconv.data import hha


def main(steps: int) -> float:
    work = Path(tempfile.mkdtemp(prefix="fullyconv-"))
    size = (96, 128)
    folder = scenes.write_scenes(work / "scenes", train=16, val=4, size=size, seed=0)

    recipe = fc.Recipe(
        model="fcn8s-resnet18-rgbd", inputs=("rgb", "depth"), heads=("semantic",), steps=steps, batch_size=4,
        crop=(96, 96), lr=0.02,
    )  # fmt: skip
    run = fc.fit(recipe, data=folder, out=work / "run", quiet=True)
    data = fc.open_dataset(folder, "val", inputs=("rgb", "depth"))
    result = fc.evaluate(fc.Predictor(fc.load(run / "best")), data)
    print(f"mean IU (mIoU) {result.mean_iu:.3f} from colour and depth")

    # HHA: horizontal disparity, height above ground, angle with gravity, as the paper encodes depth
    depth = data[0].image[..., 3].astype(np.float64) / 1000  # millimetres -> metres
    encoded = hha.encode(depth, scenes.camera(size))
    print(f"HHA {encoded.shape} {encoded.dtype}")
    return result.mean_iu


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=40)
    main(parser.parse_args().steps)
