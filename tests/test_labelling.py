"""The labelling page without a browser: the journal, the folder that is written, who is let in, what is refused."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fullyconv.cli import main
from fullyconv.data import open_dataset
from fullyconv.errors import DataError, StorageError, TryAgain, UsageError
from fullyconv.labelling.edits import BadEdit, parse_edit
from fullyconv.labelling.images import open_images
from fullyconv.labelling.journal import Journal
from fullyconv.labelling.project import Project, Proposal
from fullyconv.taxonomy import Taxonomy

CLASSES = Taxonomy(("ground", "disc", "box"))


def photos(folder: Path, count: int = 3, size: tuple[int, int] = (40, 60)) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(4)
    for i in range(count):
        Image.fromarray(draw.integers(0, 255, (*size, 3), np.uint8)).save(folder / f"p{i}.png")
    return folder


def project(tmp_path: Path, **more: Any) -> Project:
    folder = tmp_path / "photos"
    if not folder.is_dir():
        photos(folder)
    out = tmp_path / "out"
    return Project(open_images(str(folder), out), out, more.get("taxonomy", CLASSES))


def edit(op: str, image: int = 0, **more: Any) -> Any:
    return parse_edit(json.dumps({"op": op, "image": image, "id": secrets.token_hex(8), **more}).encode())


def stroke(x: int, y: int, paint: int | str = 1, image: int = 0, **more: Any) -> Any:
    return edit("brush", image, points=[[x, y], [x + 5, y]], diameter=3, paint=paint, **more)


# ---- The journal ------------------------------------------------------------------------------------------------


def test_a_journal_gives_back_what_was_appended(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    rows = [{"n": i, "name": "straße\n", "points": [[i, 2]]} for i in range(20)]
    for row in rows:
        journal.append(row)
    journal.close()
    again = Journal(tmp_path / "j")
    assert again.records == rows
    assert not again.note
    again.append({"n": 20})
    assert len(Journal(tmp_path / "j").records) == 21


def test_every_torn_end_is_cut_off_and_what_was_acknowledged_stays(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    for i in range(3):
        journal.append({"n": i})
    content = (tmp_path / "j").read_bytes()
    third = content[: content.rindex(b"\n", 0, len(content) - 1) + 1]
    for end in range(len(third), len(content)):
        for rest in (b"", b"\0" * 50):
            file = tmp_path / f"t{end}{len(rest)}"
            file.write_bytes(content[:end] + rest)
            found = Journal(file)
            assert [r["n"] for r in found.records] == [0, 1]
            assert ("never acknowledged" in found.note) == (end > len(third) or bool(rest))
            found.append({"n": 9})
            assert [r["n"] for r in Journal(file).records] == [0, 1, 9]


def test_a_journal_changed_in_its_middle_is_refused_by_line(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    for i in range(4):
        journal.append({"n": i, "paint": 1})
    lines = (tmp_path / "j").read_bytes().splitlines(keepends=True)
    changed = [lines[0], lines[1].replace(b'"paint":1', b'"paint":2'), *lines[2:]]
    for wrong in (changed, [lines[0], *lines[2:]], [lines[0], lines[2], lines[1], lines[3]]):
        (tmp_path / "w").write_bytes(b"".join(wrong))
        with pytest.raises(DataError, match="line 2"):
            Journal(tmp_path / "w")
        assert (tmp_path / "w").read_bytes() == b"".join(wrong), "a journal that is refused is left alone"


def test_what_the_disk_does_not_take_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path / "j")
    journal.append({"n": 0})
    whole, real = os.fsync, os.write

    def half(fd: int, data: Any) -> int:
        if len(data) < 20:
            raise OSError(28, "No space left on device")
        return real(fd, data[: len(data) // 2])

    monkeypatch.setattr(os, "write", half)
    with pytest.raises(StorageError, match="No space left"):
        journal.append({"n": 1, "text": "x" * 40})
    monkeypatch.setattr(os, "write", real)
    monkeypatch.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(5, "Input/output error")))
    with pytest.raises(StorageError):
        journal.append({"n": 2})
    monkeypatch.setattr(os, "fsync", whole)
    journal.append({"n": 3})
    assert [r["n"] for r in Journal(tmp_path / "j").records] == [0, 3]


def test_a_record_is_on_the_disk_before_append_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    write, sync = os.write, os.fsync
    journal = Journal(tmp_path / "j")
    monkeypatch.setattr(os, "write", lambda fd, data: (done.append("write"), write(fd, data))[1])
    monkeypatch.setattr(os, "fsync", lambda fd: (done.append("fsync"), sync(fd))[1])
    journal.append({"n": 0})
    assert done == ["write", "fsync"]


# ---- The folder -------------------------------------------------------------------------------------------------


def test_strokes_become_a_folder_that_train_reads(tmp_path: Path) -> None:
    with_labels = project(tmp_path)
    for e in (stroke(5, 5), stroke(20, 9, 2), stroke(20, 9, "erase"), stroke(30, 30, "ignore"), stroke(2, 2, 0, 1)):
        with_labels.edit(e)
    for i in with_labels.stale():
        with_labels.write(i)
    assert with_labels.stale() == []
    data = open_dataset(f"folder:{tmp_path / 'out'}")
    assert data.taxonomy.names == CLASSES.names
    assert [r.name for r in data.records] == ["p0", "p1"]
    labels = data[0].labels["semantic"]
    assert set(np.unique(labels)) == {1, 255}
    assert (labels[4:7, 4:12] == 1).sum() == (labels == 1).sum() > 10
    np.testing.assert_array_equal(data[0].image, np.asarray(Image.open(tmp_path / "photos/p0.png")))
    with_labels.close()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fcn32s-squeezenet1_0", "has no stride 32; it has 16s"),
        ("fcn8s-vgg16-depth", "takes a network of colour images"),
        ("fcn8s-vgg61", "'vgg61' is not a known trunk"),
    ],
)
def test_a_network_that_cannot_be_made_is_refused_before_the_page_opens(
    name: str, message: str, tmp_path: Path, capsys: Any
) -> None:
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as stop:
        main(["label", name, str(photos(tmp_path / "photos", 1)), "-o", str(out), "--classes", "a,b"])
    assert (stop.value.code, message in capsys.readouterr().err) == (2, True)
    assert not out.exists()


def test_a_proposal_counts_when_it_is_accepted_and_provenance_says_so(tmp_path: Path) -> None:
    held = project(tmp_path)
    layers = held.layers(0)
    layers.proposal = Proposal(held.codes.encode(np.full((40, 60), 2)), "a" * 64)
    held.edit(stroke(5, 5, 1, spent=4.5))
    assert (held.labels(0) == 2).sum() == 0
    held.edit(edit("accept", spent=2))
    held.write(0)
    record = json.loads((tmp_path / "out/provenance/p0.json").read_text())
    painted = int((held.labels(0) == 1).sum())
    assert record["pixels"] == {"painted": painted, "accepted": 2400 - painted, "existing": 0, "unlabelled": 0}
    assert (record["model"], record["seconds"], record["state"], record["edits"]) == ("a" * 64, 6.5, "done", 2)
    layers.proposal = Proposal(held.codes.encode(np.full((40, 60), 0)), "b" * 64)  # learned since
    assert (held.labels(0) == 2).sum() == 2400 - painted, "what was accepted stays"
    held.edit(edit("undo"))
    assert held.state(0) == "begun"
    assert set(np.unique(held.labels(0))) == {1, 255}
    held.write(0)
    record = json.loads((tmp_path / "out/provenance/p0.json").read_text())
    assert [v["edits"] for v in record["versions"]] == [2]
    held.close()
    again = project(tmp_path)
    assert again.state(0) == "begun"
    again.edit(edit("redo"))
    assert (again.labels(0) == 2).sum() == 2400 - painted, "what was accepted is on the disk"
    again.close()


def test_the_folder_is_the_same_after_replay(tmp_path: Path) -> None:
    held = project(tmp_path)
    draw = np.random.default_rng(0)
    for n in range(40):
        x, y = (int(v) for v in draw.integers(0, 40, 2))
        try:
            held.edit([stroke(x, y, n % 3), edit("undo"), edit("region", point=[x, y], paint=n % 3)][n % 5 % 3])
        except BadEdit:
            continue
    wanted = held.labels(0)
    held.close()
    again = project(tmp_path)
    np.testing.assert_array_equal(again.labels(0), wanted)
    assert again.stale() == [0], "label maps that were not written are known"
    again.close()


def test_existing_labels_are_opened_and_the_originals_stay(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    photos(folder / "images", 2)
    (folder / "labels").mkdir()
    Image.fromarray(np.full((40, 60), 1, np.uint8)).save(folder / "labels/p0.png")
    (folder / "classes.txt").write_text("box\nground\n")
    before = (folder / "labels/p0.png").read_bytes()
    found = open_images(str(folder), tmp_path / "out")
    held = Project(found, tmp_path / "out", CLASSES)
    assert [held.state(0), held.state(1)] == ["existing", "new"]
    held.edit(stroke(5, 5, 1))
    held.write(0)
    labels = np.asarray(Image.open(tmp_path / "out/labels/p0.png"))
    assert set(np.unique(labels)) == {0, 1}, "matched by name: their 1 is ground, our 0"
    record = json.loads((tmp_path / "out/provenance/p0.json").read_text())
    assert record["pixels"]["existing"] == int((labels == 0).sum())
    assert (folder / "labels/p0.png").read_bytes() == before
    held.close()


def test_a_label_map_that_somebody_changed_is_not_overwritten(tmp_path: Path) -> None:
    held = project(tmp_path)
    held.edit(stroke(5, 5))
    held.write(0)
    Image.fromarray(np.zeros((40, 60), np.uint8)).save(tmp_path / "out/labels/p0.png")
    held.edit(stroke(9, 9))
    with pytest.raises(UsageError, match="not as an earlier run"):
        held.write(0)
    held.close()


def test_one_process_at_a_time_and_the_same_classes(tmp_path: Path) -> None:
    held = project(tmp_path)
    with pytest.raises(TryAgain):
        project(tmp_path)
    held.close()
    with pytest.raises(UsageError, match="was labelled with the classes ground, disc, box"):
        project(tmp_path, taxonomy=Taxonomy(("a", "b")))
    (tmp_path / "other").mkdir()
    (tmp_path / "other/x.txt").write_text("mine")
    with pytest.raises(UsageError, match="files of something else"):
        Project(open_images(str(tmp_path / "photos"), tmp_path / "other"), tmp_path / "other", CLASSES)


def test_an_edit_of_what_is_not_there_is_refused_and_not_written(tmp_path: Path) -> None:
    held = project(tmp_path)
    for bad in (
        stroke(1, 1, 3),
        stroke(1, 1, 1, 3),
        edit("undo"),
        edit("redo"),
        edit("region", point=[60, 0], paint=1),
    ):
        with pytest.raises(BadEdit):
            held.edit(bad)
    assert (tmp_path / "out/.labelling/journal").read_bytes() == b""
    held.close()


KILLED = """
import sys
sys.path[:0] = [{tests!r}]
from pathlib import Path
from test_labelling import project, stroke
held = project(Path({place!r}))
for n in range(10_000):
    held.edit(stroke(n % 50, n % 37, n % 3))
    print(n, flush=True)
"""


@pytest.mark.slow
def test_a_process_killed_at_any_time_loses_no_acknowledged_stroke(tmp_path: Path) -> None:
    photos(tmp_path / "photos")
    code = KILLED.format(tests=str(Path(__file__).parent), place=str(tmp_path))
    answer = 0
    for after in (1, 7, 20):
        child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        for _ in range(after):
            child.stdout.readline()
        child.send_signal(signal.SIGKILL)
        answer += after + len(child.stdout.read().splitlines())
        child.wait()
        child.stdout.close()
        held = project(tmp_path)
        assert held.edits(0) >= answer
        answer = held.edits(0)
        held.close()


def test_what_a_network_sees_is_kept_before_it_has_learned_anything(tmp_path: Path) -> None:
    from fullyconv.labelling.page_network import FeatureFiles, adapted, proposal

    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3)).astype(np.uint8)).save(tmp_path / "a.png")
    model = adapted("fcn16s-squeezenet1_0", Taxonomy(("ground", "disc")))
    kept = FeatureFiles(tmp_path / "features", model)
    assert proposal(model, kept, tmp_path / "a.png", "a") is None
    (file,) = kept.folder.iterdir()

    def unread() -> Any:
        raise AssertionError("the image is looked at again")

    assert kept.get("a", (0, 0, 40, 50), unread)
    assert file.name == "a-0-0-40-50.safetensors"
