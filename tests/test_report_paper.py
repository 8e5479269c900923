"""Measured rows stand beside the published ones, and say on which images they were measured."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_compare import result
from test_evaluate import SIZES, dataset
from test_predict import Tiny
from test_report import about

from fullyconv.cli import main
from fullyconv.errors import MissingInput, UnknownName, UsageError
from fullyconv.evaluation import evaluate
from fullyconv.predict import Predictor
from fullyconv.report.collect import KeptEvaluation
from fullyconv.report.paper import Measured, elsewhere, lines, markdown, role_of, unmeasured_systems, write_paper
from fullyconv.report.published import TABLES

VOC, NYUD = TABLES[0], next(t for t in TABLES if t.kind == "nyud")


def measured(
    network: str = "fcn8s-vgg16", kind: str = "voc", split: str = "seg11valid", images: int = 736, **more: Any
) -> Measured:
    found = result(0.7, images=images)
    data = {**found.about["data"], "kind": kind, "split": split, "name": "D"}
    known = {**found.about, **about(), "data": data, "model": {"name": network, "sha256": "1" * 64}, **more}
    return Measured(KeptEvaluation.of(replace(found, about=known), Path()))


@pytest.mark.parametrize(
    ("network", "found"),
    [
        ("fcn8s-vgg16", "8s"), ("voc-fcn8s-atonce", "8s atonce"), ("fcn32s-fixed-mobilenet_v2", "32s fixed"),
        ("fcn32s-vgg16-rgb-hha", "32s rgb-hha"), ("nyud-fcn32s-color-hha", "32s rgb-hha"),
        ("fcn32s-vgg16-rgbd", "32s rgbd"),
        ("nyud-fcn32s-color-d", "32s rgbd"), ("nyud-fcn32s-hha", "32s hha"), ("nyud-fcn32s-color", "32s"),
        ("fcn32s-alexnet", "alexnet"), ("voc-fcn-pool5", ""), ("fcn4s-timm:resnet18", "4s"),
    ],
)  # fmt: skip
def test_a_networks_role_follows_from_its_name(network: str, found: str) -> None:
    assert role_of(network) == found


def test_every_published_row_has_a_value_for_every_column_and_a_source() -> None:
    for table in TABLES:
        for row in table.rows:
            assert len(row.values) == len(table.columns), row.system
            assert row.source
            assert all(v is None or isinstance(v, str) or 0 < v < 100 for v in row.values[:4])


def test_the_converted_rows_round_to_the_figures_that_are_quoted() -> None:
    rows = {(r.system, r.source[:8]): r.values for r in VOC.rows}
    assert rows["FCN-8s staged", "released"][2] == 65.5126
    assert [r.values[2] for r in VOC.rows if r.source == "CVPR 2015"] == [45.4, 59.4, 62.4, 62.7]


def test_a_measured_row_follows_the_last_published_row_of_its_role() -> None:
    found = lines(VOC, [measured()])
    at = next(i for i, line in enumerate(found) if line.measured)
    assert found[at - 1].system == "FCN-8s staged"
    assert found[at].comparable
    assert found[at].values[2] == f"{100 * measured().result.mean_iu:.1f}"
    assert "FCN-8s" not in unmeasured_systems(VOC, [measured()])
    assert "FCN-16s" in unmeasured_systems(VOC, [measured()])


@pytest.mark.parametrize("other", [{"split": "val"}, {"images": 100}, {"protocol": "resized:520"}, {"average": "all"}])
def test_a_row_measured_otherwise_is_marked_and_counts_as_unmeasured(other: Any) -> None:
    row = next(line for line in lines(VOC, [measured(**other)]) if line.measured)
    assert not row.comparable
    assert row.source.endswith("other images")
    assert "FCN-8s" in unmeasured_systems(VOC, [measured(**other)])


def test_results_on_other_data_do_not_enter_a_table_but_get_their_own() -> None:
    other = measured(kind="folder")
    assert not any(line.measured for t in TABLES for line in lines(t, [other]))
    assert [t.title for t in elsewhere([other, measured()])] == ["D, split seg11valid"]
    assert "**fcn8s-vgg16**" in markdown([other])
    assert not any(line.measured for line in lines(NYUD, [measured()]))


def test_the_markdown_holds_every_table_and_how_results_were_measured() -> None:
    text = markdown([measured(), measured("fcn32s-vgg16")])
    for table in TABLES:
        assert f"## {table.title}" in text
    widths = {
        len(re.findall(r"\|", line))
        for line in text.split("## Inputs on NYUDv2")[1].split("##")[0].splitlines()
        if line.startswith("|")
    }
    assert widths == {len(NYUD.columns) + 3}
    assert "111111111111" in text


def test_the_page_shows_each_image_by_every_network_then_the_truth(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 1)):
        model = Tiny(seed=seed)
        model.name = f"fcn{8 if name == 'a' else 32}s-tiny"
        evaluate(Predictor(model), dataset(tmp_path, SIZES), keep=tmp_path / name)
    page = write_paper([tmp_path / "a", tmp_path / "b"], tmp_path / "paper.html").read_text()
    head = re.findall(r"<th>([^<]*)</th>", page.split('<table class="photo">')[1].split("</thead>")[0])
    assert head == ["fcn32s-tiny", "fcn8s-tiny", "truth", "image"]
    assert page.count("<img") == 4 * 4
    chosen = write_paper([tmp_path / "a"], tmp_path / "one.html", ["image3"]).read_text()
    assert chosen.count("<img") == 3
    with pytest.raises(UnknownName, match="kept image"):
        write_paper([tmp_path / "a"], tmp_path / "x.html", ["image77"])


def test_results_without_images_still_give_the_tables(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(json.dumps(measured().result.to_json()))
    page = write_paper([tmp_path / "r.json"], tmp_path / "p.html").read_text()
    assert "Coarse to fine" not in page
    assert 'class="measured same"' in page


def test_missing_results_are_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Name the results"):
        write_paper([], tmp_path / "p.html")
    with pytest.raises(MissingInput):
        write_paper([tmp_path / "none"], tmp_path / "p.html")


def test_the_command_writes_markdown_by_suffix(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "r.json").write_text(json.dumps(measured().result.to_json()))
    with pytest.raises(SystemExit) as stop:
        main(["report", "paper", str(tmp_path / "r.json"), "-o", str(tmp_path / "results.md")])
    assert not stop.value.code
    assert (tmp_path / "results.md").read_text().startswith("# Results")
    assert capsys.readouterr().out == f"{tmp_path}/results.md\n"


def test_the_documented_results_are_generated_from_the_committed_ones(tmp_path: Path) -> None:
    docs = Path(__file__).parent.parent / "docs"
    written = write_paper(sorted((docs / "results").glob("*.json")), tmp_path / "results.md")
    assert written.read_text() == (docs / "results.md").read_text(), (
        "run: fullyconv report paper docs/results/*.json -o docs/results.md"
    )
