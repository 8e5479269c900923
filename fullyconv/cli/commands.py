"""The table of commands, in the order of `--help`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import typer

from fullyconv.cli.check import check_command
from fullyconv.cli.compare import compare_command
from fullyconv.cli.convert import convert_command
from fullyconv.cli.convolutionalise import convolutionalise_command
from fullyconv.cli.data import data
from fullyconv.cli.demo import demo
from fullyconv.cli.evaluate import evaluate_command
from fullyconv.cli.experiment import experiment
from fullyconv.cli.export import export_command
from fullyconv.cli.hha import hha
from fullyconv.cli.label import label_command
from fullyconv.cli.models import info, models
from fullyconv.cli.new import new
from fullyconv.cli.next_images import next_command
from fullyconv.cli.predict import predict
from fullyconv.cli.report import report
from fullyconv.cli.review import review_command
from fullyconv.cli.serve import serve
from fullyconv.cli.train import train

__all__ = ["COMMANDS"]

COMMANDS: dict[str, Callable[..., Any] | typer.Typer] = {
    "demo": demo,
    "check": check_command,
    "new": new,
    "train": train,
    "evaluate": evaluate_command,
    "predict": predict,
    "next": next_command,
    "label": label_command,
    "review": review_command,
    "report": report,
    "compare": compare_command,
    "export": export_command,
    "serve": serve,
    "convert": convert_command,
    "convolutionalise": convolutionalise_command,
    "experiment": experiment,
    "hha": hha,
    "data": data,
    "models": models,
    "info": info,
}
