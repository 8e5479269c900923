"""Every file that is named after something lies below its folder, is no input, and is written once; every listing of
inputs follows links, ends, and says what it leaves out."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_evaluate import CLASSES
from test_predict import Tiny

from fullyconv.cli import main
from fullyconv.data import open_dataset
from fullyconv.data.base import Record
from fullyconv.data.corpora.conversion import convert_dataset
from fullyconv.errors import DataError, FullyconvError, InternalError, MissingInput, UsageError
from fullyconv.evaluation import evaluate
from fullyconv.files.listing import list_below
from fullyconv.files.outputs import Outputs, flat_name, name_fault, one_part, output_file, safe_name
from fullyconv.predict import Predictor
from fullyconv.predict.sources import named_sources
from fullyconv.taxonomy import Taxonomy

HOSTILE = ("/tmp/a", "../a", "a/../../b", "", "a//b", "./a", "a/.", "a\0b", "a\nb", "\x1b[31m", "\x85", "a" * 300, "/")


def png(path: Path, seed: int = 0, label: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    Image.fromarray(rng.integers(0, 3 if label else 256, (13, 18) if label else (13, 18, 3), np.uint8)).save(path)
    return path


def everything(root: Path) -> dict[str, str]:
    """Every file below `root` and the sha256 of its bytes."""
    return {
        str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(root.rglob("*"))
        if p.is_file()
    }


def tiny(*heads: str) -> Predictor:
    model = Tiny(dict.fromkeys(heads or ("semantic",), 3)).eval()
    model.taxonomies = dict.fromkeys(model.heads, CLASSES)  # type: ignore[assignment]
    return Predictor(model)


# ---- names -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HOSTILE)
def test_a_record_has_a_name_that_outputs_can_be_named_after(name: str, tmp_path: Path) -> None:
    assert name_fault(name)
    with pytest.raises(DataError, match="image name"):
        Record(name, {"rgb": tmp_path / "x.png"})
    with pytest.raises(DataError, match="rename"):
        Outputs(tmp_path).claim(name)
    assert not name_fault(safe_name(name))


@pytest.mark.parametrize(
    "name", ["a", "a/b/c", "..a", "a..", "...", "a b", "Ü/ü", "a" * 236, os.fsdecode(b"\xe9"), "\u202ea"]
)
def test_names_that_people_give_are_kept(name: str, tmp_path: Path) -> None:
    assert name_fault(name) == ""
    assert Record(name, {}).name == safe_name(name) == name
    assert Outputs(tmp_path).claim(f"{name}.png") == f"{name}.png"


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("../../images/x", "images/x"),
        ("/home/me/x", "home/me/x"),
        ("a/../b", "b"),
        ("./a//b/", "a/b"),
        ("../..", "unnamed"),
        ("a\x1bb", "a_b"),
    ],
)
def test_what_leads_out_of_a_folder_is_left_out_of_the_name(path: str, name: str) -> None:
    assert safe_name(path) == name


def test_over_long_names_stay_apart_and_within_the_file_systems_bounds() -> None:
    long = {safe_name("x" * 400 + end) for end in "ab"} | {safe_name("é" * 300)}
    assert len(long) == 3
    assert all(len(os.fsencode(n)) <= 240 for n in long)
    assert not name_fault(safe_name("/".join(["d" * 200] * 30)))


def test_names_with_folders_become_parts_that_stay_apart() -> None:
    assert flat_name("a_b") == "a_b"
    assert len({flat_name(n) for n in ("a/b", "a_b", "a/b/c", "a_b/c", "a/b_c")}) == 5
    assert all("/" not in flat_name(n) for n in ("a/b", "x/" * 300))


# ---- one job's files ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("a.png", "a.png"),
        ("a.png", "A.PNG"),
        (unicodedata.normalize("NFC", "ü.png"), unicodedata.normalize("NFD", "ü.png")),
        ("a/B/c", "a/b/C"),
        ("a", "a/b"),
        ("a/b", "A"),
        ("straße", "STRASSE"),
    ],
)
def test_one_file_is_not_written_twice_not_even_on_a_disk_that_ignores_case(
    first: str, second: str, tmp_path: Path
) -> None:
    plan = Outputs(tmp_path)
    plan.claim(first)
    with pytest.raises(UsageError, match="Two results would be"):
        plan.claim(second)


def test_what_was_not_claimed_or_is_written_already_is_our_mistake(tmp_path: Path) -> None:
    plan = Outputs(tmp_path)
    with pytest.raises(InternalError):
        plan.write("a", b"")
    name = plan.claim("b", "a")
    assert plan.write(name, b"1").read_bytes() == b"1"
    with pytest.raises(InternalError):
        plan.write(name, b"2")
    assert (tmp_path / "b/a").read_bytes() == b"1"


def test_an_input_is_never_an_output_under_any_of_its_names(tmp_path: Path) -> None:
    source = png(tmp_path / "in/a.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "link").symlink_to("in")
    os.link(source, tmp_path / "out/hard.png")
    (tmp_path / "out/soft.png").symlink_to("hard.png")
    for folder, name in (("in", "a.png"), ("link", "a.png"), ("out", "hard.png"), ("out", "soft.png")):
        with pytest.raises(UsageError, match="overwritten"):
            Outputs(tmp_path / folder, [source]).claim(name)
    assert Outputs(tmp_path / "in", [source]).claim("b.png") == "b.png"
    earlier = Outputs(tmp_path / "chain")  # what an earlier job wrote may be replaced, but not while it is read
    written = earlier.write(earlier.claim("a.png"), b"a")
    assert Outputs(tmp_path / "chain").claim("a.png")
    with pytest.raises(UsageError, match="this very job reads it"):
        Outputs(tmp_path / "chain", [written]).claim("a.png")


def test_links_do_not_lead_outputs_out_of_their_folder(tmp_path: Path) -> None:
    out, other = tmp_path / "out", tmp_path / "other"
    (out / "inside").mkdir(parents=True)
    other.mkdir()
    (out / "away").symlink_to(other)
    (out / "a.png").symlink_to(other / "a.png")
    (out / "near").symlink_to("inside")
    (tmp_path / "alias").symlink_to("out")
    for name in ("away/x.png", "a.png"):
        with pytest.raises(UsageError, match="led out of"):
            Outputs(out).claim(name)
    for folder in (out, tmp_path / "alias"):
        plan = Outputs(folder)
        plan.write(plan.claim("near/x.png"), b"x")
    assert list(other.iterdir()) == []


@pytest.mark.parametrize("name", ["../../etc/x", "/etc/x", "a/b", ".."])
def test_a_head_that_bears_a_path_names_no_file(name: str) -> None:
    with pytest.raises(DataError, match=r"The head .* rename it"):
        one_part(name, "The head")


def test_a_single_result_replaces_only_an_earlier_one_and_no_input(tmp_path: Path) -> None:
    page, data = tmp_path / "new/report.html", tmp_path / "metrics.jsonl"
    assert output_file(page, "a report", b"<!doctype html") == page
    page.write_text("<!DOCTYPE html>old")
    assert output_file(page, "a report", b"<!doctype html") == page
    with pytest.raises(UsageError, match="reads it"):
        output_file(page, "a report", b"<!doctype html", [page])
    data.write_text('{"kind": "step"}')
    for path in (data, tmp_path):
        with pytest.raises(UsageError, match="is not a report"):
            output_file(path, "a report", b"<!doctype html")
    with pytest.raises(UsageError, match="is not a report"):
        output_file(Path(os.devnull), "a report", b"<!doctype html")


def test_files_that_no_earlier_job_wrote_as_they_are_now_stay_and_the_same_job_may_be_repeated(tmp_path: Path) -> None:
    for _ in range(2):
        plan = Outputs(tmp_path)
        for name in (plan.claim("d", "a.png"), plan.claim("b.png")):
            plan.write(name, b"first")
    plan = Outputs(tmp_path)
    plan.write(plan.claim("b.png"), b"second")
    (tmp_path / "d/a.png").write_bytes(b"corrected by hand")
    (tmp_path / "mine.png").write_bytes(b"x")
    (tmp_path / "empty.png").touch()
    (tmp_path / "soft.png").symlink_to("mine.png")
    (tmp_path / "broken.png").symlink_to("nowhere")
    (tmp_path / "folder.png").mkdir()
    before = everything(tmp_path)
    plan = Outputs(tmp_path)
    for name in ("d/a.png", "mine.png", "empty.png", "soft.png", "broken.png", "folder.png"):
        with pytest.raises(UsageError, match="choose another folder"):
            plan.claim(name)
    assert plan.claim("b.png") == "b.png"
    assert everything(tmp_path) == before
    (tmp_path / "mine.png").unlink()  # the other way out
    assert Outputs(tmp_path).claim("mine.png") == "mine.png"


@pytest.mark.parametrize("damage", [b"", b"\0" * 99, b"zz  a.png\n", b"\xff  a.png", None])
def test_a_damaged_record_of_what_was_written_overwrites_nothing(damage: bytes | None, tmp_path: Path) -> None:
    plan = Outputs(tmp_path)
    plan.write(plan.claim("a.png"), b"1")
    record = tmp_path / ".written.sha256"
    record.unlink() if damage is None else record.write_bytes(damage)
    with pytest.raises(UsageError, match="not as an earlier run of fullyconv left it"):
        Outputs(tmp_path).claim("a.png")
    plan = Outputs(tmp_path)
    plan.write(plan.claim("b.png"), b"2")
    assert Outputs(tmp_path).claim("b.png") == "b.png", "a torn line before it does not matter"
    assert (tmp_path / "a.png").read_bytes() == b"1"


def test_a_torn_line_of_the_record_is_never_leave_to_overwrite(tmp_path: Path) -> None:
    plan = Outputs(tmp_path)
    plan.write(plan.claim("abc.png"), b"1")
    record = tmp_path / ".written.sha256"
    whole = record.read_bytes()
    for end in range(whole.index(b"  ") + 3, len(whole)):  # half a name, or all of it without the line's end
        record.write_bytes(whole[:end])
        (own := tmp_path / whole[:end].partition(b"  ")[2].decode()).write_bytes(b"1")  # the user's, of equal bytes
        for _ in range(2):
            with pytest.raises(UsageError, match="not as an earlier run of fullyconv left it"):
                Outputs(tmp_path).claim(own.name)
            plan = Outputs(tmp_path)
            plan.write(plan.claim("other.png"), b"2")  # a later job's line ends the torn one
        record.unlink()
        (tmp_path / "other.png").unlink()


@pytest.mark.parametrize("claimed", ["a.png", "d/a.png"])
def test_a_folder_where_a_result_belongs_is_named_as_one_also_where_the_record_knows_its_name(
    claimed: str, tmp_path: Path
) -> None:
    plan = Outputs(tmp_path)
    plan.write(plan.claim(claimed), b"1")
    (tmp_path / claimed).unlink()
    (tmp_path / claimed / "mine").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"a\.png is a folder, where a result belongs"):
        Outputs(tmp_path).claim(claimed)
    assert (tmp_path / claimed / "mine").is_dir()


def test_the_record_of_what_was_written_is_a_file_of_the_folder_itself(tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"precious")
    for i, make in enumerate((lambda p: p.symlink_to("../other"), os.mkfifo, Path.mkdir)):
        (tmp_path / f"out{i}").mkdir()
        make(tmp_path / f"out{i}/.written.sha256")
        plan = Outputs(tmp_path / f"out{i}")
        with pytest.raises(FullyconvError, match=r"\.written\.sha256"):
            plan.write(plan.claim("a.png"), b"1")
    assert (tmp_path / "other").read_bytes() == b"precious"


def test_a_job_killed_between_the_record_and_the_file_can_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = Outputs(tmp_path)
    plan.write(plan.claim("a.png"), b"1")
    monkeypatch.setattr("fullyconv.files.outputs.atomic_write", lambda *_: 1 / 0)
    plan = Outputs(tmp_path)
    with pytest.raises(ZeroDivisionError):
        plan.write(plan.claim("a.png"), b"2")
    assert Outputs(tmp_path).claim("a.png") == "a.png"


def test_claiming_takes_time_in_proportion() -> None:
    def seconds(n: int) -> float:
        plan, start = Outputs("/nowhere"), time.process_time()
        for i in range(n):
            plan.claim("labels", f"{i % 7}", f"{i}.png")
        return time.process_time() - start

    few = min(seconds(1000) for _ in range(3))
    assert min(seconds(8000) for _ in range(3)) < 24 * few, "eight times as many, not sixty-four times as long"


# ---- lists, splits, heads that lead elsewhere --------------------------------------------------------------------


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    """splits/fold1/val.csv with rows ../../images/x.png, as many folds are written."""
    root = tmp_path / "root"
    for i in range(3):
        png(root / f"images/{i}.png", i)
        png(root / f"labels/{i}.png", i, label=True)
    (root / "classes.txt").write_text("sky\nroad\ncar\n")
    (root / "splits/fold1").mkdir(parents=True)
    rows = [f"../../images/{i}.png,../../labels/{i}.png\n" for i in range(3)]
    (root / "splits/fold1/val.csv").write_text("".join(["image,label\n", *rows]))
    return root


def test_a_list_in_a_subfolder_names_its_images_below_the_outputs_folder(listed: Path) -> None:
    data = open_dataset(str(listed / "splits/fold1/val.csv"))
    assert [r.name for r in data.records] == ["images/0", "images/1", "images/2"]


def test_images_that_a_list_names_alike_stay_apart(tmp_path: Path) -> None:
    places = [tmp_path / "x/l.csv", tmp_path / "x/a/p.png", tmp_path / "a/p.png", tmp_path / "b/p.png"]
    for i, place in enumerate(places[1:]):
        png(place, i)
    rows = ["image", "a/p.png", "../a/p.png", "../b/../a/p.png", str(places[3]), str(places[2])]
    places[0].write_text("\n".join(rows) + "\n")
    data = open_dataset(str(places[0]))
    assert {r.name: r.inputs["rgb"].resolve() for r in data.records} == {
        "a/p": places[1],
        "a/p-2": places[2],
        "p": places[3],
    }


def test_converting_a_list_in_a_subfolder_touches_no_input_and_writes_into_the_new_folder_alone(listed: Path) -> None:
    before = everything(listed.parent)
    assert convert_dataset(str(listed / "splits/fold1/val.csv"), listed / "splits/fold1/out") == {"all": 3}
    after = everything(listed.parent)
    assert {k: v for k, v in after.items() if k in before} == before
    assert all(k.startswith("root/splits/fold1/out/") for k in after if k not in before)
    again = open_dataset(str(listed / "splits/fold1/out"))
    for i, sample in enumerate(again):
        np.testing.assert_array_equal(sample.image, np.asarray(Image.open(listed / f"images/{i}.png")))
        np.testing.assert_array_equal(sample.labels["semantic"], np.asarray(Image.open(listed / f"labels/{i}.png")))


def test_keeping_an_evaluation_of_a_list_in_a_subfolder_touches_no_input(listed: Path) -> None:
    before = everything(listed)
    for keep in ("eval", "splits/eval"):
        found = evaluate(tiny(), open_dataset(str(listed / "splits/fold1/val.csv")), keep=listed / keep)
        assert found.images == 3
        assert (listed / keep / "predictions/images/0.png").is_file()
    after = everything(listed)
    assert {k: v for k, v in after.items() if k in before} == before
    assert all(k.startswith(("eval/", "splits/eval/")) for k in after if k not in before)


def test_an_evaluation_is_not_kept_over_its_own_inputs_nor_over_foreign_results(tmp_path: Path) -> None:
    for i in range(2):
        png(tmp_path / f"confidence/{i}.jpg", i)
        png(tmp_path / f"predictions/{i}.png", i, label=True)
    rows = "".join(f"confidence/{i}.jpg,predictions/{i}.png\n" for i in range(2))
    (tmp_path / "l.csv").write_text(f"image,label\n{rows}")
    flat = open_dataset(str(tmp_path / "l.csv"))
    records = [Record(r.name.rpartition("/")[2], r.inputs, r.labels) for r in flat.records]
    data, before = replace(flat, records=records), everything(tmp_path)
    with pytest.raises(UsageError, match="would be overwritten"):
        evaluate(tiny(), replace(data, taxonomies={"semantic": CLASSES}), keep=tmp_path)
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/result.json").write_text('{"images": [], "annotations": []}')
    with pytest.raises(UsageError, match="not as an earlier run of fullyconv left it"):
        evaluate(tiny(), replace(data, taxonomies={"semantic": CLASSES}), keep=tmp_path / "kept")
    (tmp_path / "kept/result.json").unlink()
    assert everything(tmp_path) == before


@pytest.mark.parametrize("column", ["split", "head", "input"])
@pytest.mark.parametrize("evil", ["/{out}", "../../{name}", "a/../../{name}"])
def test_a_split_a_head_or_an_input_that_bears_a_path_converts_to_nothing(
    column: str, evil: str, listed: Path, tmp_path: Path
) -> None:
    evil = evil.format(out=str(tmp_path / "evil").lstrip("/"), name="evil")
    header = {"split": "image,label,split", "head": f"image,label,labels-{evil}", "input": f"image,label,{evil}"}[
        column
    ]
    value = {"split": evil, "head": "labels/0.png", "input": "images/0.png"}[column]
    (listed / "l.csv").write_text(f"{header}\nimages/0.png,labels/0.png,{value}\n")
    before = everything(tmp_path)
    options: dict[str, Any] = {"splits": [evil]} if column == "split" else {}
    if column == "input":
        options = {"inputs": ["rgb", evil]}
    with pytest.raises(FullyconvError, match=r"rename|known"):
        convert_dataset(str(listed / "l.csv"), tmp_path / "deep/er/out", **options)
    assert everything(tmp_path) == before


def test_a_cvat_export_whose_subset_is_a_path_writes_nowhere_else(tmp_path: Path) -> None:
    png(tmp_path / "cvat/images/a.png")
    for subset in (str(tmp_path / "evil"), "../../evil"):
        (tmp_path / "cvat/annotations.xml").write_text(
            "<annotations><meta><job><labels><label><name>road</name></label></labels></job></meta>"
            f'<image id="0" name="a.png" subset="{subset}" width="18" height="13">'
            '<box label="road" xtl="1" ytl="1" xbr="9" ybr="9" z_order="0"/></image></annotations>'
        )
        before = everything(tmp_path)
        for options in ({}, {"splits": [subset]}):
            with contextlib.suppress(FullyconvError):
                convert_dataset(f"cvat:{tmp_path / 'cvat'}", tmp_path / f"out{len(options)}", **options)  # type: ignore[arg-type]
            after = everything(tmp_path)
            assert {k: v for k, v in after.items() if k in before} == before
            assert all(k.startswith("out") for k in after if k not in before)


def test_an_evaluation_is_kept_again_but_not_over_images_of_ones_own(listed: Path) -> None:
    data = open_dataset(str(listed / "splits/fold1/val.csv"))
    for _ in range(2):
        evaluate(tiny(), data, keep=listed / "eval")
    (first,) = (listed / "eval/gallery").rglob("0/image.jpg")
    for name in ("eval/predictions/images/1.png", "eval/confidence/images/2.jpg", str(first.relative_to(listed))):
        kept = (listed / name).read_bytes()
        png(listed / name, 7)
        before = everything(listed)
        with pytest.raises(UsageError, match="is not overwritten; choose another folder"):
            evaluate(tiny(), data, keep=listed / "eval")
        assert everything(listed) == before
        (listed / name).write_bytes(kept)
    evaluate(tiny(), data, keep=listed / "eval")


# ---- predict -----------------------------------------------------------------------------------------------------


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """(predictor, arguments) -> (exit code, stdout, stderr) of `fullyconv predict` with that network."""

    def run(ready: Predictor, *arguments: Any) -> tuple[int, str, str]:
        monkeypatch.setattr("fullyconv.cli.evaluate.predictor", lambda *_a, **_k: ready)
        with pytest.raises(SystemExit) as stop:
            main(["predict", "model", *map(str, arguments)])
        output = capsys.readouterr()
        return int(stop.value.code or 0), output.out, output.err

    return run


@pytest.mark.parametrize("head", ["/{root}/evil", "a/b"])
def test_a_model_whose_head_bears_a_path_writes_nothing(head: str, command: Any, tmp_path: Path) -> None:
    png(tmp_path / "in/a.png")
    before = everything(tmp_path)
    head = head.format(root=str(tmp_path).lstrip("/"))
    code, _, output = command(tiny("semantic", head), tmp_path / "in", "-o", tmp_path / "x/out", "--quiet")
    assert (code, "rename it" in output) == (65, True), output
    assert everything(tmp_path) == before
    first = command(tiny(head, "semantic"), tmp_path / "in", "-o", tmp_path / "x/out", "--quiet")
    assert first[0] == 0, "the main head names no file"
    assert all(k.startswith("x/out/") for k in everything(tmp_path) if k not in before)


def test_label_maps_of_two_kinds_do_not_share_a_file(command: Any, tmp_path: Path) -> None:
    png(tmp_path / "in/a.png")
    png(tmp_path / "in/confidence/a.png")
    before = everything(tmp_path)
    code, _, output = command(tiny(), tmp_path / "in", "-o", tmp_path / "out", "--confidence", "--quiet")
    assert (code, "Two results would be" in output) == (2, True), output
    assert everything(tmp_path) == before
    assert command(tiny(), tmp_path / "in", "-o", tmp_path / "out", "--quiet")[0] == 0


def test_a_folder_of_ones_own_images_is_not_written_into(command: Any, tmp_path: Path) -> None:
    png(tmp_path / "in/a.png")
    png(tmp_path / "mine/a.png", 1)
    before = everything(tmp_path)
    code, _, output = command(tiny(), tmp_path / "in", "-o", tmp_path / "mine", "--quiet")
    assert (code, "is not overwritten; choose another folder" in output) == (2, True), output
    assert everything(tmp_path) == before
    for _ in range(2):  # what the sentence advises, and the same command again
        assert command(tiny(), tmp_path / "in", "-o", tmp_path / "new", "--confidence", "--quiet")[0] == 0
    png(tmp_path / "new/a.png", 2, label=True)
    before = everything(tmp_path)
    code, _, output = command(tiny(), tmp_path / "in", "-o", tmp_path / "new", "--quiet")
    assert (code, "not as an earlier run of fullyconv left it" in output) == (2, True), output
    assert everything(tmp_path) == before


def test_images_behind_links_are_labelled_and_what_is_left_out_is_said(command: Any, tmp_path: Path) -> None:
    root, other = tmp_path / "in", tmp_path / "elsewhere"
    png(root / "seq1/a.png")
    png(other / "b.png", 1)
    (root / "seq2").symlink_to(other)
    (root / "seq3").symlink_to("seq1")
    (other / "round").symlink_to(root)
    (root / "self").symlink_to("self")
    for name in ("._a.png", ".hidden/c.png", "clip.gif", "notes.txt"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"x")
    code, out, output = command(tiny(), root, "-o", tmp_path / "out")
    assert code == 0, output
    assert {Path(p).relative_to(tmp_path / "out").as_posix() for p in out.split()} == {"seq1/a.png", "seq2/b.png"}
    for words in (
        "2 hidden names (._a.png)",
        "1 .gif files (clip.gif)",
        "1 .txt files",
        "met before",
        "1 broken links",
    ):
        assert words in output, (words, output)
    (root / "seq1/a.png").unlink()
    (other / "b.png").unlink()
    with pytest.raises(MissingInput, match=r"holds no images.*1 \.gif files \(clip\.gif\)"):
        named_sources([root], tmp_path / "out")


def test_results_inside_the_folder_of_images_are_not_labelled_again(command: Any, tmp_path: Path) -> None:
    png(tmp_path / "a.png")
    for _ in range(2):
        code, out, output = command(tiny(), tmp_path, "-o", tmp_path / "out")
        assert (code, out.split()) == (0, [str(tmp_path / "out/a.png")]), output
    assert "1 folders of results or met before (out/)" in output


@pytest.mark.parametrize("twins", [("a.png", "a.jpg"), ("a.png", "A.png"), ("é.png", "é.png"), ("d/a.png", "D/a.jpg")])
def test_images_that_would_share_a_label_map_are_refused_by_name(twins: tuple[str, str], tmp_path: Path) -> None:
    for i, name in enumerate(twins):
        png(tmp_path / name, i)
    if len(list(tmp_path.rglob("*.*g"))) < 2:
        pytest.skip("this file system does not tell them apart")
    with pytest.raises(UsageError, match="would share a label map"):
        named_sources([tmp_path], tmp_path / "out")


def test_listing_images_takes_time_in_proportion(tmp_path: Path) -> None:
    def seconds(n: int) -> float:
        folder = tmp_path / f"n{n}"
        folder.mkdir(exist_ok=True)
        for i in range(n):
            (folder / f"{i}.png").touch()
        taken = []
        for _ in range(3):
            start = time.process_time()
            assert len(named_sources([folder], tmp_path / "out")[0]) == n
            taken.append(time.process_time() - start)
        return min(taken)

    few = seconds(500)
    assert seconds(4000) < 24 * few, "eight times as many, not sixty-four times as long"


def test_every_real_folder_is_entered_once_however_many_links_lead_there(tmp_path: Path) -> None:
    for i in range(12):  # 2 ** 12 ways down
        (tmp_path / f"d{i}").mkdir()
        (tmp_path / f"d{i}/a").symlink_to(tmp_path / f"d{(i + 1) % 12}")
        (tmp_path / f"d{i}/b").symlink_to(tmp_path / f"d{(i + 1) % 12}")
        (tmp_path / f"d{i}/p.png").touch()
    found = list_below(tmp_path, (".png",))
    assert found.files == [tmp_path / f"d{i}/p.png" for i in sorted(range(12), key=str)]
    assert found.left == {"folders of results or met before": 24}


def test_links_round_a_folder_to_itself_and_to_nothing_end_and_are_counted(tmp_path: Path) -> None:
    inner = tmp_path / "above/inner"
    (inner / "deep").mkdir(parents=True)
    (tmp_path / "beside").mkdir()
    for image in (tmp_path / "above/o.png", inner / "a.png", inner / "deep/b.png", tmp_path / "beside/c.png"):
        image.touch()
    links = {
        "up": "..",
        "top": "../..",
        "self": "self",
        "here": ".",
        "deep/back": "..",
        "none": "gone",
        "out": "../../beside",
    }
    for name, target in links.items():
        (inner / name).symlink_to(target)
    found = list_below(inner, (".png",))
    assert [str(f.relative_to(inner)) for f in found.files] == ["a.png", "deep/b.png", "out/c.png"]
    assert found.left == {"links to a folder around it": 4, "broken links, pipes and devices": 2}
    assert "4 links to a folder around it (here/)" in found.note(inner)


# ---- growth of classes -------------------------------------------------------------------------------------------


def test_a_taxonomy_takes_time_in_proportion_also_where_names_occur_twice() -> None:
    def seconds(n: int, twice: bool) -> float:
        names = tuple(f"class {i % (n // 2 if twice else n)}" for i in range(n))
        start = time.process_time()
        if twice:
            with pytest.raises(DataError, match="occurs twice"):
                Taxonomy(names)
        else:
            Taxonomy(names)
        return time.process_time() - start

    for twice in (False, True):
        few = min(seconds(1500, twice) for _ in range(3))
        assert min(seconds(12_000, twice) for _ in range(3)) < 24 * few


# ---- single files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ("evaluate", "m", "{d}", "-o", "{d}/keep.csv"),
        ("check", "{d}", "--html", "{d}/keep.csv"),
        ("convolutionalise", "mobilenet_v2", "{d}/a.png", "--weights", "{d}/w", "-o", "{d}/keep.csv"),
        ("convolutionalise", "mobilenet_v2", "{d}/a.png", "--weights", "{d}/w", "-o", "{d}/a.png"),
        ("convert", "{d}/keep.csv", "--model", "voc-fcn8s", "-o", "{d}"),
    ],
)
def test_no_single_result_takes_the_place_of_another_file(
    arguments: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    png(tmp_path / "a.png")
    (tmp_path / "keep.csv").write_text("image,label\n")
    before = everything(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main([a.format(d=tmp_path) for a in arguments])
    assert (stop.value.code, "another" in capsys.readouterr().err) == (2, True)
    assert everything(tmp_path) == before


@pytest.mark.parametrize("data", ["/etc/x:y", "../../x:y", "kind:/a/b", "/", "..", "a/b"])
def test_a_run_without_a_name_lies_in_runs(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fullyconv.cli.train import _free

    monkeypatch.chdir(tmp_path)
    assert _free(data).parent == Path("runs")


@pytest.mark.parametrize(
    ("files", "taken"),
    [
        (("images/a.jpg", "labels/a.png", "labels-parts/a.png"), ["images/a.jpg", "labels-parts/a.png"]),
        (("train/images/a.png", "train/masks/a.png"), ["train/images/a.png"]),
        (("train/a.png", "trainannot/a.png", "val/b.png", "valannot/b.png"), ["train/a.png", "val/b.png"]),
        (("1_sat.jpg", "1_mask.png", "2_sat.jpg", "2_mask.png"), ["1_sat.jpg", "2_sat.jpg"]),
        (("test/x.jpg", "test/x_mask.png", "train/y.jpg", "train/y_mask.png"), ["test/x.jpg", "train/y.jpg"]),
        (("a.jpg", "a.png", "b.jpg", "b.png"), ["a.jpg", "a.png", "b.jpg", "b.png"]),  # photos, perhaps
        (("face mask.jpg", "dog.jpg"), ["dog.jpg", "face mask.jpg"]),
        (("labels/a.png", "labels/b.png"), ["labels/a.png", "labels/b.png"]),
    ],
)
def test_label_maps_beside_their_images_are_not_labelled_and_counted(tmp_path, files, taken) -> None:
    from fullyconv.predict.sources import images_in

    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found = images_in(tmp_path, (".png", ".jpg"), tmp_path / "out")
    assert [f.relative_to(tmp_path).as_posix() for f in found.files] == taken
    left = len(files) - len(taken)
    assert (f"{left} label maps" in found.note(tmp_path)) == bool(left)
