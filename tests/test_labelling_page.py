"""The labelling page in Chromium, by real mouse and keyboard."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from labelling_tools import CHROMIUM, Tab, chromium, labelling
from PIL import Image

from fullyconv.images import read_label
from fullyconv.labelling.strokes import slow_brush, slow_polygon
from fullyconv.regions import components

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not CHROMIUM.exists(), reason="needs Chromium at /usr/bin/chromium"),
]
NOTHING = "fcn16s-squeezenet1_0"  # a network that has learned nothing: no proposals
OPTIONS = ("--classes", "ground,disc,box", "--no-rank", "--train-minutes", "0")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


def photos(folder: Path, count: int = 2, size: tuple[int, int] = (150, 200)) -> Path:
    """Grounds with a bright disc."""
    folder.mkdir(parents=True)
    y, x = np.indices(size)
    for i in range(count):
        draw = np.random.default_rng(i)
        image = np.full((*size, 3), (60, 90, 60)) + draw.integers(-20, 20, (*size, 3))
        row, column = draw.integers(50, 100), draw.integers(60, 140)
        image[(y - row) ** 2 + (x - column) ** 2 < 35**2] += np.array([150, 60, -20])
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / f"p{i}.png")
    return folder


class Drawn:
    """What the strokes make by the definitions, beside the page."""

    def __init__(self, tab: Tab, size: tuple[int, int]) -> None:
        self.tab, self.size = tab, size
        self.states = [np.full(size, -1)]  # nothing
        self.undone: list[np.ndarray] = []

    @property
    def now(self) -> np.ndarray:
        return self.states[-1]

    def put(self, inside: np.ndarray, value: int) -> None:
        self.states.append(np.where(inside, value, self.now))
        self.undone = []

    def pixel(self, x: int, y: int) -> tuple[int, int]:
        scale, left, top, at_x, at_y = self.tab.view
        return math.floor(left + (x - at_x) / scale), math.floor(top + (y - at_y) / scale)

    def corner(self, x: int, y: int) -> tuple[int, int]:
        scale, left, top, at_x, at_y = self.tab.view
        found = math.floor(left + (x - at_x) / scale + 0.5), math.floor(top + (y - at_y) / scale + 0.5)
        return min(max(found[0], 0), self.size[1]), min(max(found[1], 0), self.size[0])


def test_thirty_strokes_by_mouse_and_keyboard_are_a_label_map_of_exactly_those_pixels(
    browser: Any, tmp_path: Path
) -> None:
    folder = photos(tmp_path / "photos")
    with labelling(NOTHING, folder, tmp_path / "out", *OPTIONS) as served:
        tab = Tab(browser.new_page(viewport={"width": 1100, "height": 760}), served.address)
        page, drawn, draw = tab.page, Drawn(tab, (150, 200)), np.random.default_rng(7)
        box = page.locator("#view").bounding_box()

        def place() -> tuple[int, int]:
            return int(box["x"] + draw.uniform(0.1, 0.9) * box["width"]), int(
                box["y"] + draw.uniform(0.1, 0.9) * box["height"]
            )

        def focus() -> None:
            page.locator("#view").focus()

        focus()
        made = {"mouse": 0, "erase": 0, "keys": 0, "polygon": 0, "fill": 0, "undo": 0, "redo": 0}
        for n in range(30):
            paint = int(draw.integers(0, 3))
            page.keyboard.press(str(paint + 1))
            if n in (8, 19):
                page.keyboard.press("+")  # strokes at other zooms
            if n == 24:
                page.keyboard.press("Home")
            kind = ("mouse", "keys", "polygon", "mouse", "fill", "erase", "undo", "mouse", "redo", "keys")[n % 10]
            diameter = tab.js("labelling.stage.diameter")
            if kind in ("mouse", "erase"):
                page.keyboard.press("b" if kind == "mouse" else "e")
                page.keyboard.press("]" if n % 4 else "[")
                diameter = tab.js("labelling.stage.diameter")
                way = [place() for _ in range(4)]
                page.mouse.move(*way[0])
                page.mouse.down()
                for at in way[1:]:
                    page.mouse.move(*at)
                page.mouse.up()
                drawn.put(
                    slow_brush([drawn.pixel(*at) for at in way], diameter, (150, 200)), -1 if kind == "erase" else paint
                )
            elif kind == "keys":
                page.keyboard.press("b")
                start = tab.js("labelling.stage.cursor")
                start = [min(max(start[0], 0), 199), min(max(start[1], 0), 149)]
                tab.js("(at) => { labelling.stage.cursor = at; }", start)
                page.keyboard.press(" ")
                points = [tuple(start)]
                for key, (dx, dy) in {
                    "Shift+ArrowLeft": (-10, 0),
                    "ArrowDown": (0, 1),
                    "Shift+ArrowUp": (0, -10),
                }.items():
                    page.keyboard.press(key)
                    x, y = points[-1]
                    points.append((min(max(x + dx, 0), 199), min(max(y + dy, 0), 149)))
                page.keyboard.press(" ")
                drawn.put(slow_brush(points, diameter, (150, 200)), paint)
            elif kind == "polygon":
                page.keyboard.press("p")
                ring = [place() for _ in range(4)]
                for at in ring:
                    page.mouse.click(*at)
                page.keyboard.press("Enter")
                drawn.put(slow_polygon([drawn.corner(*at) for at in ring], (150, 200)), paint)
            elif kind == "fill":
                page.keyboard.press("f")
                at = place()
                x, y = drawn.pixel(*at)
                x, y = min(max(x, 0), 199), min(max(y, 0), 149)
                scale, left, top, at_x, at_y = tab.view
                at = (at_x + (x + 0.5 - left) * scale, at_y + (y + 0.5 - top) * scale)
                x, y = drawn.pixel(*at)
                page.mouse.click(*at)
                number = components(drawn.now)[0]
                drawn.put(number == number[y, x], paint)
            elif kind == "undo":
                page.keyboard.press("Control+z")
                drawn.undone.append(drawn.states.pop())
            else:
                page.keyboard.press("z")
                page.keyboard.press("y")
            made[kind] += 1
        tab.saved()
        edits = 30 + made["redo"]
        answer = served.written("p0", edits)
        wanted = np.where(drawn.now < 0, 255, drawn.now)
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out/labels/p0.png")), wanted)
        assert answer["pixels"]["painted"] == int((drawn.now >= 0).sum()) > 3000
        assert answer["seconds"] > 0
        assert min(made.values()) >= 3, made
        shown = tab.js("[...labelling.tiles.get(0, 0, 0, false).painted]")
        np.testing.assert_array_equal(np.reshape(shown, (150, 200)), drawn.now + 1)
        assert not tab.heard
        assert all(url.startswith((served.address.partition("#")[0], "blob:", "data:")) for url in tab.asked)
        page.close()


def test_the_pages_rule_is_the_servers_to_the_pixel(browser: Any, tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos", 1)
    draw = np.random.default_rng(3)
    cases = []
    for _ in range(150):
        level = int(draw.integers(0, 4))
        tile = {
            "x": int(draw.integers(0, 3)) * 8,
            "y": int(draw.integers(0, 3)) * 8,
            "width": 24,
            "height": 20,
            "step": 2**level,
        }
        if draw.random() < 0.5:
            points = draw.integers(-20, 120, (int(draw.integers(1, 5)), 2)).tolist()
            edit = {"op": "brush", "points": points, "diameter": int(draw.integers(1, 60))}
        else:
            edit = {"op": "polygon", "points": draw.integers(0, 150, (int(draw.integers(3, 8)), 2)).tolist()}
        cases.append((tile, edit))
    far = {"op": "brush", "points": [[0, 0], [32766, 32765]], "diameter": 1023}
    cases.append(({"x": 20_000, "y": 19_500, "width": 200, "height": 30, "step": 4}, far))
    with labelling(NOTHING, folder, tmp_path / "out", *OPTIONS) as served:
        tab = Tab(browser.new_page(), served.address)
        found = tab.js(
            "(cases) => cases.map(([tile, edit]) => {"
            " const hits = new Set(); labelling.rule.cover(tile, edit, (i) => hits.add(i)); return [...hits]; })",
            cases,
        )
        tab.page.close()
    for (tile, edit), hits in zip(cases, found, strict=True):
        height, width, step = tile["height"], tile["width"], tile["step"]
        mask = np.zeros(height * width, bool)
        mask[hits] = True
        if edit is far:
            from fullyconv.labelling.strokes import on_capsule

            y, x = np.indices((height, width)) * step
            wanted = on_capsule(x + tile["x"], y + tile["y"], *edit["points"], edit["diameter"])
            assert 0 < wanted.sum() < wanted.size
        else:
            size = (tile["y"] + height * step, tile["x"] + width * step)
            ring = [tuple(p) for p in edit["points"]]
            whole = (
                slow_brush(ring, edit["diameter"], size) if edit["op"] == "brush" else slow_polygon_quick(ring, size)
            )
            wanted = whole[tile["y"] :: step, tile["x"] :: step]
        np.testing.assert_array_equal(mask.reshape(height, width), wanted, str(edit))


def slow_polygon_quick(ring: list[tuple[int, int]], size: tuple[int, int]) -> np.ndarray:
    """The server's rule, which the quick tests hold to its definition."""
    from fullyconv.labelling.strokes import polygon

    found, cover = np.zeros(size, bool), polygon(ring, size)
    found[cover.part][cover.inside] = True
    return found


def test_learning_changes_the_proposals_on_the_open_page(browser: Any, tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos", 3)
    with labelling("fcn8s-efficientnet_lite0", folder, tmp_path / "out", *OPTIONS) as served:
        tab = Tab(browser.new_page(viewport={"width": 1100, "height": 760}), served.address)
        page = tab.page
        tab.until("document.body.dataset.model")
        assert tab.js("labelling.tiles.get(0, 0, 0, false).base.every((c) => c === 0)"), "nothing is proposed yet"
        disc = np.asarray(Image.open(folder / "p0.png"))[..., 0] > 140
        row, column = (int(v) for v in np.argwhere(disc).mean(0))
        page.locator("#view").focus()
        page.keyboard.press("b")
        round_ = [(10, 140), (190, 140), (190, 10), (10, 10)]
        tab.draw("1", round_)
        tab.draw("2", [(column, row), (column + 15, row)])
        tab.saved()
        page.keyboard.press("l")
        tab.until("document.body.dataset.learning === 'done'")
        tab.until("labelling.tiles.get(0, 0, 0, false).base.some((c) => c > 0)")
        assert "Learned from 1 images" in page.inner_text("#model")
        page.keyboard.press("n")
        tab.until("labelling.state.photo.image !== 0 && labelling.tiles.get(0, 0, 0, false)?.base?.some((c) => c > 0)")
        base = np.reshape(tab.js("[...labelling.tiles.get(0, 0, 0, false).base]"), (150, 200)) - 1
        name = tab.js("labelling.state.images[labelling.state.photo.image].name")
        truth = np.asarray(Image.open(folder / f"{name}.png"))[..., 0] > 140
        assert (base == truth).mean() > 0.85, "two strokes on one image tell the discs of the others"
        painted = np.reshape(tab.js("[...labelling.tiles.get(0, 0, 0, false).painted]"), (150, 200))
        assert not painted.any()
        page.keyboard.press("Enter")
        answer = served.written(name, 1)
        assert answer["pixels"] == {"painted": 0, "accepted": 30_000, "existing": 0, "unlabelled": 0}
        assert len(answer["model"]) == 64
        assert (np.asarray(Image.open(tmp_path / f"out/labels/{name}.png")) == base).all()
        assert not tab.heard
        page.close()


def test_a_whole_training_runs_in_the_background_and_its_network_takes_over(browser: Any, tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos", 4)
    given = ("--classes", "ground,disc", "--no-rank", "--train-minutes", "0.1", "--runs", str(tmp_path / "runs"))
    with labelling("fcn8s-efficientnet_lite0", folder, tmp_path / "out", *given) as served:
        tab = Tab(browser.new_page(viewport={"width": 1100, "height": 760}), served.address)
        page = tab.page
        tab.until("document.body.dataset.model")
        page.locator("#view").focus()
        page.keyboard.press("b")
        for image in range(4):
            disc = np.asarray(Image.open(folder / f"p{image}.png"))[..., 0] > 140
            row, column = (int(v) for v in np.argwhere(disc).mean(0))
            tab.draw("1", [(10, 140), (190, 140)])
            tab.draw("2", [(column, row), (column + 15, row)])
            tab.saved()
            if image < 3:
                page.keyboard.press("n")
                tab.until(f"labelling.state.photo.image === {image + 1}")
        page.keyboard.press("l")
        tab.until("document.body.dataset.learning === 'done'")
        tab.until("['done', 'failed'].includes(document.body.dataset.training)", 300)
        assert "Trained for" in page.inner_text("#model"), page.inner_text("#model")
        (run,) = (tmp_path / "runs").iterdir()
        assert (run / "best" / "model.safetensors").is_file()
        tab.until(f"document.querySelector('#model').textContent.startsWith('Proposals by {run.name} ')")
        assert not tab.heard
        page.close()


def test_two_tabs_see_each_other_and_a_killed_server_loses_nothing(browser: Any, tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos", 1)
    with labelling(NOTHING, folder, tmp_path / "out", *OPTIONS) as served:
        one, two = (Tab(browser.new_page(viewport={"width": 900, "height": 700}), served.address) for _ in range(2))

        def stroke(tab: Tab, key: str, x: int, y: int) -> None:
            tab.page.bring_to_front()
            tab.page.locator("#view").focus()
            tab.page.keyboard.press(key)
            box = tab.page.locator("#view").bounding_box()
            tab.page.mouse.move(box["x"] + x, box["y"] + y)
            tab.page.mouse.down()
            tab.page.mouse.move(box["x"] + x + 60, box["y"] + y)
            tab.page.mouse.up()

        painted = "[...labelling.tiles.get(0, 0, 0, false).painted]"
        stroke(one, "1", 200, 200)
        two.until("labelling.tiles.get(0, 0, 0, false).painted.includes(1)")
        stroke(two, "2", 220, 200)
        one.until("labelling.tiles.get(0, 0, 0, false).painted.includes(2)")
        one.saved()
        two.saved()
        assert one.js(painted) == two.js(painted)
        one.page.locator("#view").focus()
        one.page.keyboard.press("z")
        two.until("!labelling.tiles.get(0, 0, 0, false).painted.includes(2)")
        before = one.js(painted)
        port = served.address.rpartition(":")[2].partition("/")[0]
        served.kill()
        stroke(one, "3", 100, 300)
        one.until("document.querySelector('#status').textContent.includes('not saved yet')")
        with labelling(NOTHING, folder, tmp_path / "out", *OPTIONS, "--port", port) as again:
            one.saved()
            two.until("labelling.tiles.get(0, 0, 0, false)?.painted?.includes(3)")
            after = np.array(one.js(painted))
            assert (after[after != 3] == np.array(before)[after != 3]).all()
            answer = again.written("p0", 4)
            assert answer["pixels"]["painted"] == int((after > 0).sum())
        one.page.close()
        two.page.close()


def test_an_image_of_a_hundred_megapixels_is_drawn_on_without_waiting(browser: Any, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    small = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8))
    small.resize((10_000, 10_000), Image.Resampling.NEAREST).save(tmp_path / "photos/large.jpg", quality=60)
    options = (*OPTIONS, "--max-pixels", "120000000")
    with labelling(NOTHING, tmp_path / "photos", tmp_path / "out", *options) as served:
        page = browser.new_page(viewport={"width": 1100, "height": 760})
        tab = Tab(page, served.address, "labelling.state.photo")
        tab.until("labelling.tiles.get(labelling.tiles.levels - 1, 0, 0, false)?.bitmap")
        assert tab.js("labelling.tiles.levels") == 6
        page.locator("#view").focus()
        tab.js(
            "(() => { globalThis.gaps = []; let last = performance.now();"
            " const beat = () => { const now = performance.now(); gaps.push(now - last); last = now;"
            " requestAnimationFrame(beat); }; beat(); })()"
        )
        took = []
        for n in range(12):
            page.keyboard.press("+" if n % 3 == 2 else str(n % 3 + 1))
            box = page.locator("#view").bounding_box()
            start = time.monotonic()
            page.mouse.move(box["x"] + 300 + 9 * n, box["y"] + 200)
            page.mouse.down()
            page.mouse.move(box["x"] + 380, box["y"] + 260 + 7 * n)
            page.mouse.up()
            tab.saved()
            took.append(time.monotonic() - start)
        assert sorted(took)[6] < 5, took
        gaps = sorted(tab.js("gaps"))
        assert gaps[len(gaps) // 2] < 500, "half of the frames"
        assert tab.js("labelling.tiles.kept.size") <= 200
        page.close()
        output = served.end()
    assert "Traceback" not in output, output
    labels = read_label(tmp_path / "out/labels/large.png", max_pixels=120_000_000)
    assert labels.shape == (10_000, 10_000)
    assert set(np.unique(labels)) <= {0, 1, 2, 255}
    assert (labels != 255).sum() > 10_000


@pytest.mark.parametrize(("width", "height"), [(390, 844), (1280, 800), (2560, 1300)])
def test_the_page_has_no_violation_that_axe_finds_and_nothing_overflows(
    browser: Any, tmp_path: Path, width: int, height: int
) -> None:
    axe = pytest.importorskip("axe_playwright_python", reason="needs axe-playwright-python")
    source = (Path(axe.__file__).parent / "axe.min.js").read_text()
    folder = photos(tmp_path / "photos", 3)
    with labelling(NOTHING, folder, tmp_path / "out", *OPTIONS) as served:
        for scheme in ("light", "dark"):
            page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
            tab = Tab(page, served.address)
            page.locator("summary").click()
            page.evaluate(source)
            found = page.evaluate("axe.run(document)")
            assert [(v["id"], [n["html"] for n in v["nodes"]]) for v in found["violations"]] == []
            assert len(found["passes"]) > 10
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            right = "Math.max(...[...document.querySelectorAll('body *')].map(e => e.getBoundingClientRect().right))"
            assert page.evaluate(right) <= width + 1
            assert not tab.heard
            page.close()
