"""The command line: argument -> one call -> print. Results alone on stdout, progress and errors on stderr,
both through `terminal`.

Every command lives in a module of this package that imports nothing heavy at the top; `COMMANDS` is their order in
`--help`. Errors become one sentence and the exit code of `errors.EXIT_CODES`; `--debug` shows the traceback.
"""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from fullyconv.allocator import request_huge_pages
from fullyconv.errors import (
    FullyconvError,
    InternalError,
    Interrupted,
    MissingInput,
    StorageError,
    missing_extra,
    printable,
)
from fullyconv.terminal import escaping_output

__all__ = ["app", "main"]

app = typer.Typer(
    name="fullyconv",
    help="Label every pixel of an image: train, measure, look at and use fully convolutional networks.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        from fullyconv import __version__

        print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    pass


def _register() -> None:
    """Attach every command; the modules import nothing heavy."""
    from fullyconv.cli import commands

    for name, function in commands.COMMANDS.items():
        if isinstance(function, typer.Typer):
            app.add_typer(function, name=name)
        else:
            app.command(name)(function)


def _one_error(error: BaseException) -> FullyconvError | None:
    """The error of our tree that `error` is or stands for."""
    if isinstance(error, FullyconvError):
        return error
    if isinstance(error, KeyboardInterrupt):
        return Interrupted("Interrupted.")
    if isinstance(error, ModuleNotFoundError):
        return missing_extra(error, "This command")
    if isinstance(error, FileNotFoundError) and error.filename:
        return MissingInput(f"{printable(error.filename)} does not exist; check the path.")
    if isinstance(error, OSError) and error.errno is not None:
        where = f" ({error.filename})" if error.filename else ""
        return StorageError(f"{error.strerror}{where}; check the space and the rights there, then try again.")
    return None


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with the code that `errors.EXIT_CODES` gives."""
    request_huge_pages()  # before a command imports torch
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments or bool(os.environ.get("FULLYCONV_DEBUG"))
    arguments = [a for a in arguments if a != "--debug"]
    _register()
    with escaping_output():
        _run(arguments, debug)


def _shown(stock: Any) -> Any:
    """How warnings are shown: ours, and Pillow's of damaged metadata, as a sentence without the line of code that gave
    it, all others as ever."""

    def show(message: Any, category: Any, filename: str, *place: Any) -> None:
        if Path(filename).is_relative_to(Path(__file__).parents[1]):
            print(f"warning: {message}", file=sys.stderr)
        elif Path(filename).parent.name == "PIL":
            print(f"warning (Pillow): {message}", file=sys.stderr)
        else:
            stock(message, category, filename, *place)

    return show


def _run(arguments: list[str], debug: bool) -> None:
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _shown(warnings.showwarning)
            app(args=arguments, standalone_mode=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except (Exception, KeyboardInterrupt) as error:
        known = _one_error(error)
        if debug or known is None:
            traceback.print_exc()
        if known is None:
            known = InternalError(
                f"fullyconv made a mistake ({type(error).__name__}: {error}); please report it with the lines above."
            )
        print(f"error: {known}", file=sys.stderr)
        sys.exit(known.exit_code)
