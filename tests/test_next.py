"""Which images to label next: groups first, then doubt; and the command with its page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import fullyconv
from fullyconv import ops
from fullyconv.cli import main
from fullyconv.curation import features
from fullyconv.curation.picking import pick, uncertain_share
from fullyconv.curation.queue import Suggestion, suggest
from fullyconv.errors import MissingInput, UsageError
from fullyconv.predict import Predictor


def clouds(sizes: list[int], seed: int = 0) -> np.ndarray:
    """Tight groups of points far from each other."""
    draw = np.random.default_rng(seed)
    middles = np.eye(len(sizes)) * 10
    return np.concatenate([m + draw.normal(0, 0.01, (n, len(m))) for m, n in zip(middles, sizes, strict=True)]).astype(
        np.float32
    )


def test_each_group_gives_one_before_any_gives_two_the_largest_first() -> None:
    points = clouds([3, 9, 5, 1])
    chosen = pick(points, points[:0], np.ones(len(points)), 6)
    groups = np.repeat(np.arange(4), [3, 9, 5, 1])
    assert [groups[p.index] for p in chosen[:4]] == [1, 2, 0, 3]
    assert [p.stands_for for p in pick(points, points[:0], np.ones(len(points)), 4)] == [9, 5, 3, 1]
    assert sum(p.stands_for for p in chosen) == 18


def test_groups_with_labelled_images_come_last() -> None:
    points = clouds([9, 5, 5])
    chosen = pick(points[7:], points[:7], np.ones(12), 2)
    assert {(p.index - 2) // 5 for p in chosen} == {0, 1}


def test_what_the_network_doubts_is_covered_before_what_it_is_sure_of() -> None:
    points = clouds([6, 5])
    unsure = np.repeat([0.05, 0.5], [6, 5])
    assert pick(points, points[:0], unsure, 1)[0].index >= 6
    assert pick(points, points[:0], unsure[::-1], 1)[0].index < 6


def test_among_images_as_good_the_least_sure_is_chosen() -> None:
    points = clouds([8, 8])
    unsure = np.full(16, 0.2)
    unsure[[3, 11]] = 0.3
    assert {p.index for p in pick(points, points[:0], unsure, 2)} == {3, 11}


@given(
    n=st.integers(1, 30), m=st.integers(0, 10), count=st.integers(1, 40), same=st.booleans(), seed=st.integers(0, 99)
)
@settings(max_examples=40, deadline=None)
def test_no_image_is_chosen_twice_and_the_same_images_give_the_same_choice(
    n: int, m: int, count: int, same: bool, seed: int
) -> None:
    draw = np.random.default_rng(seed)
    x = np.ones((n + m, 3), np.float32) if same else draw.normal(size=(n + m, 3)).astype(np.float32)
    unsure = draw.uniform(size=n)
    first = pick(x[:n], x[n:], unsure, count)
    assert first == pick(x[:n], x[n:], unsure, count)
    assert len({p.index for p in first}) == len(first) == min(n, count)


def test_of_very_many_images_an_even_part_is_counted() -> None:
    points = clouds([30, 20, 10])
    whole = pick(points, points[:0], np.ones(60), 3)
    part = pick(points, points[:0], np.ones(60), 3, most_covered=20)
    group = np.repeat(np.arange(3), [30, 20, 10])
    assert {group[p.index] for p in part} == {group[p.index] for p in whole} == {0, 1, 2}
    assert part[1].stands_for == pytest.approx(20, abs=3)


def test_doubt_along_borders_does_not_count() -> None:
    labels = np.zeros((40, 40), np.uint8)
    labels[:, 20:] = 1
    confidence = np.ones((40, 40), np.float32)
    confidence[:, 17:23] = 0.3
    assert uncertain_share(labels, confidence) == 0
    confidence[:10, :5] = 0
    assert uncertain_share(labels, confidence) == pytest.approx(50 / (40 * 32))
    tiny = np.arange(16, dtype=np.uint8).reshape(4, 4)  # borders everywhere
    assert uncertain_share(tiny, np.full((4, 4), 0.25, np.float32)) == pytest.approx(0.75)


def test_reasons_say_how_many_images_it_stands_for_and_the_doubt() -> None:
    assert Suggestion(Path("a"), 0.123, 7).reason == "nearest to 6 others; unsure of 12 %"
    assert Suggestion(Path("a"), 0, 2).reason == "nearest to 1 other; unsure of 0 %"
    assert Suggestion(Path("a"), 1, 1).reason == "unlike the others; unsure of 100 %"


# ---- features --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def network() -> Any:
    found = fullyconv.create("fcn16s-squeezenet1_0", 3, seed=0)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in found.head_parameters():
            p.copy_(torch.randn(p.shape, generator=draw) * 0.05)
    return found.eval()


def test_features_that_were_kept_score_as_the_whole_network_does(network: Any) -> None:
    image = np.random.default_rng(1).integers(0, 255, (40, 56, 3)).astype(np.uint8)
    seen = features.look(network, image)
    labels, confidence, coarse = features.read_out(network, seen.features, seen.size, "semantic")
    wanted, probability = Predictor(network).confident_labels(image)["semantic"]
    assert (labels == wanted).mean() > 0.999  # folded batch norm rounds otherwise
    assert np.abs(confidence - probability).max() < 1e-3
    store = features.FeatureStore()
    index = store.add(seen)
    for key, taps in store[index].items():
        for tap, value in taps.items():
            torch.testing.assert_close(value, seen.features[key][tap], rtol=1e-3, atol=1e-4)
    given_labels = np.random.default_rng(2).integers(0, 3, (40, 56)).astype(np.uint8)
    given_labels[0, 0] = 255
    found = features.probability_of(network, coarse, given_labels, seen.size, 255)
    g = network.geometry(40, 56)
    full = ops.upsample(coarse, seen.size, g.stride, g.offset, g.border)[0].softmax(0).detach().numpy()
    at = np.where(given_labels == 255, 0, given_labels)
    wanted_p = np.take_along_axis(full, at[None].astype(int), 0)[0]
    wanted_p[0, 0] = 0
    assert np.abs(found - wanted_p).max() < 1e-5
    store.close()


def test_score_layers_learn_on_kept_features_and_the_trunk_stays(network: Any) -> None:
    draw = np.random.default_rng(0)
    store, labels = features.FeatureStore(), []
    for k in range(3):
        image = np.full((32, 48, 3), 60 + 60 * k, np.uint8)
        image[:, 24:] = draw.integers(0, 255, (32, 24, 3))
        store.add(features.look(network, image))
        label = np.zeros((32, 48), np.uint8)
        label[:, 24:] = 1  # what is noisy
        label[0] = 255
        labels.append(label)
    trunk = [p.detach().clone() for p in network.trunk_parameters()]
    heads = [p.detach().clone() for p in network.head_parameters()]
    with features.kept_heads(network):
        again: list[list[torch.Tensor]] = []
        for _ in range(2):
            features.learn_heads(
                network, store, [0, 1, 2], labels.__getitem__, head="semantic", ignore=255, steps=30, lr=0.02, seed=3
            )
            again.append([p.detach().clone() for p in network.head_parameters()])
        for i in range(3):
            found, _, _ = features.read_out(network, store[i], store.sizes[i], "semantic")
            assert (found == labels[i])[1:].mean() > 0.8
    assert all(map(torch.equal, *again))
    assert all(map(torch.equal, trunk, network.trunk_parameters()))
    assert all(map(torch.equal, heads, network.head_parameters()))
    store.close()


# ---- the command -----------------------------------------------------------------------------------------------


def photos(folder: Path, count: int = 6) -> list[Path]:
    folder.mkdir()
    draw = np.random.default_rng(5)
    files = []
    for i in range(count):
        pixels = np.full((32, 40, 3), 40 * (i % 3), np.uint8) + draw.integers(0, 9, (32, 40, 3)).astype(np.uint8)
        files.append(folder / f"ä{i}<b>.png")
        Image.fromarray(pixels).save(files[-1])
    return files


def test_the_command_lists_images_and_writes_a_page_with_reasons(network: Any, tmp_path: Path, capsys: Any) -> None:
    network.save_pretrained(tmp_path / "m")
    files = photos(tmp_path / "p")
    (tmp_path / "p/bad.png").write_bytes(b"\x89PNG\r\n\x1a\nnot one")
    main_ = ["next", f"{tmp_path}/m", f"{tmp_path}/p", "-n", "3", "-o", f"{tmp_path}/page.html"]
    with pytest.raises(SystemExit) as left:
        main(main_)
    assert not left.value.code
    output = capsys.readouterr()
    listed = output.out.split("\n")[:-1]
    assert len(listed) == len(set(listed)) == 3
    assert set(listed) <= set(map(str, files))
    assert len({int(Path(f).name[1]) % 3 for f in listed}) == 3, "three kinds of images, one of each"
    assert "bad.png" in output.err
    page = (tmp_path / "page.html").read_text()
    assert page.count("data:image/jpeg") == 3
    assert "&lt;b&gt;" in page
    assert "<b>" not in page
    assert "unsure of" in page
    with pytest.raises(SystemExit):
        main([*main_, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert [row["image"] for row in found["images"]] == listed


def test_a_folder_without_images_and_an_exported_file_are_refused(network: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no exported file"):
        suggest(object(), [], [], 1)
    bad = tmp_path / "x.png"
    bad.write_bytes(b"nothing")
    with pytest.raises(MissingInput, match="None of the images"):
        suggest(network, [bad], [], 1)


def test_a_page_that_no_browser_would_show_as_one_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as done:
        main(["next", "m", f"{tmp_path}", "-o", f"{tmp_path}/page"])
    assert done.value.code == 2
    assert "name it page.html" in capsys.readouterr().err
