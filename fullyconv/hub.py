"""Model directories on the Hugging Face Hub: nothing is sent or fetched unless asked for. Extra: `hub`."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from fullyconv import checkpoint
from fullyconv.errors import DataError, FullyconvError, MissingExtra, MissingInput, TryAgain, UsageError, printable

__all__ = ["local", "pull", "push"]

FILES = ["model.safetensors", "config.json", "preprocessor_config.json", "canary.safetensors", "MANIFEST.json",
         "README.md"]  # fmt: skip
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_ADDRESS = re.compile(r"hf:/{1,2}([^@]*)(?:@(.*))?")  # one slash is what a Path leaves of two


def push(directory: str | os.PathLike[str], repository: str, *, private: bool = True, message: str = "") -> str:
    """Send a model directory to `repository` ("owner/name"), made if missing; returns the commit's address.

    The directory is verified first. Training state is not sent: save the model alone (`save_pretrained`), else
    UsageError. Raises TryAgain when the Hub refuses or is not reached; credentials are huggingface_hub's own.
    """
    hub = _hub()
    stored = checkpoint.verify_model(directory)
    if stored.has_state:
        raise UsageError(f"{printable(directory)} holds training state; save the model alone, then push that.")
    _check_name(repository)
    try:
        api = hub.HfApi()
        api.create_repo(repository, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository,
            folder_path=os.fspath(stored.directory),
            allow_patterns=FILES,
            commit_message=message or f"fullyconv model {stored.config.get('name', '')}".strip(),
        )
    except Exception as error:  # the client's errors have no common base
        raise _refused("Sending to", repository, error) from error
    return str(commit.commit_url)


def local(model: str | os.PathLike[str]) -> Path:
    """The directory of `model`: itself, or, for "hf://owner/name" or "hf://owner/name@revision", fetched by `pull`.

    Only this prefix asks for the Hub. A run directory stands for its best model. Raises MissingInput when there is no
    such directory, and what `pull` raises.
    """
    name = os.fspath(model)
    if address := _ADDRESS.fullmatch(name):
        return pull(address[1], revision=address[2])
    path = Path(model)
    if not path.is_dir():
        raise MissingInput(
            f"There is no model directory {printable(path)}; give one that save_pretrained or train wrote."
        )
    return checkpoint.model_of(path)


def pull(repository: str, *, revision: str | None = None) -> Path:
    """Fetch a model directory from the Hub into its cache and verify every byte; returns the directory.

    Give a commit as `revision` to be sure of the version. With FULLYCONV_OFFLINE set, only what was fetched before is
    used. Raises DataError when it is no whole fullyconv model, TryAgain when the Hub refuses or is not reached.
    """
    hub = _hub()
    _check_name(repository)
    offline = bool(os.environ.get("FULLYCONV_OFFLINE"))
    try:
        found = hub.snapshot_download(repository, revision=revision, allow_patterns=FILES, local_files_only=offline)
    except Exception as error:
        raise _refused("Fetching", repository, error) from error
    try:
        return checkpoint.verify_model(found).directory
    except FullyconvError as error:
        raise DataError(f"{printable(repository)} is no whole fullyconv model: {error}") from error


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise MissingExtra("The Hugging Face Hub", "hub", "huggingface_hub") from error
    return huggingface_hub


def _check_name(repository: str) -> None:
    if not _NAME.fullmatch(repository):
        raise UsageError(f"{printable(repository)!r} is not a repository; write owner/name.")


def _refused(action: str, repository: str, error: Exception) -> TryAgain:
    return TryAgain(f"{action} {printable(repository)} failed ({printable(str(error)[:300])}); check name and login.")
