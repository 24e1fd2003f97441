"""Column ranges of the layers in their joined features, and the products of columns that HSIC needs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import NamedTuple

from ..validation import Array

__all__ = ["STRIP", "Cut", "Layout", "Span", "Strip"]

STRIP = 1024
"""Largest number of rows of a product that is held at once, which bounds the temporary arrays."""

Span = tuple[int, int]


class Cut(NamedTuple):
    """The spans ``first`` to ``last`` (excluded) that overlap a range of columns, and their slices within it."""

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
    """One product that is needed: the columns ``rows`` of the joined features times the columns ``columns``.

    A strip whose columns start where its rows start contains a diagonal block, which holds each pair twice.
    """

    rows: Span
    columns: Span

    def weights(self, xp: ModuleType, like: Array) -> Array:
        """Weight of each column when the transpose of the strip is added too: 1/2 in the diagonal block, else 1."""
        start, stop = self.columns
        ones = xp.ones((stop - start,), dtype=like.dtype, device=like.device)
        if start == self.rows[0]:
            ones[: self.rows[1] - start] = 0.5
        return ones


@dataclass(frozen=True)
class Layout:
    """Widths of the layers whose features stand side by side, and the pairs of layers to compare.

    Parameters
    ----------
    widths : tuple of int
        Widths of the layers of the first network, then of the second.
    split : int or None
        Number of layers of the first network, if it is compared with a second one; None to compare every two layers.
    parts : int
        Number of parts that each layer is cut into. Squared norms are summed for each part.
    """

    widths: tuple[int, ...]
    split: int | None = None
    parts: int = 1

    @cached_property
    def columns(self) -> int:
        """Total width of all layers."""
        return sum(self.widths)

    @cached_property
    def layer_spans(self) -> list[Span]:
        """Column range (start, stop) of each layer."""
        ends = list(itertools.accumulate(self.widths))
        return list(zip([0, *ends[:-1]], ends, strict=True))

    @cached_property
    def part_spans(self) -> list[Span]:
        """Column range (start, stop) of each part of each layer."""
        cuts = [
            [start + (stop - start) * k // self.parts for k in range(self.parts + 1)]
            for start, stop in self.layer_spans
        ]
        return [span for ends in cuts for span in itertools.pairwise(ends)]

    @cached_property
    def strips(self) -> list[Strip]:
        """Products that are needed, each with at most ``STRIP`` rows."""
        if self.split is None:
            return [Strip(rows, (rows[0], self.columns)) for rows in _pieces((0, self.columns))]
        middle = sum(self.widths[: self.split])
        across = [Strip(rows, (middle, self.columns)) for rows in _pieces((0, middle))]
        return across + [Strip(rows, (rows[0], layer[1])) for layer in self.layer_spans for rows in _pieces(layer)]

    @cached_property
    def pairs(self) -> int:
        """Number of entries of all products that are needed."""
        return sum((r[1] - r[0]) * (c[1] - c[0]) for r, c in self.strips)

    def cut(self, spans: Sequence[Span], within: Span) -> Cut:
        """Find the spans that overlap the range of columns ``within``."""
        start, stop = within
        met = [i for i, (a, b) in enumerate(spans) if a < stop and b > start]
        slices = tuple(slice(max(spans[i][0], start) - start, min(spans[i][1], stop) - start) for i in met)
        return Cut(met[0], met[-1] + 1, slices)

    def spread(self, xp: ModuleType, of_layers: Array) -> Array:
        """Repeat the value of each layer for each of its columns: (layers,) to (columns,)."""
        return xp.concat([xp.broadcast_to(of_layers[i], (w,)) for i, w in enumerate(self.widths)], axis=0)

    def spread_to_parts(self, xp: ModuleType, of_layers: Array) -> Array:
        """Repeat the value of each layer for each of its parts: (layers,) to (layers * parts,)."""
        repeated = xp.broadcast_to(of_layers[:, None], (len(self.widths), self.parts))
        return xp.reshape(repeated, (-1,))

    def gather_parts(self, xp: ModuleType, of_parts: Array) -> Array:
        """Add up values over the parts of each layer: (..., layers * parts) to (..., layers)."""
        return xp.sum(xp.reshape(of_parts, (*of_parts.shape[:-1], len(self.widths), self.parts)), axis=-1)


def _pieces(span: Span) -> list[Span]:
    return [(start, min(start + STRIP, span[1])) for start in range(*span, STRIP)]
