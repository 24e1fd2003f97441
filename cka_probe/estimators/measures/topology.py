"""Representation topology divergence (RTD): how much the clusters and loops of two layers differ."""

from __future__ import annotations

from functools import partial
from numbers import Integral
from typing import NamedTuple

import numpy as np
from array_api_compat import array_namespace

from ...capture.extras import require
from ..hsic import scaled_features
from ..validation import Array, as_numpy, check_pair

__all__ = ["Distances", "divergence", "prepare", "rtd"]

NEGLIGIBLE = 1e-6
"""Distances below this part of the mean count as 0, as in the code of the reference."""


class Distances(NamedTuple):
    """Distances between the samples of one layer (..., n, n) as a numpy array, and the options of ``rtd``."""

    distances: np.ndarray
    subsets: list[np.ndarray]
    like: Array


def prepare(x: Array, *, batch: int = 500, trials: int = 10, seed: int = 0) -> Distances:
    """Distances of one layer from its checked features (..., n, p)."""
    require("ripser", "topology", "The measure rtd")
    for value, name, least in ((batch, "batch", 3), (trials, "trials", 1), (seed, "seed", 0)):
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise TypeError(f"`{name}` must be an int, got {type(value).__name__}.")
        if value < least:
            raise ValueError(f"`{name}` must be at least {least}, got {value}.")
    from scipy.spatial.distance import pdist, squareform

    xp = array_namespace(x)
    z, _ = scaled_features(xp.astype(x, xp.float64))
    features = as_numpy(z)
    n = features.shape[-2]
    distances = np.empty((*features.shape[:-2], n, n))
    for place in np.ndindex(features.shape[:-2]):
        distances[place] = squareform(pdist(features[place]))
    rng = np.random.default_rng(seed)
    subsets = [np.arange(n)] if n <= batch else [np.sort(rng.permutation(n)[:batch]) for _ in range(trials)]
    return Distances(distances, subsets, z[..., 0, 0])


def _loops(a: np.ndarray, b: np.ndarray) -> float:
    """Total length of the one-dimensional bars of the reference's complex of two layers, in the order given."""
    from ripser import ripser

    n = len(a)
    joined = np.zeros((2 * n, 2 * n))
    joined[n:, :n], joined[:n, n:], joined[n:, n:] = a, a, np.minimum(a, b)
    joined[joined < NEGLIGIBLE * a.mean()] = 0
    # ripser computes in float32. It gets the ranks of the distances, which float32 holds, so the lengths are exact.
    distinct, ranks = np.unique(joined, return_inverse=True)
    bars = ripser(ranks.reshape(joined.shape).astype(np.float32), maxdim=1, distance_matrix=True)["dgms"][1]
    # A complex with all edges has no loop that lasts, so each bar ends.
    births, deaths = distinct[bars.astype(np.int64)].T
    return float(np.sum(deaths - births))


def divergence(x: Distances, y: Distances) -> Array:
    """RTD of two prepared layers."""
    xp = array_namespace(x.like)
    stack = np.broadcast_shapes(x.distances.shape[:-2], y.distances.shape[:-2])
    values = np.empty(stack)
    left, right = (np.broadcast_to(side.distances, (*stack, *side.distances.shape[-2:])) for side in (x, y))
    for place in np.ndindex(stack):
        trials = []
        for rows in x.subsets:
            sides = [side[place][np.ix_(rows, rows)] for side in (left, right)]
            scales = [np.quantile(side, 0.9) for side in sides]
            if min(scales) > 0:
                a, b = (side / scale for side, scale in zip(sides, scales, strict=True))
                trials.append((_loops(a, b) + _loops(b, a)) / 2)
            else:
                trials.append(np.nan)
        values[place] = np.mean(trials)
    return xp.asarray(values, dtype=xp.float64, device=x.like.device)


def rtd(x: Array, y: Array, *, batch: int = 500, trials: int = 10, seed: int = 0) -> Array:
    """The representation topology divergence (RTD): how much the clusters and loops of two layers differ at all scales.

    A complex joins both layers: its one-dimensional bars are the scales at which samples are connected in one layer but
    not yet in the other. The value is the total length of these bars, as the mean of both orders of the layers.

    Parameters
    ----------
    x : array (..., n, p)
        Features, n >= 3.
    y : array (..., n, q)
        Features of the same samples.
    batch : int
        With more samples than this, the value is the mean over random subsets of this size, because the cost grows
        faster than the cube of the samples (500 samples: about ten seconds a pair).
    trials : int
        Number of random subsets.
    seed : int
        Seed of the subsets; all libraries give the same.

    Returns
    -------
    array (...) of float64
        Distances are in units of their 0.9 quantile in each layer. From 0 (equal distances) up; it grows with the
        number of samples. NaN if a side is constant, or if nine tenths of its distances are 0. It has no gradient.

    Raises
    ------
    TypeError, ValueError
        As ``cka``, and if an option is not an int or too small.
    ModuleNotFoundError
        If ripser is not installed (the extra "topology").

    References
    ----------
    Barannikov et al., Representation Topology Divergence: A Method for Comparing Neural Network Representations, ICML
    2022, and the code of the authors, whose matrix this follows. Bauer, Ripser, 2021.

    Examples
    --------
    >>> import numpy as np
    >>> x, y = np.random.default_rng(0).normal(size=(2, 20, 2))
    >>> bool(rtd(x, 3 * x + 1) < 1e-9), bool(rtd(x, y) > 0.1)
    (True, True)
    """
    _, x, y = check_pair(x, y, minimum=3)
    layer = partial(prepare, batch=batch, trials=trials, seed=seed)
    return divergence(layer(x), layer(y))
