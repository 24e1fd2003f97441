"""The places of layers in statistics: a layer that is left out after the first batch keeps its place until the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch

from ..estimators.layer_grams import LayerGram
from ..estimators.minibatch import MinibatchCKA

__all__ = ["Compared", "filled", "filled_features", "places", "selected", "selected_sums"]

ONE_ROW = frozenset({"self_y", "y2"})
ONE_COLUMN = frozenset({"self_x", "x2"})
"""Sums of ``MinibatchCKA`` that have one entry for each layer, not for each pair."""


class Compared(Protocol):
    """A side of a comparison: its layers, and those that are in the result."""

    @property
    def names(self) -> list[str]:
        """All layers that have a place."""

    @property
    def compared(self) -> list[str]:
        """The layers of the result."""


def filled(kept: Sequence[LayerGram | None]) -> list[LayerGram]:
    """The Gram matrices of one batch, with zeros for a layer that was left out."""
    like = next(one.gram for one in kept if one is not None)
    return [LayerGram(torch.zeros_like(like), 1.0, "raw") if one is None else one for one in kept]


def filled_features(kept: Sequence[torch.Tensor | None], widths: Sequence[int]) -> list[torch.Tensor]:
    """The features (n, d) of one batch, with zeros for a layer that was left out."""
    like = next(one for one in kept if one is not None)
    return [like.new_zeros(len(like), width) if one is None else one for one, width in zip(kept, widths, strict=True)]


def places(sides: Sequence[Compared]) -> list[int]:
    """Places of the layers of the result, in the sides one after the other."""
    found: list[int] = []
    start = 0
    for side in sides:
        wanted = set(side.compared)
        found += [start + place for place, name in enumerate(side.names) if name in wanted]
        start += len(side.names)
    return found


def selected(statistics: MinibatchCKA, rows: Sequence[int], columns: Sequence[int]) -> MinibatchCKA:
    """The statistics of the layers at these places; ``statistics`` itself if these are all."""
    shape = statistics.sums["cross"].shape
    if (len(rows), len(columns)) == tuple(shape):
        return statistics
    part = MinibatchCKA(
        kernel=statistics.kernel,
        estimator=statistics.estimator,
        skewness=statistics.skewness,
        permutations=statistics.permutations,
        seed=statistics.seed,
    )
    part.samples, part.batches = statistics.samples, statistics.batches
    part.sums = selected_sums(statistics.sums, rows, columns)
    return part


def selected_sums(
    sums: Mapping[str, torch.Tensor], rows: Sequence[int], columns: Sequence[int]
) -> dict[str, torch.Tensor]:
    """The sums of the layers at these places."""
    return {
        name: total[[0] if name in ONE_ROW else list(rows)][:, [0] if name in ONE_COLUMN else list(columns)]
        for name, total in sums.items()
    }
