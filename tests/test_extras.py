"""Without an extra, whatever needs it says which one to install; the rest works."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from fullyconv.errors import EXTRAS, MissingExtra, missing_extra

# Runs main(arguments) for each line of arguments where torch cannot be imported; its last line is the exit codes.
WITHOUT_TORCH = """
import json, sys
sys.modules["torch"] = None
from fullyconv.cli import main
codes = []
for line in sys.argv[1:]:
    try:
        main(line.split())
    except SystemExit as end:
        codes.append(end.code or 0)
print(json.dumps(codes))
"""
NEED_TORCH = [
    "train nowhere", "evaluate nowhere nowhere", "predict nowhere sc -o out", "models", "info fcn8s-vgg16",
    "convert file --model voc-fcn8s -o out", "convolutionalise resnet18 a.png --weights b.pt",
    "experiment shift-and-stitch", "experiment upper-bounds sc", "experiment patch-sampling sc",
]  # fmt: skip


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def without_torch(*lines: str) -> tuple[list[int], str]:
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *lines], capture_output=True, text=True, timeout=120)
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def test_every_command_that_needs_torch_says_what_to_install_and_shows_no_traceback(place: Path) -> None:
    (place / "sc").mkdir()
    (place / "sc" / "a.png").write_bytes(b"")
    codes, printed = without_torch(*NEED_TORCH)
    assert codes == [2] * len(NEED_TORCH), printed
    told = "needs the package 'torch': install it with  pip install 'fullyconv[torch]'."
    assert printed.count(told) == len(NEED_TORCH)
    assert "Traceback" not in printed


def test_data_can_be_made_checked_and_converted_without_torch(place: Path) -> None:
    codes, output = without_torch(
        "data scenes -o sc --train 2 --val 1 --height 32 --width 32 --seed 1", "check sc --quiet",
        "data convert sc -o plain --quiet", "hha sc/val/depth --camera sc/camera.json -o hha",
        "train --print-config",
    )  # fmt: skip
    assert codes == [0] * 5, output


def test_a_public_name_says_what_to_install() -> None:
    code = "import sys; sys.modules['torch'] = None\nimport fullyconv as fc\nfc.Predictor, fc.evaluate\nfc.load"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stderr.splitlines()[-1] == (
        "fullyconv.errors.MissingExtra: fullyconv.load needs the package 'torch': install it with  "
        "pip install 'fullyconv[torch]'."
    )


def test_every_optional_module_has_an_extra_of_the_project() -> None:
    project = Path(__file__).parent.parent / "pyproject.toml"
    extras = tomllib.loads(project.read_text())["project"]["optional-dependencies"]
    assert set(EXTRAS.values()) == set(extras) - {"all", "weights"}  # weights are looked for, never imported


@pytest.mark.parametrize("name", ["torch.nothing", "fullyconv.nothing", None])
def test_a_module_that_no_extra_installs_is_not_taken_for_a_missing_extra(name: str | None) -> None:
    assert missing_extra(ModuleNotFoundError("gone", name=name), "This") is None
    assert isinstance(missing_extra(ModuleNotFoundError("gone", name="timm"), "This"), MissingExtra)
