"""The table of commands, in the order of `--help`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import typer

from fullyconv.cli.hha import hha
from fullyconv.cli.train import train

__all__ = ["COMMANDS"]

COMMANDS: dict[str, Callable[..., Any] | typer.Typer] = {
    "train": train,
    "hha": hha,
}
