"""Notes on layers: one line for each kind, with a few names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

__all__ = ["LISTED", "first_line", "left_out_notes", "listed"]

LISTED = 6
"""Number of layers that a note names."""

_SHAPE = re.compile(r"\([\d, ]+\)")


def listed(names: Sequence[str]) -> str:
    """The names in quotes, of many only the first.

    Examples
    --------
    >>> listed(["a", "b"])
    "'a', 'b'"
    """
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(map(repr, names[:LISTED])) + more


def first_line(error: BaseException) -> str:
    r"""First line of an error's message; the kind of error if it has none.

    Examples
    --------
    >>> first_line(ValueError("too small\nmore")), first_line(KeyboardInterrupt())
    ('too small', 'KeyboardInterrupt')
    """
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def left_out_notes(left_out: Mapping[str, str]) -> list[str]:
    """One sentence for each kind of reason; reasons of one kind differ in a shape only.

    Parameters
    ----------
    left_out : mapping of str to str
        Layers, and the reason of each.

    Examples
    --------
    >>> left_out_notes({"a": "its output is empty", "b": "its output is empty"})
    ["'a', 'b' were left out: its output is empty"]
    """
    kinds: dict[str, list[str]] = {}
    for name, why in left_out.items():
        kinds.setdefault(_SHAPE.sub("", why), []).append(name)
    notes = []
    for names in kinds.values():
        alike = len({left_out[name] for name in names}) == 1
        example = "" if alike else f" (this is {names[0]!r}; the others are of other shapes)"
        verb = "was" if len(names) == 1 else "were"
        notes.append(f"{listed(names)} {verb} left out: {left_out[names[0]]}{example}")
    return notes
