"""CKA of all pairs of layers from the Gram matrices of a whole data set, of which only one half is kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

from ..alignment import ratio
from ..centring import u_center_gram
from ..hsic import pairwise_inner
from ..leave_one_out import jackknife_pairs, sample_weights
from ..null_moments import SUMS, NullShape, null_shape, null_sums, of_more_samples
from ..outliers import Outliers, find_outliers
from ..validation import Array, check_estimator
from .layer_parts import FEW, WholeGram

__all__ = ["GramStack", "stack_bytes"]

SOME = 1024
"""Largest number of samples that the shape of the null is computed from."""

NUMBERS = 2**22
"""Largest size of the rows of all layers that are unpacked at once."""

ROWS = 256
"""Rows of a Gram matrix that are centred or unpacked at once."""


def stack_bytes(layers: int, samples: int, estimator: str = "unbiased") -> int:
    """Bytes of a ``GramStack``, and of the work on one Gram matrix at a time, or of the jackknife at the end."""
    n, some = samples, min(samples, SOME)
    half = n * (n + (1 if estimator == "biased" else -1)) // 2
    work = 16 * n**2 + 8 * n * some + 36 * some**2
    jackknife = 24 * min(NUMBERS, layers * n * min(n, ROWS))
    return layers * half * (8 if n <= FEW else 4) + max(work, jackknife)


class GramStack:
    """Centred Gram matrices of layers over the same n samples: the entries above the diagonal, of norm 1.

    Parameters
    ----------
    samples : int
        Number n of samples.
    estimator : "unbiased" or "biased"
        "unbiased" U-centres the matrices, whose diagonal is then 0; "biased" centres them and keeps the diagonal too.

    Examples
    --------
    >>> import numpy as np
    >>> from cka_probe.estimators import Linear, cka
    >>> from cka_probe.estimators.dataset.layer_parts import ArrayFeatures, whole_gram
    >>> x, y = np.random.default_rng(0).normal(size=(2, 30, 4))
    >>> stack = GramStack(30)
    >>> for place, features in enumerate((x, y)):
    ...     stack.add(place, whole_gram(ArrayFeatures(features), Linear()))
    >>> bool(abs(stack.cka([0], [1])[0, 0] - cka(x, y)) < 1e-12)
    True
    """

    def __init__(self, samples: int, estimator: str = "unbiased") -> None:
        check_estimator(estimator)
        self.samples = samples
        self.estimator = estimator
        self.rows: dict[Any, Array] = {}
        self.null_sums: dict[Any, Array] = {}
        self.reasons: dict[Any, str] = {}
        """For layers without a value: "constant", "undefined" (no median bandwidth), or "alike"."""

    def add(self, place: Any, whole: WholeGram) -> None:
        """Centre and keep the Gram matrix of the layer at ``place``. Its array is changed.

        Raises
        ------
        ValueError
            If it has another number of samples.
        """
        gram, n = whole.gram, self.samples
        xp = array_namespace(gram)
        if gram.shape[0] != n:
            raise ValueError(f"This Gram matrix is of {gram.shape[0]} samples, those before of {n}.")
        row, total = _centred_half(xp, gram, self.estimator, whole.rounding)
        self.null_sums.pop(place, None)
        if not total > 0 or not math.isfinite(total):
            self.reasons[place] = "constant" if whole.constant else "alike" if whole.defined else "undefined"
            row = xp.zeros_like(row)
        else:
            self.reasons.pop(place, None)
            row /= math.sqrt(total)
            if self.estimator == "unbiased":
                self.null_sums[place] = _null_sums(xp, gram, total)
        self.rows[place] = row if n <= FEW else xp.astype(row, xp.float32)

    def cka(self, left: Sequence[Any], right: Sequence[Any]) -> Array:
        """CKA (left, right) of the layers at these places, in float64; NaN for layers without a value."""
        cross = self.inner(left, right)
        xp = array_namespace(cross)
        own_x, own_y = (self._own(xp, side) for side in (left, right))
        return ratio(xp, cross, own_x[:, None], own_y[None, :])

    def inner(self, left: Sequence[Any], right: Sequence[Any]) -> Array:
        """Inner products (left, right) of the matrices, by parts of a group of layers, so that none is copied whole."""
        xp = array_namespace(self.rows[left[0]])
        return xp.concat(
            [xp.concat([_inner_of(self.rows, a, b) for b in _groups(right)], axis=1) for a in _groups(left)], axis=0
        )

    def _own(self, xp: ModuleType, places: Sequence[Any]) -> Array:
        squares = [xp.sum(xp.astype(self.rows[place], xp.float64) ** 2) for place in places]
        return xp.stack(squares, axis=0)

    def jackknife(self, left: Sequence[Any], right: Sequence[Any]) -> tuple[Array, Array, list[Outliers]]:
        """Exact jackknife error (left, right) of ``cka``, its degrees of freedom, and the outliers of both sides.

        Raises
        ------
        ValueError
            If there are too few samples to leave one out.
        """
        of_left = _Side(self, left)
        of_right = of_left if list(left) == list(right) else _Side(self, right)
        xp = array_namespace(of_left.shares)
        error, degrees = jackknife_pairs(xp, of_left, of_right, self.inner(left, right), self.estimator)
        sides = (of_left,) if of_right is of_left else (of_left, of_right)
        return error, degrees, [found for number, side in enumerate(sides) for found in side.outliers(xp, number)]

    def null_shape(self, left: Sequence[Any], right: Sequence[Any]) -> NullShape:
        """Shape (left, right) of unbiased CKA over all permutations of the samples; NaN for layers without a value.

        Of more than ``SOME`` samples it is an estimate from that many.
        """
        like = self.rows[left[0]]
        xp = array_namespace(like)
        none = xp.full((SUMS,), math.nan, dtype=xp.float64, device=device(like))
        rows, columns = (
            xp.stack([self.null_sums.get(place, none) for place in side], axis=0) for side in (left, right)
        )
        return null_shape(rows, columns, self.samples)


def _groups(places: Sequence[Any], size: int = 64) -> list[Sequence[Any]]:
    return [places[start : start + size] for start in range(0, len(places), size)]


def _inner_of(rows: dict[Any, Array], left: Sequence[Any], right: Sequence[Any]) -> Array:
    """Inner products of the matrices at two groups of places, by parts, so that no stack of all is made."""
    some = rows[left[0]]
    xp = array_namespace(some)
    size = max(4096, 2**22 // max(len(left), len(right)))
    total: Array = None
    for start in range(0, some.shape[0], size):
        stop = min(start + size, some.shape[0])
        a, b = (xp.stack([rows[place][start:stop] for place in side], axis=0) for side in (left, right))
        part = pairwise_inner(a, b)
        total = part if total is None else total + part
    return total


def _offsets(n: int, with_diagonal: bool) -> np.ndarray:
    """Place of the entry (i, 0) of each row in the packed half, as if the row began there."""
    i = np.arange(n, dtype=np.int64)
    before = i * n - i * (i - 1) // 2 if with_diagonal else i * (n - 1) - i * (i - 1) // 2
    return before - i if with_diagonal else before - i - 1


def _centred_half(xp: ModuleType, gram: Array, estimator: str, rounding: float) -> tuple[Array, float]:
    """The packed half of the centred matrix and its squared norm. Entries off the diagonal are times the root of 2.

    ``gram`` becomes the centred matrix. One below the rounding of the entries that it came from belongs to a constant
    layer: its norm is given as 0.
    """
    n, unbiased = gram.shape[0], estimator == "unbiased"
    size = n * (n - 1) // 2 if unbiased else n * (n + 1) // 2
    if unbiased:
        _clear_diagonal(xp, gram)
    scale = max(float(xp.max(gram)), -float(xp.min(gram)))
    if not 0 < scale < math.inf:
        return xp.zeros((size,), dtype=xp.float64, device=device(gram)), 0.0 if scale <= 0 else scale
    gram /= scale
    sums = xp.sum(gram, axis=0)
    if unbiased:
        means, total = sums / (n - 2), xp.sum(sums) / ((n - 1) * (n - 2))
    else:
        means, total = sums / n, xp.sum(sums) / n**2
    row = xp.empty((size,), dtype=xp.float64, device=device(gram))
    done, largest, squared = 0, 0.0, 0.0
    columns = xp.arange(n, device=device(gram))
    for start in range(0, n, ROWS):
        stop = min(start + ROWS, n)
        block = gram[start:stop, :] - means[start:stop, None] - means[None, :] + total
        gram[start:stop, :] = block
        own = columns[start:stop, None]
        above = columns[None, :] > own
        kept = above if unbiased else columns[None, :] >= own
        half = block[kept] * math.sqrt(2)
        if not unbiased:
            half = xp.where(above[kept], half, half / math.sqrt(2))
        if half.shape[0]:
            largest = max(largest, float(xp.max(xp.abs(half))))
            squared += float(xp.sum(half * half))
        row[done : done + half.shape[0]] = half
        done += half.shape[0]
    if unbiased:
        _clear_diagonal(xp, gram)
    noise = largest <= 16 * rounding * math.sqrt(2)
    return row, 0.0 if noise else squared


def _clear_diagonal(xp: ModuleType, gram: Array) -> None:
    """Set the diagonal to 0, some rows at a time."""
    n = gram.shape[0]
    for start in range(0, n, ROWS):
        stop = min(start + ROWS, n)
        block = gram[start:stop, start:stop]
        diagonal = xp.eye(stop - start, dtype=xp.bool, device=device(gram))
        gram[start:stop, start:stop] = xp.where(diagonal, xp.zeros_like(block), block)


def _null_sums(xp: ModuleType, gram: Array, squared: float) -> Array:
    """``null_sums`` (SUMS,) of a U-centred matrix over its norm; of many samples, from some drawn at random."""
    n = gram.shape[0]
    if n <= SOME:
        return null_sums(gram / math.sqrt(squared))
    some = xp.asarray(np.sort(np.random.default_rng(0).permutation(n)[:SOME]), device=device(gram))
    part = u_center_gram(xp.take(xp.take(gram, some, axis=0), some, axis=1))
    return of_more_samples(null_sums(part / xp.sqrt(xp.sum(part * part))), SOME, n)


class _Side:
    """The matrices of one side, whose rows are unpacked block by block, for the jackknife."""

    def __init__(self, stack: GramStack, places: Sequence[Any]) -> None:
        self.samples = stack.samples
        self.layers = len(places)
        self._rows = [stack.rows[place] for place in places]
        self._unbiased = stack.estimator == "unbiased"
        xp = array_namespace(*self._rows)
        self._starts = _offsets(self.samples, not self._unbiased)
        parts, diagonals = [], []
        size = max(1, min(ROWS, NUMBERS // (self.layers * self.samples)))
        for start in range(0, self.samples, size):
            own = np.arange(start, min(start + size, self.samples))
            block = self.block(start, start + len(own))
            parts.append(xp.sum(block * block, axis=-1))
            diagonals.append(xp.stack([block[:, i, int(j)] for i, j in enumerate(own)], axis=1))
        self.shares = xp.concat(parts, axis=1)
        self._diagonal = xp.concat(diagonals, axis=1)

    def block(self, start: int, stop: int) -> Array:
        """Rows ``start`` to ``stop`` of all matrices, (layers, stop - start, n), in float64."""
        n = self.samples
        xp = array_namespace(*self._rows)
        i, j = np.arange(start, stop)[:, None], np.arange(n)[None, :]
        low, high = np.minimum(i, j), np.maximum(i, j)
        index = self._starts[low] + high
        factor = np.full(index.shape, math.sqrt(0.5))
        if self._unbiased:
            index[i == j], factor[i == j] = 0, 0.0
        else:
            factor[i == j] = 1.0
        where = device(self._rows[0])
        taken, weights = xp.asarray(index.ravel(), device=where), xp.asarray(factor, device=where)
        blocks = [xp.reshape(xp.astype(xp.take(row, taken, axis=0), xp.float64), index.shape) for row in self._rows]
        return xp.stack(blocks, axis=0) * weights

    def outliers(self, xp: ModuleType, number: int) -> list[Outliers]:
        """The outliers of each layer of side ``number``."""
        weights = sample_weights(xp, self.shares - self._diagonal * self._diagonal)
        return [found for i in range(self.layers) for found in find_outliers(xp, weights[i, ...], number, i)]
