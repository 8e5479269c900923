"""Every error that leaves a command is one sentence on stderr and the exit code of the table."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest
import typer

from fullyconv import cli
from fullyconv.errors import DataError, TryAgain


def end_of(error: BaseException, monkeypatch: pytest.MonkeyPatch, *options: str) -> object:
    """The exit code of the command line when its command raises `error`."""
    app = typer.Typer()

    @app.callback()
    def _options() -> None:
        pass

    @app.command()
    def fail() -> None:
        raise error

    monkeypatch.setattr(cli, "app", app)
    monkeypatch.setattr(cli, "_register", lambda: None)
    with pytest.raises(SystemExit) as end:
        cli.main(["fail", *options])
    return end.value.code


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (DataError("It is damaged."), 65, "It is damaged."),
        (TryAgain("Later."), 75, "Later."),
        (FileNotFoundError(errno.ENOENT, "No such file", "a\nb.txt"), 66, r"a\nb.txt does not exist; check the path."),
        (OSError(errno.ENOSPC, "No space left", "out.png"), 74, "No space left (out.png); check the space"),
        (OSError(errno.EIO, "I/O error"), 74, "I/O error; check the space"),
        (ModuleNotFoundError("No module named 'scipy'", name="scipy"), 2, "pip install 'fullyconv[mat]'"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_an_error_is_one_sentence_and_its_code(
    error: BaseException, code: int, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert end_of(error, monkeypatch) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1


def test_ctrl_c_is_no_mistake_of_ours(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert end_of(KeyboardInterrupt(), monkeypatch) == 130
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    assert "mistake" not in err


@pytest.mark.parametrize("error", [ValueError("odd"), OSError("no number"), ModuleNotFoundError("x", name="x.y")])
def test_an_error_that_is_not_ours_is_our_mistake_with_its_traceback(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert end_of(error, monkeypatch) == 70
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert f"error: fullyconv made a mistake ({type(error).__name__}: {error})" in err


def _by_option(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return ["--debug"]


def _by_environment(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("FULLYCONV_DEBUG", "1")
    return []


@pytest.mark.parametrize("how", [_by_option, _by_environment])
def test_debug_shows_the_traceback_of_a_known_error_too(
    how: Callable[[pytest.MonkeyPatch], list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert end_of(DataError("It is damaged."), monkeypatch, *how(monkeypatch)) == 65
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.endswith("error: It is damaged.\n")
