"""The .caffemodel reader: every encoding gives the same arrays; anything else is one error, soon, in little memory."""

from __future__ import annotations

import contextlib
import mmap
import time
import tracemalloc
from pathlib import Path

import caffe_writer as cw
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from fullyconv.errors import DataError, MissingInput
from fullyconv.sandbox.caffemodel import MAX_FIELDS
from fullyconv.sandbox.caffemodel import parse_caffemodel as read_caffemodel  # in this process: thousands of files

ANY = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def saved(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@ANY
@given(
    blobs=st.lists(
        arrays("<f4", array_shapes(min_dims=1, max_dims=4, max_side=5), elements=st.floats(width=32)), max_size=3
    ),
    v1=st.booleans(),
    packed=st.booleans(),
    double=st.booleans(),
)
def test_every_encoding_of_the_same_blobs_reads_the_same(tmp_path, blobs, v1, packed, double) -> None:
    path = saved(
        tmp_path / "a",
        cw.net([cw.layer("l/1", "Convolution", [np.ones(1), *blobs], v1=v1, packed=packed, double=double)]),
    )
    layer = read_caffemodel(path)["l/1"]
    assert layer.type == ("V1:4" if v1 else "Convolution")
    assert len(layer.blobs) == 1 + len(blobs)
    for got, sent in zip(layer.blobs[1:], blobs, strict=True):
        assert got.dtype == ("<f8" if double else "<f4")
        assert got.shape == ((1,) * (4 - sent.ndim) + sent.shape if v1 else sent.shape)
        np.testing.assert_array_equal(got.reshape(sent.shape), sent)


def test_values_in_several_packed_and_unpacked_pieces_are_joined_in_order(tmp_path) -> None:
    pieces = cw.message(5, cw.float_bytes(1, 2)) + b"\x2d" + cw.float_bytes(3) + b"\xad\x00" + cw.float_bytes(4)
    body = cw.message(7, cw.number(1, 2) + cw.number(1, 2)) + pieces + cw.message(5, b"")
    path = saved(tmp_path / "a", cw.message(100, cw.message(1, b"x") + cw.message(7, body)))
    np.testing.assert_array_equal(read_caffemodel(path)["x"].blobs[0], [[1, 2], [3, 4]])


def test_blobs_are_views_of_the_map_and_cost_no_memory(tmp_path) -> None:
    weights = np.random.default_rng(0).normal(size=(64, 512, 7, 7)).astype(np.float32)
    for packed in (True, False):
        path = cw.write(tmp_path / f"{packed}", {"fc6": [weights]}, packed=packed)
        tracemalloc.start()
        blob = read_caffemodel(path)["fc6"].blobs[0]
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < (1 << 20) * 4 < weights.nbytes
        assert not blob.flags.owndata
        base = blob
        while isinstance(base, np.ndarray):
            base = base.base
        assert isinstance(base.obj, mmap.mmap)
        np.testing.assert_array_equal(blob, weights)


def test_layers_without_blobs_are_left_out_and_file_order_is_kept(tmp_path) -> None:
    layers = [cw.layer(n, "ReLU" if n == "b" else "Convolution", [np.ones(2)] * (n != "b")) for n in "zba"]
    assert list(read_caffemodel(saved(tmp_path / "a", cw.net(layers)))) == ["z", "a"]


def nested(depth: int, tag: bytes) -> bytes:
    """A layer that holds `depth` messages, each the only field of the one around it."""
    lengths, size = [], 0
    for _ in range(depth):
        lengths.append(cw.varint(size))
        size += 1 + len(lengths[-1])
    return cw.message(100, b"".join(tag + length for length in reversed(lengths)))


def bad(body: bytes) -> bytes:
    return cw.message(100, cw.message(1, b"conv") + cw.message(7, body))


BLOB = cw.blob(np.ones((2, 3), np.float32))
HOSTILE = {
    "empty file": (b"", "empty"),
    "text": (b"<html>404 not found</html>", "wire type|claims|past"),
    "cut in the values": (cw.net([bad(BLOB)])[:-5], "claims"),
    "cut in a length": (b"\xa2\x06\x80", "past"),
    "number of 11 bytes": (b"\xff" * 11, "10 bytes"),
    "field 0": (b"\x00\x01", "number 0"),
    "group": (b"\x0b\x0c", "wire type 3"),
    "length of 2^63": (b"\x0a" + b"\xff" * 8 + b"\x7f", "claims"),
    "shape larger than its data": (bad(BLOB.replace(b"\x02\x03", b"\x02\x04", 1)), "needs 8 values and has 6"),
    "huge shape": (bad(cw.message(7, cw.message(1, cw.varint(1 << 30) * 8)) + BLOB[6:]), "needs"),
    "negative side": (bad(cw.message(7, cw.message(1, cw.varint(-2) + cw.varint(-3))) + BLOB[6:]), "negative"),
    "100 axes": (bad(cw.message(7, cw.message(1, b"\x01" * 100)) + cw.message(5, bytes(4))), "more than 32 axes"),
    "million axes": (bad(cw.message(7, cw.message(1, b"\x01" * 10**6)) + cw.message(5, bytes(4))), "more than 32 axes"),
    "no data": (bad(cw.message(7, cw.message(1, b"\x05"))), "needs 5 values and has 0"),
    "odd packed bytes": (bad(cw.message(5, bytes(7))), "no multiple of 4"),
    "data as a number": (bad(cw.number(5, 1)), "another type"),
    "blob as a number": (cw.message(100, cw.number(7, 1)), "no message"),
    "layer as a number": (cw.number(100, 1), "not a message"),
    "name as a number": (cw.message(100, cw.number(1, 1)), "not a name"),
    "name of a megabyte": (cw.message(100, cw.message(1, b"a" * 2**20)), "at most 1,024 bytes"),
    "name that is no text": (cw.message(100, cw.message(1, b"\xff\xfe")), "UTF-8"),
    "two layers of one name": (cw.net([bad(BLOB), bad(BLOB)]), "two layers"),
    "old and new layers": (cw.layer("a", "", [np.ones(1)]) + cw.layer("b", "", [np.ones(1)], v1=True), "mixes"),
    "Caffe's first format": (cw.message(2, cw.message(1, b"")), "V0"),
    "no weights": (cw.net([cw.layer("a", "ReLU", [])]), "no layer with weights"),
    "10^6 nested unknown messages": (nested(10**6, b"\x1a"), "no layer with weights"),
    "10^6 nested names": (nested(10**6, b"\x0a"), "not a name"),
    "10^6 nested blobs": (nested(10**6, b"\x3a"), "needs 1 values and has 0"),
    "10^6 fields": (b"\x08\x01" * 10**6, f"more than {MAX_FIELDS:,} fields"),
    "10^6 layers": (cw.message(100, b"") * 10**6, "layers"),
    "10^6 blobs": (cw.message(100, cw.message(7, BLOB) * 10**6), "over 256"),
    "10^6 runs": (bad((b"\x2d" + bytes(4) + b"\x08\x01") * 10**6), "pieces"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_is_refused_soon_and_in_little_memory(tmp_path, case: str) -> None:
    data, fact = HOSTILE[case]
    path = saved(tmp_path / "hostile.caffemodel", data)
    tracemalloc.start()
    start = time.process_time()
    with pytest.raises(DataError, match=fact) as caught:
        read_caffemodel(path)
    seconds, peak = time.process_time() - start, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "hostile.caffemodel" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert seconds < 20  # tracemalloc slows this about threefold, a busy machine as much; the bound to keep is 2 s
    assert peak < 32 << 20


def test_a_missing_file_or_a_folder_is_a_missing_input(tmp_path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(MissingInput):
            read_caffemodel(path)


WHOLE = cw.net(
    [
        cw.layer("conv1_1", "Convolution", [np.ones((2, 3, 3, 3)), np.ones(2)]),
        cw.layer("up", "Deconvolution", [np.ones((2, 2, 4, 4))], packed=False),
    ]
)


@settings(ANY, max_examples=400)
@given(st.data())
def test_damaged_files_read_or_are_refused_and_nothing_else(tmp_path, data) -> None:
    damaged = bytearray(WHOLE)
    for at, value in data.draw(st.lists(st.tuples(st.integers(0, 150), st.integers(0, 255)), max_size=4)):
        damaged[at] = value
    cut = data.draw(st.integers(1, len(damaged)))
    try:
        layers = read_caffemodel(saved(tmp_path / "f", bytes(damaged[:cut])))
    except DataError:
        return
    assert all(b.nbytes <= 8 * len(WHOLE) for layer in layers.values() for b in layer.blobs)


@ANY
@given(st.binary(min_size=1, max_size=200))
def test_noise_reads_or_is_refused_and_nothing_else(tmp_path, noise: bytes) -> None:
    for start in (b"", b"\xa2\x06", b"\x12"):
        with contextlib.suppress(DataError):
            read_caffemodel(saved(tmp_path / "f", start + noise))
