"""Your own folder of images and label maps: check it, train, measure, label a new photo.

    python examples/own_folder.py [FOLDER] [--steps 40]

Without a folder, some street scenes are drawn into one first.
"""

import argparse
import tempfile
from pathlib import Path

import fullyconv as fc
from fullyconv import doctor as check
from fullyconv import scenes


def main(folder: Path | None, steps: int) -> float:
    work = Path(tempfile.mkdtemp(prefix="fullyconv-"))
    folder = folder or scenes.write_scenes(work / "mydata", train=16, val=4, size=(96, 128), seed=0)

    for finding in check.check(folder):  # what is wrong with it, in words
        print(f"{finding.level}: {finding.message} {finding.remedy}")

    recipe = fc.Recipe(
        model="fcn8s-mobilenet_v2", weights="auto", heads=("semantic",), steps=steps, batch_size=4, crop=(96, 96)
    )
    run = fc.fit(recipe, data=folder, out=work / "run", quiet=True)

    model = fc.load(run / "best")
    data = fc.open_dataset(folder, "val")
    result = fc.evaluate(fc.Predictor(model), data)
    print(f"mean IU (mIoU) {result.mean_iu:.3f} on {len(data)} images that were not learned")

    labels = fc.Predictor(model)(data[0].image)  # H x W class ids, at the image's own size
    print(f"labels {labels.shape} {labels.dtype}, the run lies in {run}")
    return result.mean_iu


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--steps", type=int, default=40)
    arguments = parser.parse_args()
    main(arguments.folder, arguments.steps)
