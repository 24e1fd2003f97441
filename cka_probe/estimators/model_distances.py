"""Distances between whole models from the angles between their layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "MODEL_DISTANCES",
    "angles",
    "best_match_distance",
    "elastic_distance",
    "frechet_distance",
    "row_of_distances",
]


Array = NDArray[np.float64]


def angles(similarities: ArrayLike) -> NDArray[np.float64]:
    """Angle between two layers, arccos(CKA), in radians: a metric on Gram matrices up to their scale.

    Parameters
    ----------
    similarities : array
        CKA, from -1 to 1; rounding above 1 counts as 1.

    Returns
    -------
    array
        From 0 (equal) over pi / 2 (CKA 0) to pi; NaN where CKA is.

    Examples
    --------
    >>> angles([1.0, 0.0]).round(4).tolist()
    [0.0, 1.5708]
    """
    return np.arccos(np.clip(np.asarray(similarities, dtype=np.float64), -1.0, 1.0))


def best_match_distance(between: ArrayLike) -> NDArray[np.float64]:
    """Mean angle of each layer to the nearest layer of the other model, averaged over both models.

    The order of the layers does not count. It is symmetric, at least 0, and 0 exactly if each layer of each model has
    an equal layer in the other. The triangle inequality can fail.

    Parameters
    ----------
    between : array (..., m, n)
        Angles between the layers of two models.

    Returns
    -------
    array (...)
        From 0 to pi.

    Raises
    ------
    ValueError
        If a model has no layer.

    Examples
    --------
    >>> float(best_match_distance([[0.0, 0.5], [0.25, 0.75]]))
    0.1875
    """
    a = _angles(between)
    rows, columns = a.min(axis=-1).mean(axis=-1), a.min(axis=-2).mean(axis=-1)
    return (rows + columns) / 2


def elastic_distance(between: ArrayLike) -> NDArray[np.float64]:
    """Mean angle along the best alignment of two sequences of layers that keeps their order.

    An alignment starts with both first layers and ends with both last ones; each step goes on by one layer in one model
    or in both. A step in both counts twice, so each alignment has the weight m + n, by which the sum is divided
    (symmetric dynamic time warping). It is symmetric, at least 0, and 0 exactly if both models have the same sequence
    of layers, where repeated equal layers count once. The triangle inequality can fail; ``frechet_distance`` is the
    relative in which it holds.

    Parameters
    ----------
    between : array (..., m, n)
        Angles between the layers of two models, in the order of execution.

    Returns
    -------
    array (...)
        From 0 to pi; at least ``best_match_distance`` for models of equal depth.

    Raises
    ------
    ValueError
        If a model has no layer.

    References
    ----------
    Sakoe, Chiba, Dynamic programming algorithm optimization for spoken word recognition, IEEE Transactions on
    Acoustics, Speech, and Signal Processing 26, 1978: symmetric form, no slope constraint.

    Examples
    --------
    >>> float(elastic_distance([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]]))
    0.0
    """
    a = _angles(between)

    def step(cost: Array, both: Array, one: Array, other: Array) -> Array:
        return np.minimum(np.minimum(both + 2 * cost, one + cost), other + cost)

    return _best_alignment(a, step) / sum(a.shape[-2:])


def frechet_distance(between: ArrayLike) -> NDArray[np.float64]:
    """Largest angle along the alignment of two sequences of layers that keeps it smallest (discrete Fréchet distance).

    A metric on sequences of layers without repetitions of equal layers: symmetric, 0 exactly for equal sequences, and
    the triangle inequality holds.

    Parameters
    ----------
    between : array (..., m, n)
        Angles between the layers of two models, in the order of execution.

    Returns
    -------
    array (...)
        From 0 to pi.

    Raises
    ------
    ValueError
        If a model has no layer.

    References
    ----------
    Eiter, Mannila, Computing discrete Fréchet distance, TU Wien CD-TR 94/64, 1994.

    Examples
    --------
    >>> float(frechet_distance([[0.1, 1.0, 1.0], [1.0, 0.3, 0.2]]))
    0.3
    """

    def step(cost: Array, both: Array, one: Array, other: Array) -> Array:
        return np.maximum(np.minimum(np.minimum(both, one), other), cost)

    return _best_alignment(_angles(between), step)


MODEL_DISTANCES: dict[str, Callable[[ArrayLike], NDArray[np.float64]]] = {
    "elastic": elastic_distance,
    "best_match": best_match_distance,
    "frechet": frechet_distance,
}
"""Distances between models by name."""


def row_of_distances(
    similarities: NDArray[np.floating], sizes: Sequence[int], how: str, *, first: int = 0
) -> NDArray[np.float64]:
    """Distances of one model to several others.

    Parameters
    ----------
    similarities : array (m, sum of sizes)
        CKA of its layers with the layers of the others, one model after the other. Undefined layers (all NaN) are
        left out.
    sizes : sequence of int
        Number of layers of each other model.
    how : str
        Name in ``MODEL_DISTANCES``.
    first : int
        The distances to the models before this place are not computed; they are NaN.

    Returns
    -------
    array (len(sizes),)
        NaN for a model without any defined layer.

    Examples
    --------
    >>> row_of_distances(np.array([[1.0, 1.0, 0.0]]), [1, 2], "best_match").round(3).tolist()
    [0.0, 0.393]
    """
    distance = MODEL_DISTANCES[how]
    found = angles(similarities)
    found = found[~np.isnan(found).all(axis=1)] if found.size else found
    ends = np.cumsum([0, *sizes])
    groups: dict[int, list[tuple[int, NDArray[np.float64]]]] = {}
    for place in range(first, len(sizes)):
        block = found[:, ends[place] : ends[place + 1]]
        block = block[:, ~np.isnan(block).any(axis=0)] if block.size else block
        if block.size:
            groups.setdefault(block.shape[1], []).append((place, block))
    row = np.full(len(sizes), np.nan)
    for blocks in groups.values():  # models of equal depth in one go
        row[[place for place, _ in blocks]] = distance(np.stack([block for _, block in blocks]))
    return row


def _angles(between: ArrayLike) -> NDArray[np.float64]:
    a = np.asarray(between, dtype=np.float64)
    if a.ndim < 2 or 0 in a.shape[-2:]:
        raise ValueError(f"`between` must have the shape (..., m, n) with at least one layer each, got {a.shape}.")
    return a


def _best_alignment(a: Array, step: Callable[[Array, Array, Array, Array], Array]) -> Array:
    """Value of the best alignment of two sequences (dynamic programming).

    ``step`` gives the value of an alignment that ends with a pair, from the cost of the pair and the values of those
    that end one layer earlier in both models, in the first, or in the second.
    """
    m, n = a.shape[-2:]
    best = np.full((*a.shape[:-2], m + 1, n + 1), np.inf)
    best[..., 0, 0] = 0.0
    for i in range(m):
        for j in range(n):
            best[..., i + 1, j + 1] = step(a[..., i, j], best[..., i, j], best[..., i, j + 1], best[..., i + 1, j])
    found: Array = best[..., m, n]
    return found
