"""A stranger's run or model, its manifest made to fit: whatever it holds, each use of it works or is refused in words,
runs no code of its, fetches nothing, and takes no more memory than its own files' size calls for."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_report_hostile import mutated, text_of
from test_train_cli import TINY, folder
from test_train_cli import run as train
from training_tools import fit, images, small

import fullyconv as fc
from fullyconv.checkpoint.manifest import encode_manifest
from fullyconv.errors import DataError, FullyconvError, UsageError
from fullyconv.files import Written
from fullyconv.models.trunks.timm import timm_parameters
from fullyconv.preprocessing import Preprocessing
from fullyconv.taxonomy import Taxonomy
from fullyconv.train import training_state
from fullyconv.train.training_state import State

FILES = ("config.json", "preprocessor_config.json", "state.json")


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit(small(steps=2), tmp_path_factory.mktemp("honest") / "run")


@pytest.fixture
def run(honest: Path, tmp_path: Path) -> Path:
    shutil.copytree(honest, tmp_path / "run", symlinks=True)
    return tmp_path / "run"


def sign(model: Path) -> None:
    """A manifest that fits the files as they are now."""
    old = json.loads((model / "MANIFEST.json").read_bytes())
    content = {name: (model / name).read_bytes() for name in old["files"]}
    files = {name: Written(len(b), hashlib.sha256(b).hexdigest()) for name, b in content.items()}
    (model / "MANIFEST.json").write_bytes(encode_manifest(files, old["versions"]))


def change(run: Path, file: str, *way: Any, value: Any) -> None:
    """Set one value of a file of the run's model."""
    path = (run / "last").resolve() / file
    tree = json.loads(path.read_bytes())
    place = tree
    for key in way[:-1]:
        place = place[key]
    place[way[-1]] = value
    path.write_bytes(text_of(tree))
    sign(path.parent)


def outcomes(run: Path, count: int, seed: int) -> Counter[str]:
    """How `count` changed models end in four uses; any other error than ours fails the test."""
    rng, found, messages = np.random.default_rng(seed), Counter[str](), [""]
    model, image = (run / "last").resolve(), np.zeros((16, 20, 3), np.uint8)
    shutil.rmtree(run.parent / "whole", ignore_errors=True)
    shutil.copytree(run, run.parent / "whole", symlinks=True)
    uses = {
        "load": lambda: fc.Predictor(fc.load(run))(image),
        "init": lambda: fit(small(steps=1, init_from=str(run)), run.parent / "new"),
        "resume": lambda: fit(small(steps=3), run, resume=True),
    }
    for number in range(count):
        shutil.rmtree(run)
        shutil.copytree(run.parent / "whole", run, symlinks=True)
        file = FILES[int(rng.integers(len(FILES)))]
        (model / file).write_bytes(text_of(mutated(json.loads((model / file).read_bytes()), rng)))
        sign(model)
        for what, use in uses.items():
            if (what == "load") == (file == "state.json"):
                continue
            try:
                use()
                found[f"{what} done"] += 1
            except FullyconvError as error:
                found[f"{what} refused"] += 1
                messages.append(str(error))
            except Exception as error:
                raise AssertionError(f"{what} of change {number} of seed {seed} in {file}: {error!r}") from error
            shutil.rmtree(run.parent / "new", ignore_errors=True)
    assert max(map(len, messages)) < 3000
    shutil.rmtree(run)
    shutil.copytree(run.parent / "whole", run, symlinks=True)
    return found


def test_hostile_models_are_used_or_refused_in_words(run: Path) -> None:
    found = outcomes(run, 8, 0)
    assert sum(n for what, n in found.items() if what.endswith("refused")) > 3


@pytest.mark.soak
def test_thousands_of_hostile_models_are_used_or_refused_in_words(run: Path) -> None:
    found = Counter[str]()
    for seed in range(1, 5):
        found += outcomes(run, 250, seed)  # leaves the run as it was
    print(dict(found))


# ---- code and network --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_resuming_a_strangers_run_runs_no_python_file_that_its_recipe_names(tmp_path: Path, capsys: Any) -> None:
    data, out, ran = folder(tmp_path / "data"), tmp_path / "run", tmp_path / "ran"
    code = f"open({str(ran)!r}, 'w')\ndef f(image, labels, rng):\n    return image, labels\n"
    (tmp_path / "evil.py").write_text(code)
    assert train(str(data), *TINY, "-o", str(out), "--no-report") == 0
    recipe, name = out / "recipe.toml", f"{tmp_path}/evil.py:f"
    text = recipe.read_text()
    recipe.write_text(text.replace('transform = ""', f'transform = "{name}"'))
    more = [str(data), "-o", str(out), "--resume", "--no-report", "--set", "epochs=2"]
    assert train(*more) == 2
    assert "--set transform=" in capsys.readouterr().err
    assert not ran.exists()
    own = ["--set", f"transform={name}", "--allow-changed", "transform"]
    assert train(*more, *own) == 0  # the user's own word
    assert ran.exists()
    recipe.write_text(text.replace("stages = []", f'stages = ["{tmp_path}/one.toml"]'))
    assert train(*more) == 2
    assert "--recipe" in capsys.readouterr().err


@pytest.mark.slow
def test_resuming_reads_neither_weights_nor_the_run_that_was_begun_from(tmp_path: Path, monkeypatch: Any) -> None:
    first = fit(small(steps=1), tmp_path / "first")
    weights = fc.load(first).save_pretrained(tmp_path / "weights")
    steady: dict[str, Any] = {"schedule": "constant", "warmup": 0.0}
    for start in ({"init_from": str(first)}, {"weights": str(weights)}):
        out = fit(small(steps=2, **steady, **start), tmp_path / f"from {next(iter(start))}")
        kept = fc.load(out / "last").origin
        whole = fit(small(steps=3, **steady, **start), tmp_path / f"whole {next(iter(start))}")
        for folder_ in (first, weights):
            folder_.rename(f"{folder_}-gone")
        fit(small(steps=3, **steady, **start), out, resume=True)
        assert fc.load(out / "last").origin == {**kept, "length": "3 steps"}
        ends = [(run_ / "last/model.safetensors").read_bytes() for run_ in (out, whole)]
        assert ends[0] == ends[1]
        for folder_ in (first, weights):
            Path(f"{folder_}-gone").rename(folder_)
    change(out, "preprocessor_config.json", "mean", value=[1.0, 2.0, 3.0])
    fit(small(steps=4), out, resume=True)
    assert fc.load(out / "last").preprocessing.mean == (1.0, 2.0, 3.0)


# ---- sizes that the files do not bear out ------------------------------------------------------------------------


def test_more_classes_than_the_weights_hold_are_refused_before_memory_is_taken(run: Path) -> None:
    change(run, "config.json", "heads", value={"semantic": 2**31 - 1})
    with pytest.raises(DataError, match=r"does not fit its weights.* classes"):
        fc.load(run)
    change(run, "config.json", "heads", value={f"h{i}": 3 for i in range(10_000)})
    with pytest.raises(DataError, match="does not fit its weights"):
        fc.load(run)


@pytest.mark.parametrize("head", ["../../evil", "/tmp/evil", "a b", "", "out", "x\x1b[2J"])
def test_a_head_that_could_not_be_made_is_refused_by_name(run: Path, head: str) -> None:
    change(run, "config.json", "heads", value={head: 3})
    with pytest.raises(DataError, match="whose name is none"):
        fc.load(run)


@pytest.mark.slow
def test_a_larger_timm_network_than_the_weights_is_refused_before_memory_is_taken(run: Path) -> None:
    pytest.importorskip("timm", reason="needs timm")
    assert timm_parameters("resnet18") == 11_176_512
    assert timm_parameters("none of timm's") == 0
    change(run, "config.json", "name", value="fcn32s-timm:resnet18")
    with pytest.raises(DataError, match="a trunk of 11,176,512 weights"):
        fc.load(run)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("order", [0, 1, 3]), ("order", [0, 1, -1]), ("log", [7]), ("mean", [math.nan, 0, 0]), ("order", [0])),
        *(
            ("scale", 0),
            ("scale", math.inf),
            ("std", [0, 1, 1]),
            ("std", [1e-300, 1, 1]),
            ("std", [math.inf, 1, 1]),
            ("mean", [10**400, 0, 0]),
        ),
    ],
)
def test_preprocessing_that_no_image_can_go_through_is_refused_where_it_is_read(key: str, value: Any) -> None:
    with pytest.raises(DataError, match="reprocessing"):
        Preprocessing.from_json({**Preprocessing().to_json(), key: value})


# ---- what a run goes on from -------------------------------------------------------------------------------------


def test_no_field_of_the_training_state_takes_what_no_run_wrote(run: Path) -> None:
    kept = json.loads((run / "last/state.json").read_bytes())["state"]["train"]
    assert training_state.read_state(kept, run) == State(**kept)
    for name, honest in kept.items():
        for value in (None, "x", [3], {}, math.nan, math.inf, -math.inf, -5, 10**400, 2**63, 0.5, True, 1):
            if (type(value) is type(honest) and value in (0.5, True, 1)) or (isinstance(honest, float) and value == 1):
                continue
            with pytest.raises(DataError):
                training_state.read_state({**kept, name: value}, run)


@pytest.mark.parametrize(
    ("way", "value"),
    [
        *((("machine",), []), (("machine", "threads"), -1), (("machine", "threads"), 10**9), (("train",), [])),
        *((("machine", "precision"), "x"), (("machine", "chosen"), 3), (("identity",), None), (("optimizer",), 1)),
        *((("identity", "classes"), [1]), (("optimizer", "state"), {}), (("optimizer", "param_groups"), [])),
        *((("optimizer", "param_groups", 0, "eps"), "x"), (("optimizer", "param_groups", 0, "betas"), [0.9])),
    ],
)
def test_a_state_that_no_run_wrote_is_refused_in_words(way: tuple[Any, ...], value: Any, run: Path) -> None:
    change(run, "state.json", "state", *way, value=value)
    if way == ("optimizer", "state"):  # {"$": "dict"} is how a state is stored; this one has a slot without its pair
        value = {"$": "dict", "v": [[0, {"step": {"$": "tensor", "v": "optimizer.state.0.step"}}]]}
        change(run, "state.json", "state", *way, value=value)
    with pytest.raises((DataError, UsageError)):
        fit(small(steps=3), run, resume=True)


def test_more_classes_than_can_be_counted_are_refused_before_anything_is_learned(tmp_path: Path) -> None:
    many = Taxonomy(tuple(f"n{k}" for k in range(20_000)))
    data = [replace(images(2, split), taxonomies={"semantic": many}) for split in ("train", "val")]
    with pytest.raises(UsageError, match="A table of 20000 classes cannot be made"):
        fit(small(steps=1), tmp_path / "run", train=data[0], val=data[1])
    assert not (tmp_path / "run").exists()


def test_a_step_or_crop_larger_than_the_data_is_said(tmp_path: Path, capsys: Any) -> None:
    fit(small(steps=1, batch_size=10**12, crop=(10**9, 10**9)), tmp_path / "run")
    output = capsys.readouterr().err
    assert "batch_size 1000000000000 is more than all images: a step learns all 7" in output
    assert (
        "crop 1000000000x1000000000 is larger than any image (up to 16x20) can be scaled to: 20x25 is taken" in output
    )
    fit(small(steps=1), tmp_path / "usual")
    assert "larger than" not in capsys.readouterr().err
