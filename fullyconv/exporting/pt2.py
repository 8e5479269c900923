"""A network as torch's own exported program (FILE.pt2): the ONNX graph's nodes told in torch's operations.

`Retold` is that graph once more, so whatever has a translation to ONNX has one here, and the program consists of ATen
operators alone: a file needs torch, not fullyconv. Batch, rows and columns are unbacked symbols, which torch never
specialises, so sizes from 1 x 1 on hold. torch.export.load unpickles where a file asks for it; ours hold no pickle, and
one that does is not opened here.
"""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from fullyconv.errors import DataError, UsageError, foreign_values, printable
from fullyconv.exporting.graph import Graph
from fullyconv.files import read_file
from fullyconv.runtime.sealing import ABOUT, ExportFacts, facts_of

__all__ = ["FreshTorch", "Retold", "exported_program", "open_fresh", "read_pt2", "written"]

LARGEST = 1 << 33  # bytes of a file that is read whole: float32 weights of two thousand million parameters
AFTER_SCORES = {"argmax", "_softmax", "softmax", "to", "_to_copy", "amax", "clone", "alias"}  # what answers are made by
EXAMPLE = (2, 101, 135)  # N, H, W: no size of 1, so that nothing is broadcast by chance
RUNNER = Path(__file__).with_name("pt2_runner.py")
ENDLESS = 1 << 40  # a slice's end beyond every size


@final
class Retold(nn.Module):
    """An ONNX graph of `network.build` in torch's operations: forward(image) -> {output's name: tensor}."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        from onnx import helper, numpy_helper

        self.steps = [
            (n.op_type, list(n.input), n.output[0], {a.name: helper.get_attribute_value(a) for a in n.attribute})
            for n in graph.nodes
        ]
        if strange := sorted({kind for kind, *_ in self.steps} - OPERATIONS.keys()):
            raise UsageError(f"This network cannot be exported: {strange[0]} has no counterpart in torch's operators.")
        self.given = [o.name for o in graph.outputs]
        self.numbers: dict[str, list[int]] = {}  # sizes, axes, scales: part of the program rather than its weights
        self.held: dict[str, str] = {}
        for k, constant in enumerate(graph.constants):
            value = numpy_helper.to_array(constant)
            if value.dtype == np.int64 or constant.name.startswith("scales"):
                self.numbers[constant.name] = [int(v) for v in value.reshape(-1)]
            else:
                self.held[constant.name] = f"weight{k}"
                self.register_buffer(f"weight{k}", torch.from_numpy(value.copy()))

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        values: dict[str, Any] = {"": None, "image": image, **self.numbers}
        values |= {name: getattr(self, buffer) for name, buffer in self.held.items()}
        for kind, inputs, output, how in self.steps:
            values[output] = OPERATIONS[kind](how, *(values[name] for name in inputs))
        return {name: values[name] for name in self.given}


How = Mapping[str, Any]  # a node's attributes


def _conv(how: How, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    top, left, bottom, right = how.get("pads", [0] * 4)
    if (top, left) != (bottom, right):
        x, top, left = F.pad(x, (left, right, top, bottom)), 0, 0
    strides, dilations = how.get("strides", 1), how.get("dilations", 1)
    return F.conv2d(x, weight, bias, strides, (top, left), dilations, how.get("group", 1))


def _max_pool(how: How, x: Tensor) -> Tensor:
    kernel, strides, (top, left, bottom, right) = how["kernel_shape"], how["strides"], how["pads"]
    if how.get("ceil_mode"):
        # What rounding up takes in is stride - 1 cells more at the ends, of which rounding down leaves what is over.
        # torch.export cannot tell the sizes of a pool that rounds up.
        more = (left, right + strides[1] - 1, top, bottom + strides[0] - 1)
        return F.max_pool2d(F.pad(x, more, value=float("-inf")), kernel, strides, 0, how["dilations"])
    return F.max_pool2d(x, kernel, strides, (top, left), how["dilations"])


def _pad(how: How, x: Tensor, pads: list[int]) -> Tensor:
    sides = (pads[3], pads[7], pads[2], pads[6])
    return F.pad(x, sides) if how["mode"] == b"constant" else F.pad(x, sides, mode="replicate")


def _resize(how: How, x: Tensor, _: None, scales: list[int]) -> Tensor:
    scale = scales[-1]
    if how["coordinate_transformation_mode"] == b"half_pixel":
        return F.interpolate(x, scale_factor=(float(scale), float(scale)), mode="bilinear", align_corners=False)
    columns = _widened(x, scale)
    return _widened(columns.transpose(-1, -2), scale).transpose(-1, -2)


def _widened(x: Tensor, scale: int) -> Tensor:
    """The last axis read at u / scale for u < scale n, the edge repeated."""
    after = torch.cat([x[..., 1:], x[..., -1:]], -1)
    t = torch.arange(scale, dtype=x.dtype, device=x.device) / scale
    return torch.lerp(x.unsqueeze(-1), after.unsqueeze(-1), t).flatten(-2)


def _slice(how: How, x: Tensor, starts: list[object], ends: list[object], axes: list[int]) -> Tensor:
    for axis, start, end in zip(axes, starts, ends, strict=True):
        stop = None if isinstance(end, int) and end > ENDLESS else end
        x = x[(slice(None),) * axis + (slice(start, stop),)]
    return x


def _add(how: How, a: Any, b: Any) -> Any:
    return [m + n for m, n in zip(a, b, strict=True)] if isinstance(a, list) else a + b


def _sum(how: How, *parts: Tensor) -> Tensor:
    found = parts[0]
    for part in parts[1:]:
        found = found + part
    return found


KINDS = {1: torch.float32, 2: torch.uint8, 4: torch.uint16}  # TensorProto's numbers
OPERATIONS: dict[str, Callable[..., Any]] = {
    "Add": _add,
    "ArgMax": lambda how, x: x.argmax(how["axis"]),
    "BatchNormalization": lambda how, x, scale, bias, mean, var: F.batch_norm(
        x, mean, var, scale, bias, eps=how["epsilon"]
    ),
    "Cast": lambda how, x: x.to(KINDS[how["to"]]),
    "Clip": lambda how, x, low, high: torch.clamp(x, low, high),
    "Concat": lambda how, *parts: torch.cat(parts, how["axis"]),
    "Conv": _conv,
    "ConvTranspose": lambda how, x, weight: F.conv_transpose2d(x, weight, stride=how["strides"]),
    "Gather": lambda how, x, order: torch.cat([x.narrow(how["axis"], n, 1) for n in order], how["axis"]),
    "GlobalAveragePool": lambda how, x: x.mean((2, 3), keepdim=True),
    "HardSigmoid": lambda how, x: F.hardsigmoid(x),
    "HardSwish": lambda how, x: F.hardswish(x),
    "Identity": lambda how, x: x,
    "LRN": lambda how, x: F.local_response_norm(x, how["size"], how["alpha"], how["beta"], how["bias"]),
    "Max": lambda how, a, b: [torch.sym_max(m, n) for m, n in zip(a, b, strict=True)],  # of sizes
    "MaxPool": _max_pool,
    "Mul": lambda how, a, b: a * b,
    "Pad": _pad,
    "ReduceMax": lambda how, x: x.amax(how["axes"]),
    "Relu": lambda how, x: F.relu(x),
    "Resize": _resize,
    "Shape": lambda how, x: list(x.shape[how["start"] : how["end"]]),
    "Sigmoid": lambda how, x: x.sigmoid(),
    "Slice": _slice,
    "Softmax": lambda how, x: x.softmax(how["axis"]),
    "Sum": _sum,
    "Transpose": lambda how, x: x.permute(how["perm"]),
}


def exported_program(graph: Graph, channels: int, small: bool) -> Any:
    """The torch.export.ExportedProgram of a graph for N, H, W from 1 on. UsageError where torch cannot."""
    try:
        from torch.fx.experimental.dynamic_spec import ParamsSpec, ShapesSpec, ShapeVar, TensorSpec
    except ModuleNotFoundError as error:
        raise UsageError(
            f"torch {torch.__version__} cannot leave sizes open from 1 x 1 on; install torch 2.15 or newer for pt2."
        ) from error
    n, h, w = (ShapeVar(name, min=1) for name in ("N", "H", "W"))
    kind = torch.uint8 if small else torch.float32
    shape = TensorSpec([n, h, w, channels] if small else [n, channels, h, w])
    batch, height, width = EXAMPLE
    example = torch.zeros((batch, height, width, channels) if small else (batch, channels, height, width), dtype=kind)
    spec = ShapesSpec(params=ParamsSpec({"image": shape}))
    try:
        with torch.no_grad():
            program = torch.export.export(Retold(graph).eval(), (example,), dynamic_shapes=spec, strict=False)
    except UsageError:
        raise
    except Exception as error:  # torch's tracer raises many kinds
        raise UsageError(f"torch.export refuses this network ({printable(error)[:300]}); export it to onnx.") from error
    program.example_inputs = None  # would be pickled
    return program


def scores_of(program: torch.export.ExportedProgram, names: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """{head: the value inside the program that its answers are made of}."""
    given: dict[str, fx.Node] = {}
    for spec, node in zip(
        program.graph_signature.output_specs, next(iter(reversed(program.graph.nodes))).args[0], strict=True
    ):
        given[spec.arg.name] = node
    order = [given[spec.arg.name] for spec in program.graph_signature.output_specs]
    outputs = dict(zip(_output_names(program), order, strict=True))
    found = {}
    for head, own in names.items():
        node = outputs[own[0]]
        while getattr(node.target, "__name__", "").split(".")[0] in AFTER_SCORES:
            node = node.all_input_nodes[0]
        found[head] = node.name
    return found


def _output_names(program: torch.export.ExportedProgram) -> list[str]:
    """The keys of the mapping that the program returns, in the order of its values."""
    return [str(key) for key in program.call_spec.out_spec.context]


def written(program: torch.export.ExportedProgram, about: ExportFacts) -> bytes:
    """The file's bytes, which say `about` of themselves; "parts" among it is the sha256 of all the rest."""
    plain = io.BytesIO()
    torch.export.save(program, plain)
    buffer = io.BytesIO()
    text = json.dumps({**about, "parts": _digest(plain.getvalue())}, allow_nan=False)
    torch.export.save(program, buffer, extra_files={ABOUT: text})
    return buffer.getvalue()


def _digest(data: bytes) -> str:
    """sha256 of an archive's members but what it says of itself and the number that torch draws anew."""
    found = hashlib.sha256()
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for name in sorted(archive.namelist()):
            if "/extra/" not in name and not name.endswith("serialization_id"):
                part = archive.read(name)
                found.update(f"{name.partition('/')[2]} {len(part)} ".encode() + part)
    return found.hexdigest()


def read_pt2(file: str | Path) -> tuple[bytes, ExportFacts]:
    """(the bytes, what they say of themselves) of a FILE.pt2; DataError where it is damaged, not ours, or pickled."""
    data = read_file(file, LARGEST)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            sizes = {i.filename.partition("/")[2]: i.file_size for i in archive.infolist()}
            if f"extra/{ABOUT}" not in sizes:
                raise DataError(
                    f"{printable(file)} was not exported by fullyconv: it lacks extra/{ABOUT}; make it with  fullyconv "
                    "export MODEL --to pt2 -o FILE.pt2."
                )
            about = facts_of(archive.read(next(n for n in archive.namelist() if n.endswith(f"extra/{ABOUT}"))))
            held = [n for n in archive.namelist() if n.endswith("_config.json")]
            pickled = any('"use_pickle": true' in archive.read(n).decode() for n in held)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError, EOFError) as error:
        raise DataError(f"{printable(file)} is damaged ({printable(error)[:160]}); export the model again.") from error
    if pickled or any(size for name, size in sizes.items() if name.endswith((".pt", ".pkl"))):
        raise DataError(f"{printable(file)} holds pickled parts, which can run code when loaded; export it again.")
    with foreign_values(file, "export the model again"):
        if _digest(data) != about.get("parts"):
            raise DataError(
                f"{printable(file)} is not as it was exported (its sha256 differs); export the model again."
            )
        return data, about


@final
class FreshTorch:
    """A file opened by torch.export.load in a process of its own, in which importing fullyconv fails."""

    def __init__(self, data: bytes, outputs: Sequence[str], source: object) -> None:
        self.inputs, self.outputs, self.source = ["image"], list(outputs), source
        self._folder = tempfile.TemporaryDirectory()
        self._number = 0
        file = Path(self._folder.name) / "m.pt2"
        file.write_bytes(data)
        self._process = subprocess.Popen(
            [sys.executable, "-I", str(RUNNER), str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._said()

    def _said(self) -> None:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        if line != "ok":
            self.close()
            cause = printable(line or "its process ended")[:300]
            raise DataError(f"{printable(self.source)} is refused by a fresh torch ({cause}); export it again.")

    def __call__(
        self, fed: Mapping[str, NDArray[np.number]], wanted: Sequence[str] | None = None
    ) -> list[NDArray[Any]]:
        assert self._process.stdin is not None
        self._number += 1
        asked, answer = (Path(self._folder.name) / f"{side}{self._number}.npz" for side in ("in", "out"))
        np.savez(asked, **dict(fed))  # type: ignore[arg-type]
        job = {"fed": str(asked), "answer": str(answer), "wanted": list(wanted or self.outputs)}
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        self._said()
        with np.load(answer) as found:
            return [found[f"value{k}"] for k in range(len(job["wanted"]))]

    def close(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._process.wait()
        self._folder.cleanup()


def open_fresh(data: bytes, about: ExportFacts, source: object) -> FreshTorch:
    return FreshTorch(data, [name for names in about["names"].values() for name in names], source)
