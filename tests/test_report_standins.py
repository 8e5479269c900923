"""The paper's comparisons tried on other data: set apart from the published rows, judged by their figures alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_report_paper import NYUD, VOC, measured

from fullyconv.report.collect import KeptEvaluation
from fullyconv.report.paper import Measured, lines, markdown, write_paper
from fullyconv.report.published import TABLES
from fullyconv.report.replication import IDEAS, stand_ins

SIFT = next(t for t in TABLES if t.kind == "siftflow")


def learned(
    network: str, right: float, before: tuple[str, ...] = (), inputs: tuple[str, ...] = ("rgb",), kind: str = "camvid",
    heads: tuple[str, ...] = ("semantic",), **training: Any,
) -> Measured:  # fmt: skip
    """A result of that pixel accuracy on 30 images, with what its run wrote down."""
    found = measured(network, kind=kind, split="val", images=30)
    data = {**found.result.about["data"], "inputs": list(inputs)}
    how = {"from": list(before), "length": "4 epochs", "frozen_trunk": False} | training
    about = {**found.result.about, "data": data, "model": {"name": network, "sha256": "0", "training": how}}
    images = [replace(i, counts={h: _spread(i, right) for h in heads}, cells=dict.fromkeys(heads, CELLS))
              for i in found.result.per_image]  # fmt: skip
    table = np.stack([i.table("semantic", 2) for i in images]).sum(0)
    names = found.result.taxonomies["semantic"]
    two = replace(names, names=names.names[:2], palette=names.palette[:2])
    result = replace(found.result, about=about, per_image=images, tables=dict.fromkeys(heads, table),
                     taxonomies=dict.fromkeys(heads, two))  # fmt: skip
    return Measured(KeptEvaluation.of(result, Path()))


CELLS = np.arange(4)


def _spread(image: Any, right: float) -> Any:
    """1000 pixels of each of two classes; how many are right differs from image to image a little."""
    hit = int(1000 * right) + image.index % 7
    return np.array([hit, 1000 - hit, 1000 - hit, hit])


STAGES = [
    learned("fcn32s-fixed-tiny", 0.6, frozen_trunk=True),
    learned("fcn32s-tiny", 0.7),
    learned("fcn16s-tiny", 0.8, ("fcn32s-tiny",)),
    learned("fcn8s-tiny", 0.75, ("fcn32s-tiny", "fcn16s-tiny")),
    learned("fcn8s-tiny", 0.751),
]


def test_ideas_name_tables_and_rows_that_are_there() -> None:
    for idea in IDEAS:
        table = next(t for t in TABLES if t.title == idea.table)
        for claim in idea.claims:
            assert {claim.worse, claim.better} <= set(idea.names)
            for row in filter(None, claim.rows):
                assert any((r.system, r.source) == (row, claim.source) for r in table.rows), row


def test_skips_on_other_data_stand_in_the_papers_order_with_its_figures_beside() -> None:
    (found,) = stand_ins(VOC, STAGES)
    assert "not the paper's data" in found.title
    assert [row[0] for row in found.rows] == [
        "FCN-32s, trunk fixed", "FCN-32s", "FCN-16s, from 32s", "FCN-8s, from 16s", "FCN-8s, at once",
    ]  # fmt: skip
    assert [row[1][-1] for row in found.rows] == ["45.4", "59.4", "62.4", "62.7", "65.4"]
    assert [row[1][2] for row in found.rows] == [f"{100 * m.result.mean_iu:.1f}" for m in STAGES]
    assert found.rows[2][2] == "fcn16s-tiny (from 32s, 4 epochs)"
    assert found.rows[3][2] == "fcn8s-tiny (from 32s, then 16s, 4 epochs)"
    assert found.rows[4][2] == "fcn8s-tiny (at once, 4 epochs)"


def test_each_claim_is_judged_by_the_measured_figures() -> None:
    fixed, skip, finer, staged = stand_ins(VOC, STAGES)[0].verdicts
    assert fixed.startswith("As published: FCN-32s above FCN-32s, trunk fixed")
    assert skip.startswith("As published: FCN-16s, from 32s above FCN-32s")
    assert finer.startswith("Not as published: FCN-8s, from 16s below FCN-16s")
    assert "published 62.7 against 62.4" in finer
    assert staged.startswith("Not as published" if "interval -" in staged else "As published")


def test_a_difference_within_the_images_chance_is_undecided() -> None:
    rng = np.random.default_rng(0)
    a, b = learned("fcn32s-tiny", 0.7), learned("fcn16s-tiny", 0.7, ("fcn32s-tiny",))
    noisy = [replace(i, counts={"semantic": np.abs(i.counts["semantic"] + n * np.array([1, -1, -1, 1]))})
             for i, n in zip(b.result.per_image, rng.integers(-40, 41, 30), strict=True)]  # fmt: skip
    table = np.stack([i.table("semantic", 2) for i in noisy]).sum(0)
    b = Measured(replace(b.kept, result=replace(b.result, per_image=noisy, tables={"semantic": table})))
    (found,) = stand_ins(VOC, [a, b])
    assert found.verdicts[0].startswith("Undecided: FCN-16s, from 32s and FCN-32s")


def test_inputs_are_told_apart_by_the_data_not_by_the_networks_name() -> None:
    results = [
        learned(f"fcn8s-tiny{suffix}", right, inputs=inputs, kind="folder")
        for suffix, right, inputs in [
            ("", 0.7, ("rgb",)), ("-depth", 0.5, ("depth",)), ("-hha", 0.6, ("hha",)),
            ("-rgbd", 0.8, ("rgb", "depth")), ("-rgb-hha", 0.75, ("rgb", "hha")),
        ]
    ]  # fmt: skip
    (found,) = stand_ins(NYUD, results)
    assert [row[0] for row in found.rows][-2:] == ["colour and depth (early)", "colour and HHA (late)"]
    assert [row[1][-1] for row in found.rows] == ["29.2", "–", "24.2", "30.5", "32.8"]
    hha, early, late = found.verdicts
    assert hha.startswith("As published: colour above HHA")
    assert early.startswith("As published: colour and depth (early) above colour")
    assert late.startswith("Not as published: colour and HHA (late) below colour and depth (early)")
    assert stand_ins(VOC, results) == []


def test_a_second_head_is_set_beside_the_same_network_with_one() -> None:
    both = ("semantic", "geometric")
    one, two = learned("fcn8s-tiny", 0.7), learned("fcn8s-tiny", 0.7, heads=both)
    (found,) = stand_ins(SIFT, [learned("fcn32s-tiny", 0.5), one, two])
    assert [row[0] for row in found.rows] == ["semantic head alone", "semantic and geometric heads"]
    assert [row[1][4] for row in found.rows] == ["–", f"{100 * two.result.figure('pixel_accuracy', 'geometric'):.1f}"]
    assert "semantic + geometric" in found.rows[1][2]
    assert [row[1][-1] for row in found.rows] == ["–", "39.5"]
    assert "as good as, for all that these images can tell" in found.verdicts[0]
    better = learned("fcn8s-tiny", 0.8, heads=both)
    assert stand_ins(SIFT, [one, better])[0].verdicts[0].startswith("As published, or better")
    worse = learned("fcn8s-tiny", 0.6, heads=both)
    assert stand_ins(SIFT, [one, worse])[0].verdicts[0].startswith("Not as published")
    assert stand_ins(SIFT, [two]) == []


def test_a_result_that_does_not_say_how_it_was_learned_is_known_by_its_file(tmp_path: Path) -> None:
    file = tmp_path / "seven-epochs.json"
    file.write_text(json.dumps(measured("fcn8s-tiny", kind="camvid").result.to_json()))
    text = write_paper([file], tmp_path / "r.md").read_text()
    assert "**fcn8s-tiny (seven-epochs)**" in text


def test_results_that_do_not_say_how_they_were_learned_or_are_the_tables_own_are_no_stand_ins() -> None:
    unknown = [measured("fcn32s-tiny", kind="camvid"), measured("fcn8s-tiny", kind="camvid")]
    assert stand_ins(VOC, unknown) == []
    assert stand_ins(VOC, [learned("fcn32s-tiny", 0.5, kind="voc"), learned("fcn8s-tiny", 0.7, kind="voc")]) == []
    other = with_data(learned("fcn16s-tiny", 0.8, ("fcn32s-tiny",)), split="train")
    assert stand_ins(VOC, [learned("fcn32s-tiny", 0.7), other]) == []


def test_skips_learned_at_once_do_not_count_as_the_papers_stages() -> None:
    (line,) = (x for x in lines(VOC, [with_data(learned("fcn8s-tiny", 0.7), kind="voc")]) if x.measured)
    at = [x.system for x in lines(VOC, [with_data(learned("fcn8s-tiny", 0.7), kind="voc")])]
    assert at[at.index(line.system) - 1] == "FCN-8s at-once"


def with_data(m: Measured, **changed: Any) -> Measured:
    about = {**m.result.about, "data": {**m.result.about["data"], **changed}}
    return Measured(KeptEvaluation.of(replace(m.result, about=about), m.kept.place))


@pytest.mark.parametrize("suffix", [".md", ".html"])
def test_both_pages_hold_the_stand_ins_under_the_published_table(suffix: str, tmp_path: Path) -> None:
    for i, m in enumerate(STAGES):
        (tmp_path / f"{i}.json").write_text(json.dumps(m.result.to_json()))
    text = write_paper(sorted(tmp_path.glob("*.json")), tmp_path / f"page{suffix}").read_text()
    section = text.split(VOC.title)[1].split(TABLES[1].title if suffix == ".md" else "</section>")[0]
    assert section.count("FCN-16s, from 32s") >= 2
    assert "Not as published" in section.replace("&#39;", "'")
    assert "they do not cover another" in text
    assert "Tried on" not in markdown([measured()])
