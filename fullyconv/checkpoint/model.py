"""One model directory: written whole or not at all, read back checked to the bit."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, final

from fullyconv import tensorfile
from fullyconv.checkpoint.manifest import (
    MANIFEST,
    check_file,
    checked_json,
    encode_json,
    encode_manifest,
    read_manifest,
)
from fullyconv.checkpoint.state import pack, unpack
from fullyconv.errors import DataError, MissingInput, StorageError, UsageError, printable
from fullyconv.files import Written, new_directory, read_file, remove_stale, require_space, storage_errors, write_file

if TYPE_CHECKING:
    import torch

    from fullyconv.tensorfile import TensorLike

__all__ = ["Stored", "check_canary", "following", "read_model", "verify_model", "write_model"]

WEIGHTS, CONFIG, PREPROCESSOR = "model.safetensors", "config.json", "preprocessor_config.json"
CANARY, STATE, OPTIMISER, CARD = "canary.safetensors", "state.json", "optim.safetensors", "README.md"
_DERIVED = ("architectures", "model_type", "id2label", "label2id")
_SLACK = 1 << 20  # bytes of JSON, card and file system bookkeeping allowed for in the preflight


def write_model(
    directory: str | os.PathLike[str],
    *,
    tensors: Mapping[str, TensorLike],
    config: Mapping[str, object],
    preprocessor: Mapping[str, object],
    card: str,
    canary: Mapping[str, TensorLike] | None = None,
    state: object = None,
    extra: Mapping[str, object] | None = None,
) -> Path:
    """Write a model directory; when this returns it is durable, when it raises the old one (if any) stands.

    tensors, canary: {name: torch CPU or CUDA tensor, any plain dtype}. state: see `state.pack`; None for none.
    extra: JSON keys for state.json beside the state (the run directory's step and log position).
    Raises StorageError (disk full, before writing where it can be known), UsageError when `directory` holds
    something that is not a model directory.
    """
    target = Path(os.path.realpath(directory))
    with storage_errors("Looking at", target):
        _check_replaceable(target)
    tree, optimiser = pack(state)
    files: dict[str, Mapping[str, TensorLike]] = {WEIGHTS: tensors}
    if canary is not None:
        files[CANARY] = canary
    if state is not None:
        files[OPTIMISER] = optimiser
    require_space(target.parent, sum(tensorfile.stored_size(t) for t in files.values()) + _SLACK)
    texts = {
        CONFIG: encode_json(_with_labels(config), CONFIG),
        PREPROCESSOR: encode_json(dict(preprocessor), PREPROCESSOR),
    }
    if state is not None:
        texts[STATE] = encode_json({**(extra or {}), "state": tree}, STATE)
    with _saving(target), new_directory(target, replace=True) as temporary:
        written = {name: write_file(temporary / name, [text]) for name, text in texts.items()}
        for name, content in files.items():
            written[name] = tensorfile.save_tensors(temporary / name, content, {"format": "pt"})
        write_file(temporary / CARD, [card.encode()])
        write_file(temporary / MANIFEST, [encode_manifest(written, _versions())])
    remove_stale(target.parent)
    return target


@contextmanager
def _saving(target: Path) -> Iterator[None]:
    try:
        yield
    except StorageError as error:
        raise StorageError(f"{printable(target)} was not saved: {error}") from error


def _check_replaceable(target: Path) -> None:
    """Never destroy what is not ours: only an empty or a model directory may be replaced."""
    if not os.path.lexists(target):
        return
    if not target.is_dir():
        raise UsageError(f"{printable(target)} is a file, not a directory; choose another name for the model.")
    present = {entry.name for entry in target.iterdir()}
    if present and MANIFEST not in present:
        raise UsageError(f"{printable(target)} holds other files ({_some(present)}); choose a new directory.")
    foreign = present - {WEIGHTS, CONFIG, PREPROCESSOR, CANARY, STATE, OPTIMISER, CARD, MANIFEST}
    if foreign:
        raise UsageError(
            f"{printable(target)} also holds {_some(foreign)}, which replacing it would delete; move them away first."
        )


def _some(names: set[str]) -> str:
    first = sorted(names)[:3]
    return printable(", ".join(first) + (", ..." if len(names) > 3 else ""))


def _with_labels(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config plus the keys by which Hugging Face tools know a model; `read_model` takes them off again."""
    derived: dict[str, Any] = {"architectures": ["FCN"], "model_type": "fullyconv"}
    taxonomies = config.get("taxonomies")
    if taxonomies:
        names = next(iter(taxonomies.values()))["names"]
        derived["id2label"] = {str(i): name for i, name in enumerate(names)}
        derived["label2id"] = {name: i for i, name in enumerate(names)}
    return {**config, **derived}


def _versions() -> dict[str, str]:
    import importlib.metadata

    versions = {"python": platform.python_version()}
    for package in ("fullyconv", "torch"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


T = TypeVar("T")


@final
@dataclass(frozen=True)
class Stored:
    """A model directory whose manifest, sizes, JSON and headers have been checked; payloads are checked when read."""

    directory: Path
    config: dict[str, Any]
    preprocessor: dict[str, Any]
    header: dict[str, tensorfile.TensorInfo]
    files: dict[str, Written] = field(repr=False)

    @cached_property
    def tensors(self) -> dict[str, torch.Tensor]:
        """{name: CPU tensor}; raises DataError naming model.safetensors unless its sha256 is the recorded one."""
        return self._load(WEIGHTS)

    @cached_property
    def canary(self) -> dict[str, torch.Tensor] | None:
        """The stored input and scores, or None."""
        return self._load(CANARY) if CANARY in self.files else None

    @property
    def has_state(self) -> bool:
        """Whether training can go on from here."""
        return STATE in self.files

    @cached_property
    def state(self) -> Any:
        """What was given as `state`, equal in types and bits, or None."""
        if not self.has_state:
            return None
        return unpack(self.extra["state"], self._load(OPTIMISER))

    @cached_property
    def extra(self) -> dict[str, Any]:
        """state.json as stored ({} without one)."""
        return dict(checked_json(self.directory, STATE, self.files)) if self.has_state else {}

    @property
    def step(self) -> int | None:
        """The training step of a run directory's checkpoint, else None."""
        return self.extra.get("step")

    @property
    def card(self) -> str:
        """README.md as it is now ("" when the user removed it)."""
        path = self.directory / CARD
        return read_file(path, 1 << 24).decode(errors="replace") if os.path.lexists(path) else ""

    def match(self, expected: Mapping[str, Any]) -> None:
        """Raise DataError unless names, shapes and dtypes are exactly those of `expected` (meta tensors do)."""
        faults = [f"{name} is missing" for name in expected if name not in self.header]
        faults += [f"{printable(name)} is unknown" for name in self.header if name not in expected]
        for name, tensor in expected.items():
            info = self.header.get(name)
            if info and (info.shape != tuple(tensor.shape) or info.torch_dtype != tensor.dtype):
                faults.append(f"{name} is {info.dtype} {info.shape}, not {tensor.dtype} {tuple(tensor.shape)}")
        if faults:
            more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
            raise DataError(
                f"{printable(self.directory / WEIGHTS)} does not fit its network: {'; '.join(faults[:3])}{more}; "
                "use the config that it was saved with."
            )

    def _load(self, name: str) -> dict[str, torch.Tensor]:
        check_file(self.directory, name, self.files[name], content=False)
        return tensorfile.load_tensors(self.directory / name, sha256=self.files[name].sha256)


def read_model(directory: str | os.PathLike[str]) -> Stored:
    """Check a model directory and return it; weights are read on first access of `.tensors`. Needs no torch.

    A link (a run's best or last) is followed once: what is returned is one checkpoint, even if the link moves on.
    Raises MissingInput when there is none, DataError naming the file that is missing, changed or does not fit.
    """
    return following(directory, lambda stored: stored)


def following(directory: str | os.PathLike[str], use: Callable[[Stored], T]) -> T:
    """`use` of the model, from the start again when `directory` is a link that moved on in the middle of it.

    A trainer prunes the checkpoint that its `last` pointed to a moment ago: who reads weights through a link while
    somebody trains wants this rather than `read_model`.
    """
    while True:
        where = os.path.realpath(directory)
        try:
            with storage_errors("Reading", where):
                return use(_read_model(Path(where)))
        except (DataError, MissingInput):
            if os.path.realpath(directory) == where:
                raise


def _read_model(where: Path) -> Stored:
    files = read_manifest(where)
    for name in (WEIGHTS, CONFIG, PREPROCESSOR):
        if name not in files:
            raise DataError(f"{printable(where / MANIFEST)} does not list {name}; save the model anew.")
    for name, expected in files.items():
        check_file(where, name, expected, content=False)
    config = checked_json(where, CONFIG, files)
    preprocessor = checked_json(where, PREPROCESSOR, files)
    if not isinstance(config, dict) or not isinstance(preprocessor, dict):
        raise DataError(f"{printable(where / CONFIG)} is no JSON object; save the model anew.")
    header = tensorfile.read_header(where / WEIGHTS).tensors
    return Stored(where, {k: v for k, v in config.items() if k not in _DERIVED}, preprocessor, header, files)


def verify_model(directory: str | os.PathLike[str]) -> Stored:
    """`read_model`, and the sha256 of every listed file now. Needs no torch."""
    stored = read_model(directory)
    for name, expected in stored.files.items():
        check_file(stored.directory, name, expected, content=True)
        if name.endswith(".safetensors"):
            tensorfile.read_header(stored.directory / name)
    return stored


def check_canary(
    stored: Stored, run: Callable[[torch.Tensor], Mapping[str, torch.Tensor]], tolerance: float = 1e-3
) -> float:
    """Run the stored input; raise DataError unless every stored head's scores come out again.

    The largest difference may be `tolerance` x the largest stored magnitude (other machines round otherwise).
    Returns the largest relative difference; 0.0 without a canary.
    """
    if stored.canary is None:
        return 0.0
    found = run(stored.canary["input"])
    worst = 0.0
    for head, scores in stored.canary.items():
        if head == "input":
            continue
        if head not in found or found[head].shape != scores.shape:
            raise _wrong_canary(stored, f"head {printable(head)} is missing or has another shape")
        difference = _relative_difference(found[head], scores)
        if difference > tolerance:
            raise _wrong_canary(stored, f"head {printable(head)} differs by {difference:.2g} of its largest score")
        worst = max(worst, difference)
    return worst


def _relative_difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """max |found - expected| / max |expected|; equal infinities and NaN differ by 0, unequal ones by infinity."""
    found, expected = found.detach().cpu().double(), expected.double()
    difference = (found - expected).abs()
    difference[(found == expected) | (found.isnan() & expected.isnan())] = 0
    finite = expected[expected.isfinite()]
    scale = max(float(finite.abs().max()), 1e-6) if finite.numel() else 1.0
    return float(difference.nan_to_num(nan=float("inf")).max()) / scale if expected.numel() else 0.0


def _wrong_canary(stored: Stored, fact: str) -> DataError:
    return DataError(
        f"{printable(stored.directory / CANARY)}: the network does not give the scores stored with it ({fact}); "
        "its code or its config is not the one it was saved with."
    )
