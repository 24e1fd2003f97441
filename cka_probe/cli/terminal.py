"""Text for the terminal: names and messages of other programs cannot send it escape codes."""

from __future__ import annotations

import typer

__all__ = ["say"]


def say(text: str, *, error: bool = False, end: str = "\n") -> None:
    """Print a text. Its control characters are written as escapes, except line feeds and tabs.

    Parameters
    ----------
    text : str
        The text.
    error : bool
        Print on standard error.
    end : str
        What follows the text.
    """
    from ..similarity.text import printable

    typer.echo(printable(text, keep="\n\t") + end, err=error, nl=False)
