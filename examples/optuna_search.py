"""A search for the recipe's keys with Optuna: each trial is a short run, the best one's settings are printed.

    pip install optuna
    python examples/optuna_search.py [FOLDER] [--trials 8] [--steps 40] [--out DIR]

Without a folder, some street scenes are drawn into one first. The same --out goes on with the search that is there.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import optuna

import fullyconv as fc
from fullyconv import scenes


def main(folder: Path | None, trials: int, steps: int, out: Path | None = None) -> dict[str, Any]:
    out = out or Path(tempfile.mkdtemp(prefix="fullyconv-"))
    out.mkdir(parents=True, exist_ok=True)
    if folder is None:
        folder = out / "mydata"
        if not folder.exists():
            scenes.write_scenes(folder, train=16, val=4, size=(96, 128), seed=0)

    # What all trials share. The seed is one of it: else luck would be searched as well.
    base = fc.Recipe(
        model="fcn8s-mobilenet_v2", weights="auto", heads=("semantic",), steps=steps, batch_size=4, crop=(96, 96)
    )

    def objective(trial: optuna.Trial) -> float:
        recipe = base.replace(
            lr=trial.suggest_float("lr", 1e-4, 1e-2, log=True),
            head_lr=trial.suggest_float("head_lr", 1, 10, log=True),
            weight_decay=trial.suggest_float("weight_decay", 1e-4, 1e-1, log=True),
            loss=trial.suggest_categorical("loss", ["mean", "cross_entropy+dice", "cross_entropy+lovasz"]),
        )
        # The data are checked once; 20 runs do not make them better.
        run = fc.fit(recipe, folder, out / f"trial-{trial.number}", check=trial.number == 0, quiet=True)
        return fc.evaluate(fc.Predictor(fc.load(run / "best")), fc.open_dataset(folder, "val")).mean_iu

    study = optuna.create_study(
        study_name="fullyconv",
        storage=f"sqlite:///{out}/search.db",
        load_if_exists=True,
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=0),
    )
    study.optimize(objective, n_trials=trials)

    print(f"trial {study.best_trial.number} of {len(study.trials)}: mean IU (mIoU) {study.best_value:.3f} on val")
    print("fullyconv train DATA " + " ".join(f"--set {key}={value}" for key, value in study.best_params.items()))
    print("The best of many trials is flattered by val: measure its network on images that chose nothing.")
    return study.best_params


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    main(arguments.folder, arguments.trials, arguments.steps, arguments.out)
