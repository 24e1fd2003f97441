"""Hint for a message about a name that does not exist: the nearest names that do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["nearest", "nearest_hint"]

LISTED = 6
"""Number of names that a hint lists if none is near."""


def nearest(name: str, known: Iterable[str], most: int = 3) -> list[str]:
    """Known names nearest to ``name``, at most ``most``, the nearest first; upper and lower case count as the same.

    Examples
    --------
    >>> nearest("resnet50", ["vgg13", "ResNet50", "resnet56"])
    ['ResNet50', 'resnet56']
    """
    folded: dict[str, list[str]] = {}
    for one in known:
        folded.setdefault(one.lower(), []).append(one)
    close = difflib.get_close_matches(name.lower(), folded, n=most, cutoff=0.5)
    return [one for match in close for one in folded[match]][:most]


def nearest_hint(name: str, known: Iterable[str], *, kind: str = "Known names", most: int = 3) -> str:
    """Sentence with the known names nearest to ``name``, or with the first six if none is near.

    Examples
    --------
    >>> nearest_hint("layr1", ["layer1", "fc"])
    "Did you mean 'layer1'?"
    >>> nearest_hint("x", ["layer1", "fc"], kind="Its layers")
    "Its layers are 'layer1', 'fc'."
    """
    known = [one for one in known if one]
    near = nearest(name, known, most)
    if near:
        return f"Did you mean {' or '.join(map(repr, near))}?"
    more = f" and {len(known) - LISTED} more" if len(known) > LISTED else ""
    return f"{kind} are {', '.join(map(repr, known[:LISTED]))}{more}."
