"""Foreign files can be read, or refused; they cannot do anything."""

from __future__ import annotations

import io
import os
import pickle
import re
import struct
import tarfile
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fullyconv import sandbox
from fullyconv.errors import DataError, FullyconvError, InternalError, MissingInput
from fullyconv.sandbox import read_foreign_weights, run, seccomp
from fullyconv.sandbox.weight_files import scan_pickled

ROOT = Path(__file__).parent.parent


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "in" / "data"
    path.parent.mkdir()
    path.write_bytes(bytes(range(100)))
    return path


# The child


def test_a_reader_answers_with_tensors_and_json(data: Path) -> None:
    tensors, info = run("sandbox_readers:honest", data, {"times": 3}, numpy=True)
    assert np.array_equal(tensors["bytes"], np.tile(np.arange(100, dtype=np.uint8), 3))
    assert info == {"path": str(data), "times": 3}


@pytest.mark.skipif(not seccomp.supported(), reason="the kernel's wall is Linux's")
def test_a_reader_can_do_nothing_but_read(data: Path) -> None:
    before = data.stat()
    _, answer = run("sandbox_readers:attempts", data)
    assert len(answer) > 30
    assert not [label for label, outcome in answer.items() if outcome == "allowed"], answer
    assert os.listdir(data.parent) == ["data"]
    after = data.stat()
    assert (before.st_mode, before.st_size, before.st_mtime_ns) == (after.st_mode, after.st_size, after.st_mtime_ns)


@pytest.mark.skipif(not seccomp.supported(), reason="the kernel's wall is Linux's")
def test_what_no_reader_ever_asks_for_ends_the_child(data: Path) -> None:
    with pytest.raises(DataError, match="ask for what no reader may do"):
        run("sandbox_readers:tries_the_deadly", data)


@pytest.mark.parametrize(
    ("reader", "error", "words"),
    [
        ("refuses", DataError, "not good enough"),
        ("misses", MissingInput, "nothing there"),
        ("fails", DataError, r"KeyError: 'unexpected\\+x1b\[31m'"),
        ("returns_nonsense", InternalError, "must return"),
        ("eats_memory", DataError, "far more memory"),
        ("crashes", DataError, "crashed its reader"),
        ("leaves", DataError, "no whole answer"),
        ("floods", DataError, "refused|could not be read"),
    ],
)
def test_a_reader_that_misbehaves_is_an_error_that_says_so(
    reader: str, error: type[FullyconvError], words: str, data: Path
) -> None:
    with pytest.raises(error, match=words) as caught:
        run(f"sandbox_readers:{reader}", data)
    assert str(caught.value).isprintable()


def test_a_reader_that_never_ends_is_stopped(data: Path) -> None:
    start = time.monotonic()
    with pytest.raises(DataError, match="too long"):
        run("sandbox_readers:eats_time", data, seconds=1)
    assert time.monotonic() - start < 60


def test_a_missing_file_starts_no_child(tmp_path: Path) -> None:
    with pytest.raises(MissingInput):
        run("sandbox_readers:honest", tmp_path / "none")
    with pytest.raises(MissingInput):
        read_foreign_weights(tmp_path / "none.pt")


def test_only_the_converter_touches_torchs_unpickler() -> None:
    """No pickle, no eval, no yaml anywhere else in the product; `compiling` names the errors of numba's own index."""
    words = r"torch\.load|\bpickle\b|allow_pickle=True|yaml\.load|\beval\(|\bexec\(|trust_remote_code|torch\.hub\."
    found = {
        str(path.relative_to(ROOT)): re.findall(words, code(path))
        for path in (ROOT / "fullyconv").rglob("*.py")
        if re.search(words, code(path))
    }
    assert set(found.pop("fullyconv/compiling.py")) == {"pickle"}
    assert not re.search(r"pickle\.(load|Unpickler)", code(ROOT / "fullyconv" / "compiling.py"))
    assert found == {"fullyconv/sandbox/weight_files.py": ["torch.load"]}


def code(path: Path) -> str:
    """A file without comments and strings."""
    import tokenize

    with tokenize.open(path) as file:
        kept = [t for t in tokenize.generate_tokens(file.readline) if t.type not in (tokenize.COMMENT, tokenize.STRING)]
    return (
        "".join(t.string if t.string != "\n" else "\n" for t in kept).replace("model.eval(", "").replace(".eval(", "")
    )


# Weights: the malicious and lying corpus

MAGIC = 0x1950A86A20F9469CFC6C


class Call:
    """Pickles to a call of `function` (written "module name") with `arguments`."""

    def __init__(self, function: str, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments


def opcodes(value: Any) -> bytes:
    """A protocol-2 pickle of plain values and `Call`s, by hand: nothing is imported to make it."""
    if isinstance(value, Call):
        module, name = value.function.split(" ")
        return b"c" + f"{module}\n{name}\n".encode() + opcodes(tuple(value.arguments)) + b"R"
    if isinstance(value, tuple):
        return b"(" + b"".join(map(opcodes, value)) + b"t"
    if isinstance(value, dict):
        return b"}(" + b"".join(opcodes(k) + opcodes(v) for k, v in value.items()) + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(map(opcodes, value)) + b"e"
    if isinstance(value, bytes):
        return value  # opcodes already
    return pickle.dumps(value, 2)[2:-1]


def pickled(value: Any) -> bytes:
    return b"\x80\x02" + opcodes(value) + b"."


def storage(
    kind: str = "FloatStorage", key: str = "0", device: str = "cpu", count: int = 4, old: bool = False
) -> bytes:
    view = (None,) if old else ()  # the old format says here what the storage is a view of
    return opcodes(("storage", f"ctorch\n{kind}\n".encode(), key, device, count, *view)) + b"Q"


def tensor(shape: tuple[int, ...] = (2, 2), stride: tuple[int, ...] = (2, 1), offset: int = 0, **more: Any) -> Call:
    hooks = Call("collections OrderedDict")
    return Call("torch._utils _rebuild_tensor_v2", storage(**more), offset, shape, stride, False, hooks)


def torch_zip(path: Path, index: bytes, entries: dict[str, bytes] | None = None, method: int = zipfile.ZIP_STORED
              ) -> None:  # fmt: skip
    content = {"a/data.pkl": index, "a/byteorder": b"little", "a/data/0": struct.pack("<4f", 1, 2, 3, 4),
               "a/version": b"3\n"} | (entries or {})  # fmt: skip
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in content.items():
            if data is not None:
                archive.writestr(name, data)


def torch_old(path: Path, index: bytes, keys: bytes | None = None, tail: bytes = b"") -> None:
    sizes = {"short": 2, "int": 4, "long": 4}
    parts = [MAGIC, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": sizes}]
    path.write_bytes(b"".join(pickle.dumps(p, 2) for p in parts) + index + (keys or pickle.dumps(["0"], 2)) + tail)


def marker(path: Path) -> str:
    return f"touch {path.parent / 'MARKER'}"


CALLS = [
    ("posix system", "CMD"), ("os system", "CMD"), ("nt system", "CMD"), ("os popen", "CMD"), ("pty spawn", "sh"),
    ("subprocess Popen", "CMD"), ("subprocess check_output", "CMD"),
    ("builtins eval", "1+1"), ("builtins exec", "pass"),
    ("builtins __import__", "os"), ("builtins getattr", "x"), ("builtins open", "/etc/passwd"),
    ("importlib import_module", "os"), ("shutil rmtree", "/nowhere"), ("socket create_connection", "x"),
    ("webbrowser open", "http://x"), ("urllib.request urlopen", "http://x"), ("pathlib Path", "/x"),
    ("code interact", ""),
    ("runpy run_path", "/x"), ("pickle loads", "x"), ("marshal loads", "x"), ("types FunctionType", "x"),
    ("operator attrgetter", "x"), ("functools partial", "x"), ("ctypes CDLL", "libc.so.6"), ("numpy load", "/x"),
    ("numpy.core.multiarray _reconstruct", "x"), ("torch load", "/x"), ("torch.hub load", "a/b"),
    ("torch.jit load", "/x"), ("torch.storage _load_from_bytes", "x"), ("torch.utils.collect_env run", "CMD"),
    ("torch.serialization load", "x"), ("torch._dynamo.guards eval", "1"),
    ("torch.nn.modules.container Sequential", "x"),
    ("torch.utils.cpp_extension load", "x"), ("torch.ops load_library", "/x.so"), ("__main__ anything", "x"),
    ("argparse Namespace", ""),
]  # fmt: skip


def call(function: str, argument: str, old: bool) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        index = pickled({"w": Call(function, marker(path) if argument == "CMD" else argument)})
        torch_old(path, index) if old else torch_zip(path, index)

    return write


def raw(index: bytes) -> Callable[[Path], None]:
    return lambda path: torch_zip(path, index)


def with_entries(**entries: Any) -> Callable[[Path], None]:
    names = {name.replace("__", "/"): data for name, data in entries.items()}
    return lambda path: torch_zip(path, pickled({"w": tensor()}), names)


def bomb(path: Path) -> None:
    torch_zip(path, pickled({"w": tensor()}), {"a/data/1": bytes(40 << 20)}, zipfile.ZIP_DEFLATED)


def patched(magic: bytes, offset: int, value: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        torch_zip(path, pickled({"w": tensor()}))
        data = bytearray(path.read_bytes())
        at = data.index(magic) + offset
        data[at : at + len(value)] = value
        path.write_bytes(data)

    return write


def twice(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for index in (pickled({"w": tensor()}), pickled(Call("posix system", marker(path)))):
            archive.writestr("a/data.pkl", index)


def legacy_tar(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            data = pickled(Call("posix system", marker(path)))
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def object_array(path: Path) -> None:
    np.save(path.with_suffix(".npy"), np.array([{1: 2}], object), allow_pickle=True)
    path.with_suffix(".npy").rename(path)


def cut(path: Path) -> None:
    torch_zip(path, pickled({"w": tensor()}))
    path.write_bytes(path.read_bytes()[:-40])


def good_then(extra: bytes) -> bytes:
    return b"\x80\x02" + extra + b"."


def compress(module: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        import importlib

        path.write_bytes(importlib.import_module(module).compress(pickled({"w": 1}) * 100))

    return write


EARLY: dict[str, Callable[[Path], None]] = {
    **{f"zip calls {f}": call(f, a, old=False) for f, a in CALLS},
    **{f"old calls {f}": call(f, a, old=True) for f, a in CALLS[:6]},
    "stack global": raw(b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x04true\x85R."),
    "inst": raw(b"(S'true'\niposix\nsystem\n."),
    "obj": raw(b"(ctorch\nSize\nS'true'\no."),
    "extension registry": raw(b"\x80\x02\x82\x01."),
    "newobj ex": raw(b"\x80\x04ctorch\nSize\n)}\x92."),
    "call hidden behind memo": raw(b"\x80\x02cposix\nsystem\nq\x000h\x00X\x04\0\0\0true\x85R."),
    "call in a persistent id": raw(b"\x80\x02cposix\nsystem\nX\x04\0\0\0true\x85RQ."),
    "call in BUILD": raw(b"\x80\x02ccollections\nOrderedDict\n)Rcposix\nsystem\nX\x04\0\0\0true\x85Rb."),
    "name with control characters": raw(pickled({"w": Call("po\x1bsix system", "x")})),
    "index cut": raw(pickled({"w": tensor()})[:-9]),
    "index empty": raw(b""),
    "index of an unknown opcode": raw(b"\x80\x02\xff."),
    "string longer than the file": raw(b"\x80\x04\x8d" + struct.pack("<Q", 1 << 60) + b"x."),
    "number longer than the file": raw(b"\x80\x02\x8b" + struct.pack("<i", 1 << 30) + b"x."),
    "number of negative length": raw(b"\x80\x02\x8b" + struct.pack("<i", -5) + b"."),
    "compressed bomb": bomb,
    "encrypted entry": patched(b"PK\x01\x02", 8, b"\x01"),
    "entry size lies": patched(b"PK\x01\x02", 24, struct.pack("<I", 1 << 30)),
    "entry of an unknown method": patched(b"PK\x01\x02", 10, b"\x63"),
    "directory offset lies": patched(b"PK\x05\x06", 16, struct.pack("<I", 1 << 30)),
    "index twice": twice,
    "climbs out": with_entries(**{"a__..__..__x": b"1"}),
    "absolute": lambda path: torch_zip(path, pickled({"w": tensor()}), {"/etc/x": b"1"}),
    "backslashes": lambda path: torch_zip(path, pickled({"w": tensor()}), {"a/..\\..\\x": b"1"}),
    "TorchScript code": with_entries(**{"a__code__x.py": b"def f(): pass"}),
    "TorchScript constants": with_entries(**{"a__constants.pkl": pickled(())}),
    "exported program": with_entries(**{"a__models__model.json": b"{}"}),
    "model archive": with_entries(**{"MAR-INF__MANIFEST.json": b"{}"}),
    "second index elsewhere": with_entries(**{"a__b__data.pkl": pickled(())}),
    "no index": lambda path: torch_zip(path, b"", {"a/data.pkl": None}),  # type: ignore[dict-item]
    "zip cut": cut,
    "zip of nothing": lambda path: zipfile.ZipFile(path, "w").close(),
    "old format cut": lambda path: torch_old(path, b"\x80\x02"),
    "old format without index": lambda path: path.write_bytes(pickle.dumps(MAGIC, 2)) and None,
    "old format, call in the keys": lambda path: torch_old(
        path, pickled({}), pickled(Call("posix system", marker(path)))),
    "legacy tar": legacy_tar,
    "bare pickle": lambda path: path.write_bytes(pickled(Call("posix system", marker(path)))) and None,
    "object array": object_array,
    "gzip": compress("gzip"), "bzip2": compress("bz2"), "xz": compress("lzma"),
    "HDF5": lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(99)) and None,
    "MATLAB": lambda path: path.write_bytes(b"MATLAB 5.0 MAT-file" + bytes(200)) and None,
    "web page": lambda path: path.write_bytes(b"<!DOCTYPE html><html>Sign in</html>") and None,
    "Git LFS pointer": lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n") and None,
    "empty": lambda path: path.touch(),
    "one byte": lambda path: path.write_bytes(b"P") and None,
    "random": lambda path: path.write_bytes(np.random.default_rng(0).bytes(5000)) and None,
    "safetensors with a lying header": lambda path: path.write_bytes(
        struct.pack("<Q", 1 << 40) + b"{" + bytes(9)) and None,
    "safetensors beyond its end": lambda path: path.write_bytes(
        struct.pack("<Q", 60) + b'{"w":{"dtype":"U8","shape":[36],"data_offsets":[0,36]}}'.ljust(60) + bytes(8)) and 0,
}  # fmt: skip

LATE: dict[str, Callable[[Path], None]] = {
    "storage of 2^50 elements": raw(pickled({"w": tensor(count=1 << 50)})),
    "storage of negative size": raw(pickled({"w": tensor(count=-4)})),
    "storage that is missing": raw(pickled({"w": tensor(key="7")})),
    "storage key climbs out": raw(pickled({"w": tensor(key="../../etc/passwd")})),
    "shape beyond the storage": raw(pickled({"w": tensor((9, 9), (9, 1))})),
    "offset beyond the storage": raw(pickled({"w": tensor(offset=1 << 40)})),
    "negative shape": raw(pickled({"w": tensor((-2, 2))})),
    "stride 0 makes gigabytes of bytes": raw(pickled({"w": tensor((1 << 40,), (0,))})),
    "a list, not names": raw(pickled([tensor()])),
    "numbers as names": raw(pickled({0: tensor()})),
    "no tensor at all": raw(pickled({"epoch": 3})),
    "a number": raw(pickled(3)),
    "nested without end": raw(good_then(b"]" * 200_000 + b"a" * 199_999)),
    "rebuild called with nonsense": raw(pickled({"w": Call("torch._utils _rebuild_tensor_v2", "x", 1, 2, 3, 4, 5)})),
    "rebuild called with nothing": raw(pickled({"w": Call("torch._utils _rebuild_tensor_v2")})),
    "stack underflow": raw(b"\x80\x02R."),
    "memo of nothing": raw(b"\x80\x02h\x63."),
    "old format, storage of 2^50 elements": lambda path: torch_old(
        path, pickled({"w": tensor(count=1 << 50, old=True)})),
    "old format, storage cut": lambda path: torch_old(
        path, pickled({"w": tensor(old=True)}), tail=bytes([4, 0, 0, 0, 0, 0])
    ),
}  # fmt: skip


def refused_without_effect(name: str, write: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    write(path)
    before = (os.listdir(tmp_path), path.read_bytes())
    start = time.monotonic()
    with pytest.raises(DataError) as caught:
        read_foreign_weights(path)
    assert time.monotonic() - start < 120
    sentence = str(caught.value)
    assert str(path) in sentence, sentence
    assert sentence.isprintable()
    assert (os.listdir(tmp_path), path.read_bytes()) == before, "something was written"


def test_the_corpus_is_large_and_its_calls_are_live(tmp_path: Path) -> None:
    """The negative control: an ordinary unpickler runs what these files carry."""
    assert len(EARLY) + len(LATE) >= 100
    path = tmp_path / "weights.pt"
    EARLY["zip calls posix system"](path)
    with zipfile.ZipFile(path) as archive:
        pickle.loads(archive.read("a/data.pkl"))
    assert (tmp_path / "MARKER").exists()


@pytest.mark.parametrize("name", EARLY)
def test_a_malicious_file_is_refused_by_the_scan_alone(name: str, tmp_path: Path) -> None:
    """In this process, to be quick: the scan executes nothing, which the missing marker shows."""
    from fullyconv import tensorfile
    from fullyconv.sandbox.weight_files import is_pickled

    path = tmp_path / "weights.pt"
    EARLY[name](path)
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(DataError) as caught:
        scan_pickled(str(path)) if is_pickled(path) else tensorfile.read_header(path)
    assert str(path) in str(caught.value)
    assert str(caught.value).isprintable()
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize("name", list(EARLY)[::12])
def test_a_malicious_file_is_refused_without_any_effect(name: str, tmp_path: Path) -> None:
    refused_without_effect(name, EARLY[name], tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("corpus", ["scanned", "loaded"])
def test_the_whole_malicious_corpus_is_refused_without_any_effect(corpus: str, tmp_path: Path) -> None:
    files = EARLY if corpus == "scanned" else LATE
    for i, (name, write) in enumerate(files.items()):
        (tmp_path / str(i)).mkdir()
        try:
            refused_without_effect(name, write, tmp_path / str(i))
        except BaseException as error:
            raise AssertionError(name) from error
    print(f"{len(files)} files refused")


def test_random_damage_to_a_weights_file_is_read_or_refused(tmp_path: Path) -> None:
    """Mutations never reach an exception that is not ours in the scan."""
    rng = np.random.default_rng(4)
    path = tmp_path / "w.pt"
    torch_zip(path, pickled({"w": tensor()}))
    whole = path.read_bytes()
    refused = 0
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(rng.integers(1, 4)):
            data[rng.integers(len(data))] = rng.integers(256)
        path.write_bytes(data[: rng.integers(4, len(data) + 1)] if rng.random() < 0.3 else data)
        try:
            scan_pickled(str(path))
        except DataError:
            refused += 1
    assert refused > 100


# Honest weights


@pytest.fixture(scope="module")
def weights() -> dict[str, Any]:
    import torch

    return {
        "conv.weight": torch.randn(8, 3, 3, 3), "conv.bias": torch.randn(8).bfloat16(), "count": torch.tensor(7),
        "view": torch.randn(6, 4)[:, 1:3], "half": torch.randn(4).half(), "flags": torch.tensor([True, False]),
    }  # fmt: skip


@pytest.mark.parametrize("form", ["zip wrapped", "safetensors"])
def test_honest_weights_come_back_equal(form: str, weights: dict[str, Any], tmp_path: Path) -> None:
    read_back(form, weights, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["zip", "old", "old wrapped", "parameters", "module"])
def test_every_honest_form_comes_back_equal(form: str, weights: dict[str, Any], tmp_path: Path) -> None:
    read_back(form, weights, tmp_path)


def read_back(form: str, weights: dict[str, Any], tmp_path: Path) -> None:
    import torch

    path = tmp_path / "w.pth"
    content: Any = weights
    if "wrapped" in form:
        content = {"state_dict": weights, "epoch": 3, "lr": 0.1, "classes": ["sky"], "optimizer": {"state": {0: {}}}}
    if form == "parameters":
        content = {name: torch.nn.Parameter(t) if t.is_floating_point() else t for name, t in weights.items()}
    if form == "module":
        torch.save(torch.nn.Conv2d(1, 1, 1), path)
        with pytest.raises(DataError, match="state_dict"):
            read_foreign_weights(path)
        return
    if form == "safetensors":
        from safetensors.torch import save_file

        save_file({name: t.contiguous() for name, t in weights.items()}, path)
    else:
        torch.save(content, path, _use_new_zipfile_serialization=not form.startswith("old"))
    found = read_foreign_weights(path)
    assert set(found) == set(weights)
    for name, expected in weights.items():
        assert found[name].dtype == expected.dtype
        assert torch.equal(found[name], expected)


def test_the_public_names_are_these() -> None:
    assert sandbox.__all__ == ["Session", "extract", "read_foreign_weights", "run", "walls"]
