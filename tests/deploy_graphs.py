"""The released networks' deploy graphs, written anew from the published definitions, as prototxt text.

Every offset, kernel and scale here is a literal: nothing is read from the code under test. `divide` thins the channels.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Blobs = dict[str, list[NDArray[np.float32]]]


def bilinear_kernel(k: int) -> NDArray[np.float32]:
    """f = (k + 1) // 2; centre f - 1 for odd k, f - 0.5 for even; w[i] = 1 - |i - c| / f; outer product."""
    f = (k + 1) // 2
    c = f - 1 if k % 2 == 1 else f - 0.5
    w = 1 - np.abs(np.arange(k) - c) / f
    return np.outer(w, w).astype(np.float32)


class Graph:
    """Collects layers as prototxt and draws their blobs; `channels` remembers each top's width."""

    def __init__(self, inputs: dict[str, int], height: int, width: int, divide: int, seed: int) -> None:
        self.divide, self.channels, self.blobs = divide, dict(inputs), {}
        self.draw = np.random.default_rng(seed)
        shape = "shape {{ dim: 1 dim: {c} dim: {h} dim: {w} }}"
        self.text = "".join(
            self.layer(n, "Input", [], n, "input_param { " + shape.format(c=c, h=height, w=width) + " }")
            for n, c in inputs.items()
        )

    def layer(self, name: str, kind: str, bottoms: list[str], top: str, params: str = "") -> str:
        feeds = "".join(f' bottom: "{b}"' for b in bottoms)
        return f'layer {{ name: "{name}" type: "{kind}"{feeds} top: "{top}" {params} }}\n'

    def add(
        self, name: str, kind: str, bottoms: list[str], params: str, channels: int | None = None, top: str = ""
    ) -> str:
        top = top or name
        self.text += self.layer(name, kind, bottoms, top, params)
        self.channels[top] = self.channels[bottoms[0]] if channels is None else channels
        return top

    def thin(self, c: int) -> int:
        return max(1, c // self.divide)

    def conv(
        self, name: str, bottom: str, out: int, k: int, stride: int = 1, pad: int = 0, group: int = 1, relu: bool = True
    ) -> str:
        c = self.channels[bottom] // group
        weight = self.draw.standard_normal((out, c, k, k), np.float32) * np.float32((2 / (c * k * k)) ** 0.5)
        self.blobs[name] = [weight, self.draw.standard_normal(out, np.float32) * np.float32(0.1)]
        params = f"num_output: {out} kernel_size: {k} stride: {stride} pad: {pad} group: {group}"
        self.add(name, "Convolution", [bottom], f"convolution_param {{ {params} }}", out)
        return self.add(f"relu_{name}", "ReLU", [name], "", top=name) if relu else name

    def pool(self, name: str, bottom: str, k: int = 2, stride: int = 2) -> str:
        return self.add(name, "Pooling", [bottom], f"pooling_param {{ pool: MAX kernel_size: {k} stride: {stride} }}")

    def lrn(self, name: str, bottom: str) -> str:
        return self.add(name, "LRN", [bottom], "lrn_param { local_size: 5 alpha: 0.0001 beta: 0.75 }")

    def deconv(self, name: str, bottom: str, k: int, stride: int) -> str:
        c = self.channels[bottom]
        weight = np.zeros((c, c, k, k), np.float32)
        weight[range(c), range(c)] = bilinear_kernel(k)
        self.blobs[name] = [weight]
        params = f"num_output: {c} bias_term: false kernel_size: {k} stride: {stride}"
        return self.add(name, "Deconvolution", [bottom], f"convolution_param {{ {params} }}", c)

    def crop(self, name: str, bottom: str, like: str, offset: int) -> str:
        return self.add(name, "Crop", [bottom, like], f"crop_param {{ axis: 2 offset: {offset} }}")

    def scale(self, name: str, bottom: str, value: float) -> str:
        self.blobs[name] = [np.full(self.channels[bottom], value, np.float32)]
        return self.add(name, "Scale", [bottom], "scale_param { axis: 1 bias_term: false }")

    def total(self, name: str, a: str, b: str, coefficients: str = "") -> str:
        return self.add(name, "Eltwise", [a, b], f"eltwise_param {{ operation: SUM {coefficients} }}")

    # -- the trunks --------------------------------------------------------------------------------------------------

    def vgg(self, data: str, suffix: str = "", first: str = "conv1_1") -> str:
        x, pad = data, 100
        for block, (convs, out) in enumerate(((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)), 1):
            for i in range(1, convs + 1):
                name = first if (block, i) == (1, 1) else f"conv{block}_{i}"
                x, pad = self.conv(name + suffix, x, self.thin(out), 3, 1, pad), 1
            x = self.pool(f"pool{block}{suffix}", x)
        x = self.conv("fc6" + suffix, x, self.thin(4096), 7)
        return self.conv("fc7" + suffix, x, self.thin(4096), 1)

    def score(self, name: str, bottom: str, classes: int) -> str:
        return self.conv(name, bottom, classes, 1, relu=False)

    def fcn32(self, fc7: str, classes: int, data: str = "data", h: str = "") -> None:
        up = self.deconv("upscore" + h, self.score("score_fr" + h, fc7, classes), 64, 32)
        self.crop("score" + h, up, data, 19)

    def fuse_pool4(self, fc7: str, classes: int, h: str, at_once: bool) -> str:
        up = self.deconv("upscore2" + h, self.score("score_fr" + h, fc7, classes), 4, 2)
        pool4 = self.scale("scale_pool4", "pool4", 0.01) if at_once else "pool4"
        finer = self.crop("score_pool4c" + h, self.score("score_pool4" + h, pool4, classes), up, 5)
        return self.total("fuse_pool4" + h, up, finer)

    def fcn16(self, fc7: str, classes: int, h: str = "") -> None:
        up = self.deconv("upscore16" + h, self.fuse_pool4(fc7, classes, h, False), 32, 16)
        self.crop("score" + h, up, "data", 27)

    def fcn8(self, fc7: str, classes: int, h: str = "", at_once: bool = False) -> None:
        up = self.deconv("upscore_pool4" + h, self.fuse_pool4(fc7, classes, h, at_once), 4, 2)
        pool3 = self.scale("scale_pool3", "pool3", 0.0001) if at_once else "pool3"
        finer = self.crop("score_pool3c" + h, self.score("score_pool3" + h, pool3, classes), up, 9)
        up = self.deconv("upscore8" + h, self.total("fuse_pool3" + h, up, finer), 16, 8)
        self.crop("score" + h, up, "data", 31)

    def alexnet(self) -> None:
        x = self.lrn("norm1", self.pool("pool1", self.conv("conv1", "data", self.thin(96), 11, 4, 100), 3))
        x = self.lrn("norm2", self.pool("pool2", self.conv("conv2", x, self.thin(256), 5, 1, 2, 2), 3))
        x = self.conv("conv3", x, self.thin(384), 3, 1, 1)
        x = self.conv("conv4", x, self.thin(384), 3, 1, 1, 2)
        x = self.pool("pool5", self.conv("conv5", x, self.thin(256), 3, 1, 1, 2), 3)
        x = self.conv("fc7", self.conv("fc6", x, self.thin(4096), 6), self.thin(4096), 1)
        self.crop("score", self.deconv("upscore", self.score("score_fr", x, 21), 63, 32), "data", 18)

    def two_heads(self, tail: Callable[[str, int, str], None]) -> None:
        fc7 = self.vgg("data")
        tail(fc7, 33, "_sem")
        tail(fc7, 3, "_geo")

    def late_fusion(self) -> None:
        scores = [self.score(f"score_fr{s}", self.vgg(s, s), 40) for s in ("color", "hha")]
        fused = self.total("score_fused", *scores, "coeff: 0.5 coeff: 0.5")
        self.crop("score", self.deconv("upscore", fused, 64, 32), "color", 19)


RGB = {"data": 3}
# name -> inputs (name: channels, in the order in which the network takes them along C) and how the graph is drawn
NETS: dict[str, tuple[dict[str, int], Callable[[Graph], None]]] = {
    "voc-fcn32s": (RGB, lambda g: g.fcn32(g.vgg("data"), 21)),
    "voc-fcn16s": (RGB, lambda g: g.fcn16(g.vgg("data"), 21)),
    "voc-fcn8s": (RGB, lambda g: g.fcn8(g.vgg("data"), 21)),
    "voc-fcn8s-atonce": (RGB, lambda g: g.fcn8(g.vgg("data"), 21, at_once=True)),
    "voc-fcn-alexnet": (RGB, lambda g: g.alexnet()),
    "pascalcontext-fcn32s": (RGB, lambda g: g.fcn32(g.vgg("data"), 60)),
    "pascalcontext-fcn16s": (RGB, lambda g: g.fcn16(g.vgg("data"), 60)),
    "pascalcontext-fcn8s": (RGB, lambda g: g.fcn8(g.vgg("data"), 60)),
    "siftflow-fcn32s": (RGB, lambda g: g.two_heads(lambda fc7, k, h: g.fcn32(fc7, k, h=h))),
    "siftflow-fcn16s": (RGB, lambda g: g.two_heads(g.fcn16)),
    "siftflow-fcn8s": (RGB, lambda g: g.two_heads(g.fcn8)),
    "nyud-fcn32s-color": (RGB, lambda g: g.fcn32(g.vgg("data"), 40)),
    "nyud-fcn32s-color-d": ({"data": 4}, lambda g: g.fcn32(g.vgg("data", first="conv1_1_bgrd"), 40)),
    "nyud-fcn32s-hha": (RGB, lambda g: g.fcn32(g.vgg("data"), 40)),
    "nyud-fcn32s-color-hha": ({"color": 3, "hha": 3}, lambda g: g.late_fusion()),
}


def draw(name: str, height: int, width: int, divide: int = 1, seed: int = 0) -> tuple[str, Blobs]:
    """(prototxt, random blobs) of a released network for images of height x width."""
    inputs, build = NETS[name]
    graph = Graph(inputs, height, width, divide, seed)
    build(graph)
    return graph.text, graph.blobs
