"""Model and run directories: what goes in comes out, equal to the bit; what was changed is refused and named."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fullyconv import checkpoint, tensorfile
from fullyconv.checkpoint import RunDirectory, Stored, check_canary, pack, read_model, unpack, verify_model, write_model
from fullyconv.checkpoint.log import whole
from fullyconv.checkpoint.manifest import encode_json, encode_manifest
from fullyconv.errors import DataError, InternalError, MissingInput, StorageError, TryAgain, UsageError
from fullyconv.files import Written, sha256_file

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2, torch.uint16, torch.uint32,
]  # fmt: skip
CONFIG = {"name": "fcn32s-tiny", "taxonomies": {"semantic": {"names": ["sky", "road"], "ignore": 255}}, "padding": None}


def all_kinds() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    found = {str(d).removeprefix("torch."): (torch.randn(3, 5) * 50).abs().to(d) for d in DTYPES}
    return found | {
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 7),
        "transposed": torch.randn(4, 6).T,
        "sliced": torch.randn(10, 10)[::2, 1:4],
        "parameter": torch.nn.Parameter(torch.randn(3)),
        "nan": torch.tensor([float("nan"), float("inf"), -0.0]),
    }


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    def bits(t: torch.Tensor) -> torch.Tensor:
        return t.detach().contiguous().reshape(-1).view(torch.uint8)

    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(bits(a), bits(b))


def model(path: Path, **changes: Any) -> Path:
    content: dict[str, Any] = {
        "tensors": {"w": torch.arange(24.0).reshape(4, 6), "b": torch.ones(4, dtype=torch.bfloat16)},
        "config": CONFIG,
        "preprocessor": {"mean": [0.5]},
        "card": "# a card\n",
    }
    return write_model(path, **(content | changes))


# Round trips


def test_every_dtype_and_layout_comes_back_equal_to_the_bit(tmp_path: Path) -> None:
    tensors = all_kinds()
    stored = read_model(model(tmp_path / "m", tensors=tensors))
    assert set(stored.tensors) == set(stored.header) == set(tensors)
    assert all(same(stored.tensors[name], tensor) for name, tensor in tensors.items())
    stored.match(tensors)
    assert (stored.config, stored.preprocessor, stored.card) == (CONFIG, {"mean": [0.5]}, "# a card\n")
    assert (stored.state, stored.step, stored.canary, stored.has_state) == (None, None, None, False)


def test_the_weights_are_a_safetensors_file_for_everyone(tmp_path: Path) -> None:
    tensors = all_kinds()
    model(tmp_path / "m", tensors=tensors)
    theirs = safetensors.torch.load_file(tmp_path / "m" / "model.safetensors")
    assert all(same(theirs[name], tensor) for name, tensor in tensors.items())
    plain = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    safetensors.torch.save_file(plain, tmp_path / "theirs.safetensors", {"format": "pt"})
    ours = tensorfile.load_tensors(tmp_path / "theirs.safetensors")
    assert all(same(ours[name], tensor) for name, tensor in tensors.items())


def test_the_directory_follows_the_hugging_face_layout(tmp_path: Path) -> None:
    directory = model(tmp_path / "m")
    assert sorted(os.listdir(directory)) == [
        "MANIFEST.json", "README.md", "config.json", "model.safetensors", "preprocessor_config.json",
    ]  # fmt: skip
    config = json.loads((directory / "config.json").read_text())
    assert config["id2label"] == {"0": "sky", "1": "road"}
    assert config["label2id"] == {"sky": 0, "road": 1}
    assert config["model_type"] == "fullyconv"


def test_the_manifest_lists_every_file_but_the_card(tmp_path: Path) -> None:
    directory = model(tmp_path / "m", state={"x": torch.zeros(2)}, canary={"input": torch.zeros(1)})
    listed = json.loads((directory / "MANIFEST.json").read_text())["files"]
    assert set(listed) == set(os.listdir(directory)) - {"README.md", "MANIFEST.json"}
    for name, entry in listed.items():
        assert entry == {"bytes": (directory / name).stat().st_size, "sha256": sha256_file(directory / name)}


def test_the_card_is_the_users_to_edit(tmp_path: Path) -> None:
    directory = model(tmp_path / "m")
    (directory / "README.md").write_text("my own words")
    assert verify_model(directory).card == "my own words"
    (directory / "README.md").unlink()
    assert verify_model(directory).card == ""


def test_config_and_header_are_read_without_torch(tmp_path: Path) -> None:
    directory = model(tmp_path / "m")
    code = (
        "import sys; from fullyconv.checkpoint import read_model, verify_model\n"
        f"s = verify_model({str(directory)!r})\n"
        "assert s.config['name'] == 'fcn32s-tiny' and s.header['w'].shape == (4, 6)\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


leaves = (
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(width=64) | st.text(max_size=5)
    | st.binary(max_size=5)
    | st.builds(lambda n, v: torch.full((n,), v), st.integers(0, 3), st.integers(0, 9))
    | st.builds(lambda n, v: np.full((n, 2), v, np.int64), st.integers(0, 3), st.integers(0, 9))
)  # fmt: skip
keys = st.text(max_size=4) | st.integers(0, 9) | st.just("$")
nests = st.recursive(
    leaves,
    lambda n: st.lists(n, max_size=3) | st.lists(n, max_size=3).map(tuple) | st.dictionaries(keys, n, max_size=3),
    max_leaves=12,
)


def equal(a: Any, b: Any) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return same(a, b)
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return repr(a) == repr(b)


@settings(max_examples=150, deadline=None)
@given(value=nests)
def test_any_state_survives_json_with_its_types_and_bits(value: Any) -> None:
    tree, tensors = pack(value)
    as_torch = {n: torch.from_numpy(t) if isinstance(t, np.ndarray) else t for n, t in tensors.items()}
    again = unpack(json.loads(json.dumps(tree, allow_nan=False)), as_torch)
    assert equal(again, value), (value, again)


def test_an_optimiser_and_every_generator_go_on_exactly_where_they_were(tmp_path: Path) -> None:
    adam = {  # as torch.optim.AdamW.state_dict() gives it: integer keys, tuples, tensors of no axis
        "state": {i: {"step": torch.tensor(3.0), "exp_avg": torch.randn(4, i + 1)} for i in range(2)},
        "param_groups": [{"lr": 0.01, "betas": (0.9, 0.999), "foreach": None, "params": [0, 1]}],
    }
    python, numpy = random.Random(5), np.random.default_rng(6)
    state = {
        "optimiser": adam, "torch": torch.get_rng_state(), "python": python.getstate(),
        "numpy": numpy.bit_generator.state, "best": float("-inf"), "window": (1, [2.5]),
    }  # fmt: skip
    stored = read_model(model(tmp_path / "m", state=state))
    expected = (torch.rand(3), python.random(), numpy.random())
    assert equal(stored.state["optimiser"], adam)
    torch.set_rng_state(stored.state["torch"])
    python.setstate(stored.state["python"])
    numpy.bit_generator.state = stored.state["numpy"]
    assert torch.equal(torch.rand(3), expected[0])
    assert (python.random(), numpy.random()) == expected[1:]
    assert stored.state["best"] == float("-inf")
    assert stored.state["window"] == (1, [2.5])


def test_what_cannot_be_stored_is_our_own_mistake_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(InternalError, match=r"state at \.a is a set"):
        model(tmp_path / "m", state={"a": {1, 2}})
    with pytest.raises(InternalError, match="cannot be stored"):
        model(tmp_path / "m", tensors={"q": torch.ones(2, dtype=torch.complex128)})
    with pytest.raises(InternalError, match="JSON"):
        model(tmp_path / "m", config={"x": float("nan")})
    assert os.listdir(tmp_path) == []


# Replacing


def test_saving_again_replaces_the_model_and_leaves_nothing_else(tmp_path: Path) -> None:
    for value in (1.0, 2.0):
        model(tmp_path / "m", tensors={"w": torch.tensor([value])})
        assert read_model(tmp_path / "m").tensors["w"].item() == value
    assert os.listdir(tmp_path) == ["m"]


def test_nothing_that_is_not_a_model_is_ever_replaced(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "holiday.jpg").write_text("irreplaceable")
    with pytest.raises(UsageError, match=r"holiday\.jpg"):
        model(photos)
    project = tmp_path / "project"  # names that a model has too, but no manifest
    project.mkdir()
    (project / "README.md").write_text("mine")
    (project / "config.json").write_text("{}")
    with pytest.raises(UsageError, match=r"holds other files"):
        model(project)
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="not a directory"):
        model(tmp_path / "file")
    directory = model(tmp_path / "m")
    (directory / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"notes\.txt"):
        model(directory)
    assert (photos / "holiday.jpg").read_text() == "irreplaceable"
    assert (directory / "notes.txt").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    model(tmp_path / "empty")


def test_too_small_a_disk_is_said_before_anything_is_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fullyconv.checkpoint import model as module

    asked = []

    def none_left(directory: Path, needed: int) -> None:
        asked.append(needed)
        raise StorageError("no room")

    monkeypatch.setattr(module, "require_space", none_left)
    with pytest.raises(StorageError):
        model(tmp_path / "m", tensors={"w": torch.zeros(1000)}, state={"m": torch.zeros(1000)})
    assert asked[0] >= 8000
    assert os.listdir(tmp_path) == []


# Refusals


def rich(path: Path) -> Path:
    return model(path, state={"m": torch.randn(5), "n": 3}, canary={"input": torch.zeros(2), "semantic": torch.ones(2)})


def read_everything(directory: Path) -> None:
    """What resuming reads."""
    stored = read_model(directory)
    assert stored.tensors
    assert stored.canary
    assert stored.state


FILES = ["model.safetensors", "config.json", "preprocessor_config.json", "canary.safetensors", "state.json",
         "optim.safetensors", "MANIFEST.json"]  # fmt: skip


def damage(data: bytes, rng: random.Random) -> bytes:
    """One bit flipped, the end cut off, zeros in place of a stretch, or a few bytes more."""
    kind = rng.choice(["flip", "flip", "flip", "cut", "zero", "more"])
    at = rng.randrange(len(data))
    if kind == "flip":
        return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]
    if kind == "cut":
        return data[:at]
    if kind == "zero":
        end = min(len(data), at + rng.randrange(1, 600))
        return data[:at] + bytes(end - at) + data[end:]
    return data + rng.randbytes(rng.randrange(1, 9))


def refused_share(tmp_path: Path, count: int, read: Callable[[Path], object]) -> tuple[int, int]:
    """(damages, those refused by an error that names the damaged file)."""
    directory = rich(tmp_path / "m")
    content = {name: (directory / name).read_bytes() for name in FILES}
    rng = random.Random(11)
    made = refused = 0
    while made < count:
        name = rng.choice(FILES)
        damaged = damage(content[name], rng)
        if damaged == content[name]:
            continue
        made += 1
        (directory / name).write_bytes(damaged)
        try:
            read(directory)
        except DataError as error:
            refused += name in str(error)
        (directory / name).write_bytes(content[name])
    read(directory)  # and whole again, it loads
    return made, refused


@pytest.mark.parametrize("read", [verify_model, read_everything])
def test_damaged_bytes_are_refused_and_the_file_is_named(read: Callable[[Path], object], tmp_path: Path) -> None:
    assert refused_share(tmp_path, 400, read) == (400, 400)


@pytest.mark.slow
@pytest.mark.parametrize("read", [verify_model, read_everything])
def test_ten_thousand_damages_are_all_refused(read: Callable[[Path], object], tmp_path: Path) -> None:
    """By the two together, that is."""
    assert refused_share(tmp_path, 5_000, read) == (5_000, 5_000)


def test_the_damage_is_such_as_others_do_not_notice(tmp_path: Path) -> None:
    """The negative control: the stock reader takes most of the same flips for good weights."""
    directory = model(tmp_path / "m", tensors={"w": torch.randn(2000)})
    path, rng = directory / "model.safetensors", random.Random(1)
    data, taken = path.read_bytes(), 0
    for _ in range(50):
        at = rng.randrange(len(data))
        path.write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
        try:
            taken += bool(safetensors.torch.load_file(path))
        except safetensors.SafetensorError:
            continue
    assert taken > 40


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(name: str, tmp_path: Path) -> None:
    directory = rich(tmp_path / "m")
    (directory / name).unlink()
    with pytest.raises(DataError, match=name):
        verify_model(directory)


def test_files_of_two_models_do_not_mix(tmp_path: Path) -> None:
    one = model(tmp_path / "1", tensors={"w": torch.zeros(4)})
    two = model(tmp_path / "2", tensors={"w": torch.ones(4)})
    shutil.copy(one / "model.safetensors", two / "model.safetensors")
    with pytest.raises(DataError, match=r"model\.safetensors"):
        _ = read_model(two).tensors
    with pytest.raises(DataError, match=r"model\.safetensors"):
        verify_model(two)


def test_no_model_directory_is_a_missing_input(tmp_path: Path) -> None:
    with pytest.raises(MissingInput, match="no model directory"):
        read_model(tmp_path / "none")
    with pytest.raises(DataError, match=r"MANIFEST\.json is missing"):
        read_model(tmp_path)


def remanifest(directory: Path, names: dict[str, str] | None = None) -> None:
    """A manifest that is true of the files as they are now: what a liar with our code would write."""
    listed = {n: Written((directory / n).stat().st_size, sha256_file(directory / n)) for n in os.listdir(directory)
              if n not in ("README.md", "MANIFEST.json")}  # fmt: skip
    renamed = {(names or {}).get(n, n): w for n, w in listed.items()}
    (directory / "MANIFEST.json").write_bytes(encode_manifest(renamed, {}))


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", ".hidden", "a\nb", "a/b"])
def test_a_manifest_that_names_foreign_files_is_refused(name: str, tmp_path: Path) -> None:
    directory = model(tmp_path / "m")
    (directory / "extra").write_text("x")
    remanifest(directory)
    assert read_model(directory)
    remanifest(directory, {"extra": name})
    with pytest.raises(DataError, match=r"MANIFEST\.json .*entry .* is not understood"):
        read_model(directory)


@pytest.mark.parametrize(
    "text", ["[]", "7", '{"format": 1}', "{", "", "[" * 100_000, '{"sha256": 3, "files": 1, "format": 1}']
)
def test_a_manifest_of_any_other_shape_is_refused(text: str, tmp_path: Path) -> None:
    directory = model(tmp_path / "m")
    (directory / "MANIFEST.json").write_text(text)
    with pytest.raises(DataError, match=r"MANIFEST\.json"):
        read_model(directory)


def test_a_later_format_says_update(tmp_path: Path) -> None:
    directory = model(tmp_path / "m")
    content = json.loads((directory / "MANIFEST.json").read_text()) | {"format": 2}
    del content["sha256"]
    content["sha256"] = hashlib.sha256(encode_json(content, "it")).hexdigest()
    (directory / "MANIFEST.json").write_bytes(encode_json(content, "it"))
    with pytest.raises(DataError, match=r"format 2; this version reads 1: update"):
        read_model(directory)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
@pytest.mark.parametrize("text", ["[1]", "null", "{", '{"a": 1,}'])
def test_json_that_is_true_to_its_manifest_but_no_object_is_refused(name: str, text: str, tmp_path: Path) -> None:
    directory = model(tmp_path / "m")
    (directory / name).write_text(text)
    remanifest(directory)
    with pytest.raises(DataError, match=r"config\.json"):
        read_model(directory)


def header_file(path: Path, header: object, payload: bytes = b"", size: int | None = None) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if size is None else size).to_bytes(8, "little") + text + payload)


def one(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, Any]:
    return {"w": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


LIES: dict[str, tuple[object, bytes, int | None]] = {
    "header longer than the file": (one(), bytes(8), 1 << 40),
    "header of 2^63": (one(), bytes(8), 1 << 63),
    "header of nothing": (b"", b"", None),
    "header not JSON": (b"{not json", bytes(8), None),
    "header not UTF-8": (b'{"\xff": 1}', bytes(8), None),
    "header an array": ([1], b"", None),
    "header nested without end": (b'{"a":' * 50_000, b"", None),
    "entry a number": ({"w": 3}, b"", None),
    "entry without shape": ({"w": {"dtype": "F32", "data_offsets": [0, 8]}}, bytes(8), None),
    "entry with more keys": ({"w": one()["w"] | {"x": 1}}, bytes(8), None),
    "unknown dtype": (one("F31"), bytes(8), None),
    "dtype a list": (one(["F32"]), bytes(8), None),
    "negative shape": (one(shape=[-2]), bytes(8), None),
    "negative twice": (one(shape=[-1, -2]), bytes(8), None),
    "shape a float": (one(shape=[2.0]), bytes(8), None),
    "shape a truth": (one(shape=[True, 2]), bytes(8), None),
    "shape overflows": (one(shape=[4194305, 4194305, 211106198978564]), bytes(8), None),
    "shape huge": (one(shape=[1 << 62]), bytes(8), None),
    "shape of 65 axes": (one(shape=[1] * 64 + [2]), bytes(8), None),
    "offsets overlap": (one() | {"v": one()["w"]}, bytes(8), None),
    "offsets leave a hole": (one(offsets=[8, 16]), bytes(16), None),
    "offsets reversed": (one(offsets=[8, 0]), bytes(8), None),
    "offsets three": (one(offsets=[0, 4, 8]), bytes(8), None),
    "offsets beyond the end": (one(shape=[1 << 30], offsets=[0, 1 << 32]), bytes(8), None),
    "bytes left over": (one(), bytes(9), None),
    "too few bytes": (one(), bytes(7), None),
    "name twice": (b"{" + b",".join([json.dumps(one()).encode()[1:-1]] * 2) + b"}", bytes(8), None),
    "metadata not strings": (one() | {"__metadata__": {"a": 1}}, bytes(8), None),
    "metadata a list": (one() | {"__metadata__": ["a"]}, bytes(8), None),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_lying_header_is_refused_before_any_tensor_is_made(lie: str, tmp_path: Path) -> None:
    header, payload, size = LIES[lie]
    directory = model(tmp_path / "m")
    header_file(directory / "model.safetensors", header, payload, size)
    remanifest(directory)
    with pytest.raises(DataError, match=r"model\.safetensors"):
        read_model(directory)
    with pytest.raises(DataError, match=r"model\.safetensors"):
        tensorfile.load_tensors(directory / "model.safetensors")


@pytest.mark.parametrize("change", ["missing", "unknown", "shape", "dtype", "renamed"])
def test_tensors_must_be_exactly_those_of_the_network(change: str, tmp_path: Path) -> None:
    with torch.device("meta"):
        expected = torch.nn.Linear(6, 4).state_dict()
    tensors = {"weight": torch.zeros(4, 6), "bias": torch.zeros(4)}
    model(tmp_path / "m", tensors=tensors)
    read_model(tmp_path / "m").match(expected)
    if change == "missing":
        del tensors["bias"]
    elif change == "unknown":
        tensors["more"] = torch.zeros(1)
    elif change == "shape":
        tensors["weight"] = torch.zeros(6, 4)
    elif change == "dtype":
        tensors["bias"] = torch.zeros(4, dtype=torch.bfloat16)
    else:
        tensors["bias_"] = tensors.pop("bias")
    stored = read_model(model(tmp_path / "m", tensors=tensors))
    with pytest.raises(DataError, match=r"model\.safetensors does not fit"):
        stored.match(expected)


# The canary


def stored_with_canary(tmp_path: Path, scores: torch.Tensor) -> Stored:
    return read_model(model(tmp_path / "m", canary={"input": torch.ones(1, 3, 4, 4), "semantic": scores}))


def test_a_canary_accepts_rounding_and_refuses_another_network(tmp_path: Path) -> None:
    scores = torch.randn(1, 5, 2, 2)
    stored = stored_with_canary(tmp_path, scores)
    assert check_canary(stored, lambda x: {"semantic": scores * x.mean()}) == 0
    assert 0 < check_canary(stored, lambda _: {"semantic": scores + 1e-5}) < 1e-3
    wrong: list[Callable[[torch.Tensor], dict[str, torch.Tensor]]] = [
        lambda _: {"semantic": scores + 0.1},
        lambda _: {"semantic": scores.flip(1)},
        lambda _: {"semantic": scores[:, :4]},
        lambda _: {"semantic": scores * float("nan")},
        lambda _: {"geometric": scores},
    ]
    for run in wrong:
        with pytest.raises(DataError, match=r"canary\.safetensors"):
            check_canary(stored, run)


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_a_canary_of_odd_scores_still_knows_its_own_network(value: float, tmp_path: Path) -> None:
    scores = torch.full((1, 2, 2, 2), value)
    stored = stored_with_canary(tmp_path, scores)
    assert check_canary(stored, lambda _: {"semantic": scores.clone()}) == 0
    with pytest.raises(DataError):
        check_canary(stored, lambda _: {"semantic": torch.ones_like(scores)})


def test_a_model_without_canary_passes(tmp_path: Path) -> None:
    assert check_canary(read_model(model(tmp_path / "m")), lambda _: {}) == 0


# Run directories


def save(run: RunDirectory, step: int, **more: Any) -> None:
    content: dict[str, Any] = {"tensors": {"w": torch.full((3,), float(step))}, "config": {}, "preprocessor": {}}
    run.save(step, **content, card="", **more)


def test_links_follow_the_last_and_the_best(tmp_path: Path) -> None:
    with RunDirectory(tmp_path / "run") as run:
        assert (run.latest(), run.best(), run.resume()) == (None, None, None)
        for step in range(1, 7):
            save(run, step, best=step == 2, state={"n": step})
        assert run.steps() == [2, 5, 6], "the newest two and the best"
        last, best = run.latest(), run.best()
        assert last is not None
        assert best is not None
        assert (last.step, last.state, best.step) == (6, {"n": 6}, 2)
    assert os.readlink(tmp_path / "run" / "last") == "checkpoints/step-6"
    assert os.readlink(tmp_path / "run" / "best") == "checkpoints/step-2"
    shutil.move(tmp_path / "run", tmp_path / "moved")
    assert read_model(tmp_path / "moved" / "best").tensors["w"][0] == 2


def test_a_second_trainer_is_refused(tmp_path: Path) -> None:
    with RunDirectory(tmp_path / "run"), pytest.raises(TryAgain, match=f"process {os.getpid()}"):
        RunDirectory(tmp_path / "run")
    RunDirectory(tmp_path / "run").close()


def test_rows_beyond_the_resumed_step_are_cut(tmp_path: Path) -> None:
    with RunDirectory(tmp_path / "run") as run:
        for step in (1, 2):
            run.log({"step": step, "loss": float("nan"), "nested": {"x": [1.0, float("inf")]}})
            save(run, step)
        run.log({"step": 2, "val": 0.5})
        run.log({"step": 3})
        with open(tmp_path / "run" / "metrics.jsonl", "ab") as file:
            file.write(b'{"step": 4, "lo')  # as a crash leaves it
    with RunDirectory(tmp_path / "run") as run:
        run.resume()
        assert run.rows() == [{"step": s, "loss": None, "nested": {"x": [1.0, None]}} for s in (1, 2)]
        run.log({"step": 3})
        assert [row["step"] for row in run.rows()] == [1, 2, 3]
        assert run.notes == []


def test_a_run_that_never_saved_begins_with_an_empty_log(tmp_path: Path) -> None:
    with RunDirectory(tmp_path / "run") as run:
        run.log({"step": 1})
    with RunDirectory(tmp_path / "run") as run:
        assert run.resume() is None
        assert run.rows() == []


def test_a_log_that_lost_rows_is_said(tmp_path: Path) -> None:
    with RunDirectory(tmp_path / "run") as run:
        run.log({"step": 1})
        save(run, 1)
    (tmp_path / "run" / "metrics.jsonl").write_text("")
    with RunDirectory(tmp_path / "run") as run:
        assert run.resume() is not None
        assert "shorter" in run.notes[0]


ROWS = b"".join(b'{"step": %d, "loss": %d.5}\n' % (n, n) for n in range(1, 6))
LENGTH = len(ROWS) // 5


@pytest.mark.parametrize(
    ("damage", "steps", "message"),
    [
        (lambda rows: bytes(len(rows)), [], "1 damaged line"),
        (lambda rows: rows[: 3 * LENGTH] + bytes(2 * LENGTH), [1, 2, 3], "1 damaged line"),
        (lambda rows: rows[:LENGTH] + bytes(LENGTH) + rows[2 * LENGTH :], [1, 4, 5], "1 damaged line"),
        (lambda rows: rows[: LENGTH + 7] + bytes(9) + rows[LENGTH + 16 :], [1, 3, 4, 5], "1 damaged line"),
        (lambda rows: rows[: 2 * LENGTH + 5], [1, 2], "1 damaged line"),
        (lambda rows: rows[: 2 * LENGTH], [1, 2], "shorter than when"),
        (lambda rows: rows.replace(b"3.5", b"9.5"), [1, 2, 3, 4, 5], "changed since"),
        (lambda rows: b"[" * (len(rows) - 1) + b"\n", [], "1 damaged line"),
        (lambda rows: rows + bytes(40), [1, 2, 3, 4, 5], ""),
        (lambda rows: rows + b'{"step": 6}\n{"st', [1, 2, 3, 4, 5], ""),
    ],
)
def test_a_log_that_a_power_cut_damaged_is_said_and_its_whole_rows_stay(
    damage: Callable[[bytes], bytes], steps: list[int], message: str, tmp_path: Path
) -> None:
    """What lies beyond the checkpoint is cut as ever; within it every byte is vouched for."""
    log = tmp_path / "run" / "metrics.jsonl"
    with RunDirectory(tmp_path / "run") as run:
        for line in ROWS.splitlines():
            run.log(json.loads(line))
        save(run, 5)
    assert log.read_bytes() == ROWS
    log.write_bytes(damage(ROWS))
    for _ in range(2):  # killed after it was mended, before another checkpoint: rows beyond are cut all the same
        with RunDirectory(tmp_path / "run") as run:
            assert run.resume() is not None
            assert [row["step"] for row in run.rows()] == steps
            assert message in " ".join(run.notes)
            assert bool(run.notes) == bool(message)
            run.log({"step": 6})
        message = message and "damaged"
    with RunDirectory(tmp_path / "run") as run:
        run.resume()
        run.log({"step": 6})
        save(run, 6)
    with RunDirectory(tmp_path / "run") as run:
        run.resume()
        assert [row["step"] for row in run.rows()] == [*steps, 6]
        assert run.notes == []


def test_a_damaged_log_is_named(tmp_path: Path) -> None:
    with RunDirectory(tmp_path / "run") as run:
        (tmp_path / "run" / "metrics.jsonl").write_bytes(b"\xff\0\0\0\n")
        with pytest.raises(DataError, match=r"metrics\.jsonl"):
            run.rows()


def test_a_full_disk_leaves_no_part_of_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    with RunDirectory(tmp_path / "run") as run:
        run.log({"step": 1})
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", lambda fd, data: real(fd, data[:4]))
            with pytest.raises(StorageError, match=r"metrics\.jsonl"):
                run.log({"step": 2})
        run.log({"step": 3})
        assert [row["step"] for row in run.rows()] == [1, 3]


def test_a_damaged_checkpoint_is_passed_over_and_said(tmp_path: Path) -> None:
    with RunDirectory(tmp_path / "run") as run:
        for step in (1, 2, 3):
            run.log({"step": step})
            save(run, step)
    weights = tmp_path / "run" / "checkpoints" / "step-3" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    with RunDirectory(tmp_path / "run") as run:
        stored = run.resume()
        assert stored is not None
        assert stored.step == 2
        assert "step 2" in run.notes[0]
        assert "step-3" in run.notes[0]
        assert [row["step"] for row in run.rows()] == [1, 2]
        run.log({"step": 3})
        save(run, 3)  # takes the damaged one's place
        assert verify_model(tmp_path / "run" / "last").directory.name == "step-3"


def test_it_never_silently_starts_over(tmp_path: Path) -> None:
    with RunDirectory(tmp_path / "run") as run:
        for step in (1, 2):
            save(run, step)
    for weights in (tmp_path / "run" / "checkpoints").glob("*/model.safetensors"):
        weights.write_bytes(b"gone")
    with RunDirectory(tmp_path / "run") as run, pytest.raises(DataError, match="no checkpoint that is whole"):
        run.resume()


def test_pruning_counts_only_checkpoints_that_are_whole(tmp_path: Path) -> None:
    """A damaged second newest does not push the last good one out."""
    with RunDirectory(tmp_path / "run") as run:
        save(run, 1)
        save(run, 2)
    with RunDirectory(tmp_path / "run") as run:
        weights = tmp_path / "run" / "checkpoints" / "step-2" / "model.safetensors"
        weights.write_bytes(b"gone")
        save(run, 3)
        assert run.steps() == [1, 3] or run.steps() == [1, 2, 3]
        verify_model(tmp_path / "run" / "checkpoints" / "step-1")


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    with RunDirectory(tmp_path / "run") as run:
        save(run, 1, best=True, state={"try": 1})
        save(run, 1, best=True, state={"try": 2})
        stored = run.latest()
        assert stored is not None
        assert stored.state == {"try": 2}
        assert run.steps() == [1]


def test_public_names_are_these() -> None:
    assert checkpoint.__all__ == sorted(checkpoint.__all__)
    assert all(hasattr(checkpoint, name) for name in checkpoint.__all__)


@pytest.mark.parametrize("size", [1.5, "9", None, [], -3, True, float("nan")])
def test_a_length_of_the_log_that_is_none_vouches_for_nothing_and_whole_rows_stay(size: Any) -> None:
    kept, fault = whole(b'{"kind": "step", "step": 3}\n{"kind": "step", "step": 9}\n', 5, size, None)
    assert kept == b'{"kind": "step", "step": 3}\n'
    assert "changed since" in fault
