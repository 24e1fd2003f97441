"""Checks of the options that several data sets share, and the choice of a few images of each class."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["check_flag", "check_integer", "shuffled_classes"]


def check_integer(argument: str, value: object, at_least: int) -> None:
    """Raise TypeError if an option is not an integer, ValueError if it is too small; the message names it."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"`{argument}` must be an integer, got {value!r}.")
    if value < at_least:
        raise ValueError(f"`{argument}` must be at least {at_least}, got {value}.")


def check_flag(argument: str, value: object) -> None:
    """Raise TypeError if an option is not True or False; the message names it."""
    if not isinstance(value, bool):
        raise TypeError(f"`{argument}` must be True or False, got {value!r}.")


def shuffled_classes(labels: Tensor, seed: int) -> list[Tensor]:
    """Indices of the samples of each class, in a random order that depends only on the seed."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for label in range(int(labels.max()) + 1):
        members = torch.nonzero(labels == label).flatten()
        found.append(members[torch.randperm(len(members), generator=generator)])
    return found
