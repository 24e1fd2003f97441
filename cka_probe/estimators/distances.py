"""Euclidean distances between samples, in a scale in which they neither overflow nor underflow."""

from __future__ import annotations

from types import ModuleType

from .centring import off_diagonal
from .traceable import array_namespace
from .validation import Array, constant

__all__ = [
    "median_distance",
    "median_of_squared",
    "middle_sample",
    "safe_sqrt",
    "scaled_distances",
    "squared_distances",
]


def middle_sample(x: Array) -> Array:
    """For each feature the median of three samples, or of the medians of three times three, which no far sample moves.

    It takes no sort, and is not the median of all samples.

    Parameters
    ----------
    x : array (..., n, p)
        Features, n >= 1.

    Returns
    -------
    array (..., 1, p)

    Examples
    --------
    >>> import numpy as np
    >>> middle_sample(np.array([[1.0], [1e9], [3.0], [4.0]])).tolist()
    [[3.0]]
    """
    xp = array_namespace(x)
    n = x.shape[-2]

    def median(a: Array, b: Array, c: Array) -> Array:
        return xp.maximum(xp.minimum(a, b), xp.minimum(xp.maximum(a, b), c))

    places = [0, n // 2, n - 1] if n < 9 else [(2 * i + 1) * n // 18 for i in (0, 3, 6, 1, 4, 7, 2, 5, 8)]
    few = [x[..., place : place + 1, :] for place in places]
    while len(few) > 1:
        few = [median(*few[i : i + 3]) for i in range(0, len(few), 3)]
    return few[0]


def scaled_distances(x: Array, y: Array | None = None) -> tuple[Array, Array]:
    """Squared Euclidean distances in units of a scale, so that features of 1e20 or 1e-30 stay in the range of float32.

    Parameters
    ----------
    x, y
        As ``squared_distances``.

    Returns
    -------
    squared : array (..., n, m)
        ``squared_distances(x, y)`` divided by ``scale ** 2``.
    scale : array (..., 1, 1)
        A power of two, at most the largest magnitude of the centred features; 0 where all samples are equal. It carries
        no gradient.
    """
    xp = array_namespace(x)
    # A shared shift does not change distances, and it keeps float32 accurate when the mean is far above the spread. The
    # middle one of a few samples makes a constant layer exactly 0, and one far from all others does not move it.
    shift = middle_sample(constant(x))
    a = x - shift
    b = a if y is None else y - shift
    scale = xp.max(xp.abs(constant(a)), axis=(-2, -1), keepdims=True)
    if y is not None:
        scale = xp.maximum(scale, xp.max(xp.abs(constant(b)), axis=(-2, -1), keepdims=True))
    some = scale > 0
    # A power of two, so that the division is exact: distances keep the value that they had without it.
    power = xp.pow(xp.full_like(scale, 2.0), xp.floor(xp.log2(xp.where(some, scale, xp.ones_like(scale)))))
    a = a / power
    b = a if y is None else b / power
    norms_a = xp.sum(a * a, axis=-1)[..., :, None]
    norms_b = xp.sum(b * b, axis=-1)[..., None, :]
    squared = norms_a + norms_b - 2 * (a @ xp.matrix_transpose(b))
    # Negative values are rounding: the exact value is a sum of squares.
    squared = xp.where(squared < 0, xp.zeros_like(squared), squared)
    if y is None:
        squared = squared * off_diagonal(squared)
    return squared, xp.where(some, power, scale)


def squared_distances(x: Array, y: Array | None = None) -> Array:
    """Squared Euclidean distances between all samples.

    Parameters
    ----------
    x : array (..., n, p)
        Features.
    y : array (..., m, p), optional
        Features of other samples; ``x`` itself by default.

    Returns
    -------
    array (..., n, m)
        Squared distances, never negative. The diagonal is exactly 0 without ``y``. Infinite where they leave the range
        of the dtype.
    """
    squared, scale = scaled_distances(x, y)
    return squared * scale * scale


def safe_sqrt(xp: ModuleType, squared: Array) -> Array:
    """Square root whose gradient at 0 is 0 instead of infinite, as on the diagonal of distances; NaN stays NaN."""
    zero = squared == 0
    return xp.where(zero, xp.zeros_like(squared), xp.sqrt(xp.where(zero, xp.ones_like(squared), squared)))


def median_distance(x: Array, y: Array | None = None) -> Array:
    """Median Euclidean distance over all pairs i < j of the samples of ``x``, or of ``x`` and ``y`` together.

    Parameters
    ----------
    x : array (..., n, p)
        Features, n >= 2.
    y : array (..., m, p), optional
        More samples, joined with those of ``x``.

    Returns
    -------
    array (...)
        The median. For an even number of pairs, the mean of the two middle values.

    References
    ----------
    Gretton et al., A Kernel Two-Sample Test, JMLR 2012, section 8 (the median heuristic).

    Examples
    --------
    >>> import numpy as np
    >>> float(median_distance(np.array([[0.0], [1.0], [3.0]])))
    2.0
    """
    xp = array_namespace(x)
    squared, scale = scaled_distances(x if y is None else xp.concat([x, y], axis=-2))
    return median_of_squared(xp, squared) * scale[..., 0, 0]


def median_of_squared(xp: ModuleType, squared: Array) -> Array:
    """Median distance (...) over all pairs i < j, from the squared distances (..., n, n)."""
    n = squared.shape[-1]
    # The diagonal is set to -1, so the n diagonal entries sort first. Then each pair follows twice.
    squared = squared - (1 - off_diagonal(squared))
    ordered = xp.sort(xp.reshape(squared, (*squared.shape[:-2], n * n)), axis=-1)
    pairs = n * (n - 1) // 2
    upper = safe_sqrt(xp, ordered[..., n + 2 * (pairs // 2)])
    if pairs % 2:
        return upper
    return (upper + safe_sqrt(xp, ordered[..., n + 2 * (pairs // 2 - 1)])) / 2
