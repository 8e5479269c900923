"""FCN-8s-VGG16, pad 100, from an 8-bit image to its label map: ours beside the same network elsewhere.

    python benchmarks/inference.py [--size 500 500] [--rounds 7] [--rivals PYTHON] [--same-allocator] [--json FILE]

Rivals: pip's torchfcn FCN8s (its class as installed, no_grad, argmax of the full scores) and OpenCV's dnn on the
original Caffe graph with random weights. PYTHON is the interpreter of an environment made from
requirements/rivals.lock (default: this one). Each contestant has its own process and its own defaults; ours turns on
huge pages as its command line does, with --same-allocator the rivals get them too.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import tempfile
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import contest

ROOT = Path(__file__).parent.parent
CLASSES = 21
MEAN_BGR = (104.00698793, 116.66876762, 122.67891434)
RIVALS = ("torchfcn FCN8s", "cv2.dnn, original graph")


def photo(height: int, width: int) -> Any:
    import numpy as np

    coarse = np.random.default_rng(0).integers(0, 256, (height // 16 + 2, width // 16 + 2, 3), np.uint8)
    return np.repeat(np.repeat(coarse, 16, 0), 16, 1)[:height, :width].copy()


def ours(height: int, width: int, precision: str) -> Callable[[], Any]:
    import torch

    import fullyconv as fc

    model = fc.create("fcn8s-vgg16", CLASSES, quiet=True)
    with torch.no_grad():
        for p in model.head_parameters():
            p.normal_(0, 0.01)
    predictor, image = fc.Predictor(model.eval(), precision=precision), photo(height, width)
    return lambda: predictor(image)


def torchfcn_class() -> Any:
    """The installed class; its package's own import pulls in Chainer for downloads, which the network does not use."""
    found = importlib.util.find_spec("torchfcn")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("torchfcn is not installed")
    folder = Path(next(iter(found.submodule_search_locations)))
    for name, path in (("torchfcn", folder), ("torchfcn.models", folder / "models")):
        package = types.ModuleType(name)
        package.__path__ = [str(path)]
        sys.modules[name] = package
    sys.modules["fcn"] = types.ModuleType("fcn")
    return importlib.import_module("torchfcn.models.fcn8s").FCN8s


def torchfcn(height: int, width: int) -> Callable[[], Any]:
    import numpy as np
    import torch

    network = torchfcn_class()(n_class=CLASSES).eval()
    with torch.no_grad():
        for p in network.score_fr.parameters():
            p.normal_(0, 0.01)
    image = photo(height, width)

    def call() -> Any:
        x = image[:, :, ::-1].astype(np.float64) - MEAN_BGR
        batch = torch.from_numpy(x.transpose(2, 0, 1)).float()[None]
        with torch.no_grad():
            return network(batch).data.max(1)[1].numpy()[0]

    return call


def opencv(height: int, width: int) -> Callable[[], Any]:
    import cv2

    sys.path.insert(0, str(ROOT / "tests"))
    import caffe_writer
    import deploy_graphs

    prototxt, blobs = deploy_graphs.draw("voc-fcn8s", height, width)
    with tempfile.TemporaryDirectory() as folder:
        graph, weights = Path(folder) / "deploy.prototxt", Path(folder) / "net.caffemodel"
        graph.write_text(prototxt)
        caffe_writer.write(weights, blobs)
        del blobs
        engine = cv2.dnn.readNetFromCaffe(str(graph), str(weights))
    image = photo(height, width)

    def call() -> Any:
        engine.setInput(cv2.dnn.blobFromImage(image, mean=MEAN_BGR[::-1], swapRB=True))
        return engine.forward("score")[0].argmax(0)

    return call


def worker(name: str, height: int, width: int) -> None:
    if name == RIVALS[0]:
        contest.answer(torchfcn(height, width))
    elif name == RIVALS[1]:
        contest.answer(opencv(height, width))
    else:
        contest.answer(ours(height, width, name.split()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--size", type=int, nargs=2, default=(500, 500), metavar=("H", "W"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--rivals", default=sys.executable, metavar="PYTHON")
    parser.add_argument("--same-allocator", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    contest.hold_back(parser)
    arguments = parser.parse_args()
    height, width = arguments.size
    if arguments.worker:
        return worker(arguments.worker, height, width)
    before = contest.machine()
    contestants = []
    for name in ("fullyconv fp32", "fullyconv bf16", *RIVALS):
        rival = name in RIVALS
        python = arguments.rivals if rival else sys.executable
        command = [python, __file__, "--worker", name, "--size", str(height), str(width)]
        huge = contest.HUGE if arguments.same_allocator or not rival else {}
        contestants.append(
            contest.Contestant(
                name, command, {"PYTHONPATH": os.pathsep.join(map(str, sys.path)) if not rival else "", **huge}
            )
        )
    found = contest.with_ratios(contest.compete(contestants, arguments.rounds), RIVALS[0])
    contest.show(f"FCN-8s-VGG16, {height}x{width}, {CLASSES} classes, image to labels", found)
    result = {"size": [height, width], "same_allocator": arguments.same_allocator, "machine": before, "figures": found}
    return contest.finish(result, arguments.json)


if __name__ == "__main__":
    main()
