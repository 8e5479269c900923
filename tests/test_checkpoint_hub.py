"""Push and pull against a client that keeps everything in a folder."""

from __future__ import annotations

import inspect
import shutil
import sys
import types
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fullyconv as fc
from fullyconv import checkpoint, hub
from fullyconv.errors import DataError, MissingExtra, MissingInput, TryAgain, UsageError


def client(store: Path) -> Any:
    """huggingface_hub's three functions that we call, over a folder."""

    def copy(source: Path, target: Path, patterns: list[str]) -> None:
        target.mkdir(parents=True, exist_ok=True)
        for file in source.iterdir():
            if any(fnmatch(file.name, pattern) for pattern in patterns):
                shutil.copy(file, target)

    class HfApi:
        def create_repo(self, repo_id: str, private: bool, exist_ok: bool) -> None:
            (store / repo_id).mkdir(parents=True, exist_ok=exist_ok)

        def upload_folder(self, repo_id: str, folder_path: str, allow_patterns: list[str], commit_message: str) -> Any:
            copy(Path(folder_path), store / repo_id, allow_patterns)
            return types.SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/1 {commit_message}")

    def snapshot_download(
        repo_id: str, revision: str | None, allow_patterns: list[str], local_files_only: bool = False
    ) -> str:
        asked.append((repo_id, revision))
        cache = store / "cache" / repo_id
        if local_files_only and not cache.exists():
            raise RuntimeError("offline")
        if not (store / repo_id).exists():
            raise RuntimeError("404 Client Error\nnot found")
        if not local_files_only:
            copy(store / repo_id, cache, allow_patterns)
        return str(cache)

    asked: list[tuple[str, str | None]] = []
    return types.SimpleNamespace(HfApi=HfApi, snapshot_download=snapshot_download, asked=asked)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(sys.modules, "huggingface_hub", client(tmp_path / "hub"))
    return tmp_path / "hub"


def model(path: Path, state: Any = None) -> Path:
    return checkpoint.write_model(
        path, tensors={"w": np.ones(3, np.float32)}, config={"name": "n"}, preprocessor={}, card="# n", state=state
    )


def test_what_is_pushed_can_be_pulled_and_is_verified(store: Path, tmp_path: Path) -> None:
    address = hub.push(model(tmp_path / "m"), "me/net")
    assert address.endswith("fullyconv model n")
    (store / "me" / "net" / "evil.py").write_text("import os")
    directory = hub.pull("me/net")
    assert checkpoint.read_model(directory).config == {"name": "n"}
    assert not (directory / "evil.py").exists()
    (store / "me" / "net" / "config.json").write_text("{}")
    with pytest.raises(DataError, match=r"me/net is no whole fullyconv model: .*config\.json"):
        hub.pull("me/net")


def test_damaged_models_and_training_state_are_not_sent(store: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="training state"):
        hub.push(model(tmp_path / "s", state={"a": 1}), "me/net")
    directory = model(tmp_path / "m")
    (directory / "config.json").write_text("{}")
    with pytest.raises(DataError, match=r"config\.json"):
        hub.push(directory, "me/net")
    assert not store.exists()


@pytest.mark.parametrize("name", ["../x", "a/b/c", "", "/abs", "a b", "https://x/y"])
def test_only_repository_names_are_taken(name: str, store: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="owner/name"):
        hub.pull(name)
    with pytest.raises(UsageError, match="owner/name"):
        hub.push(model(tmp_path / "m"), name)


def test_the_hubs_refusals_are_one_line(store: Path) -> None:
    with pytest.raises(TryAgain, match="404 Client Error") as caught:
        hub.pull("nobody/nothing")
    assert str(caught.value).isprintable()


def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtra, match=r"fullyconv\[hub\]"):
        hub.pull("me/net")


# fc.load("hf://owner/name")


@pytest.fixture
def published(store: Path, tmp_path: Path) -> Path:
    """A small network on the Hub, as me/net."""
    torch.manual_seed(0)
    network = fc.create("fcn16s-squeezenet1_0", 3)
    hub.push(network.save_pretrained(tmp_path / "local"), "me/net")
    return tmp_path / "local"


def asked() -> list[tuple[str, str | None]]:
    return sys.modules["huggingface_hub"].asked  # type: ignore[attr-defined,no-any-return]


def test_load_fetches_a_model_that_is_asked_for_by_its_hub_address(published: Path) -> None:
    expected = fc.load(published).state_dict()
    assert asked() == []
    for address in ("hf://me/net", "hf://me/net@abc123"):
        found = fc.load(address).state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert asked() == [("me/net", None), ("me/net", "abc123")]


def test_a_run_stands_for_its_best_model_and_for_its_last_while_nothing_is_measured(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for step in (1, 2):
        model(run / "checkpoints" / f"step-{step}")
    (run / "last").symlink_to(run / "checkpoints" / "step-2")
    assert checkpoint.model_of(run) == run / "last"
    (run / "best").symlink_to(run / "checkpoints" / "step-1")
    assert checkpoint.model_of(run) == run / "best"
    assert checkpoint.model_of(run / "last") == run / "last"
    assert hub.local(run) == run / "best"


def test_nothing_is_fetched_unless_the_address_says_so(published: Path) -> None:
    with pytest.raises(MissingInput, match="There is no model directory me/net") as missing:
        fc.load("me/net")
    assert "Hub" not in str(missing.value)  # a missing path is a missing path
    with pytest.raises(MissingInput):
        fc.load("https://huggingface.co/me/net")
    assert asked() == []


def test_a_fetched_model_is_verified_like_a_local_one(published: Path, store: Path) -> None:
    weights = store / "me" / "net" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(content)
    with pytest.raises(DataError, match=r"me/net is no whole fullyconv model: .*model\.safetensors"):
        fc.load("hf://me/net")


def test_a_fetched_model_must_give_the_scores_stored_with_it(published: Path, store: Path, tmp_path: Path) -> None:
    stored = checkpoint.read_model(published)
    assert stored.canary is not None
    canary = {name: tensor + (name != "input") for name, tensor in stored.canary.items()}
    checkpoint.write_model(
        tmp_path / "forged", tensors=stored.tensors, config=stored.config, preprocessor=stored.preprocessor,
        card="", canary=canary,
    )  # fmt: skip
    hub.push(tmp_path / "forged", "me/forged")
    with pytest.raises(DataError, match="scores stored with it"):
        fc.load("hf://me/forged")


def test_offline_only_what_was_fetched_before_is_used(
    published: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FULLYCONV_OFFLINE", "1")
    with pytest.raises(TryAgain, match="offline"):
        fc.load("hf://me/net")
    assert not (store / "cache").exists()
    monkeypatch.delenv("FULLYCONV_OFFLINE")
    fc.load("hf://me/net")
    monkeypatch.setenv("FULLYCONV_OFFLINE", "1")
    assert fc.load("hf://me/net").name == "fcn16s-squeezenet1_0"


@pytest.mark.parametrize("address", ["hf://", "hf://a/b/c", "hf://../x", "hf://me/net space"])
def test_an_address_that_names_no_repository_is_refused(address: str, store: Path) -> None:
    with pytest.raises(UsageError, match="owner/name"):
        fc.load(address)
    assert asked() == []


def test_load_without_the_extra_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtra, match=r"fullyconv\[hub\]"):
        fc.load("hf://me/net")


def test_the_real_client_takes_our_arguments() -> None:
    real = pytest.importorskip("huggingface_hub")
    call = inspect.signature(real.snapshot_download)
    call.bind("me/net", revision=None, allow_patterns=hub.FILES, local_files_only=True)
    api = real.HfApi
    inspect.signature(api.create_repo).bind(None, "me/net", private=True, exist_ok=True)
    inspect.signature(api.upload_folder).bind(
        None, repo_id="me/net", folder_path="x", allow_patterns=hub.FILES, commit_message="m"
    )
