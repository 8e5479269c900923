"""Mutated exports of every labelling tool: errors of ours alone, in bounded time and memory, and never another label.

Trees of valid exports are changed: values of other types, numbers that are huge, negative, NaN or of thousands of
digits, keys and elements removed, doubled or swapped, nesting, long names; and the text itself is cut and flipped.
"""

from __future__ import annotations

import copy
import json
import random
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from fullyconv.data import open_dataset
from fullyconv.errors import FullyconvError

H, W = 24, 32
SQUARE = [4, 4, 20, 4, 20, 18, 4, 18]


def runs() -> list[int]:
    return [100, 50, H * W - 150]


def stroke() -> list[int]:
    """A brush over the whole image: one run of all its values."""
    bits = f"{H * W * 4:032b}{7:05b}" + f"{15:04b}" * 4 + "100" + f"{H * W * 4 - 1:016b}" + f"{255:08b}"
    return [int(bits[i : i + 8].ljust(8, "0"), 2) for i in range(0, len(bits), 8)]


def coco() -> Any:
    box = {"image_id": 1, "category_id": 1, "iscrowd": 0}
    return {
        "images": [{"id": i, "file_name": f"{n}.png", "height": H, "width": W} for i, n in ((1, "a"), (2, "b"))],
        "annotations": [
            {"id": 1, **box, "segmentation": [SQUARE, [1, 1, 9, 1, 5, 8]]},
            {"id": 2, **box, "category_id": 2, "segmentation": {"size": [H, W], "counts": runs()}},
            {"id": 3, **box, "image_id": 2, "iscrowd": 1, "segmentation": {"size": [H, W], "counts": "PQ3b0PS4"}},
        ],
        "categories": [{"id": 1, "name": "x"}, {"id": 2, "name": "y"}],
    }


def labelme() -> Any:
    kinds = {"polygon": [[1, 1], [20, 3], [9, 19]], "rectangle": [[2, 2], [9, 9]], "circle": [[9, 9], [12, 9]]}
    kinds |= {"line": [[1, 1], [20, 20]], "point": [[5, 5]]}
    shapes = [{"label": k, "shape_type": k, "points": p, "flags": {}} for k, p in kinds.items()]
    size = {"imageHeight": H, "imageWidth": W}
    return {"version": "5", "shapes": shapes, "imagePath": "a.png", "imageData": None, **size}


def labelstudio() -> Any:
    size = {"original_width": W, "original_height": H, "image_rotation": 0, "to_name": "image"}
    values: list[tuple[str, Any]] = [
        ("polygonlabels", {"points": [[10, 10], [60, 10], [40, 70]]}),
        ("rectanglelabels", {"x": 10, "y": 10, "width": 30, "height": 20, "rotation": 10}),
        ("ellipselabels", {"x": 50, "y": 50, "radiusX": 20, "radiusY": 10, "rotation": 0}),
        ("brushlabels", {"format": "rle", "rle": stroke()}),
    ]
    results = [{"id": k, "type": k, **size, "value": {**v, k: [k[:3]]}} for k, v in values]
    done = {"id": 1, "was_cancelled": False, "ground_truth": False, "result": results}
    return [{"id": i, "data": {"image": f"{n}.png"}, "annotations": [done]} for i, n in ((1, "a"), (2, "b"))]


def cvat() -> ElementTree.Element:
    corners = ";".join(f"{x},{y}" for x, y in np.reshape(SQUARE, (-1, 2)))
    shapes = f'<polygon label="x" points="{corners}" z_order="0"/><box label="y" xtl="1" ytl="1" xbr="9" ybr="8"/>'
    shapes += '<ellipse label="x" cx="8" cy="8" rx="5" ry="3" rotation="10"/><tag label="x"/>'
    shapes += '<mask label="y" rle="2, 3, 1" left="4" top="2" width="3" height="2" z_order="1"/>'
    images = "".join(
        f'<image id="{i}" name="{n}.png" width="{W}" height="{H}">{shapes}</image>' for i, n in enumerate("ab")
    )
    labels = "<meta><task><labels><label><name>x</name><color>#ff0000</color></label></labels></task></meta>"
    return ElementTree.fromstring(f"<annotations><version>1.1</version>{labels}{images}</annotations>")


ODD: list[Any] = [
    None, True, False, "", "x", [], {}, [[]], [None], 0, -1, 1, 2, 255, 65536, 2**31, 2**62, 2**63, -(2**63), 2**64,
    10**30, 10**5000, 0.5, -0.5, 1e9, 1e308, -1e308, float("nan"), float("inf"), float("-inf"), "nan", "9" * 5000,
    "#gggggg", "http://[bad", "../../etc/passwd", "/dev/zero", "a" * 5000, "\0", "\ud800",
    "\u202e", [1e300] * 8, [2**62] * 4,
    ["a"] * 6, {"size": [H, W], "counts": "o" * 30}, {"size": [2**40, 2**40],
    "counts": [2**62] * 4}, list(range(2000)),
]  # fmt: skip
TEXTS = [
    "", "x", "0", "-1", "1e999", "nan", "inf", "9" * 5000, "1,2", "1,2;3,4", ";", ",", "#gggggg", "../../x",
    "/dev/zero", "a" * 5000, "\u202e", f"{2**62}," * 3 + "1", "1e9,1e9;" * 50 + "2,2", "0x10", "٣", "1_000",
]  # fmt: skip


def places(tree: Any) -> list[tuple[Any, Any]]:
    """Every (container, key or index) of a tree of JSON."""
    found: list[tuple[Any, Any]] = []
    stack = [tree]
    while stack:
        at = stack.pop()
        for key in list(at) if isinstance(at, dict) else range(len(at)):
            found.append((at, key))
            if isinstance(at[key], dict | list):
                stack.append(at[key])
    return found


def mutate_json(tree: Any, draw: random.Random) -> str:
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        found = places(tree)
        if not found:
            break
        at, key = draw.choice(found)
        act = draw.randrange(6)
        if act < 3:
            at[key] = copy.deepcopy(draw.choice(ODD))
        elif act == 3:
            del at[key]
        elif act == 4:
            at[key] = copy.deepcopy(draw.choice(found)[0])
        elif isinstance(at[key], list) and at[key]:
            at[key] = at[key] * draw.choice((2, 50))
    try:
        return json.dumps(tree)
    except (ValueError, RecursionError):  # over 4,300 digits: written by hand; or it holds itself
        return HUGE


HUGE = '{"images": [], "annotations": [], "categories": [{"id": ' + "9" * 5000 + ', "name": "x"}], "shapes": []}'


def mutate_xml(tree: ElementTree.Element, draw: random.Random) -> str:
    for _ in range(draw.choice((1, 1, 2, 4))):
        element = draw.choice(list(tree.iter()))
        act = draw.randrange(5)
        if act < 2 and element.attrib:
            element.set(draw.choice(list(element.attrib)), draw.choice(TEXTS))
        elif act == 2 and element.attrib:
            del element.attrib[draw.choice(list(element.attrib))]
        elif act == 3:
            element.text = draw.choice(TEXTS)
        elif len(element):
            child = draw.choice(list(element))
            element.append(copy.deepcopy(child)) if draw.random() < 0.5 else element.remove(child)
    return ElementTree.tostring(tree, encoding="unicode")


def damage(text: str, draw: random.Random) -> bytes:
    """The text itself cut, flipped, nested."""
    data = bytearray(text.encode("utf-8", "surrogatepass"))
    act = draw.randrange(12)
    if act == 0:
        del data[draw.randrange(len(data)) :]
    elif act == 1:
        for _ in range(draw.randrange(1, 6)):
            data[draw.randrange(len(data))] = draw.randrange(256)
    elif act == 2:
        at = draw.randrange(len(data))
        data[at:at] = draw.choice((b"[" * 3000, b'{"a":' * 3000, b"<a>" * 3000, b"<!DOCTYPE a>", b"\0", b"9" * 5000))
    return bytes(data)


KINDS: dict[str, tuple[str, Callable[[], Any], Callable[[Any, random.Random], str]]] = {
    "coco": ("x.json", coco, mutate_json),
    "labelme": ("a.json", labelme, mutate_json),
    "labelstudio": ("x.json", labelstudio, mutate_json),
    "cvat": ("annotations.xml", cvat, mutate_xml),
}


def fuzz(kind: str, count: int, seed: int, root: Path) -> tuple[int, float]:
    """(how many were refused, the longest time of one on the processor)."""
    name, make, mutate = KINDS[kind]
    for image in "ab":
        Image.new("RGB", (W, H)).save(root / f"{image}.png")
    draw, refused, longest = random.Random(seed), 0, 0.0
    for i in range(count):
        data = damage(mutate(copy.deepcopy(make()), draw), draw)
        (root / name).write_bytes(data)
        start = time.process_time()
        try:
            opened = open_dataset(f"{kind}:{root}")
            for sample in opened:
                label = sample.labels["semantic"]
                assert label.shape == (H, W)
                assert ((label < len(opened.taxonomy)) | (label == opened.taxonomy.ignore)).all()
        except FullyconvError as error:
            refused += 1
            message = str(error)
            if not message.isprintable() or len(message) > 3000:
                pytest.fail(f"{kind} {seed} {i}: {ascii(message)[:3000]}")
        except Exception as error:
            kept = root.parent / f"{kind}-{seed}-{i}-{name}"
            kept.write_bytes(data)
            raise AssertionError(f"{kept}: {error!r}") from error
        longest = max(longest, time.process_time() - start)
    return refused, longest


@pytest.mark.parametrize("kind", KINDS)
def test_a_valid_export_is_read(kind: str, tmp_path: Path) -> None:
    name, make, _ = KINDS[kind]
    tree = make()
    (tmp_path / name).write_text(ElementTree.tostring(tree, "unicode") if kind == "cvat" else json.dumps(tree))
    for image in "ab":
        Image.new("RGB", (W, H)).save(tmp_path / f"{image}.png")
    data = open_dataset(f"{kind}:{tmp_path}")
    assert data[0].labels["semantic"].max() >= 1


@pytest.mark.parametrize("count", [80, pytest.param(400, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", KINDS)
def test_mutated_exports_raise_only_errors_of_ours_in_bounded_time_and_memory(
    kind: str, count: int, tmp_path: Path
) -> None:
    fuzz(kind, 10, 0, tmp_path)  # what is loaded once
    tracemalloc.start()
    refused, longest = fuzz(kind, count, 1, tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 0 < refused < count
    assert longest < 5
    assert peak < 100 << 20


@pytest.mark.soak
@pytest.mark.parametrize("kind", KINDS)
def test_a_hundred_thousand_mutated_exports_raise_only_errors_of_ours(kind: str, tmp_path: Path) -> None:
    refused, longest = fuzz(kind, 25_000, 2, tmp_path)
    print(f"{kind}: 25,000 files, {refused:,} refused, the longest took {longest:.2f} s")
    assert longest < 5
