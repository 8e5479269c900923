"""Reading .caffemodel files: the bounded reader of `sandbox.caffemodel`, in a confined child process."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from fullyconv import sandbox
from fullyconv.errors import MissingInput, printable
from fullyconv.sandbox.caffemodel import CaffeLayer

__all__ = ["CaffeLayer", "read_caffemodel"]


def read_caffemodel(path: str | Path) -> dict[str, CaffeLayer]:
    """The layers of a .caffemodel that carry blobs, by name, in file order; blobs are arrays of their own.

    Reads NetParameter.layer (100) and the old V1 `layers` (2), packed, unpacked and double values, `shape` and legacy
    num/channels/height/width. Errors: MissingInput when there is no such file, DataError (with the byte position) for
    anything that is not a whole and consistent caffemodel, or that takes far more time or memory than its size allows.
    """
    if not Path(path).is_file():
        raise MissingInput(f"{printable(path)} is not a file; give the path of a .caffemodel.")
    blobs, listed = sandbox.run("fullyconv.sandbox.caffemodel:answer", path, numpy=True)
    values = (blobs[str(i)] for i in range(len(blobs)))  # safetensors keeps its own order
    return {name: CaffeLayer(name, kind, tuple(islice(values, count))) for name, kind, count in listed}
