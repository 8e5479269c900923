"""Where a run's figures go besides metrics.jsonl: TensorBoard, Weights & Biases and MLflow behind one small interface.

Nothing leaves the machine unless the user's own variables say so: W&B is offline without WANDB_MODE, MLflow writes into
the run without MLFLOW_TRACKING_URI, and neither reports on itself.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, final

from fullyconv.errors import FullyconvError, MissingExtra, UsageError, printable
from fullyconv.files import atomic_write, read_json
from fullyconv.recipes import Recipe

__all__ = ["LOGGERS", "Beginning", "Logger", "Loggers", "chosen", "open_loggers", "refuse_missing"]

FILE = "loggers.json"  # in a run: each logger's own id of it, by which a resumed run goes on in the same place
IDENTITY = re.compile(r"[0-9A-Za-z]{1,64}")  # an id becomes part of a path in both tools
PROJECT = "fullyconv"  # W&B's project, MLflow's experiment
LONGEST = 500  # characters of a parameter that every version of MLflow takes


@final
@dataclass(frozen=True)
class Beginning:
    """What a logger starts from. `identity`: its id of this run, empty for a new one."""

    out: Path
    settings: Mapping[str, Any]
    identity: str = ""


class Logger(Protocol):
    """One tool. Made from a `Beginning` before the first step; whatever `write` raises costs its rows, not the run."""

    identity: str  # by which a resumed run is found again; empty where the tool needs none
    told: str  # one sentence: where the figures are

    def __init__(self, beginning: Beginning) -> None: ...

    @staticmethod
    def module() -> Any:
        """The tool's module; ImportError where it is not installed."""

    def write(self, values: Mapping[str, float], step: int) -> None:
        """Figures of one step, named such as "step/loss" and "measurement/mean_iu"."""

    def close(self, failed: bool) -> None:
        """All is written; `failed`: the run ended by an error or a signal."""


@final
class TensorBoard:
    """Events in RUN/tensorboard; files added by a resumed run belong to the same curves."""

    identity = ""

    def __init__(self, beginning: Beginning) -> None:
        place = beginning.out / "tensorboard"
        self._writer = self.module().SummaryWriter(str(place))
        self.told = f"TensorBoard's events are in {printable(place)}."

    @staticmethod
    def module() -> Any:
        return importlib.import_module("torch.utils.tensorboard")

    def write(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self, failed: bool) -> None:
        self._writer.close()


@final
class Wandb:
    """A W&B run in RUN/wandb, offline unless WANDB_MODE says otherwise; WANDB_PROJECT, WANDB_DIR and others count."""

    def __init__(self, beginning: Beginning) -> None:
        wandb = self.module()
        mode = os.environ.get("WANDB_MODE") or "offline"
        place = os.environ.get("WANDB_DIR") or str(beginning.out)
        self.identity = beginning.identity or uuid.uuid4().hex[:16]
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            id=self.identity,
            resume="allow",
            mode=mode,
            dir=place,
            name=printable(beginning.out.name),
            config=dict(beginning.settings),
            allow_val_change=True,  # a resumed run may be longer
            reinit="create_new",  # a run that the caller has open is left alone
            settings=wandb.Settings(silent=True, console="off"),
        )
        # A step that is computed again after a crash comes twice; W&B's own step would refuse it.
        self._run.define_metric("*", step_metric="step")
        sent = f"; send it with  wandb sync {printable(place)}/wandb/offline-run-*" if mode == "offline" else ""
        self.told = f"W&B ({printable(mode)}) keeps the run {self.identity} in {printable(place)}/wandb{sent}"

    @staticmethod
    def module() -> Any:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # read when it is imported
        return importlib.import_module("wandb")

    def write(self, values: Mapping[str, float], step: int) -> None:
        self._run.log({**values, "step": step})

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


@final
class MLflow:
    """An MLflow run in the files of RUN/mlruns, or wherever MLFLOW_TRACKING_URI says."""

    def __init__(self, beginning: Beginning) -> None:
        self._mlflow = self.module()
        where = os.environ.get("MLFLOW_TRACKING_URI")
        place = (beginning.out / "mlruns").absolute().as_uri()
        if not where:
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # files need no server and no data base
        self._client = self._mlflow.MlflowClient(tracking_uri=where or place)
        if beginning.identity:
            self._client.update_run(beginning.identity, status="RUNNING")
            self.identity = beginning.identity  # its parameters stay those it began with: MLflow refuses others
        else:
            self.identity = self._begin(beginning)
        shown = f"show it with  MLFLOW_ALLOW_FILE_STORE=true mlflow ui --backend-store-uri {place}"
        self.told = f"MLflow keeps the run {self.identity}{f' at {printable(where)}.' if where else f'; {shown}'}"

    def _begin(self, beginning: Beginning) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
        found = self._client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self._client.create_experiment(name)
        identity = str(self._client.create_run(experiment, run_name=printable(beginning.out.name)).info.run_id)
        for key, value in beginning.settings.items():
            self._client.log_param(identity, key, str(value)[:LONGEST])
        return identity

    @staticmethod
    def module() -> Any:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when it is imported
        return importlib.import_module("mlflow")

    def write(self, values: Mapping[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        rows = [self._mlflow.entities.Metric(name, value, now, step) for name, value in values.items()]
        self._client.log_batch(self.identity, metrics=rows)

    def close(self, failed: bool) -> None:
        self._client.set_terminated(self.identity, "FAILED" if failed else "FINISHED")


LOGGERS: dict[str, type[Logger]] = {"tensorboard": TensorBoard, "wandb": Wandb, "mlflow": MLflow}
"""Name in the recipe, and of the extra that installs it -> the logger."""


def chosen(recipe: Recipe) -> list[str]:
    """The loggers of a recipe, each once; `tensorboard = true` is one of them."""
    return list(dict.fromkeys([*(["tensorboard"] if recipe.tensorboard else []), *recipe.loggers]))


def refuse_missing(recipe: Recipe) -> None:
    """MissingExtra for a tool that is not installed, to be asked before anything is written."""
    for name in chosen(recipe):
        try:
            LOGGERS[name].module()
        except ImportError as error:
            raise MissingExtra(f"The logger {name}", name, name) from error


@final
class Loggers:
    """Those of one run, in the first process; `note` says what a person should know."""

    def __init__(self, recipe: Recipe, out: Path, resume: bool, note: Callable[[str], object]) -> None:
        """Start all; UsageError where one cannot, with those before it closed."""
        self._note = note
        self._open: dict[str, Logger] = {}
        known = _identities(out, note) if resume else {}
        settings = json.loads(recipe.model_dump_json())
        for name in chosen(recipe):
            try:
                self._open[name] = LOGGERS[name](Beginning(out, settings, known.get(name, "")))
            except Exception as error:
                self.close(failed=True)
                raise UsageError(
                    f"The logger {name} cannot start ({_first(error)}); mend its settings, or leave it out of loggers."
                ) from error
            note(self._open[name].told)
        now = known | {name: logger.identity for name, logger in self._open.items() if logger.identity}
        if now != known:
            atomic_write(out / FILE, json.dumps(now).encode())

    def write(self, row: Mapping[str, object]) -> None:
        """The fractional figures of a row of metrics.jsonl. A logger that fails gets no more, and that is said."""
        step = row["step"]
        assert isinstance(step, int)
        values = {f"{row['kind']}/{key}": value for key, value in row.items() if isinstance(value, float)}
        for name, logger in list(self._open.items()):
            try:
                logger.write(values, step)
            except Exception as error:
                self._note(
                    f"{name} gets no figures from step {step} on ({_first(error)}); training goes on, and "
                    "metrics.jsonl has them all."
                )
                del self._open[name]
                with suppress(Exception):
                    logger.close(failed=True)

    def close(self, failed: bool) -> None:
        """End each; what cannot be ended is said. Nothing is open afterwards."""
        while self._open:
            name, logger = self._open.popitem()
            try:
                logger.close(failed)
            except Exception as error:
                self._note(f"{name} may lack the last figures ({_first(error)}); metrics.jsonl has them all.")


@contextmanager
def open_loggers(recipe: Recipe, out: Path, resume: bool, note: Callable[[str], object]) -> Iterator[Loggers]:
    """The recipe's loggers, closed as failed when what is inside ends by an exception."""
    loggers = Loggers(recipe, out, resume, note)
    try:
        yield loggers
    except BaseException:
        loggers.close(failed=True)
        raise
    loggers.close(failed=False)


def _identities(out: Path, note: Callable[[str], object]) -> dict[str, str]:
    """The ids that the run had; none, and said, where the file cannot be used."""
    if not (out / FILE).is_file():
        return {}
    with suppress(FullyconvError, ValueError, OSError):
        found = read_json(out / FILE)
        if isinstance(found, dict) and all(isinstance(v, str) and IDENTITY.fullmatch(v) for v in found.values()):
            return found
    note(f"{printable(out / FILE)} is damaged: the loggers begin new runs.")
    return {}


def _first(error: Exception) -> str:
    """The first line of an error, or its kind where it says nothing."""
    lines = str(error).strip().splitlines()
    return printable(lines[0][:300]) if lines else type(error).__name__
