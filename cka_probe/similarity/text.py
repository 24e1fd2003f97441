"""Names, notes and p-values as text that is safe to print."""

from __future__ import annotations

import math
import unicodedata

__all__ = ["P_RESOLUTION", "latex_escaped", "p_text", "printable"]

P_RESOLUTION = 1e-16
"""Smaller p-values are not printed as numbers: the null distribution is an approximation, and its tail ends in 0."""

# Control characters (escape codes of terminals), formatting characters (they reverse the direction of the text), line
# and paragraph separators, and halves of surrogate pairs, which cannot be encoded.
UNSAFE = {"Cc", "Cf", "Cs", "Zl", "Zp"}
# Joiners, which Persian, Indian scripts and emoji need.
JOINERS = "\u200c\u200d"

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
