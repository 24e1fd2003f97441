"""Names, notes and p-values as text that is safe to print."""

from __future__ import annotations

import math
import unicodedata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["P_RESOLUTION", "csv_cell", "latex_escaped", "p_text", "printable", "safe_csv"]

P_RESOLUTION = 1e-16
"""Smaller p-values are not printed as numbers: the null distribution is an approximation, and its tail ends in 0."""

# Control characters (escape codes of terminals), formatting characters (they reverse the direction of the text), line
# and paragraph separators, and halves of surrogate pairs, which cannot be encoded.
UNSAFE = {"Cc", "Cf", "Cs", "Zl", "Zp"}
# Joiners, which Persian, Indian scripts and emoji need.
JOINERS = "\u200c\u200d"

# A spreadsheet runs a cell that starts with one of these as a formula.
FORMULA = ("=", "+", "-", "@", "\t", "\r", "＝", "＋", "－", "＠")

LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
}


def printable(text: str, *, keep: str = "") -> str:
    r"""The text with its control characters written as escapes, so that it cannot change a terminal or a line.

    Parameters
    ----------
    text : str
        A layer name, a note or a message.
    keep : str
        Control characters that stay, for example a line feed in a message of several lines.

    Examples
    --------
    >>> printable("conv\x1b[31m1\nβ")
    'conv\\x1b[31m1\\nβ'
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        character
        if character in keep or character in JOINERS or unicodedata.category(character) not in UNSAFE
        else repr(character)[1:-1]
        for character in text
    )


def csv_cell(value: Any) -> Any:
    """The value as a spreadsheet shows it: a text that it would run as a formula gets an apostrophe; numbers stay.

    Examples
    --------
    >>> csv_cell("=1+1"), csv_cell("conv1"), csv_cell(-1.5)
    ("'=1+1", 'conv1', -1.5)
    """
    if not isinstance(value, str):
        return value
    return f"'{printable(value)}" if value.startswith(FORMULA) else printable(value)


def safe_csv(frame: pd.DataFrame) -> str:
    """CSV text of a table without its index. Names in cells and in the heading are written as by ``csv_cell``."""
    texts = [column for column in frame if frame[column].dtype.kind not in "biufc"]
    cells = frame.copy()
    for column in texts:
        cells[column] = frame[column].map(csv_cell)
    return str(cells.set_axis([csv_cell(column) for column in frame.columns], axis=1).to_csv(index=False))


def latex_escaped(text: str) -> str:
    r"""The text as LaTeX shows it letter by letter: no character of it is a command.

    Parameters
    ----------
    text : str
        A layer name.

    Examples
    --------
    >>> print(latex_escaped("conv_1 50%"))
    conv\_1 50\%
    """
    return "".join(LATEX.get(character, character) for character in printable(text))


def p_text(value: float) -> str:
    """A p-value as text with two digits; one below ``P_RESOLUTION`` as "< 1e-16", because 0 would be false.

    Parameters
    ----------
    value : float
        The p-value.

    Examples
    --------
    >>> p_text(0.0), p_text(0.0314), p_text(float("nan"))
    ('< 1e-16', '0.031', 'undefined')
    """
    if math.isnan(value):
        return "undefined"
    return f"< {P_RESOLUTION:.0e}" if value < P_RESOLUTION else f"{value:.2g}"
