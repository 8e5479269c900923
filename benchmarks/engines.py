"""Everyday networks from an 8-bit image to labels: torch as `Predictor` runs it, and what users would deploy with.

    python benchmarks/engines.py [--networks NAME ...] [--size 480 640] [--threads 1] [--rounds 7] [--models DIR]
                                 [--width avx2] [--json FILE]

One network at a time, drawn weights, 11 classes, float32; each contestant in a process of its own, in turns:

    torch                      `Predictor(model)`
    onnxruntime, our labels    `Predictor(FILE.onnx)`: coarse scores by onnxruntime, labels by our operator (what
                               `--engine onnxruntime` computes with)
    onnxruntime, whole file    the exported file alone, image to labels, without fullyconv
    OpenVINO, whole file       the same by OpenVINO, float32

Ratios are to torch: above 1 is quicker than it. --models keeps the drawn networks and their files for the next call.
docs/speed.py makes the tables of docs/performance.md from the JSON.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import contest
from inference import photo

NETWORKS = (
    "fcn4s-mobilenet_v2", "fcn8s-mobilenet_v3_large", "fcn8s-resnet18", "fcn8s-resnet50", "fcn8s-efficientnet_lite0",
    "fcn8s-vgg16",
)  # fmt: skip
CLASSES = 11
WAYS = ("torch", "onnxruntime, our labels", "onnxruntime, whole file", "OpenVINO, whole file")


def drawn(name: str, classes: int = CLASSES) -> Any:
    """The network with score layers as if it had learned."""
    import torch

    import fullyconv as fc

    generator = torch.Generator().manual_seed(0)
    model = fc.create(name, classes, quiet=True, seed=0).eval()
    with torch.no_grad():
        for p in model.head_parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.01)
    return model


def calling(way: str, folder: Path, size: tuple[int, int], threads: int) -> Callable[[], Any]:
    image = photo(*size)
    if way == WAYS[2]:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(str(folder / "labels.onnx"), options, providers=["CPUExecutionProvider"])
        return lambda: session.run(None, {"image": image[None]})[0]
    if way == WAYS[3]:
        from fullyconv.exporting.openvino import quiet_openvino

        how = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
        compiled = quiet_openvino().Core().compile_model(str(folder / "labels.xml"), "CPU", how)
        return lambda: compiled({"image": image[None]})[0]
    import fullyconv as fc

    if way == WAYS[0]:
        import torch

        torch.set_num_threads(threads)
    predictor = fc.Predictor(folder / ("model" if way == WAYS[0] else "coarse.onnx"))
    return lambda: predictor(image)


def prepare(name: str, folder: Path) -> None:
    import fullyconv as fc

    model = drawn(name)
    model.save_pretrained(folder / "model")
    fc.export(model, folder / "coarse.onnx", output="coarse")
    fc.export(model, folder / "labels.onnx")
    fc.export(model, folder / "labels.xml", to="openvino")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--networks", nargs="+", default=NETWORKS, metavar="NAME")
    parser.add_argument("--size", type=int, nargs=2, default=(480, 640), metavar=("H", "W"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--models", type=Path, metavar="DIR")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--make", nargs=2, help=argparse.SUPPRESS)
    contest.hold_back(parser)
    arguments = parser.parse_args()
    size = (arguments.size[0], arguments.size[1])
    if arguments.worker:
        way, folder = arguments.worker
        return contest.answer(calling(way, Path(folder), size, arguments.threads))
    if arguments.make:
        return prepare(arguments.make[0], Path(arguments.make[1]))
    found: dict[str, Any] = {}
    before = contest.machine()
    for name in arguments.networks:
        with tempfile.TemporaryDirectory() as own:
            folder = str(arguments.models / name) if arguments.models else own
            if not Path(folder, "labels.xml").exists():  # the last that is made
                Path(folder).mkdir(parents=True, exist_ok=True)
                contest.done([sys.executable, __file__, "--make", name, folder])
            line = [sys.executable, __file__, "--size", *map(str, size), "--threads", str(arguments.threads)]
            environment = {"OMP_NUM_THREADS": str(arguments.threads), **contest.HUGE}
            contestants = [contest.Contestant(way, [*line, "--worker", way, folder], environment) for way in WAYS]
            found[name] = contest.with_ratios(contest.compete(contestants, arguments.rounds), WAYS[0])
        contest.show(f"{name}, {size[0]}x{size[1]}, {arguments.threads} thread(s)", found[name])
    result = {"size": list(size), "threads": arguments.threads, "machine": before, "figures": found}
    return contest.beside(result, arguments.json, ("size", "threads"))


if __name__ == "__main__":
    main()
