"""Push and pull against a client that keeps everything in a folder."""

from __future__ import annotations

import shutil
import sys
import types
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fullyconv import checkpoint, hub
from fullyconv.errors import DataError, MissingExtra, TryAgain, UsageError


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

    def snapshot_download(repo_id: str, revision: str | None, allow_patterns: list[str]) -> str:
        if not (store / repo_id).exists():
            raise RuntimeError("404 Client Error\nnot found")
        copy(store / repo_id, store / "cache", allow_patterns)
        return str(store / "cache")

    return types.SimpleNamespace(HfApi=HfApi, snapshot_download=snapshot_download)


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
