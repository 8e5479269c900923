"""Label an image with a file that `fullyconv export --output labels` wrote, without fullyconv and without torch.

pip install numpy onnxruntime pillow
python label.py MODEL.onnx IMAGE LABELS.png
"""

import json
import os
import sys

import numpy as np
from PIL import Image, ImageOps

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # onnxruntime would count its use; it reads this when it loads
import onnxruntime


def main(model: str, image: str, out: str) -> None:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    about = json.loads(session.get_modelmeta().custom_metadata_map["fullyconv"])
    head = next(iter(about["heads"]))  # the main one; further heads are outputs of their own
    if about["output"] not in ("labels", "confidence"):
        sys.exit(f"{model} gives {about['output']}; export it with --output labels.")
    pixels = np.asarray(ImageOps.exif_transpose(Image.open(image)).convert("RGB"))  # H W 3, uint8
    if about["input"]["kind"] == "uint8":  # preprocessing is in the file
        x = pixels[None]
    else:  # float32 N 3 H W: as the metadata say
        how = about["preprocessing"]
        scale, mean, std = (np.float32(how[key]) for key in ("scale", "mean", "std"))
        scaled = (pixels[..., how["order"]] * scale - mean) / std
        x = np.ascontiguousarray(scaled.transpose(2, 0, 1)[None])
    (labels,) = session.run([about["names"][head][0]], {about["input"]["name"]: x})
    found = Image.fromarray(labels[0])
    if labels.dtype == np.uint8:
        colours = np.full((256, 3), 255, np.uint8)
        palette = about["taxonomies"][head]["palette"][:256]
        colours[: len(palette)] = palette
        found.putpalette(colours.tobytes())
    found.save(out)
    names = about["taxonomies"][head]["names"]
    for k, count in zip(*np.unique(labels, return_counts=True), strict=True):
        print(f"{100 * count / labels.size:6.2f} %  {names[k]}")


if __name__ == "__main__":
    main(*sys.argv[1:])
