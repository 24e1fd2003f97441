"""Where layers stand among the columns of their joined features, and which products of columns are needed."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import NamedTuple

from ..validation import Array

STRIP = 1024
"""Rows of the largest piece of a product: temporary arrays stay at that many rows."""

Span = tuple[int, int]


class Cut(NamedTuple):
    """The spans ``first`` to ``last`` (not included) meet a range of columns in these slices of the range."""

    first: int
    last: int
    slices: tuple[slice, ...]

    def sum_rows(self, xp: ModuleType, values: Array) -> Array:
        """Sums (spans, columns) over the rows of each span."""
        return xp.stack([xp.sum(values[s, :], axis=0) for s in self.slices], axis=0)

    def sum_columns(self, xp: ModuleType, values: Array) -> Array:
        """Sums (rows, spans) over the columns of each span."""
        return xp.stack([xp.sum(values[:, s], axis=1) for s in self.slices], axis=1)


class Strip(NamedTuple):
    """A product that is needed: columns ``rows`` of the joined features with its columns ``columns``.

    A strip whose columns begin where its rows do holds its own diagonal block, and there each pair twice.
    """

    rows: Span
    columns: Span

    def weights(self, xp: ModuleType, like: Array) -> Array:
        """What each column counts when the transpose of the strip is added too: 1/2 within the diagonal block."""
        start, stop = self.columns
        ones = xp.ones((stop - start,), dtype=like.dtype, device=like.device)
        if start == self.rows[0]:
            ones[: self.rows[1] - start] = 0.5
        return ones


@dataclass(frozen=True)
class Layout:
    """Layers side by side.

    Parameters
    ----------
    widths : tuple of int
        Of the layers of one network, and then of the other.
    split : int or None
        How many layers belong to the first network; None asks for every pair of layers.
    parts : int
        Each layer is cut into that many parts with norms of their own.
    """

    widths: tuple[int, ...]
    split: int | None = None
    parts: int = 1

    @cached_property
    def columns(self) -> int:
        """Width of all layers together."""
        return sum(self.widths)

    @cached_property
    def layer_spans(self) -> list[Span]:
        """First and last column of each layer."""
        ends = list(itertools.accumulate(self.widths))
        return list(zip([0, *ends[:-1]], ends, strict=True))

    @cached_property
    def part_spans(self) -> list[Span]:
        """First and last column of each part of each layer."""
        cuts = [
            [start + (stop - start) * k // self.parts for k in range(self.parts + 1)]
            for start, stop in self.layer_spans
        ]
        return [span for ends in cuts for span in itertools.pairwise(ends)]

    @cached_property
    def strips(self) -> list[Strip]:
        """The products that are needed, at most ``STRIP`` rows each."""
        if self.split is None:
            return [Strip(rows, (rows[0], self.columns)) for rows in _pieces((0, self.columns))]
        middle = sum(self.widths[: self.split])
        across = [Strip(rows, (middle, self.columns)) for rows in _pieces((0, middle))]
        return across + [Strip(rows, (rows[0], layer[1])) for layer in self.layer_spans for rows in _pieces(layer)]

    @cached_property
    def pairs(self) -> int:
        """How many numbers the needed products hold."""
        return sum((r[1] - r[0]) * (c[1] - c[0]) for r, c in self.strips)

    def cut(self, spans: Sequence[Span], within: Span) -> Cut:
        """The spans that meet a range of columns."""
        start, stop = within
        met = [i for i, (a, b) in enumerate(spans) if a < stop and b > start]
        slices = tuple(slice(max(spans[i][0], start) - start, min(spans[i][1], stop) - start) for i in met)
        return Cut(met[0], met[-1] + 1, slices)

    def spread(self, xp: ModuleType, of_layers: Array) -> Array:
        """One value for each layer, repeated for each of its columns."""
        return xp.concat([xp.broadcast_to(of_layers[i], (w,)) for i, w in enumerate(self.widths)], axis=0)

    def spread_to_parts(self, xp: ModuleType, of_layers: Array) -> Array:
        """One value for each layer, repeated for each of its parts."""
        repeated = xp.broadcast_to(of_layers[:, None], (len(self.widths), self.parts))
        return xp.reshape(repeated, (-1,))

    def gather_parts(self, xp: ModuleType, of_parts: Array) -> Array:
        """Sums (..., layers) over the parts (..., parts) of each layer."""
        return xp.sum(xp.reshape(of_parts, (*of_parts.shape[:-1], len(self.widths), self.parts)), axis=-1)


def _pieces(span: Span) -> list[Span]:
    return [(start, min(start + STRIP, span[1])) for start in range(*span, STRIP)]
