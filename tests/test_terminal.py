"""What names bring along as control sequences is shown, not obeyed, by every command that prints names."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_compare import result
from test_predict import Tiny

from fullyconv.cli import main
from fullyconv.predict import Predictor
from fullyconv.taxonomy import Taxonomy
from fullyconv.terminal import escaping_output, plain, rewrite, say
from fullyconv.train.display import Display

RAW = "\x1b[31m\x07\u202e\x9b"
SHOWN = r"\x1b[31m\x07\u202e\x9b"


def clean(text: str) -> bool:
    return not set(text) & set("\x1b\x07\r\u202e\x9b")


def test_controls_are_shown_and_all_other_text_stays() -> None:
    assert plain(f"a{RAW}b\r\x00\x7f\u2066") == f"a{SHOWN}b" + r"\r\x00\x7f\u2066"
    assert plain("caf\udce9") == r"caf\udce9"
    kept = "tab\tline\nÜ 日本語 م‌ن 5\u202f% – “q” \u00ad"
    assert plain(kept) == kept


def write_everything() -> None:
    with escaping_output(), escaping_output():
        print(RAW)
        sys.stderr.writelines([RAW])
        sys.stdout.write(RAW)
        assert not hasattr(sys.stdout, "buffer")
        with pytest.raises(TypeError):
            sys.stdout.write(b"x")  # type: ignore[arg-type]
        raise ZeroDivisionError


def test_a_guarded_stream_has_no_way_around_it(capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout, sys.stderr
    with pytest.raises(ZeroDivisionError):
        write_everything()
    assert (sys.stdout, sys.stderr) == before
    output = capsys.readouterr()
    assert output.out == f"{SHOWN}\n{SHOWN}"
    assert output.err == SHOWN


def test_lines_outside_a_command_and_progress_are_plain_too(capsys: pytest.CaptureFixture[str]) -> None:
    say(RAW)
    stream = io.StringIO()
    Display(stream=stream).note(RAW)
    assert clean(capsys.readouterr().err + stream.getvalue())
    rewrite(f"x{RAW}", last=False)
    assert capsys.readouterr().err == f"\rx{SHOWN}\x1b[K"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set, depth and two results whose files, classes and splits bear control sequences."""
    root = tmp_path_factory.mktemp("named")
    rng = np.random.default_rng(0)
    data = root / f"data{RAW}"
    for split in (f"a{RAW}", f"b{RAW}"):
        for i in range(2):
            for part, pixels in (
                ("images", rng.integers(0, 256, (13, 18, 3))),
                ("labels", rng.integers(0, 3, (13, 18))),
            ):
                (data / split / part).mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels.astype(np.uint8)).save(data / split / part / f"{i}{RAW}.png")
    (data / f"a{RAW}/images/0{RAW}.gif").write_bytes(b"x")
    (data / f"a{RAW}/images/broken{RAW}.png").write_bytes(b"x")
    (data / "classes.txt").write_text(f"sky{RAW}\nroad{RAW}\ncar{RAW}\n")
    for k, share in (("A", 0.5), ("B", 0.9)):
        found = result(share, names=(f"sky{RAW}", "road", "car"))
        images = [replace(i, name=f"{i.name}{RAW}") for i in found.per_image]
        (root / f"{k}.json").write_text(json.dumps(replace(found, per_image=images).to_json()))
    return root


COMMANDS: dict[str, tuple[str, ...]] = {
    "check": ("check", "{data}"),
    "check --fix": ("check", "{data}", "--fix", "{new}"),
    "evaluate": ("evaluate", "m", "{data}", "--split", "b{raw}"),
    "evaluate, wrong split": ("evaluate", "m", "{data}", "--split", "{raw}"),
    "predict": ("predict", "m", "{data}", "-o", "{new}"),
    "predict, debug": ("--debug", "predict", "m", "{data}/{raw}", "-o", "{new}"),
    "compare": ("compare", "{root}/A.json", "{root}/B.json"),
    "compare, unlike": ("compare", "{root}/A.json", "{root}/nothing{raw}"),
    "convert": ("data", "convert", "{data}", "-o", "{new}", "--split", "b{raw}"),
    "download": ("data", "download", "{raw}"),
    "report": ("report", "{root}/nothing{raw}"),
    "train": ("train", "{data}/{raw}", "--set", "{raw}=1"),
    "train, value": ("train", "{data}", "--set", "loss={raw}"),
    "info": ("info", "{raw}"),
    "convert weights": ("convert", "{root}/{raw}", "--model", "{raw}", "-o", "{new}"),
    "convolutionalise": ("convolutionalise", "{raw}", "{root}/{raw}.png", "--weights", "{raw}"),
    "hha": ("hha", "{data}/a{raw}/labels", "--camera", "nyud", "-o", "{new}"),
    "experiment": ("experiment", "{raw}"),
    "no command": ("{raw}",),
    "no option": ("predict", "--x{raw}"),
}


QUICK = ("check", "evaluate", "predict", "train, value", "info", "no command", "no option")


@pytest.mark.parametrize("what", [w if w in QUICK else pytest.param(w, marks=pytest.mark.slow) for w in COMMANDS])
def test_no_command_prints_what_a_name_brings_along(
    what: str, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Tiny({"semantic": 3}).eval()
    model.taxonomies = {"semantic": Taxonomy((f"sky{RAW}", f"road{RAW}", f"car{RAW}"))}  # type: ignore[assignment]
    monkeypatch.setattr("fullyconv.cli.evaluate.predictor", lambda *_a, **_k: Predictor(model))
    places: dict[str, Any] = {"raw": RAW, "root": world, "data": world / f"data{RAW}", "new": tmp_path / f"new{RAW}"}
    with pytest.raises(SystemExit):
        main([a.format(**places) for a in COMMANDS[what]])
    output = capsys.readouterr()
    assert clean(output.out + output.err), output
    assert r"\x1b[31m" in output.out + output.err, "the name is shown, escaped"


def test_everything_is_printed_through_one_place() -> None:
    """Outside of `terminal`, nothing writes control sequences (but the fixed one of a second Ctrl-C), and none
    reaches the streams but by print and say."""
    package = Path(__file__).parent.parent / "fullyconv"
    for file in package.rglob("*.py"):
        if file.name not in ("terminal.py", "signals.py") and "sandbox" not in file.parts:
            text = file.read_text()
            for word in (
                "\\x1b[",
                "\\033[",
                "stdout.buffer",
                "stderr.buffer",
                "stdout.write",
                "stderr.write",
                "__stderr__",
            ):
                assert word not in text, f"{file}: {word}"


def test_a_warning_of_ours_is_a_sentence_and_others_are_shown_as_ever(capsys: Any, monkeypatch: Any) -> None:
    import warnings

    from fullyconv import cli

    def warn(*_: Any, **__: Any) -> None:
        warnings.warn_explicit("a block is damaged", RuntimeWarning, cli.__file__, 1)
        warnings.warn_explicit("Corrupt EXIF data.", UserWarning, "site-packages/PIL/TiffImagePlugin.py", 982)
        warnings.warn_explicit("something old", UserWarning, "elsewhere.py", 7)

    others: list[str] = []
    monkeypatch.setattr(cli, "app", warn)
    monkeypatch.setattr(warnings, "showwarning", lambda message, *_: others.append(str(message)))
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        cli._run([], False)
    assert capsys.readouterr().err == "warning: a block is damaged\nwarning (Pillow): Corrupt EXIF data.\n"
    assert others == ["something old"]
