"""The paper's dense-prediction experiments: their claims hold, on small inputs, before anyone prints a table."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fullyconv import metrics, scenes
from fullyconv.data import open_dataset
from fullyconv.errors import UsageError
from fullyconv.experiments import (
    chain,
    coarse_labels,
    filter_rarefaction,
    keep_cells,
    patch_sampling,
    shift_and_stitch,
    stitching,
    upper_bounds,
)


@settings(max_examples=8)  # three of four shift a network of three poolings 64 times
@given(depth=st.integers(1, 3), height=st.integers(45, 55), width=st.integers(45, 55), seed=st.integers(0, 9))
def test_shift_and_stitch_is_the_rarefied_network_to_the_last_bit(depth, height, width, seed) -> None:
    network = chain(depth, channels=3, seed=seed)
    x = torch.randint(0, 256, (1, 3, height, width), generator=torch.Generator().manual_seed(seed)).double()
    with torch.inference_mode():
        stitched, rarefied = shift_and_stitch(network, x), filter_rarefaction(network)(x)
        coarse = network(x)
    assert torch.equal(stitched, rarefied)
    assert stitched.any()
    f = 2**depth
    assert torch.equal(stitched[:, :, ::f, ::f], coarse)  # the network's own output is among it


def test_with_real_weights_only_rounding_differs() -> None:
    network, x = chain(2, integers=False), torch.randn(1, 3, 50, 41).double()
    with torch.inference_mode():
        a, b = shift_and_stitch(network, x), filter_rarefaction(network)(x)
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_padding_and_average_pooling_have_no_rarefied_twin() -> None:
    for layer in (torch.nn.Conv2d(3, 3, 3, padding=1), torch.nn.AvgPool2d(2)):
        with pytest.raises(UsageError):
            filter_rarefaction(torch.nn.Sequential(layer))


def test_an_image_too_small_to_shift_is_refused() -> None:
    with pytest.raises(UsageError, match="at least 45"):
        stitching((3,), 44)


def test_the_table_of_shift_and_stitch() -> None:
    rows = stitching((1, 2), 40)
    assert [(r["stride"], r["passes"], r["difference"]) for r in rows] == [(2, 4, 0.0), (4, 16, 0.0)]


def test_sampled_cells_are_whole_independent_and_unbiased() -> None:
    labels = torch.randint(0, 5, (4, 37, 50))
    generator = torch.Generator().manual_seed(0)
    kept = [keep_cells(labels, 16, 0.25, 255, generator) for _ in range(200)]
    shares = torch.stack([(k != 255).double() for k in kept])
    assert abs(float(shares.mean()) - 0.25) < 0.02
    for k in kept[:5]:
        assert bool(((k == 255) | (k == labels)).all())
        for cell in (k[:, y : y + 16, x : x + 16] != 255 for y in (0, 16, 32) for x in (0, 16, 32, 48)):
            flat = cell.flatten(1)
            assert bool((flat.all(1) | ~flat.any(1)).all())
    assert torch.equal(keep_cells(labels, 16, 1.0, 255, generator), labels)


@pytest.fixture(scope="module")
def streets(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("streets")
    scenes.write_scenes(directory, train=3, val=2, size=(64, 96), seed=0)
    return directory


def test_patch_sampling_starts_alike_and_pays_with_more_images(streets) -> None:
    rows = patch_sampling(open_dataset(f"folder:{streets}", "train"), keep=(1.0, 0.5), steps=2, batch=1, size=(64, 64))
    first = {r["p"]: r["loss"] for r in rows if r["step"] == 0}
    assert first[1.0] == first[0.5]
    assert {r["step"] for r in rows} == {0, 1, 2}
    assert all(np.isfinite(r["loss"]) for r in rows)
    assert rows[2]["loss"] != rows[0]["loss"]


def voted(label: np.ndarray, factor: int, classes: int) -> np.ndarray:
    """The slow twin: cell by cell."""
    out = np.zeros_like(label)
    for y in range(0, label.shape[0], factor):
        for x in range(0, label.shape[1], factor):
            cell = label[y : y + factor, x : x + factor]
            found = cell[cell != 255]
            out[y : y + factor, x : x + factor] = np.bincount(found, minlength=classes).argmax() if len(found) else 0
    return out


@given(st.integers(0, 99), st.integers(1, 9), st.integers(1, 40), st.integers(1, 40))
def test_votes_are_the_slow_twins_and_every_pixel_has_a_class(seed, factor, height, width) -> None:
    label = np.random.default_rng(seed).choice([0, 1, 2, 3, 255], (height, width)).astype(np.uint8)
    np.testing.assert_array_equal(coarse_labels(label, factor, 4, 255, "vote"), voted(label, factor, 4))
    assert coarse_labels(label, factor, 4, 255).max() < 4
    if factor == 1:
        table = metrics.confusion(label, coarse_labels(label, 1, 4, 255), 4)
        assert table.sum() == np.trace(table)


def test_bounds_fall_with_the_factor_and_a_vote_loses_fewer_pixels(streets) -> None:
    rows = upper_bounds(open_dataset(f"folder:{streets}", "val"), (1, 4, 16, 64))
    assert rows[0]["nearest"] == rows[0]["vote"] == 100
    assert [r["nearest"] for r in rows] == sorted((r["nearest"] for r in rows), reverse=True)
    assert [r["paper"] for r in rows] == [None, 98.5, 92.8, 73.3]


@pytest.mark.slow
def test_the_commands_print_tables_and_json(streets, capsys) -> None:
    from fullyconv import cli

    def run(*arguments: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as done:
            cli.main(["experiment", *arguments])
        return int(done.value.code or 0), capsys.readouterr().out

    code, out = run("upper-bounds", f"folder:{streets}", "--factors", "8,4")
    assert code == 0
    assert out.splitlines()[0].split() == ["factor", "nearest", "vote", "paper"]
    code, out = run("shift-and-stitch", "--size", "40", "--depth", "2", "--json")
    assert [r["difference"] for r in json.loads(out)["rows"]] == [0, 0]
    assert run("upper-bounds", f"folder:{streets}", "--factors", "x")[0] == 2
    assert run("patch-sampling", f"folder:{streets}", "--keep", "2")[0] == 2
