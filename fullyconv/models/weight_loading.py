"""Weights from a file into a trunk: what was copied, reshaped, adapted, dropped or left at its start is reported."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

import torch
from torch import Tensor, nn

from fullyconv.errors import DataError, MissingInput, printable
from fullyconv.files import read_json
from fullyconv.preprocessing import Preprocessing

__all__ = ["LoadReport", "fit_shape", "load_into", "read_tensors", "sidecar", "widen_input"]


@final
@dataclass
class LoadReport:
    """Parameter names by what happened to them; `str(report)` is what the user is shown."""

    source: str
    copied: list[str] = field(default_factory=list)
    coerced: list[str] = field(default_factory=list)  # same elements, other shape (a fully connected layer)
    adapted: list[str] = field(default_factory=list)  # first layer, other number of input channels
    dropped: list[str] = field(default_factory=list)  # in the file, not in the network
    initial: list[str] = field(default_factory=list)  # in the network, not in the file
    preprocessing: str = ""
    classes: list[str] = field(default_factory=list)  # by head, how classes were matched where it is not plain

    def __str__(self) -> str:
        def some(names: list[str]) -> str:
            return f"{len(names)} ({', '.join(names[:4])}{', ...' if len(names) > 4 else ''})" if names else "0"

        if not (self.copied or self.coerced or self.adapted):
            return self.source
        parts = [f"{self.source}: {len(self.copied)} tensors copied"]
        for title in ("coerced", "adapted", "dropped", "initial"):
            names = getattr(self, title)
            if names:
                parts.append(f"{some(names)} {'left at their initial values' if title == 'initial' else title}")
        classes = "".join(f"; {text}" for text in self.classes)
        return (
            ", ".join(parts)
            + classes
            + (f"; preprocessing from {self.preprocessing}" if self.preprocessing else "")
            + "."
        )


def read_tensors(path: Path) -> dict[str, Tensor]:
    """{name: tensor} of a .safetensors, .pt or .pth file; foreign files are read in a limited child process."""
    if not path.is_file():
        raise MissingInput(f"There is no weights file {printable(path)}; give the path of a local file.")
    from fullyconv.sandbox import read_foreign_weights

    return dict(read_foreign_weights(path))


def sidecar(path: Path) -> Preprocessing | None:
    """The preprocessing in `FILE.json` beside a weights file, or None."""
    beside = path.with_name(path.name + ".json")
    if not os.path.lexists(beside):
        return None
    try:
        value = read_json(beside)
        return Preprocessing.from_json(value.get("preprocessing", value))
    except (ValueError, AttributeError, DataError) as error:
        raise DataError(f"{printable(beside)} is not a readable sidecar ({error}); mend it or remove it.") from error


def fit_shape(value: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, str] | None:
    """`value` in another `shape` and how it was made to fit ("copied", "coerced", "adapted"); None where it cannot be.

    Coerced: a fully connected layer as the convolution with the same flat buffer (C-major, then H, W). Adapted: a
    convolution O c h w for more channels (`widen_input`).
    """
    if tuple(value.shape) == shape:
        return value, "copied"
    if value.numel() == torch.Size(shape).numel() and tuple(value.shape[:1]) == shape[:1]:
        return value.reshape(shape), "coerced"
    if _differ_in_channels(value, shape) and value.shape[1] < shape[1]:
        return widen_input(value, shape[1]), "adapted"
    return None


def widen_input(weight: Tensor, channels: int) -> Tensor:
    """A first convolution (O c h w) for more channels: each new one is the mean over the old (released color-d)."""
    mean = weight.mean(1, keepdim=True)
    return torch.cat([weight, mean.expand(-1, channels - weight.shape[1], -1, -1)], 1)


def _narrowed(value: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, str] | None:
    """A first convolution for fewer channels: the mean over the old ones, scaled so that grey gives what it gave."""
    if not _differ_in_channels(value, shape):
        return None
    return value.mean(1, keepdim=True).expand(-1, shape[1], -1, -1) * (value.shape[1] / shape[1]), "adapted"


def _differ_in_channels(value: Tensor, shape: tuple[int, ...]) -> bool:
    """Whether both are convolutions O c h w that differ in c alone."""
    return value.ndim == len(shape) == 4 and (value.shape[0], *value.shape[2:]) == (shape[0], *shape[2:])


def load_into(
    module: nn.Module, tensors: Mapping[str, Tensor], source: str, rename: Mapping[str, str] | None = None
) -> LoadReport:
    """Copy `tensors` into `module` by name (after `rename`: file name -> module name) and report it.

    Raises DataError where a tensor of the right name cannot fit, and where no parameter at all was found.
    """
    report = LoadReport(source)
    targets = module.state_dict()
    with torch.no_grad():
        for name, value in tensors.items():
            target = (rename or {}).get(name, name)
            if target not in targets:
                report.dropped.append(name)
                continue
            shape = tuple(targets[target].shape)
            fitted = fit_shape(value, shape) or _narrowed(value, shape)
            if fitted is None:
                raise DataError(
                    f"{source}: {printable(name)} is {tuple(value.shape)}, the network needs "
                    f"{shape}; these weights are of another network."
                )
            if not bool(torch.isfinite(fitted[0]).all()):
                raise DataError(f"{source}: {printable(name)} holds NaN or infinite values; get the file again.")
            targets[target].copy_(fitted[0])
            getattr(report, fitted[1]).append(target)
    given = {*report.copied, *report.coerced, *report.adapted}
    report.initial = [n for n in targets if n not in given and not n.endswith("num_batches_tracked")]
    if not any(n.endswith("weight") for n in given):
        names = ", ".join(printable(n) for n in list(tensors)[:3])
        raise DataError(f"{source} holds no tensor of this network (it has {names}, ...); give weights of its trunk.")
    return report
