"""A stranger's run or result: whatever it holds, the report and the comparison are made or refused in words, and show
nothing that lies outside of it."""

from __future__ import annotations

import copy
import json
import math
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_evaluate import SIZES, dataset
from test_predict import Tiny
from test_report import CHROMIUM, log

from fullyconv.cli.compare import comparison_text
from fullyconv.doctor.findings import finding
from fullyconv.doctor.html import sheet
from fullyconv.errors import DataError, FullyconvError, UsageError, foreign_values
from fullyconv.evaluation import Result, evaluate
from fullyconv.evaluation.comparison import compare_results
from fullyconv.evaluation.progress import draw_progress
from fullyconv.predict import Predictor
from fullyconv.report import render, write
from fullyconv.taxonomy import Taxonomy

NESTED: Any = 0
for _ in range(400):
    NESTED = [NESTED]
VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 7, 1e308, -1e308, 1e-300, 10**18, 2**63, 10**400, math.nan, math.inf, -math.inf),
    *("", "x", "../../etc/passwd", "/etc/passwd", "a\0b", "\x1b[31m", "<script>", "9" * 5000, "x" * 100_000),
    *([], {}, [[]], [None], {"x": 1}, [1, 2, 3], NESTED),
)


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small finished run with a kept evaluation of two heads and progress images."""
    root = tmp_path_factory.mktemp("hostile")
    heads = {"semantic": Taxonomy(("sky", "road", "car")), "shape": Taxonomy(("flat", "tall"))}
    model, data = Tiny({"semantic": 3, "shape": 2}), dataset(root, SIZES, heads)
    model.taxonomies = data.taxonomies  # type: ignore[assignment]
    log(root / "run", 6)
    evaluate(Predictor(model), data, keep=root / "run/evaluation")
    for epoch in (1, 2.5):
        draw_progress(Predictor(model), data, root / "run/progress", epoch, images=1)
    (root / "run/last").mkdir()
    (root / "run/last/state.json").write_text('{"state": {"train": {"step": 6, "finished": true}}}')
    render(root / "run")
    return root / "run"


def places(tree: Any) -> list[tuple[Any, ...]]:
    """The path to every value of a JSON tree."""
    found: list[tuple[Any, ...]] = [()]
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        found += [(key, *rest) for rest in places(value)]
    return found


def mutated(tree: Any, rng: np.random.Generator) -> Any:
    """A copy with one to three values replaced, removed, doubled or renamed."""
    tree = copy.deepcopy(tree)
    for _ in range(int(rng.integers(1, 4))):
        known = places(tree)
        *way, last = known[int(rng.integers(1, len(known)))] if len(known) > 1 else [None]
        if last is None:
            return VALUES[int(rng.integers(len(VALUES)))]
        parent = tree
        for key in way:
            parent = parent[key]
        kind = rng.integers(4)
        if kind == 0:
            del parent[last]
        elif kind == 1 and isinstance(parent, dict):
            parent[str(VALUES[int(rng.integers(len(VALUES)))])[:300]] = parent.pop(last)
        elif kind == 2 and isinstance(parent, list):
            parent.append(copy.deepcopy(parent[last]))
        else:
            parent[last] = copy.deepcopy(VALUES[int(rng.integers(len(VALUES)))])
    return tree


def text_of(value: Any) -> bytes:
    """As JSON, whole numbers of any length written out."""
    import sys

    sys.set_int_max_str_digits(0)
    try:
        return json.dumps(value).encode(errors="surrogatepass")
    finally:
        sys.set_int_max_str_digits(4300)


def torn(data: bytes, rng: np.random.Generator) -> bytes:
    """Bytes changed, cut or doubled."""
    at, kind = int(rng.integers(len(data) or 1)), rng.integers(4)
    if kind == 0:
        return data[:at]
    if kind == 1:
        return data[:at] + bytes(rng.integers(0, 256, 3, np.uint8)) + data[at + 3 :]
    if kind == 2:
        return data[:at] + data[at:] * 2
    return data[:at] + data[at + int(rng.integers(1, 40)) :]


FILES = ("evaluation/result.json",) * 6 + ("metrics.jsonl",) * 3 + ("times.json", "last/state.json", "recipe.toml")


def attack(run: Path, whole: dict[str, bytes], rng: np.random.Generator) -> None:
    name = FILES[int(rng.integers(len(FILES)))]
    data = whole[name]
    if rng.random() < 0.15 or name.endswith(".toml"):
        data = torn(data, rng)
    elif name.endswith(".jsonl"):
        rows = [json.loads(row) for row in data.splitlines()]
        data = b"\n".join(text_of(row) for row in mutated(rows, rng))
    else:
        data = text_of(mutated(json.loads(data), rng))
    (run / name).write_bytes(data)


def outcomes(honest: Path, place: Path, count: int, seed: int) -> Counter[str]:
    """How `count` hostile runs end: shown, refused; anything else fails the test with the mutation's number."""
    run, rng, found = place / "run", np.random.default_rng(seed), Counter[str]()
    shutil.copytree(honest, run, symlinks=True)
    whole = {name: (run / name).read_bytes() for name in set(FILES)}
    good, answer = Result.load(honest), [""]
    for number in range(count):
        for name, data in whole.items():
            (run / name).write_bytes(data)
        try:
            attack(run, whole, rng)
        except TypeError:  # a list of rows became something else
            continue
        for what in ("report", "compare"):
            try:
                if what == "report":
                    render(run)
                else:
                    with foreign_values(run, "write it again"):
                        comparison_text(compare_results(good, Result.load(run)))
                found[f"{what} made"] += 1
            except FullyconvError as error:
                found[f"{what} refused"] += 1
                answer.append(str(error))
            except Exception as error:
                raise AssertionError(f"{what} of mutation {number} of seed {seed}: {error!r}") from error
    assert max(map(len, answer)) < 2000
    return found


def test_hostile_runs_are_shown_or_refused_in_words(honest: Path, tmp_path: Path) -> None:
    found = outcomes(honest, tmp_path, 120, 0)
    assert found["report refused"] > 20
    assert found["report made"] > 10
    assert found["compare refused"] > 10


@pytest.mark.soak
def test_thousands_of_hostile_runs_are_shown_or_refused_in_words(honest: Path, tmp_path: Path) -> None:
    found = Counter[str]()
    for seed in range(1, 11):
        found += outcomes(honest, tmp_path / str(seed), 1000, seed)
    print(dict(found))


# ---- nothing from outside ----------------------------------------------------------------------------------------


@pytest.fixture
def run(honest: Path, tmp_path: Path) -> Path:
    shutil.copytree(honest, tmp_path / "run", symlinks=True)
    return tmp_path / "run"


@pytest.mark.parametrize(
    "way", ["../secret.png", "{root}/secret.png", "gallery/../../../secret.png", "link.png", "l/secret.png"]
)
@pytest.mark.parametrize("part", ["gallery", "pairs", "suspects", "inputs"])
def test_a_result_that_names_a_file_outside_gets_nothing_embedded(way: str, part: str, run: Path) -> None:
    secret, place = run.parent / "secret.png", run / "evaluation"
    value = json.loads((place / "result.json").read_bytes())
    shutil.copy(next((place / "predictions").glob("*.png")), secret)
    shutil.copy(secret, run / "secret.png")
    (place / "link.png").symlink_to(secret)
    (place / "l").symlink_to(run.parent)
    name = way.format(root=run.parent)
    entry = value["analysis"]["gallery"][0]
    if part == "inputs":
        entry["inputs"] = {"depth": name}
    else:
        files = {**entry["files"], "image": name, "label": name}
        value["analysis"].setdefault(part, []).insert(0, {**entry, "files": files, "labelled": 0, "said": 1})
        if part == "pairs":
            value["analysis"]["pairs"] = [{**p, "files": files} for p in value["analysis"]["pairs"]] or [{}]
    (place / "result.json").write_text(json.dumps(value))
    with pytest.raises(DataError, match=r"names the image|lies outside|does not write"):
        render(run)


@pytest.mark.parametrize(
    "file", ["metrics.jsonl", "recipe.toml", "times.json", "last/state.json", "progress/epoch0001.00-image0.jpg"]
)
def test_a_link_out_of_a_run_is_not_followed(file: str, run: Path) -> None:
    (run / file).rename(run.parent / "secret")
    (run / file).symlink_to(run.parent / "secret")
    with pytest.raises(DataError, match="lies outside of"):
        render(run)


def test_what_is_no_image_is_not_embedded(run: Path) -> None:
    (run / "progress/epoch0001.00-image0.jpg").write_text("root:x:0:0")
    with pytest.raises(DataError, match="is no JPG image"):
        render(run)


def test_a_run_may_itself_be_reached_by_a_link(run: Path) -> None:
    (run.parent / "alias").symlink_to("run")
    assert "Mean IU" in render(run.parent / "alias")


def test_a_report_does_not_take_the_place_of_what_it_is_about(run: Path) -> None:
    before = (run / "metrics.jsonl").read_bytes()
    with pytest.raises(UsageError, match="is not a report"):
        write(run, run / "metrics.jsonl")
    with pytest.raises(UsageError, match="overwritten"):
        write(run / "evaluation/result.json", run / "evaluation/result.json")
    assert (run / "metrics.jsonl").read_bytes() == before
    for _ in range(2):  # an earlier report is replaced
        assert write(run).read_bytes().startswith(b"<!doctype html")


# ---- names stay text in a browser --------------------------------------------------------------------------------

EVIL = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>'\"`</title>\x1b[31m\u202e"


TURNING = "".join(map(chr, (*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F, 0x061C)))


def test_no_page_holds_what_turns_the_direction_of_writing(run: Path, tmp_path: Path) -> None:
    text = (run / "evaluation/result.json").read_text()
    name = json.dumps(f"a{TURNING}gpj.exe")
    (run / "evaluation/result.json").write_text(text.replace('"sky"', name).replace('"image0"', name))
    (run / "recipe.toml").write_text(f"name = {name}\n")
    found = [finding("odd-name", [tmp_path / f"a{TURNING}"], TURNING)]
    for page in (render(run), sheet(found, None, TURNING)):
        assert not set(TURNING) & set(page)
        assert r"\u202e" in page


@pytest.mark.skipif(not CHROMIUM.exists(), reason="needs Chromium at /usr/bin/chromium")
@pytest.mark.slow
def test_in_a_browser_hostile_names_stay_text(run: Path, tmp_path: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    text = (run / "evaluation/result.json").read_text()
    image = EVIL.replace("\x1b", "")  # an image whose name holds control characters is refused
    value = json.loads(text.replace('"sky"', json.dumps(EVIL)).replace('"image0"', json.dumps(image)))
    value["data"]["name"] = value["model"]["name"] = EVIL
    (run / "evaluation/result.json").write_text(json.dumps(value))
    (run / "recipe.toml").write_text(f"name = {json.dumps(EVIL)}\n")
    doctor = tmp_path / "doctor.html"
    doctor.write_bytes(sheet([finding("odd-name", [tmp_path / EVIL.replace("/", "_")], EVIL)], None, EVIL).encode())
    for page_file in (write(run, tmp_path / "report.html"), doctor):
        with playwright.sync_playwright() as p:
            browser = p.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-gpu"])
            page = browser.new_page()
            messages: list[str] = []
            page.on("pageerror", lambda e, messages=messages: messages.append(str(e)))
            page.on(
                "request",
                lambda r, messages=messages: None if r.url.startswith(("file:", "data:")) else messages.append(r.url),
            )
            page.goto(page_file.as_uri())
            page.wait_for_timeout(200)
            assert page.title() != "owned"
            assert page.evaluate("document.querySelectorAll('[onerror], img[src=x]').length") == 0
            assert page.evaluate("document.body.innerText.includes('onerror=')"), "the name is shown as text"
            assert messages == []
            browser.close()
