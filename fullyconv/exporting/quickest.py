"""Which engine computes a network sooner here: torch, or onnxruntime by a file made of the network and proved.

Which of them is ahead depends on the processor and on the network's layers, so it is measured, once for a network on a
machine, and remembered with the file that was made.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import final

import numpy as np

from fullyconv import processor
from fullyconv.arguments import TEXT, Kind, takes
from fullyconv.errors import (
    DataError,
    FullyconvError,
    MissingExtra,
    MissingInput,
    StorageError,
    UnknownName,
    UsageError,
)
from fullyconv.exporting import exported_bytes
from fullyconv.exporting.proof import LIMIT, TIMED, centre_crop, drawn
from fullyconv.files import atomic_write, read_json
from fullyconv.models import FCN
from fullyconv.models.imagenet import cache_directory
from fullyconv.predict import Predictor
from fullyconv.predict.eager import digest
from fullyconv.runtime.exported import ExportedNetwork
from fullyconv.runtime.onnx_session import quiet_onnxruntime, threads

__all__ = ["ENGINES", "EngineChoice", "choose_engine"]

ENGINES = ("auto", "torch", "onnxruntime")
GAIN = 1.1  # so many times quicker onnxruntime must be: less is within what a busy machine varies by
TURNS = 5  # of each engine after one that lays things out; the median of five passes over two that were disturbed
COMPARED = (97, 129)  # rows and columns of the image whose labels both must give
MOST_KEPT = 1 << 30  # bytes of files that are kept for later; the oldest give way


@final
@dataclass(frozen=True)
class EngineChoice:
    """The engine that was taken and why. Milliseconds are medians for one image, from its pixels to labels, the
    engines in turn; 0 where nothing was measured."""

    engine: str
    reason: str
    torch_ms: float = 0.0
    onnxruntime_ms: float = 0.0


@takes(model=Kind("a network", lambda v: isinstance(v, FCN)), engine=TEXT, precision=TEXT)
def choose_engine(
    model: FCN,
    engine: str = "auto",
    precision: str = "fp32",
    size: tuple[int, int] = TIMED,
    say: Callable[[str], None] = lambda text: None,
) -> tuple[FCN | ExportedNetwork, EngineChoice]:
    """What to give a `Predictor`, by name or by what is quicker on this machine: `model` itself, or an onnxruntime
    file made of it (in float32) whose labels were proved equal but for ties.

    engine: "torch", "onnxruntime", or "auto": measured at first use, and remembered in the user's cache by network,
    processor, threads and versions. precision: what torch would compute in. size: rows and columns of the image that is
    timed. say: called with what goes wrong with the cache, which is no error.

    Raises UnknownName, MissingExtra (asked for by name and not installed), UsageError for "onnxruntime" with a network
    on a GPU, in bf16, or one that cannot be written as a file.

    >>> network, choice = choose_engine(model, "onnxruntime")
    >>> fc.Predictor(network)(image).shape
    (40, 48)
    """
    if engine not in ENGINES:
        raise UnknownName("engine", engine, ENGINES)
    if engine == "torch":
        return model, EngineChoice("torch", "asked for")
    kind = next(model.parameters()).device.type
    if kind != "cpu" or precision == "bf16":
        if engine == "onnxruntime":
            raise UsageError(
                f"onnxruntime computes in float32 on the CPU here, and {'bf16' if kind == 'cpu' else kind} was asked "
                "for; use the engine torch."
            )
        return model, EngineChoice("torch", f"onnxruntime was not tried for {'bf16' if kind == 'cpu' else kind}")
    if missing := _missing():
        if engine == "onnxruntime":
            raise missing
        return model, EngineChoice("torch", f"onnxruntime was not tried: {missing}")
    cache = _Kept(_key(model, precision, size), say)
    known = cache.choice() if engine == "auto" else None
    if known and known.engine == "torch":
        return model, known
    network = cache.network(digest(model))
    if known and network:
        return network, known
    try:
        network = network or _made(model, cache)
    except FullyconvError as error:
        if engine == "onnxruntime":
            raise
        found = EngineChoice("torch", f"onnxruntime cannot take its place: {error}")
        cache.keep(found)
        return model, found
    if engine == "onnxruntime":
        return network, EngineChoice("onnxruntime", "asked for")
    found = _measured(model, precision, network, size)
    cache.keep(found)
    if found.engine == "torch":
        cache.forget_file()
        return model, found
    return network, found


def _made(model: FCN, cache: _Kept) -> ExportedNetwork:
    """The network as a proved file, which is kept. Raises DataError where a label differs that is no tie."""
    data, _ = exported_bytes(model, "coarse", "uint8", (), model.name)
    network = ExportedNetwork.of_bytes(data, model.name)
    _refuse_other_labels(model, network)
    cache.keep_file(data)
    return network


def _refuse_other_labels(model: FCN, network: ExportedNetwork) -> None:
    """The file's proof is of coarse scores; labels are read from them by other code than torch's, so compare them."""
    image = _image(model, COMPARED)
    plain = Predictor(model)
    scores = plain.scores(image)
    by_head = scores if isinstance(scores, dict) else {next(iter(model.heads)): scores}
    for head, found in Predictor(network).labels(image).items():
        truth = by_head[head]
        got = np.take_along_axis(truth, found[None].astype(np.int64), 0)[0]
        behind = float((truth.max(0) - got).max()) / max(float(np.abs(truth).max()), 1e-12)
        if behind > LIMIT:
            raise DataError(
                f"onnxruntime labels otherwise than torch, by {behind:.2g} of the largest score, which is no tie; use "
                "the engine torch."
            )


def _measured(model: FCN, precision: str, network: ExportedNetwork, size: tuple[int, int]) -> EngineChoice:
    image = _image(model, size)
    ways = (Predictor(model, precision=precision), Predictor(network))
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(1 + TURNS):
        for way, kept in zip(ways, times, strict=True):
            begun = time.perf_counter()
            way.labels(image)
            kept.append(1000 * (time.perf_counter() - begun))
    torch_ms, runtime_ms = (statistics.median(kept[1:]) for kept in times)  # the first lays things out
    quicker = torch_ms > GAIN * runtime_ms
    figures = f"{runtime_ms:.0f} ms against {torch_ms:.0f} by torch for {TIMED[0]}x{TIMED[1]}"
    reason = f"quicker for this network here ({figures})" if quicker else f"onnxruntime is not quicker here ({figures})"
    return EngineChoice("onnxruntime" if quicker else "torch", reason, round(torch_ms, 2), round(runtime_ms, 2))


def _image(model: FCN, size: tuple[int, int]) -> np.ndarray:
    return centre_crop(next(islice(drawn(model, small=True), 1)), *size)


def _missing() -> MissingExtra | None:
    for module, load in (("onnx", lambda: __import__("onnx")), ("onnxruntime", quiet_onnxruntime)):
        try:
            load()
        except ModuleNotFoundError:
            return MissingExtra("The engine onnxruntime", "export", module)
    return None


def _key(model: FCN, precision: str, size: tuple[int, int]) -> str:
    """What a choice holds for: this network on this processor with these threads and versions."""
    import torch

    from fullyconv import __version__

    facts = [
        model.name, model.config(), model.preprocessing.to_json(), digest(model), precision, list(size),
        processor.name(), processor.width(), threads(), torch.get_num_threads(),
        __version__, str(torch.__version__), str(quiet_onnxruntime().__version__),
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:32]


@final
class _Kept:
    """A choice and its file in the user's cache; without a writable cache, nothing is kept and that is said."""

    def __init__(self, key: str, say: Callable[[str], None]) -> None:
        self._folder, self._say = cache_directory() / "engines", say
        self._choice, self._file = self._folder / f"{key}.json", self._folder / f"{key}.onnx"

    def choice(self) -> EngineChoice | None:
        try:
            found = read_json(self._choice)
            choice = EngineChoice(
                str(found["engine"]), str(found["reason"]), float(found["torch_ms"]), float(found["onnxruntime_ms"])
            )
        except MissingInput:
            return None
        except (FullyconvError, KeyError, TypeError, ValueError):
            self._say(f"{self._choice} is damaged, so engines are measured again")
            return None
        return choice if choice.engine in ENGINES[1:] else None

    def network(self, weights: str) -> ExportedNetwork | None:
        """The kept file, checked as a stranger's is; None where there is none of these weights."""
        try:
            found = ExportedNetwork(self._file)
        except MissingInput:
            return None
        except FullyconvError as error:
            self._say(f"the engine's file is made again: {error}")
            return None
        return found if found.about.get("weights_sha256") == weights else None

    def keep(self, choice: EngineChoice) -> None:
        self._write(self._choice, json.dumps(asdict(choice)).encode())

    def keep_file(self, data: bytes) -> None:
        if len(data) > MOST_KEPT:
            return
        self._make_room(MOST_KEPT - len(data))
        self._write(self._file, data)

    def forget_file(self) -> None:
        self._file.unlink(missing_ok=True)

    def _make_room(self, left: int) -> None:
        files = sorted((p.stat().st_mtime, p.stat().st_size, p) for p in self._folder.glob("*.onnx"))
        held = sum(size for _, size, _ in files)
        for _, size, path in files:
            if held <= left:
                return
            path.unlink(missing_ok=True)
            held -= size

    def _write(self, path: Path, data: bytes) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(path, data)
        except (OSError, StorageError) as error:
            self._say(f"what engine is quicker is not remembered: {error}")
