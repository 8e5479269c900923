"""A labelling folder whose journal is damaged, another's or forged is refused before a label map is written anew."""

from __future__ import annotations

import base64
import json
import os
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_labelling import CLASSES, edit, photos, project, stroke

from fullyconv.errors import DataError
from fullyconv.files.reading import read_file
from fullyconv.labelling import canvas as canvases
from fullyconv.labelling import page_server
from fullyconv.labelling.canvas import Canvas, Codes, cover_of
from fullyconv.labelling.edits import unpacked_runs
from fullyconv.labelling.journal import Journal, _digits

NAMED = {"image": "p0", "id": "0" * 16, "time": 1.0}
BRUSH = {**NAMED, "op": "brush", "points": [[1, 2]], "diameter": 3, "paint": 1}
FORGED: dict[str, Mapping[str, Any]] = {
    "no operation": NAMED,
    "another operation": {**NAMED, "op": "remove"},
    "no image": {k: v for k, v in BRUSH.items() if k != "image"},
    "an image that is none": {**BRUSH, "image": ["p0"]},
    "a class that there is not": {**BRUSH, "paint": 3},
    "a million points": {**BRUSH, "points": [[1, 2]] * 5000},
    "a point far off": {**BRUSH, "points": [[10**12, 2]]},
    "a point of text": {**BRUSH, "points": [["1", 2]]},
    "a brush as large as it likes": {**BRUSH, "diameter": 10**9},
    "a time without end": {**BRUSH, "time": float("inf")},
    "a base that is a path": {
        **NAMED,
        "op": "accept",
        "base": "../../../etc/passwd",
        "source": "proposal",
        "model": "",
    },
    "more": {**BRUSH, "more": 1},
}


def begun(tmp_path: Path) -> Path:
    held = project(tmp_path)
    for x in (5, 20):
        held.edit(stroke(x, 9))
    held.write(0)
    held.close()
    return tmp_path / "out" / ".labelling" / "journal"


@pytest.mark.parametrize("record", FORGED.values(), ids=FORGED.keys())
def test_a_journal_that_no_page_wrote_is_refused_by_line(tmp_path: Path, record: Mapping[str, Any]) -> None:
    file = begun(tmp_path)
    journal = Journal(file)
    journal.append(dict(record))
    journal.close()
    before = {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    with pytest.raises(DataError, match="line 3 what no labelling page wrote"):
        project(tmp_path)
    assert {p: p.read_bytes() for p in before} == before


@pytest.mark.parametrize("how", ["zeroed", "emptied", "cut to whole lines", "another folder's"])
def test_a_journal_without_the_edits_that_label_maps_show_is_refused(tmp_path: Path, how: str) -> None:
    file = begun(tmp_path)
    data = file.read_bytes()
    if how == "another folder's":
        other = begun(tmp_path / "other")
        data = other.read_bytes()
    first = data[: data.index(b"\n") + 1]
    file.write_bytes({"zeroed": bytes(len(data)), "emptied": b"", "another folder's": data}.get(how, first))
    label = (tmp_path / "out" / "labels" / "p0.png").read_bytes()
    for _ in range(2):
        with pytest.raises(DataError, match="does not hold the edits"):
            project(tmp_path)
    assert (tmp_path / "out" / "labels" / "p0.png").read_bytes() == label


def test_what_a_crash_left_unwritten_is_no_other_journal(tmp_path: Path) -> None:
    begun(tmp_path)
    held = project(tmp_path)
    held.edit(stroke(9, 20))
    held.edit(edit("undo"))
    held.close()
    again = project(tmp_path)
    assert again.stale() == [0]
    again.write(0)
    assert again.stale() == []
    again.close()


def test_regions_that_no_page_found_cost_nothing() -> None:
    def packed(runs: Any) -> str:
        return base64.b64encode(zlib.compress(np.array(runs, "<i4").tobytes())).decode()

    assert cover_of({"op": "region", "runs": packed([[1, 2, 4], [2, 0, 3]])}, (9, 9)).inside.sum() == 5
    wrong = [[[1, 2, 4], [0, 0, 3]], [[1, 4, 2]], [[1, 2, 4], [1, 3, 5]], [[1, 2, 99]], [[-1, 2, 3]], [[2**30, 0, 1]]]
    bomb = base64.b64encode(zlib.compress(bytes(1 << 20), 9)).decode()
    with pytest.raises(DataError, match="The journal holds a region"):
        unpacked_runs(bomb, most=1 << 16)
    for runs in (*map(packed, wrong), packed([1, 2]), "?", ""):
        with pytest.raises(DataError, match="The journal holds a region"):
            cover_of({"op": "region", "runs": runs}, (9, 9))


def test_an_image_that_a_foreign_provenance_names_lies_in_the_folder(tmp_path: Path) -> None:
    begun(tmp_path)
    file = tmp_path / "out" / "provenance" / "p0.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"file": "../../../etc/passwd"}))
    with pytest.raises(DataError, match="climbs out"):
        project(tmp_path).written_image(0)


def test_an_accepted_base_of_other_bytes_is_refused(tmp_path: Path) -> None:
    held = project(tmp_path)
    held.edit(edit("accept"))
    held.close()
    (base,) = (tmp_path / "out" / ".labelling" / "bases").iterdir()
    label = held.labels(0)
    base.write_bytes(label_bytes(np.where(label > 9, 1, 2)))
    with pytest.raises(DataError, match="is damaged"):
        project(tmp_path).labels(0)


def label_bytes(codes: np.ndarray) -> bytes:
    from fullyconv.images import encode_label

    return encode_label(codes.astype(np.uint8))


def test_a_key_that_others_could_read_is_replaced_by_one_for_its_owner(tmp_path: Path) -> None:
    file = tmp_path / "key"
    first = page_server._key(file)
    assert os.stat(file).st_mode & 0o777 == 0o600
    assert page_server._key(file) == first
    for change in (lambda: file.chmod(0o644), lambda: file.write_text("short"), lambda: file.write_bytes(b"\xff" * 32)):
        before = read_file(file, 100)
        change()
        assert page_server._key(file).encode() != before
        assert os.stat(file).st_mode & 0o777 == 0o600


def test_a_folder_of_somebody_elses_files_is_not_labelled_into(tmp_path: Path) -> None:
    photos(tmp_path / "photos")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(Exception, match="holds files of something else"):
        project(tmp_path)
    assert os.listdir(tmp_path / "out") == ["mine.txt"]


def test_a_journal_of_very_many_strokes_is_opened_in_proportion(tmp_path: Path) -> None:
    def seconds(n: int) -> float:
        project(tmp_path / f"{n}").close()
        file, last, lines = tmp_path / f"{n}/out/.labelling/journal", "0" * 16, []
        for i in range(n):
            text = json.dumps({**BRUSH, "image": f"p{i % 3}", "id": f"{i:016x}"}).encode()
            last = _digits(last, text)
            lines.append(last.encode() + b" " + text + b"\n")
        file.write_bytes(b"".join(lines))
        taken = []
        for _ in range(2):
            start = time.process_time()
            held = project(tmp_path / f"{n}")
            taken.append(time.process_time() - start)
            assert held.count == n
            held.close()
        return min(taken)

    few = seconds(250)
    assert seconds(2000) < 24 * few, "eight times as many, not sixty-four times as long"


def test_undoing_looks_at_no_more_strokes_than_show(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = {**BRUSH, "points": [[0, 4], [20, 4]], "diameter": 99}
    canvas = Canvas((9, 20), Codes(CLASSES), [BRUSH] * 300 + [wide, BRUSH])
    looked: list[Any] = []
    monkeypatch.setattr(canvases, "cover_of", lambda *a: looked.append(a) or cover_of(*a))
    canvas.apply({**NAMED, "op": "undo"})
    assert len(looked) == 1
    assert (canvas.painted == 2).all()
