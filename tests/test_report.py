"""The report: one file that says, in words and images, what a run or an evaluation holds."""

from __future__ import annotations

import base64
import itertools
import json
import math
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_compare import result
from test_evaluate import SIZES, dataset
from test_predict import Tiny

from fullyconv.cli import main
from fullyconv.data.base import Dataset, Record
from fullyconv.errors import DataError, MissingInput
from fullyconv.evaluation import Result, evaluate
from fullyconv.evaluation.progress import draw_progress
from fullyconv.evaluation.statistics import Interval, image_iu
from fullyconv.images import encode_label
from fullyconv.predict import Predictor
from fullyconv.report import charts, render, sentences, write
from fullyconv.report.collect import Run, label_address, outline, read_run
from fullyconv.report.records import About, Analysis, MeasurementRecord, StepRecord, parse_record
from fullyconv.report.training import training
from fullyconv.taxonomy import Taxonomy

CHROMIUM = Path("/usr/bin/chromium")


def log(run: Path, steps: int = 30) -> None:
    """A training log of `steps` steps with three measurements, the second the best."""
    rows: list[dict[str, Any]] = [
        {"kind": "step", "step": i, "epoch": i / 10, "loss": 2 / i, "pixel_loss": 2 / i, "lr": 1e-3, "gradient": 1.0}
        for i in range(1, steps + 1)
    ]
    rows += [
        {
            "kind": "measurement",
            "step": s,
            "split": "val",
            "mean_iu": v,
            "pixel_accuracy": v + 0.2,
            "per_class_iu": {"sky": v + 0.3, "road": v, "car": v - 0.3, "bus": None},
        }
        for s, v in ((10, 0.3), (20, 0.5), (30, 0.4))
    ]
    run.mkdir(parents=True, exist_ok=True)
    (run / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (run / "recipe.toml").write_text('model = "fcn8s-mobilenet_v2"\nlr = 0.001\nname = ""\n')
    (run / "times.json").write_text('{"data": 10.0, "forward": 30.0, "backward": 60.0}')


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with a kept evaluation and progress images."""
    root = tmp_path_factory.mktemp("reported")
    log(root / "run")
    model, data = Tiny(), dataset(root, SIZES * 3)
    model.taxonomies = data.taxonomies  # type: ignore[assignment]
    evaluate(Predictor(model), data, keep=root / "run/evaluation")
    for epoch in (1, 2.5, 10):
        draw_progress(Predictor(model), data, root / "run/progress", epoch, images=2)
    return root / "run"


def test_the_report_holds_every_part_and_no_address_of_another_file(run: Path) -> None:
    page = write(run).read_text()
    assert (run / "report.html").is_file()
    parts = ["In words", "Classes", "What is taken for what", "What costs most", "Where errors are", "Images"]
    parts += ["Training", "What was measured, and how", "The same images over time", "Where the time went"]
    for part in parts:
        assert f">{part}<" in page, part
    assert not re.search(r'(?:src|href)="(?!data:|#)', page)
    assert "http" not in re.sub(r'"data:[^"]*"', "", page)
    for name in ("sky", "road", "car"):
        assert name in page


def test_the_report_shows_the_results_own_figures(run: Path) -> None:
    page, found = render(run), Result.load(run)
    for name in ("mean_iu", "pixel_accuracy", "mean_accuracy", "frequency_weighted_iu"):
        assert f"<strong>{100 * found.figure(name):.1f}<small>" in page
    assert found.about["data"]["fingerprint"] in page
    assert "Best mean IU 50.0 % at step 20" in page


def test_names_are_escaped(tmp_path: Path) -> None:
    found = result(0.7, names=("<script>alert(1)</script>", "a & b", '"quoted"'))
    (tmp_path / "result.json").write_text(json.dumps({**found.to_json(), **about()}))
    page = render(tmp_path)
    assert "<script>alert" not in page
    assert "a &amp; b" in page


def about() -> dict[str, Any]:
    """The rest of what a real result says of itself."""
    return {
        "model": {"name": "m", "sha256": "0" * 64},
        "ignore": {"semantic": 255},
        "tta": [],
        "tiling": {"tile": None, "context": 0, "blended": False, "exact": True},
        "precision": "fp32",
        "versions": {"fullyconv": "0"},
        "machine": {"processor": "p", "cores": 1, "threads": 1, "device": "cpu"},
        "seconds": 1.0,
        "images_per_second": 2.0,
    }


def test_a_run_under_way_is_reported_without_an_evaluation(tmp_path: Path) -> None:
    log(tmp_path / "run")
    with (tmp_path / "run/metrics.jsonl").open("a") as file:
        file.write('{"kind": "step", "st')  # a line that is being written
    page = render(tmp_path / "run")
    assert "best mean IU so far is 50.0" in page
    place = tmp_path / "run"
    assert f"fullyconv evaluate {place} DATA --keep {place}/evaluation" in page
    assert "come to step 30, epoch 3" in page
    assert ">Loss<" in page
    assert "What is taken for what" not in page


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not taken its first step"),
        ('{"kind": "step", "step": 1, "epoch": 0, "loss": 2.0, "lr": 0.1}\n', "no validation split"),
    ],
)
def test_a_run_that_has_measured_nothing_says_so(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "metrics.jsonl").write_text(text)
    assert words in render(tmp_path)


def test_a_result_file_alone_is_reported_without_images(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(json.dumps({**result(0.7).to_json(), **about()}))
    page = write(tmp_path / "r.json").read_text()
    assert (tmp_path / "report.html").is_file()
    assert ">Classes<" in page
    assert ">Images<" not in page


def test_a_result_file_moved_away_from_its_images_is_reported_without_them(run: Path, tmp_path: Path) -> None:
    (tmp_path / "moved.json").write_bytes((run / "evaluation/result.json").read_bytes())
    page = render(tmp_path / "moved.json")
    assert ">Where errors are<" in page
    assert "<b>−" in page, "the costliest pairs are named all the same"
    assert "data:image/" not in page
    assert "data:image/" in render(run / "evaluation/result.json")


def test_classes_are_shown_at_every_measurement_and_the_worst_are_kept_when_there_are_many(tmp_path: Path) -> None:
    log(tmp_path / "run")
    page = render(tmp_path / "run")
    assert ">The classes over time<" in page
    table = page[page.index('class="matrix time"') :]
    names = re.findall(r"<tr><th>(\w+)</th>", table[: table.index("</table>")])
    assert names == ["sky", "road", "car"], "best first, without a class that the truth lacks"
    rows = [
        {"kind": "measurement", "step": s, "mean_iu": 0.1, "per_class_iu": {f"c{k}": k / 100 for k in range(60)}}
        for s in range(1, 31)
    ]
    found = training(Run("many", measurements=[MeasurementRecord.of(row) for row in rows])).classes
    assert found is not None
    assert (len(found.rows), found.left_out, len(found.steps)) == (40, 20, 12)
    assert (found.rows[-1][0], found.steps[0], found.steps[-1]) == ("c0", 1, 30)


def test_an_evaluation_kept_by_a_run_that_goes_on_says_that_it_is_older(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run/last").mkdir()
    for finished, expected in ((False, True), (True, False)):
        state = {"state": {"train": {"step": 40, "finished": finished}}}
        (tmp_path / "run/last/state.json").write_text(json.dumps(state))
        assert ("The run is not finished" in render(tmp_path / "run")) == expected


def test_a_run_whose_recipe_has_no_validation_split_says_so(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"kind": "step", "step": 7, "epoch": 0.5, "loss": 2.0, "lr": 0.1}\n')
    (tmp_path / "recipe.toml").write_text('val_split = ""\ntime = "6m"\n')
    page = render(tmp_path)
    assert "its recipe names no validation split" in page
    assert "come to step 7, epoch 0.5; it is to last 6m." in page


def test_a_result_without_a_labelled_pixel_is_said_in_words(tmp_path: Path) -> None:
    base = result(0.7)
    empty = replace(base, tables={"semantic": np.zeros_like(base.confusion)}, per_image=())
    (tmp_path / "result.json").write_text(json.dumps({**empty.to_json(), **about()}))
    page = render(tmp_path)
    assert "None of the pixels of 0 images is labelled" in page
    assert "nan" not in re.sub(r"<(?:style|script)>.*?</(?:style|script)>", "", page, flags=re.DOTALL)


def test_all_four_figures_have_intervals_and_every_image_its_own(run: Path) -> None:
    page, found = render(run), Result.load(run)
    assert len(re.findall(r"<em>[\d.]+ – [\d.]+ \(95 %\)</em>", page)) == 4
    listed = page[page.index("<summary>All images") :]
    worst = min(found.per_image, key=lambda i: image_iu(i.table("semantic", 3)) or 0)
    assert re.search(r"<tbody><tr><th>([^<]+)", listed)[1] == worst.name  # type: ignore[index]
    assert ">Boundary IoU<" in page


def test_label_maps_with_ids_above_255_are_shown_in_their_colours(tmp_path: Path) -> None:
    labels = np.array([[0, 300, 65535]], np.uint16)
    (tmp_path / "label.png").write_bytes(encode_label(labels))
    palette = [(1, 2, 3)] * 300 + [(200, 100, 50)]
    data = label_address(tmp_path / "label.png", palette).partition(",")[2]
    shown = np.asarray(Image.open(BytesIO(base64.b64decode(data))))
    assert shown.tolist() == [[[1, 2, 3], [200, 100, 50], [255, 255, 255]]]


def test_the_outline_goes_around_what_is_labelled_one_class_and_called_the_other(tmp_path: Path) -> None:
    label, predicted = np.zeros((9, 9), np.uint8), np.zeros((9, 9), np.uint8)
    label[2:7, 2:7], predicted[2:7, 2:8] = 1, 2
    for name, content in (("label.png", label), ("prediction.png", predicted)):
        (tmp_path / name).write_bytes(encode_label(content))
    data = outline(tmp_path / "label.png", tmp_path / "prediction.png", 1, 2).partition(",")[2]
    shown = np.asarray(Image.open(BytesIO(base64.b64decode(data))))
    expected = np.zeros((9, 9), np.uint8)
    expected[2:7, 2:7], expected[3:6, 3:6] = 1, 0
    assert shown.tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("kind", "value", "words"),
    [
        (StepRecord, {"loss": 1.0}, "step: field required"),
        (StepRecord, {"step": 3, "loss": "many"}, "loss: input should be a valid number"),
        (StepRecord, {"step": 10**400}, "step: input should be less than"),
        (StepRecord, [], "StepRecord: input should be a dictionary"),
        (About, {"data": {"kind": 3}}, "data.kind: input should be a valid string"),
        (Analysis, {"suspects": [{"name": "x", "window": [1, 2]}]}, "suspects.0.files: field required"),
        (Analysis, {"calibration": {"bins": [[1, -1]], "confidence": []}}, "calibration.bins.0.1: input should be"),
        (Analysis, {"border": {"half_width": math.nan, "pixels": []}}, "border.half_width: input should be a finite"),
    ],
)
def test_a_record_that_is_not_what_fullyconv_writes_is_refused_with_its_place(
    kind: Any, value: Any, words: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        parse_record(kind, value)


def test_records_hold_what_the_files_say_and_pass_over_what_no_page_shows() -> None:
    assert parse_record(StepRecord, {"step": 3, "loss": None, "order": "x", "lr": 1}) == StepRecord(3, lr=1.0)
    row = {"step": 7, "mean_iu": 0.5, "heads.b.mean_iu": None, "seconds": 3, "floor": {"class": "x", "mean_iu": 0.1}}
    found = MeasurementRecord.of(row)
    assert (found.mean_iu, found.floor, found.classes, list(found.figures)) == (
        0.5, 0.1, None, ["mean_iu", "heads.b.mean_iu"],
    )  # fmt: skip
    assert found.pixel_accuracy is None


def test_the_refusal_of_a_strangers_result_names_the_file_the_place_and_the_remedy(tmp_path: Path) -> None:
    value = {**result(0.7).to_json(), **about()}
    del value["data"]["fingerprint"]
    (tmp_path / "result.json").write_text(json.dumps(value))
    with pytest.raises(DataError, match=r"fullyconv does not write \(.*data.fingerprint: .*\); evaluate again"):
        render(tmp_path)


def test_what_cannot_be_reported_is_said(tmp_path: Path) -> None:
    with pytest.raises(MissingInput, match="neither a run"):
        render(tmp_path)
    with pytest.raises(MissingInput, match="does not exist"):
        render(tmp_path / "none")
    (tmp_path / "metrics.jsonl").write_bytes(b'broken\n{"kind": "step", "step": 1, "loss": 2.0}\n' + bytes(9))
    assert "2 lines of metrics.jsonl (zeros, or torn by a power cut) are left out" in render(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("")
    (tmp_path / "recipe.toml").write_text("= 3")
    with pytest.raises(DataError, match="not TOML"):
        render(tmp_path)


def test_an_image_that_was_deleted_is_named(tmp_path: Path) -> None:
    kept = evaluate(Predictor(Tiny()), dataset(tmp_path), keep=tmp_path / "out")
    gone = tmp_path / "out" / kept.analysis["gallery"][0]["files"]["image"]
    gone.unlink()
    with pytest.raises(MissingInput, match=re.escape(str(gone))):
        render(tmp_path / "out")


def test_progress_images_are_lined_up_by_image_in_order_of_time(run: Path) -> None:
    found = read_run(run)
    assert found is not None
    assert [s.name for s in found.strips] == ["image0", "image14"]
    assert [e for e, _ in found.strips[0].frames] == ["epoch 1", "epoch 2.5", "epoch 10", "label"]


def test_the_words_name_what_is_solved_what_is_lost_and_to_what() -> None:
    table = np.array([[950, 50, 0, 0], [20, 900, 0, 80], [30, 620, 350, 0], [0, 0, 0, 0]], np.int64)
    taxonomy = Taxonomy(("road", "building", "pole", "bus"))
    base = result(0.7, names=taxonomy.names)
    text = " ".join(sentences.summary(replace(base, tables={"semantic": table}), Analysis(), Interval(0.4, 0.6)))
    assert "Road is solved" in text
    assert "Pole (35\u202f%) is lost mostly to building: 62\u202f% of pole pixels." in text
    assert "The costliest mistake is to call pole “building”" in text
    assert "Bus does not occur in the truth" in text
    assert "40.0\u202f% to 60.0\u202f%" in text


def test_classes_that_are_lost_to_one_class_share_a_sentence_and_mostly_means_most() -> None:
    names = ("road", "building", "pole", "sign", "fence")
    table = np.array(
        [[900, 0, 0, 0, 0], [0, 900, 0, 0, 0], [0, 62, 38, 0, 0], [0, 55, 0, 45, 0], [30, 29, 28, 0, 13]], np.int64
    )
    text = " ".join(
        sentences.summary(
            replace(result(0.7, names=names), tables={"semantic": table}), Analysis(), Interval(None, None)
        )
    )
    assert "Pole (30\u202f%) and sign (45\u202f%) are lost mostly to building: 62\u202f% and 55\u202f% of their" in text
    assert "Fence (13\u202f%) is lost most often to road: 30\u202f% of fence pixels." in text


def test_further_heads_have_a_sentence_of_their_own() -> None:
    base = result(0.7)
    tables = {**base.tables, "geometric": np.array([[98, 2], [0, 100]], np.int64)}
    both = replace(base, tables=tables, taxonomies={**base.taxonomies, "geometric": Taxonomy(("sky", "ground"))})
    text = " ".join(sentences.summary(both, Analysis(), Interval(0, 1)))
    assert "Its geometric head is right on 99.0\u202f% of the pixels" in text


@pytest.mark.parametrize(("seconds", "text"), [(8.2, "8 s"), (750, "12 min 30 s"), (3899.6, "1 h 05 min")])
def test_times_read_as_people_say_them(seconds: float, text: str) -> None:
    assert sentences.duration(seconds) == text


@pytest.mark.parametrize(
    ("names", "text"), [(["a"], "a"), (["a", "b"], "a and b"), (list("abcdefgh"), "a, b, c, d, e, f and 2 more")]
)
def test_lists_read_as_sentences(names: list[str], text: str) -> None:
    assert sentences.listed(names) == text


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3, 8), (1e-5, 3e-5), (0, 123456), (5, 5)])
def test_ticks_are_round_inside_and_neither_too_few_nor_too_many(low: float, high: float) -> None:
    found = charts.ticks(low, high)
    assert all(low - 1e-9 <= t <= high + 1e-9 for t in found)
    assert len(found) == 1 if low == high else 2 <= len(found) <= 7
    steps = {round(b - a, 12) for a, b in itertools.pairwise(found)}
    assert len(steps) <= 1


def test_charts_put_points_where_their_values_are() -> None:
    svg = charts.line_chart([charts.Series("x", [(0, 0), (10, 1)], marked=True)], x="step", y="v", bottom=0, top=1)
    dots = [(float(x), float(y)) for x, y in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', svg)]
    assert dots == [
        (charts.LEFT, charts.HEIGHT - charts.BOTTOM),
        (charts.WIDTH - charts.RIGHT, charts.TOP),
    ]
    assert charts.line_chart([charts.Series("none", [])], x="", y="") == ""
    one = charts.line_chart(
        [charts.Series("x", [(7, 0.5)], marked=True)], x="step", y="v", left=0, right=7, bottom=0, top=1
    )
    assert [float(x) for x in re.findall(r'cx="([\d.]+)"', one)] == [charts.WIDTH - charts.RIGHT]
    ticks = re.findall(
        r'text-anchor="middle">([^<]+)', charts.line_chart([charts.Series("", [(1, 0), (2, 1)])], x="", y="")
    )
    assert ticks == ["1", "2"], "there is no step 1.2"
    bins = charts.histogram([0.0, 0.5, 0.52, 1.0], x="", y="")
    assert re.findall(r"<title>([^<]+)", bins) == ["0 to 5 %: 1", "50 to 55 %: 2", "95 to 100 %: 1"]
    assert "50.0" in charts.bars([charts.Bar("half", 0.5, 0.4, 0.6)], "")
    assert "–" in charts.bars([charts.Bar("none", None)], "")


HOSTILE = "<img src=x onerror=alert(1)>\"&'</title>"
CHARTS = {
    "line_chart": lambda n: charts.line_chart([charts.Series(n, [(0, 0), (1, 1)], marked=True)], x=n, y=n),
    "bars": lambda n: charts.bars([charts.Bar(n, 0.5, 0.4, 0.6, (1, 2, 3), n)], n),
    "histogram": lambda n: charts.histogram([0.5], x=n, y=n),
    "stacked_bars": lambda n: charts.stacked_bars([(n, 1.0), (n, 2.0)], n),
    "reliability": lambda n: charts.reliability([(4, 2, 2.0)]),
}


def test_every_chart_is_tried_with_hostile_names() -> None:
    assert {*CHARTS} == {*charts.__all__} - {"Bar", "Series"}


@pytest.mark.parametrize("kind", CHARTS)
def test_names_stay_text_in_every_chart(kind: str) -> None:
    """Read by a browser's rules, the elements and their attributes are those of a chart of harmless names."""

    def shape(text: str) -> tuple[list[Any], list[str]]:
        found: tuple[list[Any], list[str]] = [], []
        reader = HTMLParser(convert_charrefs=True)
        reader.handle_starttag = lambda tag, attrs: found[0].append((tag, attrs))  # type: ignore[method-assign]
        reader.handle_data = lambda data: found[1].append(data)  # type: ignore[method-assign]
        reader.feed(text)
        reader.close()
        return found

    (plain, plain_text), (hostile, text) = shape(str(CHARTS[kind]("NAME"))), shape(str(CHARTS[kind](HOSTILE)))
    given = [(tag, [(k, v.replace("NAME", HOSTILE)) for k, v in attrs]) for tag, attrs in plain]
    assert hostile == given
    assert text == [t.replace("NAME", HOSTILE) for t in plain_text]
    assert kind == "reliability" or HOSTILE in str(hostile) + "".join(text)


def test_of_many_classes_those_of_the_largest_confusions_are_shown(tmp_path: Path) -> None:
    base = result(0.6, names=tuple(f"class {k}" for k in range(60)), images=5)
    table = np.diag(np.full(60, 10_000))
    for k in range(15):
        table[k, 59 - k] = 1000 + k  # class k is called class 59 - k: 30 classes in all
        table[20 + k, 21 + k] = 500
    (tmp_path / "result.json").write_text(
        json.dumps({**replace(base, tables={"semantic": table}).to_json(), **about()})
    )
    page = render(tmp_path)
    assert "The 30 classes with the largest confusions are shown, 30 are left out" in page
    assert "each row adds up" not in page
    assert "class 14 called class 45:" in page
    assert "class 20 called" not in page


def test_reporting_loads_no_torch(run: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from fullyconv.report import write; "
        f"write({str(run)!r}, {str(tmp_path / 'r.html')!r}); "
        "assert 'torch' not in sys.modules, 'torch was imported'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_command_prints_the_files_name(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["report", str(run), "-o", str(tmp_path / "deep" / "page.html")])
    assert not stop.value.code
    assert capsys.readouterr().out == f"{tmp_path}/deep/page.html\n"
    with pytest.raises(SystemExit) as stop:
        main(["report", str(run), str(run)])
    assert stop.value.code == 2


def large(root: Path, images: int) -> Dataset:
    """Blocky label maps, the images their colours with noise: what a network could learn."""
    taxonomy = Taxonomy(tuple(f"thing {k}" for k in range(21)))
    (root / "x").write_bytes(b"x")
    palette = np.asarray(taxonomy.palette, np.int16)

    def read_labels(record: Record, head: str) -> Any:
        rng = np.random.default_rng(int(record.name))
        return rng.integers(0, 21, (9, 12)).repeat(40, 0).repeat(40, 1).astype(np.uint8)

    def read_input(record: Record, modality: str) -> Any:
        noise = np.random.default_rng(int(record.name)).integers(-40, 40, (360, 480, 3))
        return np.clip(palette[read_labels(record, "")] + noise, 0, 255).astype(np.uint8)

    records = [Record(str(i), {"rgb": root / "x"}) for i in range(images)]
    return Dataset("folder", root, "val", records, {"semantic": taxonomy}, read_input, read_labels)


@pytest.mark.slow
def test_a_report_on_a_thousand_images_is_small_and_quick(tmp_path: Path) -> None:
    data = large(tmp_path, 40)
    kept = evaluate(Predictor(Tiny({"semantic": 21})), data, keep=tmp_path / "kept")
    value = kept.to_json()
    value["per_image"] = [{**value["per_image"][i % 40], "index": i, "name": f"p{i}"} for i in range(1000)]
    (tmp_path / "kept/result.json").write_text(json.dumps(value))
    start = time.perf_counter()
    page = write(tmp_path / "kept")
    assert time.perf_counter() - start < 60
    assert page.stat().st_size < 30e6


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM.exists(), reason="needs Chromium at /usr/bin/chromium")
@pytest.mark.parametrize("width", [390, 1440])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_a_browser_nothing_overflows_and_nothing_is_logged(
    run: Path, tmp_path: Path, width: int, scheme: Any
) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    page_file = write(run, tmp_path / "report.html")
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        messages: list[str] = []
        page.on("console", lambda m: messages.append(m.text))
        page.on("pageerror", lambda e: messages.append(str(e)))
        page.on("request", lambda r: messages.append(r.url) if not r.url.startswith(("file:", "data:")) else None)
        page.goto(page_file.as_uri())
        page.screenshot(path=tmp_path / f"report-{width}-{scheme}.png", full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        outside = (
            "[...document.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1"
            " && !e.closest('.scroll, .frames')).length"
        )
        assert page.evaluate(outside) == 0
        broken = "[...document.images].filter(i => i.loading !== 'lazy' && !i.naturalWidth).length"
        assert page.evaluate(broken) == 0
        slider = page.locator(".compare input").first
        slider.evaluate("e => { e.value = 20; e.dispatchEvent(new Event('input')); }")
        assert page.locator(".compare").first.evaluate("e => e.style.getPropertyValue('--wipe')") == "20%"
        page.locator(".panels figure").first.click()
        assert page.locator("dialog[open] img").count() >= 1
        page.locator("dialog").click()
        assert page.locator("dialog[open]").count() == 0
        before = page.evaluate("getComputedStyle(document.body).backgroundColor")
        page.click("#theme")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before
        page.emulate_media(media="print")
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert page.locator("details[open]").count() == 1, "all figures of the classes; no list of images, no recipe"
        assert not page.locator("nav").is_visible()
        assert messages == []
        browser.close()
