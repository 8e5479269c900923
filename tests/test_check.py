"""The doctor: every planted fault is found, named and counted; clean data stays clean; repairs repair."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import faults
import numpy as np
import pytest
from PIL import Image

from fullyconv import images
from fullyconv.cli import main
from fullyconv.data import open_dataset
from fullyconv.data.class_weights import median_frequency_weights
from fullyconv.doctor import KINDS, check, examine, refuse_errors
from fullyconv.doctor.repair import repair
from fullyconv.doctor.scan import _by_processes, _plainly
from fullyconv.errors import DataError, MissingInput, UsageError
from fullyconv.images import encode_png

SHARED = os.environ.get("FULLYCONV_SHARED")
needs_shared = pytest.mark.skipif(not SHARED, reason="FULLYCONV_SHARED is not set")
PLANTS = [(kind, fault) for kind, some in faults.FAULTS.items() for fault in some]


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return faults.clean(tmp_path_factory.mktemp("clean") / "data")


@pytest.fixture
def data(clean: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(clean, tmp_path / "data"))


def test_clean_data_have_no_finding(clean: Path) -> None:
    assert check(clean) == []


def test_the_planted_faults_are_at_least_40_of_20_kinds() -> None:
    assert len(PLANTS) >= 40
    assert len({kind for kind, _ in PLANTS}) >= 20


@pytest.mark.parametrize(("kind", "fault"), PLANTS, ids=[f.__name__ for _, f in PLANTS])
def test_a_planted_fault_is_found_in_its_file(kind: str, fault: faults.Fault, data: Path) -> None:
    named = fault(data)
    found = check(data)
    ours = [f for f in found if f.kind == kind]
    files = set(named if isinstance(named, tuple) else (named,))
    assert any(files <= set(f.files) for f in ours), [(f.kind, f.message) for f in found]
    errors = {f.kind for f in found if f.level == "error"}
    assert errors <= {kind, "image-without-label", "unreadable-file"}, "one fault, no other error"
    assert all(f.remedy and f.message and f.level == (KINDS[f.kind][0]) for f in found)


def test_all_faults_together_are_found_in_one_pass(data: Path) -> None:
    """Faults of different images, planted at once: nothing hides behind anything else."""
    some = [faults.truncated_png, faults.web_page, faults.empty_image, faults.empty_label, faults.no_label]
    some += [faults.smaller_label, faults.exif_rotation, faults.jpeg_label, faults.bilinear_label, faults.rgb_label]
    some += [faults.value_too_large, faults.off_by_one, faults.all_ignored, faults.constant_label]
    some += [faults.nearly_empty, faults.same_stem, faults.copied_to_val, faults.reencoded_to_val, faults.alpha]
    some += [faults.blank, faults.shifted, faults.link_outside]
    kinds = {kind: f for kind, many in faults.FAULTS.items() for f in many}
    assert kinds
    wanted = [(next(k for k, many in faults.FAULTS.items() if f in many), f(data)) for f in some]
    found = check(data)
    for kind, named in wanted:
        files = set(named if isinstance(named, tuple) else (named,))
        assert any(f.kind == kind and files <= set(f.files) for f in found), kind


@pytest.mark.parametrize(
    "fault",
    [
        faults.truncated_jpeg,
        faults.flipped_byte,
        faults.empty_image,
        faults.no_label,
        faults.no_image,
        faults.smaller_label,
        faults.jpeg_label,
        faults.rgb_label,
        faults.value_254,
        faults.copied_to_val,
    ],
)
def test_the_fast_check_finds_what_would_spoil_training(fault: faults.Fault, data: Path) -> None:
    fault(data)
    with pytest.raises(DataError) as refusal:
        refuse_errors(check(data, fast=True))
    assert "nothing was written" in str(refusal.value)


def test_a_refusal_names_every_kind_and_at_most_three_files_of_one(data: Path) -> None:
    for i in range(5):
        faults.image(data, i).write_bytes(b"")
    faults.no_label(data)
    faults.value_254(data)
    with pytest.raises(DataError) as refusal:
        refuse_errors(check(data, fast=True))
    text = str(refusal.value)
    assert "[empty-file]" in text
    assert "[id-out-of-range]" in text
    assert text.count("is empty") == 3
    assert "2 more" in text


def test_warnings_are_not_refused(data: Path) -> None:
    faults.constant_label(data)
    refuse_errors(check(data))


def test_binary_labels_of_0_and_255_are_named_with_the_mapping(data: Path) -> None:
    (data / "classes.txt").unlink()
    for file in data.rglob("labels/*.png"):
        faults.save(np.where(np.array(Image.open(file)) > 0, 255, 0).astype(np.uint8), file)
    found = [f for f in check(data) if f.kind == "binary-0-255"]
    assert len(found) == 31
    assert "foreground = 255" in found[0].remedy
    (data / "classes.txt").write_text("background = 0\nforeground = 255\n")
    assert [f for f in check(data) if f.level == "error"] == []
    assert set(np.unique(open_dataset(data)[0].labels["semantic"])) == {0, 1}


def test_a_stray_value_among_0_and_255_is_named_beside_everything_else_and_the_fix_ignores_it(
    data: Path, tmp_path: Path
) -> None:
    (data / "classes.txt").unlink()
    files = sorted(data.rglob("labels/*.png"))
    for i, file in enumerate(files):
        raw = np.where(images.read_label(file) > 0, 255, 0).astype(np.uint8)
        raw[0, 0] = 7 if i == 1 else raw[0, 0]
        faults.save(raw[: 38 if i == 2 else None], file)
    found = check(data)
    kinds = [f.kind for f in found]
    assert (kinds.count("size-mismatch"), kinds.count("stray-value")) == (1, 1)
    assert kinds.count("binary-0-255") == sum(255 in images.read_label(f) for f in files)
    assert not {"unused-class", "rare-class", "sparse-ids"} & set(kinds)
    stray = next(f for f in found if f.kind == "stray-value")
    assert (stray.level, stray.files, stray.value, stray.count) == ("error", (files[1],), "7", 1)
    checked = examine(data)
    repair(checked.datasets, checked.facts, checked.findings, tmp_path / "fixed")
    mended = open_dataset(tmp_path / "fixed")
    assert mended.taxonomy.names == ("background", "foreground")
    assert mended[1].labels["semantic"][0, 0] == mended.taxonomy.ignore
    assert not [f for f in check(tmp_path / "fixed") if f.level == "error"]


def test_a_rare_class_next_to_the_others_is_no_stray_value_and_one_far_off_is(data: Path) -> None:
    (data / "classes.txt").unlink()
    file = sorted(data.rglob("labels/*.png"))[0]
    raw = images.read_label(file).copy()
    for value, stray in ((int(raw.max()) + 1, False), (77, True)):
        raw[0, 0] = value
        faults.save(raw, file)
        assert ("stray-value" in {f.kind for f in check(data) if f.level == "warning"}) == stray


def test_binary_labels_are_recognised_beside_smoothed_ones_and_no_class_is_made_of_the_smoothing(data: Path) -> None:
    (data / "classes.txt").unlink()
    files = sorted(data.rglob("labels/*.png"))
    for file in files:
        faults.save(np.where(np.array(Image.open(file)) > 0, 255, 0).astype(np.uint8), file)
    for file in files[:2]:
        label = Image.open(file)
        small = label.resize((label.width // 3, label.height // 3), Image.Resampling.BILINEAR)
        small.resize(label.size, Image.Resampling.BILINEAR).save(file)
    kinds = [f.kind for f in check(data)]
    assert (kinds.count("interpolated-label"), kinds.count("binary-0-255")) == (2, len(files) - 2)
    assert not {"rare-class", "unused-class"} & set(kinds)


def test_colours_that_blend_are_blamed_on_the_file_that_has_most(data: Path) -> None:
    (data / "classes.txt").unlink()
    files = sorted(data.rglob("labels/*.png"))
    noise = np.random.default_rng(0).integers(0, 256, (*np.array(Image.open(files[3])).shape, 3), dtype=np.uint8)
    for file in files:
        faults.save(np.zeros((*np.array(Image.open(file)).shape, 3), np.uint8), file)
    faults.save(noise, files[3])
    (found,) = check(data)
    assert found.kind == "no-data"
    assert str(files[3]) in found.message
    assert "without smoothing" in found.message


def test_classes_missing_unused_and_rare_are_counted(data: Path) -> None:
    (data / "classes.txt").write_text("\n".join([*faults.NAMES, "nowhere"]))
    for file in (data / "val" / "labels").iterdir():
        values = np.array(Image.open(file))
        faults.save(np.where(values == 3, 0, values).astype(np.uint8), file)
    found = {(f.kind, f.value) for f in check(data)}
    assert ("unused-class", "4") in found
    assert ("class-missing-from-val", "3") in found
    assert ("class-missing-from-train", "3") not in found


def test_one_class_and_no_labels_and_no_data_are_errors(data: Path, tmp_path: Path) -> None:
    (data / "classes.txt").unlink()
    for file in data.rglob("labels/*.png"):
        faults.save(np.zeros(faults.SIZE, np.uint8), file)
    assert "one-class" in {f.kind for f in check(data)}
    shutil.rmtree(data / "train" / "labels")
    shutil.rmtree(data / "val")
    assert {f.kind for f in check(data) if f.level == "error"} == {"no-labels"}
    (tmp_path / "nothing").mkdir()
    assert [f.kind for f in check(tmp_path / "nothing")] == ["no-data"]
    with pytest.raises(MissingInput):
        check(tmp_path / "absent")


def test_labels_of_0_and_255_are_not_said_to_hold_one_class(data: Path) -> None:
    (data / "classes.txt").unlink()
    for file in data.rglob("labels/*.png"):
        faults.save(np.where(np.array(Image.open(file)) > 1, 255, 0).astype(np.uint8), file)
    assert {f.kind for f in check(data) if f.level == "error"} == {"binary-0-255"}
    (data / "classes.txt").write_text("background = 0\n!nothing = 255\n")
    assert "one-class" in {f.kind for f in check(data)}  # 255 is ignored because the user says so


def test_a_repaired_copy_never_takes_the_place_of_something(data: Path, tmp_path: Path) -> None:
    found = examine(data)
    (tmp_path / "fixed").mkdir()
    with pytest.raises(UsageError, match="exists already; name a new folder"):
        repair(found.datasets, found.facts, found.findings, tmp_path / "fixed")


def test_ids_from_one_without_class_names_are_pointed_out(data: Path) -> None:
    (data / "classes.txt").unlink()
    for file in data.rglob("labels/*.png"):
        faults.save(np.array(Image.open(file)) + 1, file)
    assert "ids-start-at-one" in {f.kind for f in check(data)}


def test_a_set_whose_ids_all_start_at_one_is_moved_as_a_whole(data: Path, tmp_path: Path) -> None:
    for file in data.rglob("labels/*.png"):
        values = np.array(Image.open(file))
        some = np.where(values == 3, 2, values) if file.stem < "p010" else values  # class 3 is not in all
        faults.save(some + 1, file)
    found = examine(data)
    assert sum(f.kind == "off-by-one-ids" for f in found.findings) == 31
    repair(found.datasets, found.facts, found.findings, tmp_path / "fixed")
    fixed = open_dataset(tmp_path / "fixed")
    truth = faults.scene(0)[1]
    np.testing.assert_array_equal(fixed[0].labels["semantic"], np.where(truth == 3, 2, truth))


def test_files_that_a_list_takes_from_elsewhere_are_no_links(data: Path) -> None:
    (data / "val" / "list.csv").write_text("image,label\n../train/images/p000.png,../train/labels/p000.png\n")
    assert "symlink-outside" not in {f.kind for f in check(data / "val" / "list.csv")}


def test_links_out_of_the_set_are_said_once_a_folder_with_their_number(data: Path, tmp_path: Path) -> None:
    for name in ("p001", "p002", "p003"):
        away = tmp_path / f"{name}.png"
        (data / "train" / "images" / f"{name}.png").rename(away)
        (data / "train" / "images" / f"{name}.png").symlink_to(away)
    (found,) = (f for f in check(data) if f.kind == "symlink-outside")
    assert found.count == 3
    assert "as are 2 others in its folder" in found.message


def test_colour_labels_without_a_table_are_shown_and_warned_of(data: Path) -> None:
    (data / "classes.txt").unlink()
    for file in data.rglob("labels/*.png"):
        faults.save(faults.COLOURS[np.array(Image.open(file))].astype(np.uint8), file)
    found = check(data)
    assert [f.kind for f in found if f.level == "error"] == []
    assert "colours-inferred" in {f.kind for f in found}
    (data / "classes.txt").write_text("a 60 110 70\nb 200 60 50\nc 60 80 200\n")
    unknown = [f for f in check(data) if f.kind == "unknown-colour"]
    assert len(unknown) == 31
    assert "(220, 200, 60)" in unknown[0].message


def test_groups_in_two_splits_are_named(data: Path) -> None:
    rows = ["image,label,split,group"]
    rows += [
        f"{s}/images/p00{i}.png,{s}/labels/p00{i}.png,{s},video{i % 3}" for s in ("train", "val") for i in range(4)
    ]
    (data / "list.csv").write_text("\n".join(rows))
    found = [f for f in check(data / "list.csv") if f.kind == "group-across-splits"]
    assert {f.value for f in found} == {"video0", "video1", "video2"}


def test_processes_find_the_same_facts_as_one_loop(clean: Path) -> None:
    dataset = open_dataset(clean)
    work = [(dataset, r) for r in dataset.records]
    for a, b in zip(_plainly(work, False), _by_processes(work, False), strict=True):
        assert a.inputs[0].pixels == b.inputs[0].pixels
        assert (a.labels[0].counts == b.labels[0].counts).all()
        assert a.labels[0].shift == b.labels[0].shift


def test_as_many_processes_check_as_cores_were_granted(clean: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, asked = sys.modules[_by_processes.__module__], list[int]()  # the package's `scan` is a function

    class Pool(ProcessPoolExecutor):
        def __init__(self, processes: int, *others: object) -> None:
            asked.append(processes)
            super().__init__(processes, *others)

    monkeypatch.setattr(module, "ProcessPoolExecutor", Pool)
    work = [(data, record) for data in [open_dataset(f"folder:{clean}")] for record in data.records]
    for granted in (0.5, 1.5, 64.0):
        monkeypatch.setattr(module, "cores_granted", lambda granted=granted: granted)
        assert len(list(_by_processes(work, True))) == len(work)
    assert asked == [1, 2, 8]


def test_the_summary_counts_pixels_and_measures_channels(clean: Path) -> None:
    summary = examine(clean).summary
    assert summary is not None
    train = open_dataset(clean)
    labels = np.stack([s.labels["semantic"] for s in train])
    assert summary.heads["semantic"].pixels == [int((labels == k).sum()) for k in range(4)]
    pixels = np.stack([s.image for s in train]).reshape(-1, 3).astype(float)
    np.testing.assert_allclose(summary.mean, pixels.mean(axis=0), atol=1)
    np.testing.assert_allclose(summary.std, pixels.std(axis=0), rtol=0.05)
    assert summary.images == {"train": 24, "val": 7}


def test_median_frequency_weights_follow_the_definition() -> None:
    a, b = np.array([60, 40, 0, 0]), np.array([10, 0, 90, 0])
    # frequencies: 70 of 200, 40 of 100, 90 of 100; the median is 0.4
    np.testing.assert_allclose(median_frequency_weights([a, b]), [0.4 / 0.35, 1, 0.4 / 0.9, 0])
    assert median_frequency_weights([a, b], absent=1)[3] == 1
    assert median_frequency_weights([a * 0]).tolist() == [0] * 4


def _tree(root: Path) -> str:
    files = sorted(p for p in root.rglob("*") if p.is_file())
    return hashlib.sha256(b"".join(os.fsencode(p) + p.read_bytes() for p in files)).hexdigest()


def test_the_repaired_copy_has_no_error_and_the_data_are_untouched(data: Path, tmp_path: Path) -> None:
    for fault in (faults.truncated_png, faults.exif_rotation, faults.value_too_large, faults.off_by_one, faults.alpha):
        fault(data)
    for fault in (faults.smaller_label, faults.copied_to_val, faults.jpeg_label, faults.bilinear_label):
        fault(data)
    for fault in (faults.no_label, faults.same_label_stem, faults.latin1_name):
        fault(data)
    before = _tree(data)
    found = examine(data)
    done = repair(found.datasets, found.facts, found.findings, tmp_path / "fixed")
    assert _tree(data) == before
    again = check(tmp_path / "fixed")
    assert [f.message for f in again if f.level == "error"] == []
    whole = open_dataset(tmp_path / "fixed", "all")
    assert len(whole) == done["pairs written"] == 31 - 5
    fixed = {r.name: r for r in whole.records}
    truth = faults.scene(11)[1] + 1
    ids = whole.read_labels(fixed["train/p011"], "semantic")
    assert (ids == np.where(truth == len(faults.NAMES), 255, truth)).all(), "one file alone is never moved by one"
    assert whole.taxonomies["semantic"].names == faults.NAMES


def _coco(root: Path) -> Path:
    """Three images in one JSON, each with a square of its own size and class; the last is all background."""
    images, annotations = [], []
    for i in range(3):
        faults.save(faults.scene(i, (40, 48))[0], root / "images" / f"p{i}.png")
        images.append({"id": i, "file_name": f"p{i}.png", "height": 40, "width": 48})
        x = 10.0 + 10 * i
        outline = [[2.0, 2.0, x, 2.0, x, x, 2.0, x]]
        annotations.append({"id": i, "image_id": i, "category_id": i + 1, "segmentation": outline, "iscrowd": 0})
    categories = [{"id": k, "name": f"c{k}"} for k in (1, 2, 3)]
    text = json.dumps({"images": images, "annotations": annotations[:2], "categories": categories})
    (root / "annotations.json").write_text(text)
    return root


def test_a_copy_of_annotated_images_keeps_every_label_with_its_image(tmp_path: Path) -> None:
    data = _coco(tmp_path / "coco")
    found = examine(data)
    (constant,) = (f for f in found.findings if f.kind == "constant-label")
    assert constant.files == (data / "images" / "p2.png",), "the image is named, not the file of all labels"
    repair(found.datasets, found.facts, found.findings, tmp_path / "fixed")
    for ours, theirs in zip(open_dataset(tmp_path / "fixed"), open_dataset(data), strict=True):
        np.testing.assert_array_equal(ours.image, theirs.image)
        np.testing.assert_array_equal(ours.labels["semantic"], theirs.labels["semantic"])


def test_an_image_kept_inside_its_annotation_is_copied(tmp_path: Path) -> None:
    image = faults.scene(0, (40, 48))[0]
    inside = base64.b64encode(encode_png(image)).decode()
    shape = {"label": "car", "points": [[2, 2], [20, 2], [20, 20]], "shape_type": "polygon"}
    value = {"shapes": [shape], "imagePath": "gone.png", "imageData": inside, "imageHeight": 40, "imageWidth": 48}
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.json").write_text(json.dumps(value))
    found = examine(tmp_path / "data")
    repair(found.datasets, found.facts, found.findings, tmp_path / "fixed")
    np.testing.assert_array_equal(open_dataset(tmp_path / "fixed")[0].image, image)


def test_an_image_in_the_lists_of_both_splits_stays_in_the_measured_one(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for i in range(4):
        image, label = faults.scene(i, (40, 48))
        faults.save(image, data / "images" / f"p{i}.png")
        faults.save(label, data / "labels" / f"p{i}.png")
    (data / "train.txt").write_text("p0\np1\np2\n")
    (data / "val.txt").write_text("p2\np3\n")
    found = examine(data)
    (twice,) = (f for f in found.findings if f.kind == "duplicate-across-splits")
    assert "p2 is both in train and in val" in twice.message
    repair(found.datasets, found.facts, found.findings, tmp_path / "fixed")
    assert [r.name for r in open_dataset(tmp_path / "fixed", "train").records] == ["p0", "p1"]
    assert [r.name for r in open_dataset(tmp_path / "fixed", "val").records] == ["p2", "p3"]


def test_a_repaired_copy_never_lies_in_the_data_nor_over_something(data: Path, tmp_path: Path) -> None:
    found = examine(data)
    with pytest.raises(UsageError, match="inside the data"):
        repair(found.datasets, found.facts, found.findings, data / "fixed")
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_text("mine")
    with pytest.raises(Exception, match="there"):
        repair(found.datasets, found.facts, found.findings, tmp_path / "there")
    assert (tmp_path / "there" / "file").read_text() == "mine"


def test_the_binary_fix_gives_two_classes(data: Path, tmp_path: Path) -> None:
    (data / "classes.txt").unlink()
    for file in data.rglob("labels/*.png"):
        faults.save(np.where(np.array(Image.open(file)) > 0, 255, 0).astype(np.uint8), file)
    found = examine(data)
    repair(found.datasets, found.facts, found.findings, tmp_path / "fixed")
    assert open_dataset(tmp_path / "fixed").taxonomy.names == ("background", "foreground")


# ---- the command -----------------------------------------------------------------------------------------------


def _run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as end:
        main(["check", *arguments])
    return int(end.value.code or 0), capsys.readouterr().out


def test_the_command_prints_json_and_exits_65_on_errors(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out = _run(capsys, str(data), "--json", "--quiet")
    assert code == 0
    assert json.loads(out)["findings"] == []
    faults.value_254(data)
    faults.copied_to_val(data)
    code, out = _run(capsys, str(data), "--json", "--quiet")
    assert code == 65
    found = {f["kind"]: f for f in json.loads(out)["findings"]}
    assert found["id-out-of-range"]["file"].endswith("p003.png")
    assert found["id-out-of-range"]["level"] == "error"
    assert len(found["duplicate-across-splits"]["files"]) == 2
    assert {"kind", "level", "message", "remedy"} <= found["id-out-of-range"].keys()


def test_the_command_writes_a_sheet_without_anything_from_outside(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    faults.value_too_large(data)
    faults.control_name(data)
    code, out = _run(capsys, str(data), "--html", str(tmp_path / "sheet.html"))
    page = (tmp_path / "sheet.html").read_text()
    assert code == 65
    assert "data:image/png;base64" in page
    assert "http" not in page
    assert "\x1b" not in page + out
    assert "id-out-of-range" in out
    assert "1 error," in out


# ---- real data -------------------------------------------------------------------------------------------------


@needs_shared
@pytest.mark.slow
@pytest.mark.parametrize("spec", ["camvid:camvid", "voc:voc/VOCdevkit"])
def test_real_sets_give_no_error(spec: str) -> None:
    kind, _, path = spec.partition(":")
    found = check(f"{kind}:{SHARED}/data/{path}")
    assert [f.message for f in found if f.level == "error"] == []
    assert "near-duplicate-across-splits" not in {f.kind for f in found}, "no false alarm"
