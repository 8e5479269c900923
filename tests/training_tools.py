"""A network of a few thousand weights, images drawn in memory, and child processes forked from a parent that has
torch loaded: what the tests of training share."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fullyconv import train as training
from fullyconv.data.base import Dataset, Record
from fullyconv.models.trunks import TRUNKS
from fullyconv.models.trunks.trunk import Trunk, he_init, run_layers
from fullyconv.recipes import Recipe, read_recipe
from fullyconv.taxonomy import Taxonomy
from fullyconv.train import checkpointing, measuring
from fullyconv.train.context import RunContext, prepare_run
from fullyconv.train.display import Display
from fullyconv.train.process_group import join

CLASSES = 3


class Tiny(Trunk):
    """Two strided convolutions with batch norm and dropout: everything that has a state or draws random numbers."""

    def __init__(self, channels_in: int = 3, padding: str = "same", batch_norm: bool = True) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(channels_in, 4, 3, 2, padding=1),
            nn.BatchNorm2d(4) if batch_norm else nn.Identity(),
            nn.ReLU(inplace=True),
            nn.Dropout(0.25),
            nn.Conv2d(4, 6, 3, 2, padding=1),
            nn.BatchNorm2d(6) if batch_norm else nn.Identity(),
            nn.ReLU(inplace=True),
        )
        self.taps = {2: 2, 6: 4}
        self.channels = {2: 4, 4: 6}
        he_init(self)

    def forward(self, x: Tensor) -> dict[int, Tensor]:
        return run_layers(self.features, x, self.taps)


class Plain(Tiny):
    """Tiny without batch norm and dropout: its step does not depend on how a batch is split."""

    def __init__(self, channels_in: int = 3, padding: str = "same") -> None:
        super().__init__(channels_in, padding, batch_norm=False)
        self.features[3] = nn.Identity()


TRUNKS["tiny"] = (Tiny, {})
TRUNKS["plain"] = (Plain, {})


def images(count: int = 7, split: str = "train", size: tuple[int, int] = (16, 20), broken: Any = None) -> Dataset:
    """Squares on noise, drawn from the record's number; label 255 along one edge. `broken(index)` may raise."""
    names = [f"{split}-{i}" for i in range(count)]
    records = [Record(n, {"rgb": Path(__file__)}, {"semantic": Path(__file__)}) for n in names]

    def draw(record: Record) -> tuple[Any, Any]:
        index = names.index(record.name)
        if broken:
            broken(index)
        rng = np.random.default_rng([index, split == "train"])
        label = np.zeros(size, np.uint8)
        for k in range(1, CLASSES):
            top, left = rng.integers(0, size[0] - 6), rng.integers(0, size[1] - 6)
            label[top : top + 6, left : left + 6] = k
        image = (label[..., None] * 90 + rng.integers(0, 60, (*size, 3))).astype(np.uint8)
        label[:, -1] = 255
        return image, label

    return Dataset(
        "drawn",
        Path(__file__).parent,
        split,
        records,
        {"semantic": Taxonomy(tuple("abc"))},
        lambda record, _modality: draw(record)[0],
        lambda record, _head: draw(record)[1],
    )


def small(**keys: Any) -> Recipe:
    """A recipe that trains in a fraction of a second."""
    values: dict[str, Any] = {"model": "fcn2s-tiny", "epochs": 3, "batch_size": 2, "lr": 0.01, "scale": (0.8, 1.25)}
    if {"steps", "time"} & set(keys):
        del values["epochs"]
    return read_recipe(
        None, values | {"crop": (16, 16), "photometric": 0.1, "save_every": "1h", "precision": "fp32"} | keys
    )


def fit(recipe: Recipe, out: Path, resume: bool = False, train: Dataset | None = None, **more: Any) -> Path:
    """`train.fit` on drawn images."""
    more = {"val": images(3, "val"), "check": False, "quiet": True} | more
    return training.fit(recipe, train or images(), out, resume=resume, **more)


def run_context(recipe: Recipe, out: Path, stack: Any, **more: Any) -> RunContext:
    """A run put together but not begun."""
    group = stack.enter_context(join("cpu"))
    val = more.pop("val", images(3, "val"))
    train = more.pop("train", images())
    return prepare_run(recipe, train, val, out, group, Display(quiet=True), False, (), False, stack)


# Interruptions: each makes `act` happen at one place of the run, in the process that calls it.

Act = Callable[[], None]


def after_step(step: int, act: Act) -> None:
    """At the end of `step`, before it is measured or kept."""
    log = checkpointing.log_step

    def hooked(c: RunContext, *rest: Any) -> None:
        log(c, *rest)
        if c.state.step == step:
            act()

    checkpointing.log_step = hooked


def in_step(step: int, act: Act) -> None:
    """Between the gradients of `step` and the optimiser."""
    accept = checkpointing.accept_step

    def hooked(c: RunContext, *rest: Any) -> bool:
        if c.state.step == step - 1:
            act()
        return accept(c, *rest)

    checkpointing.accept_step = hooked


def in_measurement(number: int, act: Act) -> None:
    """During the `number`-th measurement, with an image done."""
    evaluate, calls = measuring.evaluate, [0]

    def hooked(*arguments: Any, progress: Any, **rest: Any) -> Any:
        calls[0] += 1

        def seen(done: int, count: int) -> None:
            if calls[0] == number and done == 1:
                act()
            progress(done, count)

        return evaluate(*arguments, progress=seen, **rest)

    measuring.evaluate = hooked


def between_links(number: int, act: Act) -> None:
    """After the `number`-th time that `best` was swapped, before `last` is."""
    from fullyconv.checkpoint import run as runs

    replace_link, calls = runs.replace_link, [0]

    def hooked(link: Path, target: str) -> None:
        replace_link(link, target)
        if Path(link).name == "best":
            calls[0] += 1
            if calls[0] == number:
                act()

    runs.replace_link = hooked


PLACES = {f.__name__: f for f in (after_step, in_step, in_measurement, between_links)}


def die(signal_name: str) -> Act:
    """What an interruption does: a signal to this process, or an exception."""
    import signal

    if signal_name == "exception":

        def act() -> None:
            raise RuntimeError("planted")
    else:

        def act() -> None:
            os.kill(os.getpid(), signal.Signals[signal_name])

    return act


# Children

_context = multiprocessing.get_context("forkserver")
# An optimiser imports torch._dynamo, the loss numba: seconds each, once here instead of in every child.
_context.set_forkserver_preload(["training_tools", "torch._dynamo", "numba"])


def start(function: Callable[..., Any], *arguments: Any) -> Any:
    """A process forked from one with everything imported; one thread, so that the fork is clean."""
    before = {k: os.environ.get(k) for k in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "PYTHONPATH")}
    here = str(Path(__file__).parent)
    os.environ.update(OMP_NUM_THREADS="1", NUMBA_NUM_THREADS="1", PYTHONPATH=os.pathsep.join([here, *sys.path]))
    try:
        process = _context.Process(target=_call, args=(function, arguments))
        process.start()
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value
    return process


def call(function: Callable[..., Any], *arguments: Any, timeout: float = 280) -> int:
    """Exit code of `function(*arguments)` in a child: 0, an error's own code, 99 for any other exception, -signal."""
    process = start(function, *arguments)
    process.join(timeout)
    assert process.exitcode is not None, "the child hangs"
    return int(process.exitcode)


def _call(function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    try:
        function(*arguments)
    except SystemExit as error:
        os._exit(int(error.code or 0))
    except BaseException as error:
        if str(error) != "planted":
            traceback.print_exc()
        os._exit(getattr(error, "exit_code", 99))
    os._exit(0)


def train_until(keys: Mapping[str, Any], out: str, resume: bool, place: str = "", at: int = 0, how: str = "") -> None:
    """Train in this process, interrupted at a place."""
    if place:
        PLACES[place](at, die(how))
    fit(small(**keys), Path(out), resume)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


TIMES = ("elapsed", "measured_in_all", "measuring")


def outcome(out: Path) -> dict[str, Any]:
    """Everything of a run that must not depend on interruptions."""
    found: dict[str, Any] = {"metrics": (out / "metrics.jsonl").read_text()}
    for link in ("best", "last"):
        found[f"{link} step"] = (out / link).resolve().name
        for name in ("model.safetensors", "optim.safetensors"):
            found[f"{link} {name}"] = digest(out / link / name)
    state = json.loads((out / "last" / "state.json").read_text())["state"]["train"]
    found["state"] = {k: v for k, v in state.items() if k not in TIMES}
    return found
