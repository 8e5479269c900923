"""Stages: 32s, then 16s from it, then 8s from that, each a run of its own below one directory."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from fullyconv.checkpoint import read_model
from fullyconv.errors import UsageError
from fullyconv.files import atomic_write, make_directory, replace_link
from fullyconv.files.outputs import one_part
from fullyconv.recipes import Recipe, published_recipe, read_recipe

__all__ = ["run_stages", "stage_recipes"]

# Of the staged recipe itself; `weights` and `init_from` are where the first stage starts.
OWN = ("stages", "name", "source", "expected", "weights", "init_from", "model")


def stage_recipes(recipe: Recipe) -> list[Recipe]:
    """Each stage's recipe: the published one, with every key that the staged recipe or the user has set."""
    given = {key: getattr(recipe, key) for key in recipe.model_fields_set if key not in OWN}
    lengths = {"epochs", "steps", "time"}
    if lengths & set(given):
        given = {**dict.fromkeys(lengths - set(given), 0), **given}
        given["time"] = given["time"] or ""
    stages = [_stage(name).replace(**given) for name in recipe.stages]
    start = {key: getattr(recipe, key) for key in ("weights", "init_from") if getattr(recipe, key)}
    return [stages[0].replace(**start), *stages[1:]]


def _stage(name: str) -> Recipe:
    """A published recipe, or one in a file, which has its file's name if none of its own."""
    if not name.endswith(".toml"):
        return published_recipe(name)
    found = read_recipe(name)
    if found.stages:
        raise UsageError(f"The stage {name} has stages itself; list its recipes one by one.")
    return found if found.name else found.replace(name=Path(name).stem)


def run_stages(recipe: Recipe, out: Path, resume: bool, fit: Callable[..., Path], **more: object) -> Path:
    """Run the stages in `out`/1-NAME, `out`/2-NAME ...; finished ones are passed over, a begun one is gone on with.

    Each stage starts from the last weights of the one before. `best` and `last` of `out` are the last stage's.
    """
    stages = stage_recipes(recipe)
    places = [out / f"{number}-{one_part(stage.name, 'The stage')}" for number, stage in enumerate(stages, 1)]
    if not resume and any((place / "last").exists() for place in places):
        raise UsageError(f"{out} holds a staged run; go on with it by --resume, or give another --out.")
    if resume and not out.is_dir():
        raise UsageError(
            f"There is no run to go on with in {out}; name its directory with --out, or leave --resume out."
        )
    if int(os.environ.get("RANK", 0)) == 0:
        make_directory(out)
        atomic_write(out / "recipe.toml", recipe.to_toml(only_set=True).encode())
    for before, stage, place in zip([None, *places], stages, places, strict=False):
        begun = (place / "last").exists()
        if begun and _finished(place):
            continue
        start = stage if before is None else stage.replace(init_from=str(before / "last"))
        fit(start, out=place, resume=begun, **more)
    for link in ("best", "last"):
        if (places[-1] / link).exists() and int(os.environ.get("RANK", 0)) == 0:
            replace_link(out / link, f"{places[-1].name}/{link}")
    return out


def _finished(place: Path) -> bool:
    state = read_model(place / "last").state
    return bool(state["train"]["finished"])
