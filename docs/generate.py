"""Write docs/cli.md and docs/models.md from the program itself; `--check` only says whether they are current."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent


def cli_page() -> str:
    """Every command with its help, as the command line prints it at 100 columns."""
    import os

    os.environ["COLUMNS"] = os.environ["TERMINAL_WIDTH"] = "100"
    import typer
    from typer.testing import CliRunner

    from fullyconv.cli import app
    from fullyconv.cli.commands import COMMANDS

    runner = CliRunner()
    _register(app)
    parts = ["# The command line\n\nMade by `docs/generate.py`. Results go to stdout, progress and errors to stderr.\n"]
    for name, command in COMMANDS.items():
        below = [[name]]
        if isinstance(command, typer.Typer):
            below += [[name, str(c.name or (c.callback and c.callback.__name__))] for c in command.registered_commands]
        for words in below:
            text = runner.invoke(app, [*words, "--help"], prog_name="fullyconv").output
            lines = "\n".join(line.rstrip() for line in text.strip().splitlines())
            parts.append(f"## fullyconv {' '.join(words)}\n\n```text\n{lines}\n```\n")
    return "\n".join(parts)


def _register(app: object) -> None:
    from fullyconv import cli

    if not cli.app.registered_commands:
        cli._register()


def models_page() -> str:
    """The table of networks, as `fullyconv models` has it."""
    from fullyconv.cli.models import GRAMMAR, _listed, _row

    lines = [
        "# The networks",
        "",
        "Made by `docs/generate.py` from the code. Field and crops in pixels; `all`: context is unbounded. Crops are",
        "Caffe's, coarse to fine, the last one on the image (0: the grids lie on each other and nothing is cropped).",
        "",
        "| network | heads | parameters | field | stride | crops | source |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in _listed():
        r = _row(name)
        heads = " + ".join(f"{k} {h}" for h, k in r["heads"].items())
        crops = "/".join(str(c) for c in r["crops"])
        field = r["field"] or "all"
        lines.append(f"| {name} | {heads} | {r['parameters']:,} | {field} | {r['stride']} | {crops} | {r['source']} |")
    return "\n".join([*lines, "", GRAMMAR, ""])


PAGES = {"cli.md": cli_page, "models.md": models_page}


def main() -> int:
    stale = []
    for name, make in PAGES.items():
        text, path = make(), HERE / name
        if not path.is_file() or path.read_text("utf-8") != text:
            stale.append(name)
            if "--check" not in sys.argv:
                path.write_text(text, "utf-8")
    print(f"{'stale' if '--check' in sys.argv else 'written'}: {', '.join(stale) or 'nothing'}")
    return bool(stale and "--check" in sys.argv)


if __name__ == "__main__":
    sys.exit(main())
