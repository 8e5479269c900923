"""docs/extending.md: its corpus, trunk, loss and transform are run as they stand there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import fullyconv as fc
from fullyconv.models.trunks import TRUNKS

PAGE = Path(__file__).parent.parent / "docs" / "extending.md"


@pytest.fixture(scope="module")
def page() -> Any:
    """What the page's Python defines."""
    names: dict[str, Any] = {"__name__": "extending"}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.S):
        exec(compile(block, str(PAGE), "exec"), names)
    yield names
    del TRUNKS["five"]


def test_the_corpus_is_read_checked_and_measured(page: Any, tmp_path: Path) -> None:
    from fullyconv import doctor as check

    for folder in ("tiles", "water"):
        (tmp_path / folder).mkdir()
    for i in range(4):
        water = np.zeros((24, 32), np.uint8)
        water[:, 4 * i : 4 * i + 12] = 255
        image = np.random.default_rng(i).integers(0, 90, (24, 32, 3), np.uint8)
        image[..., 2] += water // 2
        Image.fromarray(image).save(tmp_path / "tiles" / f"{i}.png")
        Image.fromarray(water).save(tmp_path / "water" / f"{i}.png")
    data = page["open_rivers"](tmp_path)
    assert len(data) == 4
    assert np.array_equal(np.unique(data[0].labels["semantic"]), [0, 1])
    assert [f for f in check.check(data) if f.level == "error"] == []


def test_the_trunk_gives_every_network_of_the_grammar(page: Any) -> None:
    for stride in (32, 16, 8):
        model = fc.create(f"fcn{stride}s-five", 3, quiet=True).eval()
        assert model.geometry(33, 47).exact
        with torch.no_grad():
            assert model(torch.zeros(1, 3, 33, 47))["out"].shape == (1, 3, 33, 47)


def test_the_loss_falls_where_the_scores_are_right(page: Any) -> None:
    labels = torch.zeros(1, 16, 16, dtype=torch.int64)
    labels[:, :, 8:] = 1
    labels[0, 0, 0] = 255
    right = torch.stack([labels[:, ::8, ::8] != 1, labels[:, ::8, ::8] == 1], 1).float() * 20 - 10
    good, bad = (page["dice_loss"](s, labels, 8, 4.0, "replicate") for s in (right, -right))
    assert float(good) < 0.25 < 0.7 < float(bad)


def test_the_transform_darkens_one_side_and_leaves_the_labels(page: Any) -> None:
    from fullyconv.data.base import Sample
    from fullyconv.data.pipeline.own import changed_by

    before = Sample("s", np.full((8, 9, 3), 200, np.uint8), {"semantic": np.arange(72, dtype=np.uint8).reshape(8, 9)})
    after = changed_by(page["shadow"], "shadow", before, np.random.default_rng(0))
    assert 80 <= after.image.min() < after.image.max() <= 200
    assert np.array_equal(after.labels["semantic"], before.labels["semantic"])
