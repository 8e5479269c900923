"""torch's exported program: any size from 1 x 1, no fullyconv and no pickle inside, and nothing that computes else."""

from __future__ import annotations

import importlib
import io
import json
import runpy
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import fullyconv as fc
from fullyconv.errors import DataError, UsageError

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
pytest.importorskip("torch.fx.experimental.dynamic_spec", reason="this torch cannot leave every size open")

from test_exporting import TIMM, TRUNKS, trained  # noqa: E402

from fullyconv import exporting  # noqa: E402
from fullyconv.exporting import pt2  # noqa: E402
from fullyconv.exporting.network_graph import build  # noqa: E402


@pytest.fixture(scope="module")
def model() -> Any:
    return trained(heads={"semantic": 5, "surface": 3})


@pytest.fixture(scope="module")
def file(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pt2") / "m.pt2"
    proof = fc.export(model, out, "pt2", output="confidence")
    assert proof.difference < 1e-5
    assert len(proof.sizes) >= 8
    assert set(proof.engines) == {"torch.export.load", "torch"}
    return out


@pytest.mark.parametrize("name", ["fcn16s-squeezenet1_0", "fcn8s-learned-mobilenet_v2"])
@pytest.mark.parametrize("size", [(1, 1, 1), (3, 33, 18)])
def test_the_graph_in_torchs_operations_gives_what_onnxruntime_gives(name: str, size: Any) -> None:
    graph, _ = build(trained(name, classes=4), "scores", "uint8")
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    run = ort.InferenceSession(graph.model().SerializeToString(), providers=["CPUExecutionProvider"])
    (truth,) = run.run(None, {"image": image})
    with torch.inference_mode():
        found = pt2.Retold(graph)(torch.from_numpy(image))["scores"].numpy()
    np.testing.assert_allclose(found, truth, atol=1e-5 * np.abs(truth).max())


@pytest.mark.parametrize("size", range(1, 24))
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 2, 0), (3, 2, 1), (2, 2, 0), (3, 3, 0)])
def test_rounding_up_is_padding_and_rounding_down(size: int, kernel: int, stride: int, padding: int) -> None:
    x = torch.randn(1, 2, size, size + 2, generator=torch.Generator().manual_seed(size))
    if size + 2 * padding < kernel - stride + 1:
        pytest.skip("no cell is left")
    how = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [padding] * 4, "dilations": [1, 1]}
    truth = F.max_pool2d(x, kernel, stride, padding, ceil_mode=True)
    assert torch.equal(pt2.OPERATIONS["MaxPool"]({**how, "ceil_mode": 1}, x), truth)


BY_TORCH_ALONE = """
import json, sys
sys.modules["fullyconv"] = None
import torch
said = {"fullyconv": ""}
program = torch.export.load(sys.argv[1], extra_files=said).module()
labels = program(torch.zeros(2, 45, 7, 3, dtype=torch.uint8))["labels_surface"]
print(json.loads(said["fullyconv"])["name"], tuple(labels.shape), labels.dtype)
"""


@pytest.mark.slow
def test_a_script_with_torch_alone_labels_and_reads_what_the_file_says(file: Path) -> None:
    done = subprocess.run([sys.executable, "-I", "-c", BY_TORCH_ALONE, str(file)], capture_output=True, text=True)
    assert done.stdout == "fcn16s-squeezenet1_0 (2, 45, 7) torch.uint8\n", done.stderr


@pytest.mark.slow
def test_it_proves_itself_again_and_holds_no_pickle(file: Path, model: Any) -> None:
    assert exporting.verify_export(file, model).difference < 1e-5
    with zipfile.ZipFile(file) as archive:
        assert not any(i.file_size for i in archive.infolist() if i.filename.endswith((".pt", ".pkl")))
    assert pt2.read_pt2(file)[1]["proof"]["pixels"] > 0


def changed(file: Path, change: Any, out: Path) -> Path:
    """A copy with members altered by change(name, bytes)."""
    with zipfile.ZipFile(file) as archive, zipfile.ZipFile(out, "w") as other:
        for info in archive.infolist():
            other.writestr(info.filename, change(info.filename, archive.read(info.filename)))
    return out


def resealed(path: Path) -> Path:
    """The same with the sha256 made anew, so that the proof alone can tell."""
    digest = pt2._digest(path.read_bytes())

    def anew(name: str, data: bytes) -> bytes:
        return json.dumps(json.loads(data) | {"parts": digest}).encode() if name.endswith("extra/fullyconv") else data

    return changed(path, anew, path.with_name("resealed.pt2"))


@pytest.mark.slow
def test_a_changed_weight_is_noticed_by_the_sum_and_by_the_proof(file: Path, model: Any, tmp_path: Path) -> None:
    def flip(name: str, data: bytes) -> bytes:
        if not name.endswith("weights/weight_2"):
            return data
        array = np.frombuffer(data, np.uint32).copy()
        array[7] ^= 1 << 29  # an exponent's bit
        return array.tobytes()

    path = changed(file, flip, tmp_path / "c.pt2")
    with pytest.raises(DataError, match="not as it was exported"):
        exporting.verify_export(path, model)
    with pytest.raises(DataError, match=r"not compute|labels otherwise"):
        exporting.verify_export(resealed(path), model)


@pytest.mark.slow
def test_a_moved_crop_is_refused(file: Path, model: Any, tmp_path: Path) -> None:
    def move(name: str, data: bytes) -> bytes:
        if not name.endswith("models/model.json"):
            return data
        program = json.loads(data)
        nodes = program["graph_module"]["graph"]["nodes"]
        starts = [
            i["arg"] for n in nodes if n["target"] == "torch.ops.aten.slice.Tensor" for i in n["inputs"]
            if i["name"] == "start" and i["arg"].get("as_int", 0) > 0
        ]  # fmt: skip
        starts[-1]["as_int"] -= 1
        return json.dumps(program).encode()

    path = resealed(changed(file, move, tmp_path / "c.pt2"))
    with pytest.raises(DataError, match=r"not compute|labels otherwise|refused|fails"):
        exporting.verify_export(path, model)


@pytest.mark.slow
def test_what_is_pickled_damaged_or_foreign_is_not_opened(
    file: Path, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pt2, "FreshTorch", None)
    pickled = changed(file, lambda n, d: b"code" if n.endswith("sample_inputs/model.pt") else d, tmp_path / "p.pt2")
    with pytest.raises(DataError, match="pickled parts, which can run code"):
        exporting.verify_export(resealed(pickled), model)
    weights = changed(
        file, lambda n, d: d.replace(b'"use_pickle": false', b'"use_pickle": true', 1), tmp_path / "w.pt2"
    )
    with pytest.raises(DataError, match="pickled parts"):
        exporting.verify_export(resealed(weights), model)
    (tmp_path / "cut.pt2").write_bytes(file.read_bytes()[:5000])
    with pytest.raises(DataError, match="damaged"):
        exporting.verify_export(tmp_path / "cut.pt2", model)
    foreign = io.BytesIO()
    torch.export.save(torch.export.export(torch.nn.ReLU(), (torch.zeros(2),)), foreign)
    (tmp_path / "f.pt2").write_bytes(foreign.getvalue())
    with pytest.raises(DataError, match="not exported by fullyconv"):
        exporting.verify_export(tmp_path / "f.pt2", model)
    with pytest.raises(DataError, match="other weights"):
        exporting.verify_export(file, trained(heads={"semantic": 5, "surface": 4}))


def archive(members: dict[str, bytes]) -> bytes:
    with zipfile.ZipFile(made := io.BytesIO(), "w") as out:
        for name, data in members.items():
            out.writestr(name, data)
    return made.getvalue()


def test_every_part_of_a_file_counts_in_its_sum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pt2, "facts_of", json.loads)
    parts = {"m/models/model.json": b"{}", "m/weights/weight_0": b"12", "m/weights/weight_1": b"3"}
    others = [
        parts | {"m/weights/weight_0": b"13"},  # changed
        parts | {"m/weights/weight_0": b"1", "m/weights/weight_1": b"23"},  # the same bytes, cut elsewhere
        parts | {"m/weights/weight_2": b""},  # one more
        {k: v for k, v in parts.items() if k != "m/weights/weight_1"},
        {k.replace("weight_1", "weight_3"): v for k, v in parts.items()},
    ]
    about = {"m/extra/fullyconv": json.dumps({"parts": pt2._digest(archive(parts))}).encode()}
    (file := tmp_path / "m.pt2").write_bytes(archive(parts | about))
    assert pt2.read_pt2(file)[1]["parts"]
    for other in others:
        file.write_bytes(archive(other | about))
        with pytest.raises(DataError, match="not as it was exported"):
            pt2.read_pt2(file)


def test_the_process_that_proves_a_file_cannot_import_fullyconv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fullyconv", sys.modules["fullyconv"])
    runpy.run_path(str(pt2.RUNNER), run_name="read")
    with pytest.raises(ImportError):
        importlib.import_module("fullyconv")


def test_8_bits_are_refused(model: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="fp32"):
        fc.export(model, tmp_path / "m.pt2", "pt2", int8="data")


@pytest.mark.soak
@pytest.mark.parametrize("name", [*TRUNKS, TIMM[0], "fcn16s-mobilenet_v2-rgb-hha", "fcn32s-mobilenet_v2-rgbd"])
def test_every_trunk_of_the_table_proves_itself(tmp_path: Path, name: str) -> None:
    how = {"input": "float"} if name.endswith("rgbd") else {}
    assert fc.export(trained(name), tmp_path / "m.pt2", "pt2", **how).difference < 1e-4
