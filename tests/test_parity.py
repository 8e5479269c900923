"""Every released network equals its definition run by an independent engine (OpenCV's Caffe importer)."""

from __future__ import annotations

import gc
from pathlib import Path

import caffe_writer
import deploy_graphs
import numpy as np
import pytest
import torch
from torch import nn

from fullyconv import models
from fullyconv.models.caffe import read_caffemodel
from fullyconv.models.released import load_layers

cv2 = pytest.importorskip("cv2", reason="opencv-python-headless < 5 is not installed")
HEADS = {"semantic": "score_sem", "geometric": "score_geo"}


def written(tmp_path: Path, name: str, size: tuple[int, int], divide: int, seed: int = 0) -> tuple[Path, Path]:
    prototxt, blobs = deploy_graphs.draw(name, *size, divide, seed)
    graph, weights = tmp_path / "deploy.prototxt", tmp_path / "net.caffemodel"
    graph.write_text(prototxt)
    return graph, caffe_writer.write(weights, blobs)


CREATE = models.create


def thinned(name: str, divide: int, classes: int | None = None, **more: object) -> models.FCN:
    """The network with 1 / divide of its hidden channels: the same code, only its weights are smaller."""
    with torch.device("meta"):
        model = CREATE(name, classes, **more)
    for key, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            out = module.out_channels if ".score." in key else module.out_channels // divide
            first = module.in_channels in (3, 4)
            c = module.in_channels if first else module.in_channels // divide
            module.weight = nn.Parameter(torch.zeros(out, c // module.groups, *module.kernel_size))
            module.bias = nn.Parameter(torch.zeros(out))
    return model


def compare(model: models.FCN, name: str, graph: Path, weights: Path, size: tuple[int, int]) -> dict[str, float]:
    """max |diff| / max |score| by head; labels may differ only where the two best scores are closer than 1e-4 of it."""
    inputs = deploy_graphs.NETS[name][0]
    x = np.random.default_rng(9).normal(0, 60, (1, sum(inputs.values()), *size)).astype(np.float32)
    with torch.inference_mode():
        ours = {head: s[0].numpy() for head, s in model.eval()(torch.from_numpy(x)).items() if head != "out"}
    engine = cv2.dnn.readNetFromCaffe(str(graph), str(weights))
    start = 0
    for blob, c in inputs.items():
        engine.setInput(np.ascontiguousarray(x[:, start : start + c]), blob)
        start += c
    found = {}
    for head, scores in ours.items():
        theirs = engine.forward("score" if len(ours) == 1 else HEADS[head])[0]
        assert theirs.shape == scores.shape == (model.heads[head], *size)
        limit = 1e-4 * np.abs(theirs).max()
        best = np.sort(theirs, 0)
        assert not ((theirs.argmax(0) != scores.argmax(0)) & (best[-1] - best[-2] > limit)).any()
        found[head] = float(np.abs(theirs - scores).max() / np.abs(theirs).max())
    return found


THIN = ("voc-fcn8s", "siftflow-fcn16s", "voc-fcn-alexnet", "nyud-fcn32s-color-hha")


@pytest.mark.parametrize(
    "name", [n if n in THIN else pytest.param(n, marks=pytest.mark.slow) for n in deploy_graphs.NETS]
)
def test_a_thin_network_equals_its_caffe_definition(tmp_path, name: str) -> None:
    divide = 32 if "alexnet" not in name else 16
    for seed, size in enumerate(((33, 71), (97, 40))):
        graph, weights = written(tmp_path, name, size, divide, seed)
        model = thinned(name, divide)
        report = load_layers(model, {n: layer.blobs for n, layer in read_caffemodel(weights).items()}, "net")
        assert not report.initial
        assert not report.dropped
        assert set(report.copied) == {n for n, _ in model.named_parameters()}
        for head, difference in compare(model, name, graph, weights, size).items():
            assert difference <= 1e-4, head


# Of these another network has the same layers, with another number of classes or a skip more: thin alone in CI.
ALIKE = (
    "pascalcontext-fcn32s", "pascalcontext-fcn16s", "siftflow-fcn32s", "siftflow-fcn16s", "nyud-fcn32s-hha",
)  # fmt: skip


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.soak if n in ALIKE else pytest.mark.slow) for n in deploy_graphs.NETS]
)
def test_a_full_network_equals_its_caffe_definition(tmp_path, name: str) -> None:
    size = (61, 43)
    graph, weights = written(tmp_path, name, size, 1)
    from fullyconv.models.released import convert

    model = convert(weights, name)
    try:
        for head, difference in compare(model, name, graph, weights, size).items():
            print(f"{name} {head}: max |diff| / max |score| = {difference:.2g}")
            assert difference <= 1e-4, head
    finally:
        weights.unlink()  # up to 1.1 GB, which should not wait for the session to end
        del model
        gc.collect()
