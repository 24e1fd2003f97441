"""Representational similarity analysis: the correlation between the dissimilarities of samples in two layers."""

from __future__ import annotations

import numpy as np
from array_api_compat import array_namespace

from ..distances import safe_sqrt, squared_distances
from ..hsic import scaled_features
from ..kernels import Cosine
from ..validation import Array, check_pair, constant

__all__ = [
    "COMPARISONS",
    "DISSIMILARITIES",
    "average_ranks",
    "correlation",
    "correlation_chance",
    "dissimilarity_vector",
    "prepare",
    "rsa",
]

DISSIMILARITIES = ("correlation", "cosine", "euclidean")
COMPARISONS = ("spearman", "pearson")


def dissimilarity_vector(x: Array, kind: str, *, squared: bool = False) -> Array:
    """Dissimilarities (..., n (n - 1) / 2) of all pairs of samples i < j, row by row.

    ``squared`` gives squared Euclidean distances; other kinds ignore it.
    """
    xp = array_namespace(x)
    n = x.shape[-2]
    if kind == "euclidean":
        matrix = squared_distances(x) if squared else safe_sqrt(xp, squared_distances(x))
    else:
        matrix = 1 - Cosine()(x if kind == "cosine" else x - xp.mean(x, axis=-1, keepdims=True))
    rows, columns = np.triu_indices(n, k=1)
    places = xp.asarray(rows * n + columns, device=x.device)
    return xp.take(xp.reshape(matrix, (*matrix.shape[:-2], n * n)), places, axis=-1)


def average_ranks(values: Array, resolution: float = 0.0) -> Array:
    """Ranks 1 to m along the last axis (..., m). Values at most ``resolution`` apart are ties and share a mean rank."""
    xp = array_namespace(values)
    flat = xp.reshape(constant(values), (-1, values.shape[-1]))
    ranks = []
    for i in range(flat.shape[0]):
        order = xp.argsort(flat[i, :])
        ordered = xp.take(flat[i, :], order)
        # Number the groups of ties, then give each group the mean of its places.
        apart = xp.astype(ordered[1:] - ordered[:-1] > resolution, xp.float64)
        group = xp.concat([xp.zeros_like(ordered[:1]), xp.cumulative_sum(apart)])
        below = xp.searchsorted(group, group, side="left")
        up_to = xp.searchsorted(group, group, side="right")
        places = xp.astype(below + up_to + 1, xp.float64) / 2
        ranks.append(xp.take(places, xp.argsort(order)))
    return xp.reshape(xp.stack(ranks), values.shape)


def prepare(x: Array, *, comparison: str = "spearman", dissimilarity: str = "correlation") -> Array:
    """Dissimilarities of one layer, or their ranks, (..., m), centred and of norm 1; NaN if all are equal."""
    if comparison not in COMPARISONS:
        raise ValueError(f'`comparison` must be "spearman" or "pearson", got {comparison!r}.')
    if dissimilarity not in DISSIMILARITIES:
        raise ValueError(f'`dissimilarity` must be "correlation", "cosine" or "euclidean", got {dissimilarity!r}.')
    xp = array_namespace(x)
    x = xp.astype(x, xp.float64)
    centred, _ = scaled_features(x)
    varied = xp.any(constant(centred) != 0, axis=(-2, -1))[..., None]
    # Squares have the same ranks; a square root would turn the rounding error of 0 into 1e-8.
    values = dissimilarity_vector(x, dissimilarity, squared=comparison == "spearman")
    # After division by the largest, smaller differences than this are rounding errors and count as ties.
    resolution = 64 * float(xp.finfo(xp.float64).eps)
    largest = xp.max(xp.abs(constant(values)), axis=-1, keepdims=True)
    values = values / xp.where(largest > 0, largest, xp.ones_like(largest))
    values = values - xp.mean(values, axis=-1, keepdims=True)
    varied = varied & (xp.max(xp.abs(constant(values)), axis=-1, keepdims=True) > resolution)
    if comparison == "spearman":
        values = average_ranks(values, resolution)
        values = values - xp.mean(values, axis=-1, keepdims=True)
    squares = xp.sum(values * values, axis=-1, keepdims=True)
    varied = varied & (squares > 0)
    return values / xp.sqrt(xp.where(varied, squares, xp.full_like(squares, xp.nan)))


def correlation(x: Array, y: Array) -> Array:
    """Correlation of two prepared layers."""
    return array_namespace(x).sum(x * y, axis=-1)


def correlation_chance(x: Array, y: Array) -> Array:
    """Exact mean of ``correlation`` over permutations of the samples: 0, or NaN if a side is constant."""
    return 0 * correlation(x, y)


def rsa(x: Array, y: Array, *, comparison: str = "spearman", dissimilarity: str = "correlation") -> Array:
    """The correlation between the dissimilarities of all pairs of samples in two layers.

    Parameters
    ----------
    x : array (..., n, p)
        Features, n >= 3.
    y : array (..., n, q)
        Features of the same samples.
    comparison : "spearman" or "pearson"
        Rank correlation, with mean ranks for ties, or linear correlation of the dissimilarities.
    dissimilarity : "correlation", "cosine" or "euclidean"
        1 - Pearson correlation of two samples over the features; 1 - their cosine; their distance. For the first two, a
        sample that is constant over the features (cosine: zero) has dissimilarity 1 to all others.

    Returns
    -------
    array (...) of float64
        From -1 to 1; its mean over permutations of the samples is exactly 0. NaN if all dissimilarities of a side are
        equal. Only "pearson" has gradients, because ranks have none.

    Raises
    ------
    TypeError, ValueError
        As ``cka``, and if the comparison or the dissimilarity is unknown.

    References
    ----------
    Kriegeskorte, Mur, Bandettini, Representational Similarity Analysis, Frontiers in Systems Neuroscience 2008.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(10, 4))
    >>> round(float(rsa(x, 2 * x + 1)), 6)
    1.0
    """
    _, x, y = check_pair(x, y, minimum=3)
    prepared = (prepare(z, comparison=comparison, dissimilarity=dissimilarity) for z in (x, y))
    return correlation(*prepared)
