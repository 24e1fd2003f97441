"""Third and fourth moments of unbiased CKA over all permutations of the samples of one side (the null), for any data.

The null has mean 0 and variance 2 / (n(n-3)). A moment of order k is a sum over the graphs that k pairs of samples can
form. Rows of a U-centred Gram matrix A (n, n) add up to 0 and its diagonal is 0, so that few sums over A remain:

* order 3: sum_ij A_ij^3 and tr A^3;
* order 4: sum_ij A_ij^4, sum_i (sum_j A_ij^2)^2, sum_ij A_ij^2 (A^2)_ij, tr A^4 and (sum_ij A_ij^2)^2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from types import ModuleType
from typing import NamedTuple

from array_api_compat import array_namespace

from .alignment import ratio
from .kernels import Kernel
from .layer_grams import layer_rows
from .validation import Array

__all__ = [
    "SUMS",
    "NullShape",
    "fourth_cumulant",
    "null_shape",
    "null_shape_of",
    "null_sums",
    "of_more_samples",
    "scaled_moments",
    "third_moment",
    "unit_grams",
    "unit_sums",
]

_Graphs = tuple[tuple[int, int, tuple[int, ...]], ...]

# For each graph: how many sequences of k pairs of samples form it, its number of samples, and the sum of the products
# of the k entries of A over all ways to choose these samples, in terms of the sums above. docs/theory.md, section 4,
# says how they follow; tests/estimators/test_null_moments.py derives them again.
_THIRD: _Graphs = (
    (4, 2, (1, 0)), (24, 3, (-1, 0)), (8, 3, (0, 1)), (6, 4, (2, 0)), (8, 4, (2, 0)), (24, 4, (1, -1)),
    (12, 5, (-4, 2)), (1, 6, (16, -8)),
)  # fmt: skip
_FOURTH: _Graphs = (
    (8, 2, (1, 0, 0, 0, 0)), (64, 3, (-1, 0, 0, 0, 0)), (48, 3, (-1, 1, 0, 0, 0)), (96, 3, (0, 0, 1, 0, 0)),
    (16, 4, (2, 0, 0, 0, 0)), (96, 4, (2, -1, 0, 0, 0)), (96, 4, (1, 0, -1, 0, 0)), (192, 4, (1, -1, -1, 0, 0)),
    (12, 4, (2, -4, 0, 0, 1)), (192, 4, (0, 0, -2, 0, 0)), (48, 4, (1, -2, 0, 1, 0)), (96, 5, (-4, 2, 2, 0, 0)),
    (48, 5, (-4, 6, 2, 0, -1)), (16, 5, (-6, 3, 0, 0, 0)), (192, 5, (-2, 1, 4, 0, 0)), (32, 5, (0, 0, 6, 0, 0)),
    (192, 5, (-2, 3, 3, -1, 0)), (12, 6, (16, -16, -8, 0, 2)), (32, 6, (12, -6, -12, 0, 0)),
    (96, 6, (8, -8, -14, 2, 0)), (48, 6, (10, -13, -12, 2, 1)), (24, 7, (-48, 48, 64, -8, -2)),
    (1, 8, (288, -288, -384, 48, 12)),
)  # fmt: skip

THIRD = slice(0, 2)
FOURTH = slice(2, 7)
SUMS = 7
"""Number of sums over a Gram matrix: two of order 3, then five of order 4."""

HALVED = 128
"""Gram matrices of this size and more are multiplied by halves: fewer operations, but more and smaller products."""


class NullShape(NamedTuple):
    """Skewness and excess kurtosis of unbiased CKA over all permutations of the samples of one side."""

    skewness: Array
    excess_kurtosis: Array


@lru_cache(maxsize=64)
def _weights(graphs: _Graphs, n: int) -> list[list[float]]:
    """The matrix W for which the moment is s(A)' W s(B), for n samples."""
    places = range(len(graphs[0][2]))
    some = [(sequences, math.perm(n, samples), terms) for sequences, samples, terms in graphs if n >= samples]
    return [[sum(c * s[i] * s[j] / ways for c, ways, s in some) for j in places] for i in places]


def _moment(graphs: _Graphs, sums_x: Array, sums_y: Array, n: int) -> Array:
    xp = array_namespace(sums_x, sums_y)
    columns = [sums_y[:, i] for i in range(sums_y.shape[1])]
    # Python's numbers, not an array: its copy to a GPU would wait for the GPU.
    weighted = [sum(w * y for w, y in zip(line, columns, strict=True)) for line in _weights(graphs, n)]
    return sums_x @ xp.stack(weighted, axis=0)


def third_moment(sums_x: Array, sums_y: Array, n: int) -> Array:
    """The mean of <A, B>^3 over all permutations of the n samples of one side, for all pairs of layers.

    Parameters
    ----------
    sums_x, sums_y : array (layers_x, SUMS) and (layers_y, SUMS)
        From ``null_sums``.
    n : int
        Number of samples, at least 4.

    Returns
    -------
    array (layers_x, layers_y) of float64
        Exact for any data; may be negative.

    References
    ----------
    docs/theory.md, section 4.
    """
    return _moment(_THIRD, sums_x[:, THIRD], sums_y[:, THIRD], n)


def fourth_cumulant(sums_x: Array, sums_y: Array, n: int) -> Array:
    """The mean of <A, B>^4 over all permutations, minus 3 times the squared variance; as ``third_moment``."""
    fourth = _moment(_FOURTH, sums_x[:, FOURTH], sums_y[:, FOURTH], n)
    squares = sums_x[:, None, -1] * sums_y[None, :, -1]  # <A, A>^2 <B, B>^2
    return fourth - 12 / (n * (n - 3)) ** 2 * squares


def null_shape(sums_x: Array, sums_y: Array, n: int) -> NullShape:
    """Shape (layers_x, layers_y) of the null from the sums (layers, SUMS) over Gram matrices of norm 1."""
    deviation = math.sqrt(2 / (n * (n - 3)))
    return NullShape(third_moment(sums_x, sums_y, n) / deviation**3, fourth_cumulant(sums_x, sums_y, n) / deviation**4)


def scaled_moments(sums_x: Array, sums_y: Array, n: int, scale: Array) -> tuple[Array, Array]:
    """Third moment and fourth cumulant of ``scale`` (layers_x, layers_y) times <A, B>; NaN where float64 ends."""
    xp = array_namespace(scale)
    third, fourth = (xp.where(scale < 10 ** (270 / k), scale, xp.full_like(scale, math.nan)) ** k for k in (3, 4))
    return third * third_moment(sums_x, sums_y, n), fourth * fourth_cumulant(sums_x, sums_y, n)


def null_shape_of(variance: Array, third: Array, fourth: Array) -> NullShape:
    """Shape (...) of a null with mean 0, this variance, third moment and fourth cumulant.

    Activations beyond 1e19 or below 1e-18 leave the range of their sixteenth powers, though CKA is right. The excess
    kurtosis is 0 there; the skewness, which needs the twelfth powers, beyond 1e25 or below 1e-24.
    """
    xp = array_namespace(variance)
    positive = xp.where(variance > 0, variance, xp.ones_like(variance))
    skewness, excess = third / positive / xp.sqrt(positive), fourth / positive / positive
    known = ((skewness, 1e-195), (excess, 1e-145))
    return NullShape(*(xp.where(xp.isfinite(x) & (positive > lowest), x, xp.zeros_like(x)) for x, lowest in known))


def null_sums(grams: Array) -> Array:
    """The sums over U-centred Gram matrices that the moments of the null need.

    Parameters
    ----------
    grams : array (..., n, n)
        U-centred Gram matrices.

    Returns
    -------
    array (..., SUMS) of float64
        Those of order 3, then those of order 4, in the order of this module's text.
    """
    xp = array_namespace(grams)
    squares = grams * grams
    of_samples = xp.sum(squares, axis=-1, dtype=xp.float64)
    cubes, fourths = _inner(xp, squares, grams), _inner(xp, squares, squares)
    n = grams.shape[-1]
    # Pairs of a block of A and the same block of A^2, with the number of times that the block is in A.
    if n < HALVED:
        blocks = [(1, grams, squares, grams @ grams)]
    else:
        half = n // 2
        first, last = slice(None, half), slice(half, None)
        p, q, r = grams[..., first, first], grams[..., first, last], grams[..., last, last]
        turned = xp.matrix_transpose(q)
        blocks = [
            (1, p, squares[..., first, first], p @ p + q @ turned),
            (2, q, squares[..., first, last], p @ q + q @ r),
            (1, r, squares[..., last, last], turned @ q + r @ r),
        ]
    trace3 = sum(times * _inner(xp, product, a) for times, a, _, product in blocks)
    doubled = sum(times * _inner(xp, product, squared) for times, _, squared, product in blocks)
    trace4 = sum(times * _inner(xp, product, product) for times, _, _, product in blocks)
    stars, norms = xp.sum(of_samples * of_samples, axis=-1), xp.sum(of_samples, axis=-1)
    return xp.stack([cubes, trace3, fourths, stars, doubled, trace4, norms * norms], axis=-1)


def _inner(xp: ModuleType, a: Array, b: Array) -> Array:
    return xp.sum(xp.sum(a * b, axis=-1), axis=-1, dtype=xp.float64)  # a sum of rows in float64 takes twice the time


def of_more_samples(sums: Array, some: int, n: int) -> Array:
    """What the sums (..., SUMS) over Gram matrices of norm 1 of some samples would be about for all n samples.

    A sum of products of entries over samples that all differ is an average of the same quantity for any number of
    samples, times the number of ways to choose them; the norm, which is 1, takes out a power of n for each entry. So
    the sum over triangles or cycles of four samples does not change, that over two pairs that share a sample is
    proportional to 1 / n, and that over one pair four times to 1 / n^2.
    """
    xp = array_namespace(sums)
    share = some / n
    cubes, trace3, fourths, stars, doubled, trace4, norms = (sums[..., i] for i in range(SUMS))
    cycles = trace4 - 2 * stars + fourths
    new_fourths = fourths * share**2
    new_stars = (stars - fourths) * share + new_fourths
    new_trace4 = cycles + 2 * new_stars - new_fourths
    return xp.stack([cubes * share, trace3, new_fourths, new_stars, doubled * share, new_trace4, norms], axis=-1)


def unit_grams(rows: Array) -> Array:
    """Flattened U-centred Gram matrices (layers, n * n) divided by their norms; NaN for constant layers."""
    xp = array_namespace(rows)
    squares = xp.sum(rows * rows, axis=1, dtype=xp.float64)
    inverse = ratio(xp, xp.ones_like(squares), squares, xp.ones_like(squares))
    return rows * xp.astype(inverse, rows.dtype)[:, None]


def unit_sums(features: Sequence[Array], kernel: Kernel, n: int) -> Array:
    """The sums over U-centred Gram matrices of norm 1, for all n samples, from the features of m of them.

    They are exact for m = n, and estimates for m < n samples drawn at random.

    Parameters
    ----------
    features : sequence of arrays (m, p_i)
        Features of the layers, m >= 4.
    kernel : Kernel
        Of the Gram matrices.
    n : int
        Number of all samples.

    Returns
    -------
    array (layers, SUMS) of float64
        NaN for constant layers.
    """
    xp = array_namespace(*features)
    found = []
    for x in features:  # one Gram matrix at a time
        m = x.shape[0]
        rows = unit_grams(layer_rows([x], "xs", kernel, "unbiased")[0])
        found.append(of_more_samples(null_sums(xp.reshape(rows, (1, m, m))), m, n))
    return xp.concat(found, axis=0)
