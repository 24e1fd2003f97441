"""Similarity of two layers by the sets of the nearest neighbours: Jaccard, cycles, and cosines of similarities."""

from __future__ import annotations

import math
from functools import partial

from array_api_compat import array_namespace

from ..distances import safe_sqrt
from ..kernels import Kernel
from ..validation import Array, check_pair
from .neighbours import Neighbours, prepare

__all__ = [
    "cycle_knn",
    "cycles",
    "cycles_chance",
    "jaccard",
    "second_order",
    "second_order_cosine",
    "shared_probabilities",
    "union_share",
    "union_share_chance",
]


def shared_probabilities(k: int, n: int) -> list[float]:
    """Probability of 0 to k shared neighbours of a sample under a random permutation of the samples of one side.

    The neighbours in one layer are then a uniformly drawn set of k of the n - 1 other samples (hypergeometric).
    """
    every = math.comb(n - 1, k)
    return [math.comb(k, m) * math.comb(n - 1 - k, k - m) / every for m in range(k + 1)]


def union_share(x: Neighbours, y: Neighbours) -> Array:
    """Mean Jaccard similarity of two prepared layers."""
    xp = array_namespace(x.mask)
    shared = xp.sum(x.mask * y.mask, axis=-1)
    return xp.mean(shared / (2 * x.k - shared), axis=-1) + x.undefined + y.undefined


def union_share_chance(x: Neighbours, y: Neighbours) -> Array:
    """Exact mean of ``union_share`` over permutations of the samples."""
    share = sum(p * m / (2 * x.k - m) for m, p in enumerate(shared_probabilities(x.k, x.mask.shape[-1])))
    return share + x.undefined + y.undefined


def cycles(x: Neighbours, y: Neighbours) -> Array:
    """Share of the samples that are among the neighbours in x of one of their neighbours in y."""
    xp = array_namespace(x.mask)
    back = xp.sum(y.mask * xp.matrix_transpose(x.mask), axis=-1)
    return xp.mean(xp.astype(back > 0, xp.float64), axis=-1) + x.undefined + y.undefined


def cycles_chance(x: Neighbours, y: Neighbours) -> Array:
    """Exact mean of ``cycles`` over permutations of the samples; it depends on how often each sample is a neighbour."""
    xp = array_namespace(x.mask)
    n, k = x.mask.shape[-1], x.k
    every = math.comb(n - 1, k)
    missed = [math.comb(n - 1 - degree, k) / every for degree in range(n)]
    table = xp.asarray(missed, dtype=xp.float64, device=x.mask.device)
    degrees = xp.astype(xp.sum(x.mask, axis=-2), xp.int64)
    share = 1 - xp.take(table, xp.reshape(degrees, (-1,)))
    return xp.mean(xp.reshape(share, degrees.shape), axis=-1) + x.undefined + y.undefined


def second_order(x: Neighbours, y: Neighbours) -> Array:
    """Second-order cosine similarity of two prepared layers."""
    xp = array_namespace(x.mask)
    union = xp.where(x.mask > y.mask, x.mask, y.mask)
    a, b = ((1 - side.gram if side.form == "released" else side.gram) * union for side in (x, y))
    # Distances of equal samples are rounding errors.
    tiny = 64 * float(xp.finfo(xp.float64).eps)
    a, b = (xp.where(xp.abs(side) > tiny, side, xp.zeros_like(side)) for side in (a, b))
    norms = safe_sqrt(xp, xp.sum(a * a, axis=-1)) * safe_sqrt(xp, xp.sum(b * b, axis=-1))
    known = xp.astype(norms > 0, xp.float64)
    cosines = known * xp.sum(a * b, axis=-1) / xp.where(norms > 0, norms, xp.ones_like(norms))
    count = xp.sum(known, axis=-1)
    mean = xp.sum(cosines, axis=-1) / xp.where(count > 0, count, xp.full_like(count, xp.nan))
    return mean + x.undefined + y.undefined


def jaccard(x: Array, y: Array, *, k: int = 10, kernel: Kernel | None = None) -> Array:
    """The mean Jaccard similarity of the sets of k nearest neighbours of a sample in two layers.

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
        Shared neighbours over the neighbours in either layer, from 0 to 1. The mean over permutations of the samples is
        known exactly (``MEASURES["jaccard"].chance``). NaN if a side is constant. It has no gradient.

    Raises
    ------
    TypeError
        As ``cka``, and if ``k`` is not an int.
    ValueError
        As ``cka``, and if ``k`` is outside 1 to n - 1.

    References
    ----------
    Wang et al., Towards Understanding the Instability of Network Embedding, TKDE 2022. Klabunde et al., ReSi: A
    Comprehensive Benchmark for Representational Similarity Measures, ICLR 2025.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(30, 4))
    >>> float(jaccard(x, 2 * x, k=5))
    1.0
    """
    _, x, y = check_pair(x, y)
    layer = partial(prepare, k=k, kernel=kernel)
    return union_share(layer(x), layer(y))


def cycle_knn(x: Array, y: Array, *, k: int = 10, kernel: Kernel | None = None) -> Array:
    """The share of samples that come back: among the neighbours in ``x`` of one of their own neighbours in ``y``.

    Parameters
    ----------
    x : array (..., n, p)
        Features, n > k.
    y : array (..., n, q)
        Features of the same samples.
    k, kernel
        As ``jaccard``.

    Returns
    -------
    array (...) of float64
        From 0 to 1. Not symmetric, and below 1 for a layer with itself where being a neighbour is not mutual. NaN if a
        side is constant. It has no gradient.

    Raises
    ------
    TypeError, ValueError
        As ``jaccard``.

    References
    ----------
    Huh et al., The Platonic Representation Hypothesis, ICML 2024, ``cycle_knn`` in metrics.py of its repository.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(30, 4))
    >>> round(float(cycle_knn(x, 2 * x, k=5)), 3)  # one sample is no neighbour of its neighbours
    0.967
    """
    _, x, y = check_pair(x, y)
    layer = partial(prepare, k=k, kernel=kernel)
    return cycles(layer(x), layer(y))


def second_order_cosine(x: Array, y: Array, *, k: int = 10, form: str = "paper") -> Array:
    """How alike two layers see the neighbourhood of a sample: the cosine between its similarities to its neighbours.

    For each sample, the cosines to all samples that are among its k nearest neighbours (by cosine) in either layer are
    one vector in each layer. The value is the mean cosine between both vectors.

    Parameters
    ----------
    x : array (..., n, p)
        Features, n > k.
    y : array (..., n, q)
        Features of the same samples.
    k : int
        Number of neighbours of each sample, without the sample itself.
    form : "paper" or "released"
        The vectors hold cosines ("paper", as Hamilton et al.), or 1 - cosine ("released", as the code of the ReSi
        benchmark, whose values are nearer to 1).

    Returns
    -------
    array (...) of float64
        From -1 to 1; from 0 with "released". NaN if a side is constant. Samples whose vector is 0 are left out.

    Raises
    ------
    TypeError, ValueError
        As ``jaccard``, and if the form is unknown.

    References
    ----------
    Hamilton, Leskovec, Jurafsky, Cultural Shift or Linguistic Drift?, EMNLP 2016. Klabunde et al., ReSi, ICLR 2025.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(30, 4))
    >>> round(float(second_order_cosine(x, 2 * x, k=5)), 6)
    1.0
    """
    _, x, y = check_pair(x, y)
    layer = partial(prepare, k=k, form=form)
    return second_order(layer(x), layer(y))
