"""Networks by name, by a grammar and as rows of one table (the paper's).

`fcn{32,16,8,4}s[-pyramid|-atonce|-learned][-fixed]-TRUNK[-rgbd|-depth|-hha|-rgb-hha|-bandsN]`
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import final

from fullyconv.errors import UnknownName, UsageError
from fullyconv.models.trunks import TRUNKS

__all__ = ["INPUTS", "NETWORKS", "OWN", "Network", "own_name", "parse"]

# suffix -> modalities, in the order in which they lie along C; -bandsN is images of N bands
INPUTS: dict[str, tuple[str, ...]] = {
    "": ("rgb",),
    "-rgbd": ("rgb", "depth"),
    "-depth": ("depth",),
    "-hha": ("hha",),
    "-rgb-hha": ("rgb", "hha"),
}
CHANNELS = {"rgb": 3, "depth": 1, "hha": 3}
ATONCE = {16: 0.01, 8: 0.0001}  # what the paper multiplies pool4 and pool3 by when all skips train at once


@final
@dataclass(frozen=True)
class Network:
    """What a name stands for. `finest` and `coarsest` are strides; `late` gives every modality a trunk of its own."""

    trunk: str
    finest: int
    coarsest: int = 32
    inputs: tuple[str, ...] = ("rgb",)
    late: bool = False
    scales: Mapping[int, float] = field(default_factory=dict)
    learned: bool = False
    fixed: bool = False
    pyramid: bool = False
    heads: Mapping[str, int] = field(default_factory=lambda: {"semantic": 21})
    source: str = ""
    bands: int = 0  # channels of the modality "bands"

    def width(self, modality: str) -> int:
        """How many channels a modality has."""
        return self.bands if modality == "bands" else CHANNELS[modality]


PATTERN = re.compile(
    r"fcn(?P<stride>32|16|8|4|2)s(?P<flags>(?:-(?:atonce|learned|fixed|pyramid))*)-(?P<trunk>.+?)(?P<inputs>-rgb-hha|-rgbd|-depth|-hha|-bands[1-9]\d{0,3})?"
)
_BARE = re.compile(PATTERN.pattern.replace("-(?P<trunk>.+?)", ""))  # without a trunk
OWN = "own:"  # what the trunk is called that is a module of the user's
CVPR, TPAMI, RELEASED = "CVPR 2015", "TPAMI 2017", "released weights"
_VOC, _CONTEXT, _NYUD = {"semantic": 21}, {"semantic": 60}, {"semantic": 40}
_SIFT = {"semantic": 33, "geometric": 3}


def _vgg(finest: int, heads: Mapping[str, int], source: str = RELEASED, **more: object) -> Network:
    return replace(Network("vgg16", finest, heads=heads, source=source), **more)  # type: ignore[arg-type]


# The networks of the paper under the names of its release; the rest of the names follow the grammar.
NETWORKS: dict[str, Network] = {
    "voc-fcn32s": _vgg(32, _VOC),
    "voc-fcn16s": _vgg(16, _VOC),
    "voc-fcn8s": _vgg(8, _VOC),
    "voc-fcn8s-atonce": _vgg(8, _VOC, scales=ATONCE),
    "voc-fcn-alexnet": Network("alexnet", 32, heads=_VOC, source=RELEASED),
    "voc-fcn-googlenet": Network("googlenet", 32, heads=_VOC, source=f"{CVPR}, table 1; never released"),
    "pascalcontext-fcn32s": _vgg(32, _CONTEXT),
    "pascalcontext-fcn16s": _vgg(16, _CONTEXT),
    "pascalcontext-fcn8s": _vgg(8, _CONTEXT),
    "siftflow-fcn32s": _vgg(32, _SIFT),
    "siftflow-fcn16s": _vgg(16, _SIFT),
    "siftflow-fcn8s": _vgg(8, _SIFT),
    "nyud-fcn32s-color": _vgg(32, _NYUD),
    "nyud-fcn32s-color-d": _vgg(32, _NYUD, inputs=("rgb", "depth")),
    "nyud-fcn32s-hha": _vgg(32, _NYUD, inputs=("hha",)),
    "nyud-fcn32s-color-hha": _vgg(32, _NYUD, inputs=("rgb", "hha"), late=True),
    "nyud-fcn16s-color-hha": _vgg(16, _NYUD, f"{CVPR}, table 4; never released", inputs=("rgb", "hha"), late=True),
    "voc-fcn32s-fixed": _vgg(32, _VOC, f"{CVPR}, table 2", fixed=True),
    "voc-fcn8s-learned": _vgg(8, _VOC, f"{CVPR}: intermediate upsampling learned", learned=True),
    "voc-fcn-pool5": Network("vgg16_conv", 32, heads=_VOC, source=f"{TPAMI}, table 3"),
    "voc-fcn-pool4": Network("vgg16_conv", 16, 16, heads=_VOC, source=f"{TPAMI}, table 3"),
    "voc-fcn-pool3": Network("vgg16_conv", 8, 8, heads=_VOC, source=f"{TPAMI}, table 3"),
}


def own_name(name: str, module: object) -> str:
    """The name of a network whose trunk is a module of the user's: "fcn8s" and a Tiny give "fcn8s-own:Tiny"; a trunk
    that `name` says is replaced. Raises UnknownName for a name without a stride."""
    found = _BARE.fullmatch(name) or PATTERN.fullmatch(name)
    if not found:
        raise UnknownName("network", name, ["fcn32s", "fcn16s", "fcn8s", "fcn4s"])
    flags, inputs = found["flags"], found["inputs"] or ""
    return f"fcn{found['stride']}s{flags}-{OWN}{re.sub(r'[^A-Za-z0-9_]', '', type(module).__name__)}{inputs}"


def parse(name: str) -> Network:
    """The network that `name` stands for. Raises UnknownName with the nearest name, or UsageError for a bad mix."""
    if name in NETWORKS:
        return NETWORKS[name]
    found = PATTERN.fullmatch(name)
    if not found:
        raise UnknownName("network", name, [*NETWORKS, *(f"fcn{s}s-{t}" for s in (32, 16, 8, 4) for t in TRUNKS)])
    trunk, suffix, flags = found["trunk"], found["inputs"] or "", found["flags"].split("-")[1:]
    if not trunk.startswith(("timm:", OWN)) and trunk not in TRUNKS:
        raise UnknownName("trunk", trunk, TRUNKS)
    if "atonce" in flags and trunk not in ("vgg16", "vgg16_bn"):
        raise UsageError(f"The at-once scales (0.01, 0.0001) are VGG16's; leave -atonce out for {trunk}.")
    if "pyramid" in flags and ("atonce" in flags or "learned" in flags):
        raise UsageError("-pyramid adds no scores up, so it goes with neither -atonce nor -learned; leave one out.")
    return Network(
        trunk,
        int(found["stride"]),
        inputs=("bands",) if (bands := int(suffix.partition("-bands")[2] or 0)) else INPUTS[suffix],
        bands=bands,
        late=suffix == "-rgb-hha",
        scales=ATONCE if "atonce" in flags else {},
        learned="learned" in flags,
        fixed="fixed" in flags,
        pyramid="pyramid" in flags,
        source="grammar",
    )
