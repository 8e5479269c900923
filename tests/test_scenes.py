"""Procedural scenes: the same seed gives the same files; labels, depth and camera agree with each other."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fullyconv import scenes
from fullyconv.errors import UsageError

NAMES = scenes.SEMANTIC.names


@pytest.fixture(scope="module")
def many() -> list[scenes.Scene]:
    return [scenes.render_scene((0, 0, i), (72, 96)) for i in range(24)]


def test_a_seed_gives_the_same_bytes_and_another_seed_others() -> None:
    one, two, other = (scenes.render_scene(s, (48, 64)) for s in (5, 5, 6))
    for part in ("image", "depth", "semantic", "geometric"):
        assert np.array_equal(getattr(one, part), getattr(two, part))
    assert not np.array_equal(one.image, other.image)


@pytest.mark.parametrize("size", [(8, 8), (31, 57), (60, 40)])
def test_any_size_is_honoured(size: tuple[int, int]) -> None:
    scene = scenes.render_scene(1, size)
    assert scene.image.shape == (*size, 3)
    assert scene.image.dtype == np.uint8
    assert scene.depth.shape == scene.semantic.shape == scene.geometric.shape == size
    assert scene.depth.dtype == np.uint16


def test_a_size_that_shows_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="4x60"):
        scenes.render_scene(1, (4, 60))


def test_every_class_occurs_and_none_rules(many: list[scenes.Scene]) -> None:
    counts = np.bincount(np.concatenate([s.semantic.ravel() for s in many]), minlength=len(NAMES))
    share = counts / counts.sum()
    assert len(share) == len(NAMES)
    assert share.min() > 0.001
    assert share.max() < 0.5


def test_the_geometric_label_follows_from_what_the_thing_is(many: list[scenes.Scene]) -> None:
    for s in many:
        assert np.array_equal(s.semantic == NAMES.index("sky"), s.geometric == 0)
        upright = np.isin(s.semantic, [NAMES.index(n) for n in ("vegetation", "person", "pole", "sign")])
        assert (s.geometric[upright & (s.semantic != NAMES.index("vegetation"))] == 2).all()
        assert (s.geometric[s.semantic == NAMES.index("road")] == 1).all()
    flat_cars = np.concatenate([s.geometric[s.semantic == NAMES.index("car")] for s in many])
    assert set(flat_cars) == {1, 2}  # roofs and sides: the second map is not a function of the first


def test_road_pixels_lie_on_one_plane_below_the_camera(many: list[scenes.Scene]) -> None:
    """Back-projected with camera.json (1-based principal point), the road is flat to the depth noise."""
    for s in many[:6]:
        row, col = np.nonzero((s.semantic == NAMES.index("road")) & (s.depth > 0) & (s.depth < 12000))
        z = s.depth[row, col] / 1000
        x, y = ((i + 1 - s.camera[c]) / s.camera[f] * z for i, c, f in ((col, "cx", "fx"), (row, "cy", "fy")))
        system = np.stack([x, z, np.ones_like(z)], -1)
        fit, *_ = np.linalg.lstsq(system, y, rcond=None)
        assert np.abs(system @ fit - y).mean() < 0.02
        assert 1.0 < fit[2] < 3.0  # the eye's height above the road


def test_depth_has_holes_and_none_in_the_sky_is_measured(many: list[scenes.Scene]) -> None:
    for s in many:
        assert (s.depth[s.semantic == 0] == 0).all()
        seen = s.depth[s.semantic != 0]
        assert 0 < (seen == 0).mean() < 0.4
        assert seen.max() < scenes.FAR * 1000


def test_colour_does_not_decide(many: list[scenes.Scene]) -> None:
    """The best guess from a pixel's colour alone (a table fitted on the very pixels it judges) stays poor."""
    colours = np.concatenate([(s.image // 16).reshape(-1, 3) @ [256, 16, 1] for s in many]).astype(np.int64)
    labels = np.concatenate([s.semantic.ravel() for s in many]).astype(np.int64)
    table = np.zeros((4096, len(NAMES)), np.int64)
    np.add.at(table, (colours, labels), 1)
    assert 0.45 < table.max(1).sum() / len(labels) < 0.8


def test_write_gives_a_folder_data_set_whose_scenes_do_not_depend_on_their_number(tmp_path: Path) -> None:
    small = scenes.write_scenes(tmp_path / "small", train=1, val=1, size=(24, 32), seed=3)
    large = scenes.write_scenes(tmp_path / "large", train=3, val=2, size=(24, 32), seed=3)
    for part in ("images", "depth", "labels", "labels-geometric"):
        assert [p.name for p in sorted((large / "train" / part).iterdir())] == ["00000.png", "00001.png", "00002.png"]
        for split in ("train", "val"):
            first = f"{split}/{part}/00000.png"
            assert (small / first).read_bytes() == (large / first).read_bytes()
    assert json.loads((large / "camera.json").read_text()) == scenes.camera((24, 32))
    lines = [line.split() for line in (large / "classes.txt").read_text().splitlines()]
    assert tuple(line[0] for line in lines) == NAMES


def test_scenes_are_never_written_among_other_files(tmp_path: Path) -> None:
    root = scenes.write_scenes(tmp_path / "scenes", train=1, val=0, size=(24, 32))
    before = {p: p.read_bytes() for p in root.rglob("*") if p.is_file()}
    with pytest.raises(UsageError, match="holds something already"):
        scenes.write_scenes(root, train=2, val=0, size=(32, 48))
    assert {p: p.read_bytes() for p in root.rglob("*") if p.is_file()} == before


def test_written_files_hold_what_was_rendered(tmp_path: Path) -> None:
    root = scenes.write_scenes(tmp_path, train=0, val=1, size=(24, 32), seed=4)
    scene = scenes.render_scene((4, 1, 0), (24, 32))
    label = Image.open(root / "val/labels/00000.png")
    assert label.mode == "P"
    assert label.getpalette()[:30] == [v for c in scenes.SEMANTIC.palette for v in c]  # type: ignore[index]
    assert np.array_equal(np.asarray(label), scene.semantic)
    assert np.array_equal(np.asarray(Image.open(root / "val/labels-geometric/00000.png")), scene.geometric)
    assert np.array_equal(np.asarray(Image.open(root / "val/depth/00000.png")).astype(np.uint16), scene.depth)
    assert np.array_equal(np.asarray(Image.open(root / "val/images/00000.png")), scene.image)
