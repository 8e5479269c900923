"""ImageNet weights of the trunks, fetched because the user asked (`weights="imagenet"`), never on their own."""

from __future__ import annotations

import os
from pathlib import Path

from fullyconv.errors import UsageError

__all__ = ["RELEASES", "cache_directory", "fetch_weights"]

# trunk -> torchvision's release file; its name carries the first eight digits of its sha256.
RELEASES: dict[str, str] = {
    "alexnet_tv": "alexnet-owt-7be5be79.pth",
    "googlenet_tv": "googlenet-1378be20.pth",
    "mobilenet_v2": "mobilenet_v2-b0353104.pth",
    "mobilenet_v3_large": "mobilenet_v3_large-8738ca79.pth",
    "resnet18": "resnet18-f37072fd.pth",
    "resnet50": "resnet50-0676ba61.pth",
    "squeezenet1_0": "squeezenet1_0-b66bff10.pth",
    "vgg16": "vgg16-397923af.pth",
    "vgg16_bn": "vgg16_bn-6c64b313.pth",
    "vgg16_conv": "vgg16-397923af.pth",
}
BASE = "https://download.pytorch.org/models/"


def cache_directory() -> Path:
    """$XDG_CACHE_HOME/fullyconv, or ~/.cache/fullyconv."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fullyconv"


def fetch_weights(trunk: str) -> Path:
    """The local file of a trunk's ImageNet weights, downloaded (https, resumable) and verified when it is not there.

    The publisher gives only the first eight hex digits of each sha256; those are checked, on every use.
    """
    if trunk not in RELEASES:
        raise UsageError(
            f"No public ImageNet weights are known for the trunk {trunk}; give weights=FILE "
            f"(they are known for {', '.join(RELEASES)})."
        )
    from fullyconv.files import download

    name = RELEASES[trunk]
    digits = name.rsplit("-", 1)[1].split(".")[0]
    return download(BASE + name, cache_directory() / name, sha256_prefix=digits)
