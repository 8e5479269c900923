"""fullyconv train: data and a recipe in, a run directory out."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fullyconv.allocator import keep_freed
from fullyconv.cli.options import MaxPixels
from fullyconv.errors import StorageError, UsageError

if TYPE_CHECKING:
    from fullyconv.recipes import Recipe

__all__ = ["data_name", "train"]


def train(
    data: Annotated[str, typer.Argument(help="Labelled images: PATH or kind:PATH.", show_default=False)] = "",
    recipe: Annotated[str, typer.Option(help="Published recipe by name, or a TOML file.", show_default=False)] = "",
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the recipe; repeatable.")
    ] = None,
    out: Annotated[
        str, typer.Option("-o", "--out", help="Run directory; runs/KIND by default.", show_default=False)
    ] = "",
    time: Annotated[str, typer.Option(help="Wall-clock budget such as 30m.", show_default=False)] = "",
    val: Annotated[str, typer.Option(help="Data to measure on, if not a split of DATA.", show_default=False)] = "",
    folds: Annotated[
        int, typer.Option(min=0, help="Cross-validate in so many folds: one run each, groups of images kept together.")
    ] = 0,
    init_from: Annotated[
        str,
        typer.Option(
            help="Start from this run or model directory (two, comma between, for two streams).", show_default=False
        ),
    ] = "",
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint in --out.")] = False,
    allow_changed: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-changed",
            metavar="WHAT",
            help="network, classes, data, transform or threads that may differ on --resume.",
        ),
    ] = None,
    print_config: Annotated[bool, typer.Option("--print-config", help="Print the resolved recipe and stop.")] = False,
    check: Annotated[bool, typer.Option("--check/--no-check", help="Check the data before training.")] = True,
    auto_restart: Annotated[
        bool, typer.Option("--auto-restart", help="Start again from the last checkpoint when the trainer dies.")
    ] = False,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="The same bits every time, on a GPU too, or an error.")
    ] = False,
    max_pixels: MaxPixels = 0,
    report: Annotated[bool, typer.Option("--report/--no-report", help="Write report.html at the end.")] = True,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Train a network on labelled images; writes a run directory with `best` and `last` models."""
    from fullyconv import recipes

    changes = dict(recipes.setting(text) for text in settings or [])
    if time:
        changes["time"] = time
    if init_from:
        changes["init_from"] = init_from
    if deterministic:
        changes["deterministic"] = True
    if resume and not out:
        raise UsageError("--resume needs the run's directory: name it with --out.")
    kept = Path(out) / ("fold-1" if folds else "") / "recipe.toml"
    of_the_run = resume and not recipe and kept.is_file()
    resolved = recipes.read_recipe(kept if of_the_run else recipe or None, changes)
    if of_the_run:
        _refuse_code(resolved, changes, kept)
    if print_config:
        print(resolved.to_toml(), end="")
        return
    if not data:
        raise UsageError("Name the labelled images: fullyconv train PATH (or kind:PATH).")
    place = Path(out) if out else _free(data)
    if folds and auto_restart:
        raise UsageError("--auto-restart is about one run; start --folds again with --resume instead.")
    if auto_restart:
        raise typer.Exit(_supervised(place, resume))
    if folds:
        _cross_validated(resolved, data, place, folds, val, resume, allow_changed or (), check, report, quiet)
        return
    from fullyconv.train import fit

    keep_freed()
    target = fit(
        resolved,
        data,
        place,
        val=val or None,
        resume=resume,
        allow=allow_changed or (),
        check=check,
        quiet=quiet,
    )
    if int(os.environ.get("RANK", 0)):
        return  # under torchrun, the first process speaks for all
    if report:
        _report(target, resolved, data, val, quiet)
    print(target)


def _refuse_code(recipe: Recipe, changes: Mapping[str, object], file: Path) -> None:
    """UsageError where a run's own recipe, which may be a stranger's, has a file of Python run that nobody named."""
    from fullyconv.errors import UsageError, printable

    stages = [str(stage) for stage in recipe.stages if str(stage).endswith(".toml")]
    if "transform" not in changes and ":" in recipe.transform:
        raise UsageError(
            f"{printable(file)} has the Python code of {printable(recipe.transform)[:200]!r} run; if it is yours, name "
            "it again with --set transform=FILE.py:FUNCTION, or leave it out with --set transform=."
        )
    if stages and "stages" not in changes:
        raise UsageError(
            f"{printable(file)} takes its stages from files ({printable(stages[0])[:200]}); if they are yours, give "
            "the recipe that was trained again with --recipe FILE.toml."
        )


def _cross_validated(
    recipe: Recipe,
    data: str,
    out: Path,
    folds: int,
    val: str,
    resume: bool,
    allow: Sequence[str],
    check: bool,
    report: bool,
    quiet: bool,
) -> None:
    """One run a fold, then the figures of all images."""
    from fullyconv.report import write
    from fullyconv.train.folds import cross_validate

    if val:
        raise UsageError("--folds measures on the folds themselves; leave out --val.")
    keep_freed()
    found = cross_validate(recipe, data, out, folds, resume=resume, allow=allow, check=check, quiet=quiet)
    if report:
        page = write(out)
        if not quiet:
            print(f"report: {page}", file=sys.stderr)
    print(found.text())


def _report(out: Path, recipe: Recipe, data: str, val: str, quiet: bool) -> None:
    """Measure the best model once more, keeping its predictions, and write report.html. A full disk costs the page."""
    from fullyconv.data.splits import kept_in
    from fullyconv.evaluation import evaluate
    from fullyconv.models import load
    from fullyconv.predict import Predictor
    from fullyconv.report import write
    from fullyconv.train.context import open_both

    try:
        if (out / "best").exists() and not recipe.stages:
            dataset = open_both(recipe, data, val or None, kept_in(out))[1]
            if dataset is not None:  # a run without validation has a report all the same, of its curves
                evaluate(Predictor(load(out / "best")), dataset, keep=out / "evaluation")
        page = write(out)
        if not quiet:
            print(f"report: {page}", file=sys.stderr)
    except StorageError as error:
        print(f"There is no report: {error}", file=sys.stderr)


def _supervised(out: Path, resume: bool) -> int:
    """This very command without --auto-restart, started as often as it takes; its last exit code."""
    import subprocess

    from fullyconv.cli.supervise import supervise

    same = [a for a in sys.argv[1:] if a not in ("--auto-restart", "--resume")]
    if not any(a in ("-o", "--out") or a.startswith("--out=") for a in same):
        same += ["--out", str(out)]

    def start(again: bool) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-m", "fullyconv", *same, *(["--resume"] if again else [])])

    return supervise(start, out, resume=resume)


def _free(data: str) -> Path:
    """runs/NAME that no run uses yet."""
    name = data_name(data)
    return next(p for n in range(1, 10_000) if not (p := Path("runs", name if n == 1 else f"{name}-{n}")).exists())


def data_name(data: str) -> str:
    """What is made of data is named by their kind or last folder: one part of a path."""
    from fullyconv.files.outputs import safe_name

    name = Path(data.partition(":")[0].partition(",")[0] if ":" in data else data).name or "model"
    return safe_name(name)
