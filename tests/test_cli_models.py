"""`fullyconv models`, `info` and what `convolutionalise` makes of its arguments."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fullyconv import processor
from fullyconv.cli.convolutionalise import choose_class, class_names, heat_text, load_classifier
from fullyconv.cli.models import info, models
from fullyconv.errors import DataError, UnknownName, UsageError
from fullyconv.models import NETWORKS
from fullyconv.models.trunks import TRUNKS

NAMES = ["tabby cat", "tiger cat", "dog", "Cat"]


@pytest.mark.slow
def test_every_network_of_the_paper_is_listed_with_its_crops(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("tiny", "plain"):  # where tests of training have added theirs
        monkeypatch.delitem(TRUNKS, name, raising=False)
    models(as_json=True)
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows.keys() > set(NETWORKS)
    assert rows["voc-fcn8s"]["crops"] == [5, 9, 31]
    assert rows["siftflow-fcn16s"]["heads"] == {"semantic": 33, "geometric": 3}
    models(as_json=False)
    table = capsys.readouterr().out.splitlines()
    assert len(table) == len(rows) + 2  # a head line, and the grammar of names


def test_info_without_a_name_shows_the_machine(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processor, "has_native", lambda name: name == "fp32")
    monkeypatch.setattr(processor, "busy_cores", lambda: 64.0)
    info(as_json=True)
    told = capsys.readouterr()
    found = json.loads(told.out)
    assert found["precision"] == "auto: fp32 (no bfloat16 arithmetic)" or found["gpu"]
    assert found["width"] == processor.width()
    assert found["instruction_sets"] == list(processor.instruction_sets())
    assert 0 < found["cores_granted"] <= found["cores"]
    assert "Others use this machine: 64 cores' worth of work" in told.err
    monkeypatch.setattr(processor, "has_native", lambda _: True)
    monkeypatch.setattr(processor, "busy_cores", lambda: 0.0)
    info(as_json=False)
    told = capsys.readouterr()
    assert "where it is measured to be quicker" in told.out
    assert told.out.count("\n") == len(found)
    assert "Others" not in told.err


def test_info_shows_the_grids_that_the_paper_crops(capsys: pytest.CaptureFixture[str]) -> None:
    info("fcn8s-vgg16", "500x500", 21, 1, "cpu", as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert {k: found["last_upsampling"][k] for k in ("stride", "kernel", "crop")} == {
        "stride": 8,
        "kernel": 16,
        "crop": 31,
    }
    assert next(layer for layer in found["layers"] if layer["name"] == "features.16")["offset"] == -95.5
    info("fcn8s-vgg16", "500x500", 21, 1, "cpu", as_json=False)
    out = capsys.readouterr().out
    assert "skip from stride 16: scores upsampled x2, finer scores cropped at 5" in out
    assert "skip from stride 8: scores upsampled x2, finer scores cropped at 9" in out
    info("fcn32s-mobilenet_v3_large", "64x64", 21, 1, "cpu", as_json=False)
    assert "context of a tile: unbounded" in capsys.readouterr().out


@pytest.mark.parametrize("size", ["500", "0x5", "5x", "axb", "-5x5"])
def test_a_size_that_is_none_is_refused(size: str) -> None:
    with pytest.raises(UsageError, match="write rows x columns"):
        info("fcn8s-vgg16", size)


def test_a_class_is_meant_by_number_by_name_or_by_the_one_name_that_holds_the_word() -> None:
    heat = np.zeros((4, 2, 2), np.float32)
    heat[2, 1, 1] = 1
    assert choose_class("", heat, NAMES)[:2] == (2, "dog")
    assert choose_class("1", heat, NAMES)[:2] == (1, "tiger cat")
    assert choose_class("cat", heat, NAMES)[:2] == (3, "Cat")  # the exact name before those that hold it
    assert choose_class("tabby", heat, NAMES)[:2] == (0, "tabby cat")
    assert choose_class("dog", heat, NAMES)[2][0] == {"class": "dog", "index": 2, "probability": 1.0}
    with pytest.raises(UsageError, match="may be tabby cat, tiger cat, Cat; write one of them"):
        choose_class("t", heat, NAMES)
    with pytest.raises(UnknownName, match="'cap' is not a known class; did you mean 'Cat'"):
        choose_class("cap", heat, NAMES)


def test_names_of_classes_must_be_as_many_as_the_classifier_has(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("a\n\nb\n")
    assert class_names(tmp_path / "names.txt", 2) == ["a", "b"]
    assert class_names(None, 2) == ["class 0", "class 1"]
    with pytest.raises(DataError, match="names 2 classes, the classifier has 3"):
        class_names(tmp_path / "names.txt", 3)


def test_the_classifier_is_made_with_the_classes_of_its_file(tmp_path: Path) -> None:
    torchvision = pytest.importorskip("torchvision")
    tensors = torchvision.models.squeezenet1_1(num_classes=7).state_dict()
    network = load_classifier("squeezenet1_1", tensors, tmp_path / "w.pt")
    assert network.classifier[1].out_channels == 7
    assert not network.training
    with pytest.raises(DataError, match=r"w\.pt does not hold resnet18"):
        load_classifier("resnet18", tensors, tmp_path / "w.pt")
    with pytest.raises(UnknownName, match="did you mean 'squeezenet1_1'"):
        load_classifier("squeezenet11", tensors, tmp_path / "w.pt")


def test_the_map_is_printed_in_tenths_of_its_highest_probability() -> None:
    value = {"class": "dog", "best": [{"class": "dog", "probability": 0.5}]}
    lines = heat_text(value, np.array([[0.5, 0.25], [0.04, 0.0]], np.float32)).splitlines()
    assert lines == ["dog: 2 x 2 cells, at most 0.500", "95", "00", "best: dog 0.50"]
