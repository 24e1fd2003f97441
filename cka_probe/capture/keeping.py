"""What a recorder calls with the features of each layer: a function, or one that also checks its results."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import torch

__all__ = ["Keep", "NotFiniteError", "ReviewingKeep"]

Keep = Callable[[str, torch.Tensor], Any]
"""Maps a layer's name and its features (n, d) to the result that is kept: a Gram matrix, a copy."""


class NotFiniteError(ValueError):
    """Features hold NaN or infinity."""


@runtime_checkable
class ReviewingKeep(Protocol):
    """A ``keep`` that checks its results after each forward of the model and may request a second forward.

    Attributes
    ----------
    takes_half : bool
        Whether features may come in half precision; a recorder casts them to float32 for any other ``keep``.
    takes_any_order : bool
        Whether the features of a layer may come in any order, as they lie in memory.
    reviewed : bool
        The recorder sets it to True: ``review`` will be called after every forward.
    """

    takes_half: bool
    takes_any_order: bool
    reviewed: bool

    def __call__(self, name: str, features: torch.Tensor) -> Any:
        """Return what is kept of one layer."""

    def review(self, kept: Mapping[str, Any]) -> bool:
        """Return whether the results of this forward are valid. If not, the model runs on the same batch again."""
