"""The table of commands, in the order of `--help`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import typer

from fullyconv.cli.evaluate import evaluate
from fullyconv.cli.hha import hha
from fullyconv.cli.predict import predict
from fullyconv.cli.train import train

__all__ = ["COMMANDS"]

COMMANDS: dict[str, Callable[..., Any] | typer.Typer] = {
    "train": train,
    "evaluate": evaluate,
    "predict": predict,
    "hha": hha,
}
