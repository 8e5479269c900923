"""A folder that labels images in the browser: what it holds, where its engine comes from, and that it agrees."""

from __future__ import annotations

import base64
import functools
import hashlib
import http.server
import io
import json
import os
import re
import tarfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fullyconv as fc
from fullyconv.errors import DataError, MissingInput, TryAgain, UsageError

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from test_exporting import trained

from fullyconv.exporting import web

CHROMIUM = Path("/usr/bin/chromium")
ENGINE = os.environ.get("FULLYCONV_ONNXRUNTIME_WEB", "")  # the .tgz or a folder
PAGE = Path(web.__file__).parent / "page"


@pytest.fixture(scope="module")
def model() -> Any:
    return trained(heads={"semantic": 5, "surface": 3})


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that passes for onnxruntime-web's."""
    folder = tmp_path / "node_modules" / "onnxruntime-web" / "dist"
    folder.mkdir(parents=True)
    for name in web.ENGINE:
        (folder / name).write_text(name)
    sums = {name: hashlib.sha256(name.encode()).hexdigest() for name in web.ENGINE}
    monkeypatch.setattr(web, "ENGINE", sums)
    return tmp_path / "node_modules"


def test_the_folder_holds_the_page_the_file_and_its_engine_and_is_replaced(
    model: Any, stand_in: Path, tmp_path: Path
) -> None:
    for _ in range(2):
        fc.export(model, tmp_path / "out", "web", onnxruntime_web=stand_in)
    found = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert found == {*web.PAGE, "model.json", "model.onnx", "ort/LICENSE.txt", *(f"ort/{n}" for n in web.ENGINE)} | {
        ".written.sha256"
    }
    told = json.loads((tmp_path / "out" / "model.json").read_text())
    assert told["sha256"] == hashlib.sha256((tmp_path / "out" / "model.onnx").read_bytes()).hexdigest()
    assert [(h["name"], h["labels"], len(h["classes"])) for h in told["heads"]] == [
        ("semantic", "labels_semantic", 5), ("surface", "labels_surface", 3)
    ]  # fmt: skip
    assert fc.Predictor(tmp_path / "out" / "model.onnx").heads == model.heads  # the same file as any other


def test_a_page_of_the_users_own_is_not_replaced(model: Any, stand_in: Path, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("mine")
    with pytest.raises(UsageError, match=r"index\.html"):
        fc.export(model, tmp_path, "web", onnxruntime_web=stand_in)
    assert (tmp_path / "index.html").read_text() == "mine"
    assert not (tmp_path / "model.onnx").exists()


@pytest.mark.parametrize(
    ("name", "how", "message"),
    [
        ("fcn32s-mobilenet_v2-rgbd", {"input": "float"}, "red, green and blue"),
        ("fcn32s-mobilenet_v2-bands4", {}, "red, green and blue"),
        ("fcn16s-squeezenet1_0", {"output": "scores"}, "--output labels"),
        ("fcn16s-squeezenet1_0", {"input": "float"}, "--input uint8"),
    ],
)
def test_what_a_browser_cannot_feed_or_show_is_refused(
    name: str, how: dict[str, str], message: str, stand_in: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        fc.export(trained(name, classes=3), tmp_path / "out", "web", onnxruntime_web=stand_in, **how)
    assert not (tmp_path / "out").exists()


def test_the_engine_is_named_or_fetched_and_is_for_the_page_alone(model: Any, tmp_path: Path) -> None:
    for source, fetch in (("", False), (tmp_path, True)):
        with pytest.raises(UsageError, match=r"--fetch, or name .* one of the two"):
            web.engine_files(source, fetch)
    with pytest.raises(UsageError, match="for the page alone"):
        fc.export(model, tmp_path / "m.onnx", fetch=True)


def test_an_engine_of_other_bytes_is_refused(stand_in: Path, tmp_path: Path) -> None:
    assert set(web.engine_files(stand_in, False)) == set(web.ENGINE)
    part = stand_in / "onnxruntime-web" / "dist" / next(iter(web.ENGINE))
    part.write_text("another version")
    with pytest.raises(DataError, match=r"ort\.wasm\.min\.mjs is not that of onnxruntime-web"):
        web.engine_files(stand_in, False)
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingInput, match="name a folder of onnxruntime-web"):
        web.engine_files(tmp_path / "empty", False)
    (tmp_path / "a.tgz").write_bytes(b"no archive")
    with pytest.raises(DataError, match="sha512 differs"):
        web.engine_files(tmp_path / "a.tgz", False)


def npm(folder: Path, script: str) -> None:
    (folder / "npm").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "npm").chmod(0o755)


def test_npm_fetches_the_pinned_version_without_its_scripts(
    stand_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        archive.add(stand_in / "onnxruntime-web", "package")
    (tmp_path / "packed").write_bytes(packed.getvalue())
    monkeypatch.setattr(web, "INTEGRITY", base64.b64encode(hashlib.sha512(packed.getvalue()).digest()))
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    npm(tmp_path, f'echo "$@" > {tmp_path}/asked; cp {tmp_path}/packed a.tgz')
    assert set(web.engine_files("", True)) == set(web.ENGINE)
    assert (tmp_path / "asked").read_text().startswith(f"pack onnxruntime-web@{web.VERSION} --ignore-scripts")
    npm(tmp_path, "echo no such host >&2; exit 1")
    with pytest.raises(TryAgain, match="no such host"):
        web.engine_files("", True)
    monkeypatch.setenv("FULLYCONV_OFFLINE", "1")
    with pytest.raises(MissingInput, match="FULLYCONV_OFFLINE"):
        web.engine_files("", True)
    monkeypatch.delenv("FULLYCONV_OFFLINE")
    monkeypatch.setenv("PATH", str(stand_in))
    with pytest.raises(UsageError, match="npm, which fetches"):
        web.engine_files("", True)


def test_the_page_names_no_other_host_and_its_policy_lets_none_in() -> None:
    page_text = "\n".join(web.page_file(name).decode() for name in web.PAGE)
    assert set(re.findall(r"https?://[\w.:/]+", page_text)) <= {"http://localhost:8000", "http://www.w3.org/2000/svg"}
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page_text)
    assert policy is not None
    rules = dict(rule.strip().split(" ", 1) for rule in policy[1].split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["connect-src"] == "'self'"
    assert rules["script-src"] == "'self' 'wasm-unsafe-eval'"
    assert "innerHTML" not in page_text


@pytest.mark.parametrize("classes", [2, 21, 300])
@pytest.mark.parametrize("halo", [0, 17.5, 391, 5000])
def test_tiles_lie_on_the_networks_grid_and_fit(classes: int, halo: float) -> None:
    found = web.tiling({"halo": halo, "align": 32}, classes)
    largest, core, context = found["largest"], found["core"], found["context"]
    assert largest is not None
    assert context is not None
    assert largest * classes * 8 <= web.SCORES
    assert context >= halo
    assert context % 32 == 0
    if core is None:
        assert (web.LEAST_CORE + 31 + 2 * context) ** 2 > largest
    else:
        assert core % 32 == 0
        assert (core + 2 * context) ** 2 <= largest


def test_a_network_of_unbounded_context_is_not_read_in_tiles() -> None:
    assert web.tiling({"halo": None, "align": 32}, 3)["core"] is None


class Open(http.server.BaseHTTPRequestHandler):
    """Another host, which anybody may ask."""

    def do_GET(self) -> None:
        self.server.reached.append(self.path)  # type: ignore[attr-defined]
        self.send_response(200)
        self.send_header("Access-Control-Allow-Origin", "*")
        self.end_headers()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *page_text: Any) -> None: ...


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM.exists(), reason="needs Chromium at /usr/bin/chromium")
@pytest.mark.skipif(not ENGINE, reason="needs onnxruntime-web's .tgz or folder in FULLYCONV_ONNXRUNTIME_WEB")
def test_in_chromium_labels_are_the_runtimes_whole_and_in_tiles(model: Any, tmp_path: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    out = tmp_path / "out"
    fc.export(model, out, "web", output="confidence", onnxruntime_web=ENGINE)
    told, ready = json.loads((out / "model.json").read_text()), fc.Predictor(out / "model.onnx")
    cells = np.random.default_rng(1).integers(0, 256, (20, 22, 3), np.uint8).repeat(16, 0).repeat(16, 1)
    Image.fromarray(cells[:301, :343]).save(tmp_path / "a.png")
    turned = Image.Exif()
    turned[274] = 6
    Image.fromarray(cells[:40, :77]).save(tmp_path / "b.jpg", exif=turned, quality=90)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=out))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    other: Any = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Open)
    other.reached = []
    threading.Thread(target=other.serve_forever, daemon=True).start()
    home = f"http://127.0.0.1:{server.server_port}/"
    try:
        with playwright.sync_playwright() as p:
            fake = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
            flags = ["--no-sandbox", "--disable-gpu", *fake]
            browser = p.chromium.launch(executable_path=str(CHROMIUM), args=flags)
            messages: list[str] = []
            asked: list[str] = []

            def opened() -> Any:
                page = browser.new_page(viewport={"width": 390, "height": 844})
                page.set_default_timeout(120_000)
                page.on("console", lambda m: messages.append(m.text))
                page.on("pageerror", lambda e: messages.append(str(e)))
                page.on("request", lambda r: asked.append(r.url))
                page.goto(home)
                page.wait_for_selector("#file:enabled", state="attached")
                return page

            def labels(page: Any, name: str, expected: str) -> Any:
                page.set_input_files("#file", tmp_path / name)
                page.locator("#status").filter(has_text=expected).wait_for()
                with page.expect_download() as download:
                    page.click("#save")
                return Image.open(download.value.path())

            page = opened()
            truth = ready.labels(tmp_path / "a.png")
            found = labels(page, "a.png", "301 x 343 pixels (H x W) labelled in")
            np.testing.assert_array_equal(np.asarray(found), truth["semantic"])
            assert found.getpalette()[:15] == [v for c in model.taxonomies["semantic"].palette for v in c]
            page.select_option("#head", "surface")
            with page.expect_download() as download:
                page.click("#save")
            np.testing.assert_array_equal(np.asarray(Image.open(download.value.path())), truth["surface"])
            page.locator("#view").hover()
            assert re.fullmatch(r".+, \d+ %", page.inner_text("#under"))
            shares = [float(s[:-2]) for s in page.locator("#legend td:nth-child(2)").all_inner_texts()]
            assert sum(shares) == pytest.approx(100, abs=0.2)
            assert page.evaluate("document.documentElement.scrollWidth") <= 390
            page.select_option("#head", "semantic")
            found = labels(page, "b.jpg", "77 x 40 pixels (H x W) labelled in")  # turned as its EXIF says
            same = np.asarray(found) == ready.labels(tmp_path / "b.jpg")["semantic"]
            assert same.mean() > 0.98  # decoders of JPEG differ by a grey value here and there
            page.click("#camera")
            page.locator("#status").filter(has_text="images a second").wait_for()
            page.click("#camera")
            away = f"fetch('http://127.0.0.1:{other.server_port}/').then(() => 'sent', () => 'refused')"
            assert page.workers[0].evaluate(away) == "refused"  # the policy holds for the engine too
            assert not other.reached

            (out / "model.json").write_text(json.dumps(told | {"largest": 300, "core": 64}))
            found = labels(opened(), "a.png", "in 30 tiles")
            np.testing.assert_array_equal(np.asarray(found), truth["semantic"])
            (out / "model.json").write_text(json.dumps(told | {"largest": 5000, "core": None}))
            found = labels(opened(), "a.png", "needs the whole of an image")
            assert found.size[0] * found.size[1] <= 5000
            assert not messages
            assert all(url.startswith((home, f"blob:{home}", "data:")) for url in asked), asked

            (out / "model.json").write_text(json.dumps(told | {"sha256": "0" * 64}))
            page = browser.new_page()
            page.goto(home)
            page.locator("#status").filter(has_text="not as it was exported").wait_for()
            page.goto((out / "index.html").as_uri())
            assert "python -m http.server" in page.inner_text("#model")
            browser.close()
    finally:
        server.shutdown()
        other.shutdown()
