"""A proven ONNX graph as OpenVINO's own files (FILE.xml and FILE.bin), proved once more by OpenVINO.

The files are read and written by OpenVINO's core alone: its converter, which reports usage, is never loaded.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from fullyconv.errors import DataError, foreign_values, missing_extra, printable
from fullyconv.files import read_file
from fullyconv.runtime.checking import LARGEST
from fullyconv.runtime.sealing import ABOUT, ExportFacts, facts_of

__all__ = ["OpenVino", "converted", "open_compiled", "quiet_openvino", "read_openvino", "version"]

CONVERTER = "openvino.tools.ovc"
PRECISION = "f32"  # asked for: where processors compute in bfloat16, OpenVINO would by itself


@final
class OpenVino:
    """A model that OpenVINO compiled for the CPU, in fp32: what `proof.ProofEngine` asks."""

    def __init__(self, graph: object, source: object) -> None:
        try:
            self._run: Any = (
                quiet_openvino().Core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": PRECISION})
            )
        except RuntimeError as error:
            cause = printable(error)[:200]
            raise DataError(f"{printable(source)} is refused by OpenVINO ({cause}); export it again.") from error
        self.source = source
        self.inputs = [i.get_any_name() for i in self._run.inputs]
        self.outputs = [name for o in self._run.outputs for name in sorted(o.get_names())]  # one may bear several

    def __call__(
        self, fed: Mapping[str, NDArray[np.number]], wanted: Sequence[str] | None = None
    ) -> list[NDArray[Any]]:
        try:
            found = self._run(dict(fed))
            return [np.array(found[name]) for name in wanted or self.outputs]
        except (RuntimeError, KeyError) as error:
            size = " x ".join(str(n) for n in np.shape(next(iter(fed.values()))))
            raise DataError(f"{printable(self.source)} fails at {size}: {printable(error)[:200]}") from error


def quiet_openvino() -> Any:
    """The module `openvino` without its converter: `import openvino` loads that where it can, and the converter's
    import alone sends an event through `openvino_telemetry`, unasked. Elsewhere it can still be imported by name."""
    hidden = "openvino" not in sys.modules
    if hidden:
        sys.modules[CONVERTER] = None  # type: ignore[assignment]  # what makes an import of it fail
    try:
        import openvino
    except ModuleNotFoundError as error:
        raise (missing_extra(error, "OpenVINO's format") or error) from error
    finally:
        if hidden:
            del sys.modules[CONVERTER]
    return openvino


def version() -> str:
    return str(quiet_openvino().__version__)


def converted(data: bytes, about: ExportFacts, file: Path) -> None:
    """Write ONNX bytes as FILE.xml and FILE.bin, in fp32, with what the model says of itself under "fullyconv"."""
    openvino = quiet_openvino()
    model = openvino.Core().read_model(data)
    model.set_friendly_name("fullyconv")
    model.set_rt_info(json.dumps(dict(about), allow_nan=False), [ABOUT])
    openvino.save_model(model, file, compress_to_fp16=False)


def read_openvino(file: Path) -> tuple[Any, ExportFacts]:
    """(model, what it says of itself) of FILE.xml and FILE.bin. DataError where they are damaged or not ours."""
    openvino = quiet_openvino()
    xml, weights = read_file(file, LARGEST), read_file(file.with_suffix(".bin"), LARGEST)
    try:
        model = openvino.Core().read_model(xml, openvino.Tensor(np.frombuffer(weights, np.uint8)))
        text = model.get_rt_info([ABOUT]).astype(str)
    except RuntimeError as error:
        cause = printable(error)[:160]
        raise DataError(f"{printable(file)} is no OpenVINO file of fullyconv's ({cause}); export it again.") from error
    with foreign_values(file, "export the model again"):
        return model, facts_of(text)


def open_compiled(file: Path, held: Mapping[str, str]) -> tuple[OpenVino, OpenVino]:
    """(the file, the file giving the values that `held` names too)."""
    plain, probing = read_openvino(file)[0], read_openvino(file)[0]
    known = {name for output in probing.outputs for name in output.get_names()}
    if more := [name for name in held.values() if name not in known]:
        try:
            probing.add_outputs(more)
        except RuntimeError as error:
            raise DataError(f"{printable(file)} has no value named {printable(more[0])}; export it again.") from error
    return OpenVino(plain, file.name), OpenVino(probing, file.name)
