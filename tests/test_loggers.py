"""Loggers: every tool gets the figures of metrics.jsonl, a resumed run goes on in the same place, nothing is sent
unasked, and a tool that fails costs its own rows only. Stand-ins take the place of the real packages, which have their
own tests where they are installed."""

from __future__ import annotations

import json
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, get_args

import pytest
from training_tools import fit, run_context, small

from fullyconv.errors import MissingExtra, UsageError
from fullyconv.recipes import Recipe, read_recipe
from fullyconv.train import checkpointing
from fullyconv.train.loggers import FILE, LOGGERS, Loggers, chosen, open_loggers, refuse_missing

TOLD = ("WANDB_MODE", "WANDB_PROJECT", "WANDB_DIR", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME")
QUIETED = ("WANDB_ERROR_REPORTING", "MLFLOW_DISABLE_TELEMETRY", "MLFLOW_ALLOW_FILE_STORE")


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*TOLD, *QUIETED):  # set first, so that what the code sets is taken back as well
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


class Wandb(ModuleType):
    """Keeps what `init` was given and what each run was told."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.began: list[dict[str, Any]] = []
        self.rows: list[dict[str, float]] = []
        self.ends: list[int] = []
        self.fails = False

    def Settings(self, **keys: Any) -> dict[str, Any]:
        return keys

    def init(self, **keys: Any) -> Any:
        if keys["mode"] == "online":
            raise RuntimeError("no key\nsecond line")
        self.began.append(keys)
        return self

    def define_metric(self, name: str, step_metric: str) -> None:
        assert (name, step_metric) == ("*", "step")

    def log(self, row: dict[str, float]) -> None:
        if self.fails:
            raise OSError("the disk is full")
        self.rows.append(row)

    def finish(self, exit_code: int) -> None:
        self.ends.append(exit_code)


class Mlflow(ModuleType):
    """MLflow's client as far as it is used, with its rules: a parameter is given once, an unknown run refused."""

    def __init__(self) -> None:
        super().__init__("mlflow")
        self.places: list[str] = []
        self.experiments: dict[str, str] = {}
        self.parameters: dict[str, dict[str, str]] = {}
        self.rows: list[tuple[str, str, float, int]] = []
        self.status: dict[str, str] = {}
        self.entities = SimpleNamespace(Metric=lambda name, value, _time, step: (name, value, step))

    def MlflowClient(self, tracking_uri: str) -> Any:
        self.places.append(tracking_uri)
        return self

    def get_experiment_by_name(self, name: str) -> Any:
        return SimpleNamespace(experiment_id=self.experiments[name]) if name in self.experiments else None

    def create_experiment(self, name: str) -> str:
        return self.experiments.setdefault(name, f"{len(self.experiments)}")

    def create_run(self, experiment: str, run_name: str) -> Any:
        assert experiment in self.experiments.values()
        run = f"{run_name}{len(self.status)}"
        self.status[run], self.parameters[run] = "RUNNING", {}
        return SimpleNamespace(info=SimpleNamespace(run_id=run))

    def log_param(self, run: str, key: str, value: str) -> None:
        assert key not in self.parameters[run]
        self.parameters[run][key] = value

    def log_batch(self, run: str, metrics: list[tuple[str, float, int]]) -> None:
        self.rows += [(run, *row) for row in metrics]

    def update_run(self, run: str, status: str) -> None:
        if run not in self.status:
            raise KeyError(run)
        self.status[run] = status

    def set_terminated(self, run: str, status: str) -> None:
        self.status[run] = status


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Wandb:
    monkeypatch.setitem(sys.modules, "wandb", Wandb())
    return sys.modules["wandb"]  # type: ignore[return-value]


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> Mlflow:
    monkeypatch.setitem(sys.modules, "mlflow", Mlflow())
    return sys.modules["mlflow"]  # type: ignore[return-value]


def floats(out: Path) -> list[tuple[str, float, int]]:
    """The fractional figures of metrics.jsonl by name and step."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [(f"{r['kind']}/{k}", v, r["step"]) for r in rows for k, v in r.items() if isinstance(v, float)]


def test_each_logger_gets_every_fractional_figure_of_the_log_and_a_resumed_run_goes_on_under_its_id(
    tmp_path: Path, wandb: Wandb, mlflow: Mlflow
) -> None:
    out = fit(small(steps=2, loggers=["wandb", "mlflow"]), tmp_path / "run")
    fit(small(steps=3, loggers=["wandb", "mlflow"]), out, resume=True)
    written = floats(out)
    assert {"step/loss", "measurement/mean_iu"} <= {name for name, *_ in written}
    assert [(k, v, row["step"]) for row in wandb.rows for k, v in row.items() if k != "step"] == written
    assert [row[1:] for row in mlflow.rows] == written
    first, second = wandb.began
    assert first["id"] == second["id"]
    assert second["resume"] == "allow"
    assert second["config"]["steps"] == 3
    assert mlflow.status == {"run0": "FINISHED"}
    assert mlflow.parameters["run0"]["steps"] == "2"
    assert json.loads((out / FILE).read_text()) == {"wandb": first["id"], "mlflow": "run0"}
    assert wandb.ends == [0, 0]


def test_nothing_is_sent_unless_the_users_variables_say_so(
    tmp_path: Path, wandb: Wandb, mlflow: Mlflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe(loggers=("wandb", "mlflow"))
    Loggers(recipe, tmp_path, False, print)
    assert (wandb.began[0]["mode"], wandb.began[0]["dir"], wandb.began[0]["project"]) == (
        "offline", str(tmp_path), "fullyconv",
    )  # fmt: skip
    assert mlflow.places == [(tmp_path / "mlruns").as_uri()]
    assert [os.environ[name] for name in QUIETED] == ["false", "true", "true"]
    for name, value in zip(TOLD, ("shared", "mine", "/elsewhere", "http://server", "theirs"), strict=True):
        monkeypatch.setenv(name, value)
    Loggers(recipe, tmp_path, False, print)
    assert (wandb.began[1]["mode"], wandb.began[1]["dir"], wandb.began[1]["project"]) == (
        "shared", "/elsewhere", "mine",
    )  # fmt: skip
    assert mlflow.places[1] == "http://server"
    assert set(mlflow.experiments) == {"fullyconv", "theirs"}


def test_a_users_word_about_reports_and_stores_stands(
    wandb: Wandb, mlflow: Mlflow, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in QUIETED:
        monkeypatch.setenv(name, "mine")
    Loggers(Recipe(loggers=("wandb", "mlflow")), tmp_path, False, print)
    assert [os.environ[name] for name in QUIETED] == ["mine"] * 3


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtra, match=rf"The logger {name} needs .* pip install 'fullyconv\[{name}\]'"):
        fit(small(loggers=[name]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_logger_that_fails_in_mid_run_costs_its_rows_and_is_said_once(tmp_path: Path, wandb: Wandb) -> None:
    notes: list[str] = []
    with open_loggers(Recipe(loggers=("wandb",)), tmp_path, False, notes.append) as loggers:
        loggers.write({"kind": "step", "step": 1, "loss": 0.5})
        wandb.fails = True
        for step in (2, 3):
            loggers.write({"kind": "step", "step": step, "loss": 0.5})
    assert wandb.rows == [{"step/loss": 0.5, "step": 1}]
    assert wandb.ends == [1]
    assert [n for n in notes if "no figures from step 2 on (the disk is full)" in n] == notes[1:]


def test_a_logger_that_cannot_start_ends_the_run_before_its_first_step_and_the_others_with_it(
    tmp_path: Path, wandb: Wandb, mlflow: Mlflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    with pytest.raises(UsageError, match=r"The logger wandb cannot start \(no key\); mend its settings, or leave it"):
        fit(small(steps=1, loggers=["mlflow", "wandb"]), tmp_path / "run")
    assert mlflow.status == {"run0": "FAILED"}
    assert not (tmp_path / "run" / "last").exists()
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert (fit(small(steps=1, loggers=["mlflow", "wandb"]), tmp_path / "run") / "last").exists()


def test_a_run_that_ends_by_an_error_is_marked_as_failed_and_one_that_goes_on_as_finished(
    tmp_path: Path, wandb: Wandb, mlflow: Mlflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = small(steps=2, loggers=["wandb", "mlflow"])

    def fail(*_: Any) -> None:
        raise RuntimeError("planted")

    with monkeypatch.context() as broken:
        broken.setattr(checkpointing, "advance", fail)
        with pytest.raises(RuntimeError, match="planted"):
            fit(recipe, tmp_path / "run")
    assert (wandb.ends, mlflow.status) == ([1], {"run0": "FAILED"})
    fit(recipe, tmp_path / "run", resume=True)
    assert (wandb.ends, mlflow.status) == ([1, 0], {"run0": "FINISHED"})


def test_a_run_whose_name_holds_control_characters_is_told_to_loggers_in_escapes(
    tmp_path: Path, wandb: Wandb, mlflow: Mlflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    (out := tmp_path / "run\x1b]0;x\x07\n\u202eb").mkdir()
    monkeypatch.setattr(mlflow, "create_run", lambda _, run_name: named.append(run_name) or 1 / 0)
    named: list[str] = []
    Loggers(small(loggers=["wandb"]), out, False, print).close(failed=False)
    with pytest.raises(UsageError, match="mlflow cannot start"):
        Loggers(small(loggers=["mlflow"]), out, False, print)
    assert [wandb.began[0]["name"], *named] == [r"run\x1b]0;x\x07\n\u202eb"] * 2


@pytest.mark.parametrize("text", ['{"wandb": "../../x"}', '{"wandb": 3}', "[", "[]"])
def test_ids_that_cannot_be_used_are_said_and_new_runs_begun(tmp_path: Path, wandb: Wandb, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    notes: list[str] = []
    Loggers(Recipe(loggers=("wandb",)), tmp_path, True, notes.append)
    assert "is damaged: the loggers begin new runs" in notes[0]
    assert wandb.began[0]["id"].isalnum()


def test_the_key_names_the_loggers_there_are_and_the_former_one_counts() -> None:
    kind = get_args(Recipe.model_fields["loggers"].annotation)[0]
    assert set(get_args(kind)) == set(LOGGERS)
    assert chosen(Recipe()) == []
    assert chosen(Recipe(tensorboard=True, loggers=("mlflow", "tensorboard", "mlflow"))) == ["tensorboard", "mlflow"]
    assert read_recipe(None, ["loggers=wandb"]).loggers == ("wandb",)
    with pytest.raises(UsageError, match="did you mean 'wandb'"):
        read_recipe(None, {"loggers": ["wandbb"]})


def test_other_processes_of_a_run_start_no_logger(tmp_path: Path, wandb: Wandb) -> None:
    with ExitStack() as stack:
        c = run_context(small(loggers=["wandb"]), tmp_path / "run", stack)
        assert c.loggers is not None
        c.loggers, c.run = None, None
        c.write({"kind": "step", "step": 1, "loss": 0.5})
    assert wandb.rows == []


@pytest.mark.slow
def test_wandb_itself_keeps_a_run_and_goes_on_with_it_offline(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    for steps, resume in ((1, False), (2, True)):
        fit(small(steps=steps, loggers=["wandb"]), tmp_path / "run", resume=resume)
    identity = json.loads((tmp_path / "run" / FILE).read_text())["wandb"]
    kept = list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))
    assert [file.name for file in kept] == [f"run-{identity}.wandb"] * len(kept)
    assert b"step/loss" in b"".join(file.read_bytes() for file in kept)


@pytest.mark.slow
def test_mlflow_itself_keeps_a_run_and_goes_on_with_it_in_files(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    recipe = small(steps=1, loggers=["mlflow"])
    refuse_missing(recipe)
    fit(recipe, tmp_path / "run")
    fit(recipe.replace(steps=2), tmp_path / "run", resume=True)
    identity = json.loads((tmp_path / "run" / FILE).read_text())["mlflow"]
    client = mlflow.MlflowClient(tracking_uri=(tmp_path / "run" / "mlruns").as_uri())
    losses = [(m.step, m.value) for m in client.get_metric_history(identity, "step/loss")]
    assert losses == [(step, value) for name, value, step in floats(tmp_path / "run") if name == "step/loss"]
    assert client.get_run(identity).info.status == "FINISHED"
