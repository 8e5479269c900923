"""The authors' released .caffemodel, without Caffe: read it, keep its preprocessing, label a photo.

python examples/caffe_weights.py fcn8s-heavy-pascal.caffemodel --model voc-fcn8s [PHOTO]
"""

import argparse
import tempfile
from pathlib import Path

import fullyconv as fc
from fullyconv.images import read_image
from fullyconv.models.released import convert


def main(file: Path, name: str, photo: Path | None) -> Path:
    model = convert(file, name)
    print(model.report)
    directory = model.save_pretrained(Path(tempfile.mkdtemp(prefix="fullyconv-")) / name)
    print(f"BGR, minus the authors' means: {model.preprocessing}")
    if photo is not None:
        labels = fc.Predictor(model)(read_image(photo))  # as fc.load(directory) would
        names = model.taxonomies["semantic"].names
        print("in the photo:", ", ".join(names[k] for k in sorted(set(labels.ravel().tolist()))))
    print(f"the model directory is {directory}")
    return directory


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("photo", nargs="?", type=Path)
    parser.add_argument("--model", default="voc-fcn8s")
    arguments = parser.parse_args()
    main(arguments.file, arguments.model, arguments.photo)
