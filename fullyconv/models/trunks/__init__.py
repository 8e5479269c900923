"""The trunks by name: name -> how to build it, and whether it has the paper's padding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fullyconv.errors import UnknownName, UsageError, printable
from fullyconv.models.trunks.alexnet import AlexNet, AlexNetTV
from fullyconv.models.trunks.efficientnet_lite import EfficientNetLite
from fullyconv.models.trunks.googlenet import GoogLeNet, GoogLeNetTV
from fullyconv.models.trunks.mobilenet import MobileNetV2, MobileNetV3Large
from fullyconv.models.trunks.own_module import Given
from fullyconv.models.trunks.resnet import BasicBlock, Bottleneck, ResNet
from fullyconv.models.trunks.squeezenet import SqueezeNet
from fullyconv.models.trunks.timm import Timm
from fullyconv.models.trunks.trunk import Trunk
from fullyconv.models.trunks.vgg import VGG16

__all__ = ["PAPER", "TRUNKS", "Given", "Trunk", "create_trunk"]

TRUNKS: dict[str, tuple[Callable[..., Trunk], dict[str, Any]]] = {
    "alexnet": (AlexNet, {}),
    "alexnet_tv": (AlexNetTV, {}),
    "efficientnet_lite0": (EfficientNetLite, {}),
    "efficientnet_lite1": (EfficientNetLite, {"depth": 1.1}),
    "efficientnet_lite2": (EfficientNetLite, {"width": 1.1, "depth": 1.2}),
    "efficientnet_lite3": (EfficientNetLite, {"width": 1.2, "depth": 1.4}),
    "efficientnet_lite4": (EfficientNetLite, {"width": 1.4, "depth": 1.8}),
    "googlenet": (GoogLeNet, {}),
    "googlenet_tv": (GoogLeNetTV, {}),
    "mobilenet_v2": (MobileNetV2, {}),
    "mobilenet_v3_large": (MobileNetV3Large, {}),
    "resnet18": (ResNet, {"block": BasicBlock, "depths": (2, 2, 2, 2)}),
    "resnet50": (ResNet, {"block": Bottleneck, "depths": (3, 4, 6, 3)}),
    "squeezenet1_0": (SqueezeNet, {}),
    "vgg16": (VGG16, {}),
    "vgg16_bn": (VGG16, {"batch_norm": True}),
    "vgg16_conv": (VGG16, {"classifier": False}),
}
PAPER = ("alexnet", "googlenet", "vgg16", "vgg16_conv")  # trunks whose default padding is the paper's


def create_trunk(name: str, channels_in: int = 3, padding: str | None = None) -> Trunk:
    """A freshly initialised trunk. `padding`: "paper" or "same"; None takes the trunk's default."""
    if padding not in (None, "paper", "same"):
        raise UnknownName("padding", str(padding), ("paper", "same"))
    if padding == "paper" and name not in PAPER:
        raise UsageError(f"The paper's padding exists for {', '.join(PAPER)}, not for {name}; use padding 'same'.")
    if name.startswith("own:"):
        raise UsageError(
            f"The trunk {printable(name[4:])} is a module of its owner's, which no file holds; give it, in Python: "
            "load(DIRECTORY, trunk=module), create(NAME, trunk=module) or fit(..., trunk=module)."
        )
    if name.startswith("timm:"):
        return Timm(name.removeprefix("timm:"), channels_in)
    if name not in TRUNKS:
        raise UnknownName("trunk", name, TRUNKS)
    build, options = TRUNKS[name]
    return build(channels_in=channels_in, padding=padding or ("paper" if name in PAPER else "same"), **options)
