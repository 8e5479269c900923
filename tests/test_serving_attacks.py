"""Overload, slow attackers, mutated requests and images: the server holds, and the plain stack does not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import serving_attacks as attacks
import torch
from PIL import Image
from serving_tools import Served, image_request, serving

import fullyconv as fc

pytestmark = pytest.mark.slow
SOAK = pytest.mark.soak  # judged by the clock: run by hand, on a machine with nothing else to do
CHROMIUM = Path("/usr/bin/chromium")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = fc.create("fcn16s-squeezenet1_0", classes=5)
    with torch.no_grad():
        for p in model.head_parameters():
            p.normal_(0, 0.3)
    model.save_pretrained(tmp_path_factory.mktemp("model") / "m")
    return tmp_path_factory.getbasetemp() / "model0" / "m"


@pytest.fixture(scope="module")
def real(run: Path) -> Iterator[Served]:
    with serving("real", str(run)) as served:
        served.until_ready(90)
        yield served


@SOAK
def test_ten_times_the_load_costs_nothing_but_refusals() -> None:
    with serving("serve", json.dumps({"per_address": 99}), "0.04") as served:
        found = attacks.overload(served, 10, 4, 2)
    assert found["goodput_of_capacity"] >= 0.8, found  # benchmarks/serve.py measures it on a quiet machine
    assert found["resets"] == 0, found
    assert set(found["statuses"]) <= {200, 429}, found
    assert found["accepted_p99_ms"] <= 12 * found["unloaded_p99_ms"], found


@SOAK
def test_without_a_bound_the_same_load_lets_everybody_wait() -> None:
    with serving("plain", "0.04") as served:
        found = attacks.overload(served, 10, 4, 2)
    assert found["accepted_p99_ms"] > 12 * found["unloaded_p99_ms"] or found["statuses"].get(200, 0) < 50, found


CASES = [(kind, spread) for kind in attacks.KINDS for spread in (1, 200)]


@pytest.mark.parametrize(
    ("kind", "spread"), [pytest.param(*c, marks=[] if c == ("body", 200) else [SOAK]) for c in CASES]
)
def test_two_hundred_slow_attackers_cost_the_honest_nothing(kind: str, spread: int) -> None:
    with serving("serve", json.dumps({"header_seconds": 1, "body_seconds": 1.5}), "0.002") as served:
        found = attacks.slow_attackers(served, kind, 200, 20, 3, spread)
    assert found["answered"] == found["asked"] >= 20, found


@SOAK
def test_the_same_attackers_shut_the_plain_stack() -> None:
    with serving("plain", "0.002") as served:
        found = attacks.slow_attackers(served, "body", 200, 20, 3, 200)
    assert found["answered"] < found["asked"] / 2, found


def test_mutated_requests_find_no_mistake_and_leave_nothing_behind() -> None:
    with serving("serve", json.dumps({"header_seconds": 1, "body_seconds": 1}), "0") as served:
        attacks.hostile_requests(served, 300, 1)
        before, worker = attacks.memory(served.process.pid), attacks.worker_of(served)
        found = attacks.hostile_requests(served, 1500, 2)
        assert not [status for status in found if status >= 500 and status not in (503, 504)], found
        assert attacks.memory(served.process.pid) - before <= 16 << 20
        assert attacks.worker_of(served) == worker
        assert served.figure("fullyconv_body_bytes") == 0
        assert served.get("/healthz")[0] == 200


def test_mutated_images_find_no_mistake_in_the_real_worker(real: Served) -> None:
    attacks.hostile_images(real, 60, 1)
    before, worker = attacks.memory(real.process.pid), attacks.worker_of(real)
    found = attacks.hostile_images(real, 300, 2)
    assert set(found) <= {200, 413, 415, 422}, found
    assert found[422] > 30
    assert attacks.memory(real.process.pid) - before <= 16 << 20
    assert attacks.worker_of(real) == worker


def scene(height: int = 90, width: int = 120) -> bytes:
    out = BytesIO()
    noise = np.random.default_rng(3).integers(0, 255, (height // 10, width // 10, 3)).astype(np.uint8)
    Image.fromarray(noise).resize((width, height)).save(out, "PNG")
    return out.getvalue()


def test_the_answer_is_the_commands_file_byte_for_byte(real: Served, run: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from fullyconv import cli

    if not cli.app.registered_commands:
        cli._register()
    (tmp_path / "a.png").write_bytes(scene())
    done = CliRunner().invoke(
        cli.app, ["predict", str(run), str(tmp_path / "a.png"), "-o", str(tmp_path / "out"), "--quiet"]
    )
    assert done.exit_code == 0, done.output
    status, headers, body = real.post(scene())
    assert (status, headers["content-type"]) == (200, "image/png")
    assert body == (tmp_path / "out" / "a.png").read_bytes()
    assert "sandbox" in headers["content-security-policy"]


def test_the_outputs_agree_with_each_other(real: Served) -> None:
    labels = np.asarray(Image.open(BytesIO(real.post(scene())[2])))
    found = json.loads(real.post(scene(), query="?output=json")[2])
    counted = dict(zip(*(part.tolist() for part in np.unique(labels, return_counts=True)), strict=True))
    assert {c["id"]: c["pixels"] for c in found["classes"]} == counted
    confidence = np.load(BytesIO(real.post(scene(), query="?output=probabilities")[2]))
    assert confidence.shape == (5, 90, 120)
    assert (confidence.argmax(0) == labels).mean() > 0.999
    overlay = Image.open(BytesIO(real.post(scene(), query="?output=overlay")[2]))
    assert overlay.size == (120, 90)


def test_the_worker_can_write_no_file_and_open_none_but_libraries(real: Served) -> None:
    from fullyconv.sandbox import walls

    limits = Path(f"/proc/{attacks.worker_of(real)}/limits").read_text()
    line = next(row for row in limits.splitlines() if row.startswith("Max file size"))
    assert line.split()[3:5] == ["0", "0"]
    if walls()["landlock"]:
        assert "NoNewPrivs:\t1" in Path(f"/proc/{attacks.worker_of(real)}/status").read_text()


def test_a_killed_worker_is_told_at_once_and_replaced(real: Served) -> None:
    found = attacks.killed_worker(real)
    assert found["not_ready_after"] <= 2, found
    assert real.post(scene())[0] == 200


@pytest.mark.skipif(not CHROMIUM.exists(), reason="needs Chromium at /usr/bin/chromium")
def test_the_page_labels_a_dropped_image_and_downloads_the_commands_file(real: Served, tmp_path: Path) -> None:
    from playwright.sync_api import sync_playwright

    (tmp_path / "a.png").write_bytes(scene())
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 390, "height": 844})
        messages: list[str] = []
        page.on("console", lambda m: messages.append(m.text))
        page.on("pageerror", lambda e: messages.append(str(e)))
        asked: list[str] = []
        page.on("request", lambda r: asked.append(r.url))
        page.goto(f"http://127.0.0.1:{real.port}/")
        page.set_input_files("#file", tmp_path / "a.png")
        page.wait_for_selector("#legend tr", state="attached")
        page.locator("#view").hover()
        names = page.locator("#legend tr td:first-child").all_inner_texts()
        assert page.inner_text("#under") in names
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        with page.expect_download() as download:
            page.click("#save")
        assert download.value.suggested_filename == "a.png"
        assert Path(download.value.path()).read_bytes() == real.post(scene())[2]
        assert not messages
        assert all(url.startswith((f"http://127.0.0.1:{real.port}/", "blob:", "data:")) for url in asked), asked
        browser.close()


def test_another_pages_script_reaches_nothing(real: Served) -> None:
    assert real.ask(image_request(scene(), "Origin: http://evil.example"))[0] == 403
    assert real.ask(image_request(scene()).replace(b"Host: localhost", b"Host: evil.example"))[0] == 421
