"""`fullyconv demo`: the main job from nothing, offline: draw scenes, train, measure, predict, report."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["demo"]

TRAIN, VAL, SIZE = (
    200,
    40,
    (120, 160),
)  # scenes and H W: so few and small that one core needs the three minutes that README promises


def demo(
    out: Annotated[
        Path, typer.Option("--out", help="Where the run goes; replaced when it holds an earlier demo.")
    ] = Path("runs/demo"),
    time: Annotated[str, typer.Option(help="Time for the training alone.")] = "95s",
    seed: Annotated[int, typer.Option(help="Another seed draws other scenes.")] = 0,
) -> None:
    """Draw street scenes, train a two-headed FCN-4s on them, measure it and write a report: three minutes, offline."""
    from fullyconv import recipes, scenes
    from fullyconv.allocator import keep_freed
    from fullyconv.data import open_dataset
    from fullyconv.evaluation import evaluate
    from fullyconv.models import load
    from fullyconv.predict import Predictor
    from fullyconv.report import write
    from fullyconv.train import fit

    recipe = recipes.read_recipe("demo", {"time": time, "seed": seed})  # refused before an earlier demo is removed
    _make_room(out)
    _say(f"1/4 drawing {TRAIN + VAL} street scenes into {out / 'data'}")
    data = f"folder:{scenes.write_scenes(out / 'data', train=TRAIN, val=VAL, size=SIZE, seed=seed)}"
    _say(f"2/4 training a two-headed FCN-4s for {time} ({out / 'recipe.toml'} holds the settings)")
    keep_freed()
    fit(recipe, data, out)
    _say("3/4 measuring it on scenes it has not seen, and labelling them")
    val = open_dataset(data, "val")
    result = evaluate(Predictor(load(out / "best")), val, keep=out / "evaluation")
    floor = _most_frequent(result.confusion)
    page = write(out)
    _say("4/4 done")
    print(f"mean IU {result.mean_iu:.3f} (always answering the most frequent class: {floor:.3f})")
    print(f"predictions {out / 'evaluation'}")
    print(f"report {page}")


def _most_frequent(table: object) -> float:
    """Mean IU of answering every pixel with the class that the truth has most of."""
    import numpy as np

    from fullyconv.metrics import mean_iu

    truth = np.asarray(table).sum(1)
    constant = np.zeros((len(truth), len(truth)), np.int64)
    constant[:, int(truth.argmax())] = truth
    return float(mean_iu(constant))


def _make_room(out: Path) -> None:
    """Remove an earlier demo; refuse to touch anything else."""
    import shutil

    from fullyconv.errors import UsageError
    from fullyconv.files import read_ends

    if not out.exists() or not any(out.iterdir()):
        return
    recipe = out / "recipe.toml"
    ours = recipe.is_file() and b'name = "demo"' in read_ends(recipe, 1 << 16)
    if not ours and [p.name for p in out.iterdir()] != ["data"]:
        raise UsageError(f"{out} holds something that is not a demo; name another place with --out.")
    shutil.rmtree(out)


def _say(text: str) -> None:
    print(text, file=sys.stderr)
