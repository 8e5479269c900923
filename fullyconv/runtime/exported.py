"""An exported file as a network: what it says of itself, and its coarse scores by onnxruntime, without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
from numpy.typing import NDArray

from fullyconv.errors import DataError, foreign_values, printable
from fullyconv.files import read_file
from fullyconv.preprocessing import Preprocessing
from fullyconv.runtime.checking import LARGEST, checked_graph, cut
from fullyconv.runtime.onnx_session import OnnxSession
from fullyconv.runtime.sealing import SEAL, ExportFacts, check_seal, checked_about
from fullyconv.taxonomy import Taxonomy

__all__ = ["ExportedGeometry", "ExportedNetwork", "is_exported"]

# Networks have strides of 32 or 64 and see some thousand pixels; labels have 16 bits, one value of which is void.
MOST_STRIDE, MOST_HALO, MOST_CLASSES = 1 << 10, 1 << 16, 65535


def is_exported(name: object) -> bool:
    """Whether a model's name is that of a file rather than of a directory."""
    return isinstance(name, str | Path) and Path(name).suffix.lower() == ".onnx"


@final
@dataclass(frozen=True)
class ExportedGeometry:
    """The last upsampling (as `geometry.Upsampling`), the coarsest stride `align` and the context a tile needs."""

    stride: int
    offset: int | float
    border: Literal["fade", "replicate"]
    halo: float
    exact: bool
    align: int


@final
class ExportedNetwork:
    """A file that `fullyconv export` wrote, checked before an engine sees it.

    What prediction, evaluation and report ask of a network is here under the same names: `name`, `heads`,
    `taxonomies`, `preprocessing`, `inputs`, `origin`, `geometry(H, W)`.
    """

    def __init__(self, file: str | Path) -> None:
        """Raises DataError for a file that is damaged, hostile or not ours (what it lacks is named), MissingInput where
        there is none."""
        self._load(read_file(file, LARGEST), str(file))

    def _load(self, data: bytes, source: str) -> None:
        self.file, self._data = source, data
        self._graph = checked_graph(data, source)
        self.about = checked_about(self._graph.metadata, source)
        self.seal = self._graph.metadata[SEAL]
        check_seal(data, self.seal, source)
        with foreign_values(source, "export the model again"):
            self._read(self.about)

    def _read(self, about: ExportFacts) -> None:
        g = about["geometry"]
        self.name, self.inputs = str(about["name"]), tuple(str(i) for i in about["inputs"])
        self.heads = {str(h): int(k) for h, k in about["heads"].items()}
        self.taxonomies = {h: Taxonomy.from_json(about["taxonomies"][h]) for h in self.heads}
        self.preprocessing = Preprocessing.from_json(about["preprocessing"])
        self.origin = dict(about.get("training") or {})
        self.output, self.small = str(about["output"]), about["input"]["kind"] == "uint8"
        halo = math.inf if g["halo"] is None else float(g["halo"])
        self._geometry = ExportedGeometry(
            int(g["stride"]), g["offset"], g["border"], halo, bool(g["exact"]), int(g["align"])
        )
        if about["coarse"] is None or about["x"] is None:
            raise ValueError("no coarse scores")
        self._x, self._coarse = str(about["x"]), {h: str(about["coarse"][h]) for h in self.heads}
        self._names = {h: [str(n) for n in about["names"][h]] for h in self.heads}
        self._check()

    def _check(self) -> None:
        """ValueError where parts of the description do not fit each other, or are beyond what a network has."""
        g, given = self._geometry, [n for names in self._names.values() for n in names]
        if not self.heads or any(
            not 2 <= k <= MOST_CLASSES or len(self.taxonomies[h]) != k for h, k in self.heads.items()
        ):
            raise ValueError("classes that do not fit the heads")
        if not (1 <= g.stride <= MOST_STRIDE and g.stride <= g.align <= MOST_STRIDE and abs(g.offset) <= MOST_HALO):
            raise ValueError("a stride or offset that no network has")
        if g.border not in ("fade", "replicate") or not (0 <= g.halo <= MOST_HALO or math.isinf(g.halo)):
            raise ValueError("a border or halo that no network has")
        if list(self._graph.inputs) != ["image"] or sorted(given) != sorted(self._graph.outputs):
            raise ValueError("inputs and outputs other than the file's")

    @classmethod
    def of_bytes(cls, data: bytes, source: str) -> ExportedNetwork:
        """A file's bytes before they are one; `source`: what messages call them."""
        network = cls.__new__(cls)
        network._load(data, source)
        return network

    def __reduce__(self) -> Any:
        return ExportedNetwork.of_bytes, (self._data, self.file)

    def __repr__(self) -> str:
        return f"ExportedNetwork({printable(self.name)}, {printable(self.file)})"

    @property
    def operators(self) -> int:
        return len(self._graph.nodes)

    def geometry(self, height: int, width: int) -> ExportedGeometry:
        """The same for every size."""
        return self._geometry

    def answers(self, window: NDArray[np.number]) -> dict[str, list[NDArray[Any]]] | None:
        """{head: the file's own outputs for a window h w C}; None where it takes bytes and the window holds others."""
        if self.small and window.dtype != np.uint8:
            return None
        fed = np.ascontiguousarray(window) if self.small else self.preprocessing(window)
        wanted = [n for names in self._names.values() for n in names]
        found = dict(zip(wanted, self._whole({"image": fed[None]}, wanted), strict=True))
        return {h: [found[n][0] for n in names] for h, names in self._names.items()}

    def coarse(self, x: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """Preprocessed float32 N C h w -> {head: coarse scores N K h' w'}."""
        found = self._trunk({self._x: x}, list(self._coarse.values()))
        out = dict(zip(self._coarse, found, strict=True))
        for head, scores in out.items():
            if scores.ndim != 4 or scores.shape[:2] != (len(x), self.heads[head]) or scores.dtype != np.float32:
                raise DataError(f"{printable(self.file)} gives scores of shape {scores.shape}; export it again.")
        return out

    @cached_property
    def _whole(self) -> OnnxSession:
        return OnnxSession(self._data, self.file)

    @cached_property
    def _trunk(self) -> OnnxSession:
        shape = ("N", self.preprocessing.channels, "H", "W")
        return OnnxSession(cut(self._graph, self._x, shape, set(self._coarse.values())), self.file)
