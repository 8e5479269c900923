"""The table of commands, in the order of `--help`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import typer

from fullyconv.cli.check import check
from fullyconv.cli.compare import compare
from fullyconv.cli.convert import convert
from fullyconv.cli.convolutionalise import convolutionalise
from fullyconv.cli.data import data
from fullyconv.cli.demo import demo
from fullyconv.cli.evaluate import evaluate
from fullyconv.cli.experiment import experiment
from fullyconv.cli.hha import hha
from fullyconv.cli.models import info, models
from fullyconv.cli.predict import predict
from fullyconv.cli.report import report
from fullyconv.cli.train import train

__all__ = ["COMMANDS"]

COMMANDS: dict[str, Callable[..., Any] | typer.Typer] = {
    "demo": demo,
    "check": check,
    "train": train,
    "evaluate": evaluate,
    "predict": predict,
    "report": report,
    "compare": compare,
    "convert": convert,
    "convolutionalise": convolutionalise,
    "experiment": experiment,
    "hha": hha,
    "data": data,
    "models": models,
    "info": info,
}
