"""Names in pictures: as they are, never as mathematics, of a readable length, with control characters as escapes."""

from __future__ import annotations

import matplotlib as mpl
from matplotlib.cbook import is_math_text
from matplotlib.mathtext import MathTextParser
from matplotlib.text import Text

from ..similarity.text import latex_escaped, printable

__all__ = ["LONG", "LONGEST", "as_shown", "legend_name", "plain", "set_given", "set_plain", "squeezed"]

LONGEST = 30
"""Characters of a layer name, or of a name beside an axis or in a legend."""
LONG = 60
"""Characters of a title or of the label of an axis."""


def squeezed(text: str, most: int) -> str:
    """The text, cut in the middle if it is too long; more of the end is kept, because it tells layers apart.

    Parameters
    ----------
    text : str
        A name.
    most : int
        Characters that it may have.

    Examples
    --------
    >>> squeezed("backbone.body.layer1.0.conv1", 16)
    'backb…r1.0.conv1'
    """
    if len(text) <= most:
        return text
    head = most // 3
    return f"{text[:head]}…{text[head + 1 - most :]}"


def as_shown(text: str, most: int = LONGEST) -> str:
    """The text with control characters as escapes and of limited length."""
    return squeezed(printable(text), most)


def plain(text: str) -> str:
    """The text so that matplotlib writes it letter by letter, for ticks and legends, whose artists it makes itself.

    Parameters
    ----------
    text : str
        A name; between two dollar signs matplotlib would read mathematics.
    """
    if mpl.rcParams["text.usetex"]:
        return latex_escaped(text)
    return text.replace("$", r"\$")


def legend_name(text: object) -> str:
    """The text as a name in a legend. matplotlib leaves out names that start with "_", so those get a space.

    Parameters
    ----------
    text : object
        A name.
    """
    shown = plain(as_shown(str(text)))
    return f" {shown}" if shown.startswith("_") else shown


def set_plain(artist: Text, text: str) -> None:
    """Set the text of a title or label so that it is written letter by letter.

    Parameters
    ----------
    artist : matplotlib.text.Text
        The title or label.
    text : str
        The text, already as it is to be shown.
    """
    if mpl.rcParams["text.usetex"]:
        artist.set_text("\n".join(map(latex_escaped, text.split("\n"))))
        return
    artist.set_text(text)
    if "$" in text:  # mathematics that a user writes later into a label without a name stays mathematics
        artist.set_parse_math(False)


def set_given(artist: Text, text: str) -> None:
    """Set a title or label that a user gives: mathematics if it is valid, otherwise the text as it is.

    Parameters
    ----------
    artist : matplotlib.text.Text
        The title or label.
    text : str
        Its text.
    """
    artist.set_text(text)
    if not _is_drawable(text):
        artist.set_parse_math(False)


def _is_drawable(text: str) -> bool:
    if mpl.rcParams["text.usetex"] or not is_math_text(text):
        return True
    try:
        MathTextParser("path").parse(text)
    except ValueError:
        return False
    return True
