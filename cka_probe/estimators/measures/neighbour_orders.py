"""Similarity of two layers by the order of the nearest neighbours: ranks, edit distance, common subsequences."""

from __future__ import annotations

from functools import partial
from itertools import accumulate

import numpy as np
from array_api_compat import array_namespace

from ..kernels import Kernel
from ..validation import Array, as_numpy, check_pair
from .neighbour_sets import shared_probabilities
from .neighbours import Neighbours, prepare

__all__ = [
    "common_subsequence",
    "edit_distance_knn",
    "edit_similarity",
    "lcs_knn",
    "rank_agreement",
    "rank_agreement_chance",
    "rank_similarity",
]


def _harmonic(k: int) -> list[float]:
    """1, then the sums 1 + 1/2 + ... + 1/m for m = 1 to k."""
    return [1.0, *accumulate(1 / m for m in range(1, k + 1))]


def rank_agreement(x: Neighbours, y: Neighbours) -> Array:
    """Rank similarity of two prepared layers."""
    xp = array_namespace(x.mask)
    rank_x, rank_y = (xp.astype(side.places, xp.float64) + 1 for side in (x, y))
    both = x.mask * y.mask
    scores = xp.sum(both * 2 / ((1 + xp.abs(rank_x - rank_y)) * (rank_x + rank_y)), axis=-1)
    shared = xp.astype(xp.sum(both, axis=-1), xp.int64)
    table = xp.asarray(_harmonic(x.k), dtype=xp.float64, device=x.mask.device)
    norms = xp.reshape(xp.take(table, xp.reshape(shared, (-1,))), shared.shape)
    return xp.mean(scores / norms, axis=-1) + x.undefined + y.undefined


def rank_agreement_chance(x: Neighbours, y: Neighbours) -> Array:
    """Exact mean of ``rank_agreement`` over permutations of the samples.

    Shared neighbours then have independent, uniformly drawn ranks from 1 to k in both layers.
    """
    k, n = x.k, x.mask.shape[-1]
    score = np.mean([2 / ((1 + abs(r - s)) * (r + s)) for r in range(1, k + 1) for s in range(1, k + 1)])
    norms = _harmonic(k)
    share = sum(p * m * float(score) / norms[m] for m, p in enumerate(shared_probabilities(k, n)))
    return share + x.undefined + y.undefined


def _lists(x: Neighbours) -> np.ndarray:
    """The k nearest neighbours of each sample, the nearest first (samples of all batch entries, k)."""
    xp = array_namespace(x.places)
    order = as_numpy(xp.argsort(x.places, axis=-1)[..., : x.k])
    return order.reshape(-1, x.k)


def _mean_over_samples(per_sample: np.ndarray, x: Neighbours, y: Neighbours) -> Array:
    """Mean (...) over the samples of each batch entry, as an array of the library of ``x``."""
    xp = array_namespace(x.mask)
    values = xp.asarray(per_sample, dtype=xp.float64, device=x.mask.device)
    return xp.mean(xp.reshape(values, x.mask.shape[:-1]), axis=-1) + x.undefined + y.undefined


def edit_similarity(x: Neighbours, y: Neighbours) -> Array:
    """1 minus the edit distance over k of two prepared layers."""
    a, b = _lists(x), _lists(y)
    k = x.k
    # Levenshtein's table row by row, for all samples at once.
    above = np.tile(np.arange(k + 1), (len(a), 1))
    for i in range(k):
        row = np.empty_like(above)
        row[:, 0] = i + 1
        for j in range(k):
            replaced = above[:, j] + (a[:, i] != b[:, j])
            row[:, j + 1] = np.minimum(np.minimum(above[:, j + 1], row[:, j]) + 1, replaced)
        above = row
    return _mean_over_samples(1 - above[:, k] / k, x, y)


def common_subsequence(x: Neighbours, y: Neighbours) -> Array:
    """Length of the longest common subsequence over k of two prepared layers."""
    a, b = _lists(x), _lists(y)
    k = x.k
    above = np.zeros((len(a), k + 1), dtype=np.int64)
    for i in range(k):
        row = np.zeros_like(above)
        for j in range(k):
            longer = np.maximum(above[:, j + 1], row[:, j])
            row[:, j + 1] = np.where(a[:, i] == b[:, j], above[:, j] + 1, longer)
        above = row
    return _mean_over_samples(above[:, k] / k, x, y)


def rank_similarity(x: Array, y: Array, *, k: int = 10, kernel: Kernel | None = None) -> Array:
    """How alike the ranks of the shared nearest neighbours of a sample are in two layers; near ranks weigh more.

    Parameters
    ----------
    x : array (..., n, p)
        Features, n > k.
    y : array (..., n, q)
        Features of the same samples.
    k : int
        Number of neighbours of each sample, without the sample itself.
    kernel : Kernel, optional
        The samples with the largest kernel values are the nearest. ``Cosine()`` when left out.

    Returns
    -------
    array (...) of float64
        Mean over the samples of sum_j 2 / ((1 + |r_j - s_j|) (r_j + s_j)) over the m shared neighbours j with ranks r_j
        and s_j, divided by 1 + 1/2 + ... + 1/m; from 0 (none shared) to 1. The mean over permutations of the samples is
        known exactly. NaN if a side is constant. It has no gradient.

    Raises
    ------
    TypeError
        As ``cka``, and if ``k`` is not an int.
    ValueError
        As ``cka``, and if ``k`` is outside 1 to n - 1.

    Notes
    -----
    The divisor counts only shared neighbours, so one shared neighbour of rank 1 in both layers gives 1. ``jaccard``
    counts how many are shared.

    References
    ----------
    Wang et al., Towards Understanding the Instability of Network Embedding, TKDE 2022. Klabunde et al., ReSi, ICLR
    2025.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(30, 4))
    >>> round(float(rank_similarity(x, 2 * x, k=5)), 6)
    1.0
    """
    _, x, y = check_pair(x, y)
    layer = partial(prepare, k=k, kernel=kernel)
    return rank_agreement(layer(x), layer(y))


def edit_distance_knn(x: Array, y: Array, *, k: int = 10, kernel: Kernel | None = None) -> Array:
    """1 minus the mean edit distance between the lists of nearest neighbours of a sample in two layers, divided by k.

    Parameters
    ----------
    x : array (..., n, p)
        Features, n > k.
    y : array (..., n, q)
        Features of the same samples.
    k, kernel
        As ``rank_similarity``.

    Returns
    -------
    array (...) of float64
        A similarity from 0 to 1, as in the code of the reference. The edit distance (Levenshtein) counts insertions,
        deletions and replacements. NaN if a side is constant. It has no gradient.

    Raises
    ------
    TypeError, ValueError
        As ``rank_similarity``.

    References
    ----------
    Huh et al., The Platonic Representation Hypothesis, ICML 2024, ``edit_distance_knn`` in metrics.py of its
    repository.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(30, 4))
    >>> float(edit_distance_knn(x, 2 * x, k=5))
    1.0
    """
    _, x, y = check_pair(x, y)
    layer = partial(prepare, k=k, kernel=kernel)
    return edit_similarity(layer(x), layer(y))


def lcs_knn(x: Array, y: Array, *, k: int = 10, kernel: Kernel | None = None) -> Array:
    """The mean length of the longest common subsequence of the lists of nearest neighbours in two layers, over k.

    Parameters
    ----------
    x : array (..., n, p)
        Features, n > k.
    y : array (..., n, q)
        Features of the same samples.
    k, kernel
        As ``rank_similarity``.

    Returns
    -------
    array (...) of float64
        From 0 to 1. The code of the reference gives the length itself, k times this. NaN if a side is constant. It has
        no gradient.

    Raises
    ------
    TypeError, ValueError
        As ``rank_similarity``.

    References
    ----------
    Huh et al., The Platonic Representation Hypothesis, ICML 2024, ``lcs_knn`` in metrics.py of its repository.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(30, 4))
    >>> float(lcs_knn(x, 2 * x, k=5))
    1.0
    """
    _, x, y = check_pair(x, y)
    layer = partial(prepare, k=k, kernel=kernel)
    return common_subsequence(layer(x), layer(y))
