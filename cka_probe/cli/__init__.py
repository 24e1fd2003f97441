"""The command line: `cka-probe compare | distill | distill-table | info | plan | recipe | report | signature`.

At the top the modules of the commands import only typer and the standard library, so `cka-probe --help` is fast.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from .. import __version__
from .compare import compare
from .distill import distill, distill_table, new
from .info import info
from .plan import plan
from .report import report
from .signature import signature
from .terminal import say

__all__ = ["app", "main"]

# Errors that the user can correct. Any other exception is a run that failed.
MISTAKES = (
    ValueError,
    TypeError,
    FileNotFoundError,
    FileExistsError,
    NotADirectoryError,
    IsADirectoryError,
    ModuleNotFoundError,
)

app = typer.Typer(
    name="cka-probe",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(compare)
app.command()(distill)
app.command("distill-table")(distill_table)
app.command()(info)
app.command()(plan)
recipe = typer.Typer(name="recipe", no_args_is_help=True, help="Write recipes for `cka-probe distill`.")
recipe.command("new")(new)
app.add_typer(recipe)
app.command()(report)
app.command()(signature)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"cka-probe {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Compare neural networks layer by layer with CKA and MMD; distill one into another with the same estimators."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command line and exit: code 0 for success, 2 for a mistake of the user, 1 for a run that failed.

    Parameters
    ----------
    arguments : sequence of str, optional
        The arguments; those of the process if None. ``--debug`` may be at any place.

    Raises
    ------
    SystemExit
        Always.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    with warnings.catch_warnings():
        warnings.simplefilter("default", UserWarning)
        warnings.showwarning = _show_warning
        try:
            app([argument for argument in given if argument != "--debug"], prog_name="cka-probe")
        except Exception as error:
            if debug:
                raise
            say(f"Error: {_message(error)}", error=True)
            raise SystemExit(2 if isinstance(error, MISTAKES) else 1) from None


def _message(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    text = "\n".join([str(error) or type(error).__name__, *getattr(error, "__notes__", [])])
    # The messages of these are for developers, for example a bare key.
    if isinstance(error, (LookupError, AttributeError, NameError, AssertionError)):
        text = f"{type(error).__name__}: {text}. This looks like a defect; --debug shows where."
    return text


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    say(f"Warning: {message}", error=True)
