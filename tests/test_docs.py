"""The pages say what the program does: generated pages are current, links resolve, every shown command exists."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


@pytest.mark.slow  # scripts/check runs it as well
def test_generated_pages_are_current() -> None:
    done = subprocess.run([sys.executable, "docs/generate.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_local_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text("utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_mean_iu_is_called_by_its_other_name_too_where_a_page_first_names_it(page: Path) -> None:
    first = re.search(r"mean[ -]IU.{0,7}|mIoU", page.read_text("utf-8"))
    assert first is None or first.group() == "mean IU (mIoU)", first


def commands(page: Path) -> list[str]:
    """Lines that begin with `fullyconv` in code blocks, their comments taken off."""
    if page.name == "cli.md":
        return []
    blocks = re.findall(r"```(?:bash|sh|text)?\n(.*?)```", page.read_text("utf-8"), re.S)
    indented = re.findall(r"^(?: {4}|\$ )(fullyconv .*)$", page.read_text("utf-8"), re.M)
    lines = [line.strip().removeprefix("$ ") for block in blocks for line in block.splitlines()]
    return [line.split("  #")[0] for line in [*lines, *indented] if line.startswith("fullyconv ")]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_command_shown_exists_with_its_options(page: Path) -> None:
    import typer
    from typer.main import get_command

    from fullyconv import cli

    if not cli.app.registered_commands:
        cli._register()
    root = get_command(cli.app)
    assert isinstance(root, typer.core.TyperGroup)
    for line in commands(page):
        words = shlex.split(re.sub(r"[\[\]|]", " ", line))
        command: object = root
        rest = words[1:]
        while rest and isinstance(command, typer.core.TyperGroup) and rest[0] in command.commands:
            command = command.commands[rest.pop(0)]
        if command is root:
            assert rest, line
            assert rest[0].startswith("-"), f"{page.name}: {line!r} is no command"
        known = {o for p in getattr(command, "params", []) for o in (*p.opts, *p.secondary_opts)} | {"-h", "--help"}
        for word in rest:
            if word.startswith("-") and len(word) > 1 and not re.fullmatch(r"-\d.*", word):
                assert word.split("=")[0] in known, f"{page.name}: {line!r} has no option {word}"


def test_readme_shows_the_two_scripts_first() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    assert 0 < text.index("scripts/demo") < text.index("scripts/test") < text.index("pip install")
    for name in ("setup", "demo", "test", "check"):
        assert os.access(ROOT / "scripts" / name, os.X_OK)


def test_no_machine_path_and_no_registry_host_is_in_the_project() -> None:
    """Locks and pages name packages, never where they came from."""
    words = ["/" + "work/", "/" + "root/", "index" + "-url", "py" + "pi.org", "pythonhosted" + ".org"]
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split(
        "\n"
    )
    for name in filter(None, listed):
        path = ROOT / name
        if path.suffix in {".png", ".jpg", ".npz"} or not path.is_file():
            continue
        text = path.read_text("utf-8", "replace")
        found = [w for w in words if w in text]
        assert not found, f"{name} names {found}"


def test_tables_and_picture_of_speed_are_those_of_the_committed_results() -> None:
    done = subprocess.run([sys.executable, "docs/speed.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_picture_of_the_house_is_current() -> None:
    done = subprocess.run([sys.executable, "docs/house.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_table_of_rooms_is_the_one_that_imports_are_held_to() -> None:
    from test_layers import LAYERS

    text = (ROOT / "ARCHITECTURE.md").read_text("utf-8")
    rows = re.findall(r"^\| (\d) \| (`[^|]+`) \|", text, re.M)
    listed = {room: int(layer) for layer, rooms in rows for room in re.findall(r"`(\w+)`", rooms)}
    assert listed == {room: layer for room, (layer, _) in LAYERS.items() if room != "__main__"}


def _names(page: str, head: str) -> list[str]:
    """Dotted names in backticks in a section of a page."""
    section = (ROOT / page).read_text("utf-8").split(f"## {head}\n")[1].split("\n## ")[0]
    return [name for name in re.findall(r"`([\w.]+)`", section) if "." in name and not name.endswith((".py", ".md"))]


def test_the_walk_through_a_training_step_names_what_exists_and_what_is_called() -> None:
    import importlib

    names = _names("ARCHITECTURE.md", "A training step")
    assert len(names) > 15
    for name in names:
        found, parts = importlib.import_module("fullyconv"), name.removeprefix("fc.").split(".")
        for i, part in enumerate(parts):
            if not hasattr(found, part):
                importlib.import_module(".".join(("fullyconv", *parts[: i + 1])))
            found = getattr(found, part)
    loop = "".join(
        (ROOT / "fullyconv" / "train" / f"{m}.py").read_text()
        for m in ("__init__", "step", "batch_reader", "optimisation")
    )
    loop += (ROOT / "fullyconv" / "train" / "checkpointing.py").read_text()
    for name in names:
        word = name.rsplit(".")[-1]
        if name.startswith(("train.", "data.pipeline", "ops.")):
            assert re.search(rf"\b{word}\b", loop), f"{name} is not named in the loop"


@pytest.mark.parametrize("page", [p for p in PAGES if p.name != "cli.md"], ids=lambda p: p.name)
def test_the_first_mean_iu_of_a_page_says_its_other_name(page: Path) -> None:
    lines = re.sub(r"```.*?```|`[^`]*`", "", page.read_text("utf-8"), flags=re.S).splitlines()
    listed = [line for line in lines if "mean IU" in line and not line.startswith("#")]
    assert not listed or "mean IU (mIoU)" in listed[0], listed[0]
