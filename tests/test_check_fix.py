"""`check --fix` judges sets and never changes a sound label: over many drawn sets with faults in some files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from image_files import encoded
from numpy.typing import NDArray

from fullyconv import images
from fullyconv.data import open_dataset
from fullyconv.doctor import check, examine
from fullyconv.doctor.repair import repair

SIZE = (20, 24)


def write(root: Path, labels: list[NDArray[np.uint8]], classes: str) -> None:
    rng = np.random.default_rng(len(labels))
    for name in ("images", "labels"):
        (root / name).mkdir(parents=True)
    for i, label in enumerate(labels):
        noise = rng.integers(0, 255, (*label.shape, 3), dtype=np.uint8)
        (root / "images" / f"{i}.png").write_bytes(encoded(noise))
        images.write_label(root / "labels" / f"{i}.png", label)
    if classes:
        (root / "classes.txt").write_text(classes)


def drawn(rng: np.random.Generator, classes: int) -> NDArray[np.uint8]:
    """A sound label: blocks of some of the classes (0 often among them), now and then ignored pixels."""
    ids = rng.choice(classes, size=int(rng.integers(1, classes + 1)), replace=False)
    label = np.repeat(np.repeat(rng.choice(ids, (5, 6)), 4, 0), 4, 1).astype(np.uint8)
    if rng.random() < 0.4:
        label[:4, :8] = 255
    return label


def spoiled(label: NDArray[np.uint8], classes: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """`label` with a slip of the brush: some pixels of a value that is no class, and perhaps no 0 left."""
    label = label.copy()
    if rng.random() < 0.5:
        label[label == 0] = min(1, classes - 1)
    label[8:10, :5] = classes if rng.random() < 0.7 else rng.integers(classes, 255)
    return label


@pytest.mark.parametrize("seed", range(40))
def test_what_had_no_finding_comes_out_as_it_was(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    classes = int(rng.integers(2, 6))
    sound = [drawn(rng, classes) for _ in range(int(rng.integers(4, 14)))]
    bad = set(rng.choice(len(sound), size=min(len(sound), int(rng.integers(0, 3))), replace=False).tolist())
    labels = [spoiled(v, classes, rng) if i in bad else v for i, v in enumerate(sound)]
    if any(0 in v for i, v in enumerate(labels)):  # else they may rightly be taken for a set that starts at 1
        write(tmp_path / "set", labels, "".join(f"c{k}\n" for k in range(classes)) if rng.random() < 0.7 else "")
        found = examine(tmp_path / "set")
        changing = ("id-out-of-range", "off-by-one-ids", "binary-0-255", "interpolated-label")
        named = {f.stem for one in found.findings if one.kind in changing for f in one.files}
        assert named <= {str(i) for i in bad}, "a sound label is not called wrong"
        repair(found.datasets, found.facts, found.findings, tmp_path / "fixed")
        fixed = open_dataset(tmp_path / "fixed")
        for record in fixed.records:
            ids, before = fixed.read_labels(record, "semantic"), labels[int(record.name)]
            known = before < len(fixed.taxonomy)
            np.testing.assert_array_equal(ids[known], before[known], err_msg=f"{record.name} in {bad}")
            assert (ids[~known] == 255).all()


def test_a_stray_value_in_one_file_is_no_set_that_starts_at_one(tmp_path: Path) -> None:
    base = np.repeat([0, 1, 2], 160).reshape(SIZE).astype(np.uint8)
    stray = np.where(base == 0, 1, base).astype(np.uint8)
    stray[:2, :5] = 3
    for name, labels in (("a", [base] * 5 + [stray]), ("b", [stray] + [base] * 5), ("c", [base, stray])):
        write(tmp_path / name, labels, "background\ndisc\nsquare\n")
        kinds = {f.kind for f in check(tmp_path / name) if f.level == "error"} - {"duplicate-in-split"}
        assert kinds == {"id-out-of-range"}


def test_a_stray_value_in_one_of_many_files_without_0_is_no_start_at_one_either(tmp_path: Path) -> None:
    """All files lack 0 (a class that is rare), one of 12 holds a stray 3: the others hold sound ids 1 and 2."""
    base = np.repeat([1, 2, 2], 160).reshape(SIZE).astype(np.uint8)
    stray = base.copy()
    stray[:2, :5] = 3
    write(tmp_path / "set", [base] * 11 + [stray], "background\ndisc\nsquare\n")
    assert "off-by-one-ids" not in {f.kind for f in check(tmp_path / "set")}


def test_a_void_border_of_255_beside_two_classes_is_not_taken_for_foreground(tmp_path: Path) -> None:
    """One file of a two-class set holds background and void alone; 255 became class 1 in the repaired copy."""
    base = np.repeat([0, 1, 255], 160).reshape(SIZE).astype(np.uint8)
    void = np.where(base == 1, 0, base).astype(np.uint8)
    write(tmp_path / "set", [base, base[::-1], void], "ground\nthing\n")
    found = examine(tmp_path / "set")
    assert "binary-0-255" not in {f.kind for f in found.findings}
    repair(found.datasets, found.facts, found.findings, tmp_path / "fixed")
    np.testing.assert_array_equal(open_dataset(tmp_path / "fixed")[2].labels["semantic"], void)
