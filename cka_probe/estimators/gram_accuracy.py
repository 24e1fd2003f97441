"""Tell whether float32 has kept the Gram matrix of a layer accurate, and what the dtype of features resolves."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

from array_api_compat import array_namespace, device, is_torch_array

from .centring import off_diagonal
from .distances import middle_sample
from .validation import Array

__all__ = [
    "EPS32",
    "FAR",
    "FAR_IN_SINGLE",
    "MANY",
    "MEAN_LIMIT",
    "SUMMED_LIMIT",
    "doubtful",
    "far_in_diagonal",
    "has_far_sample",
    "in_range",
    "lost_ratio",
    "mean_over_spread",
    "over_spread",
    "resolution",
    "squared_means_and_spread",
]

MEAN_LIMIT = 0.5
"""Largest ``mean_over_spread`` of raw features whose Gram matrix is U-centred in float32.

The rounding of the mean then costs CKA less than 6e-7 over all pairs of leaves of ResNet-18 and -50, DenseNet-121 and
Swin-T with 16 to 64 samples; at a limit of 2 it costs up to 1.8e-6."""

SUMMED_LIMIT, MANY = 2.5 * MEAN_LIMIT, 16
"""The limit on a CPU for features minus their mean if the Gram matrix is a sum of so many products of a few columns.

Their rounding averages out: it is 5e-7 of the U-centred Gram matrix at 1 (ResNet-50, 16 samples), where one product of
all columns has 5e-6."""

BLOCK = 2**18
"""Numbers of which ``resolution`` makes copies in float64 at a time; they fit the cache of a CPU."""

FAR = 100.0
"""A sample is called far if its distance from the median is this many times the median distance."""

FAR_IN_SINGLE = 10.0
"""A sample this many times as far away as usual costs the CKA of two layers in float32 about 1e-6."""

EPS32 = 2.0**-23
"""Rounding unit of float32: ``mean_over_spread`` of another dtype is converted to this one."""


def over_spread(xp: ModuleType, gram: Array, size: float, mean_square: float) -> tuple[float, float]:
    """``mean_over_spread`` of the raw features and of the features minus their mean.

    ``gram`` (n, n) is the Gram matrix of the features minus their mean, ``size`` the mean of its diagonal,
    ``mean_square`` the squared length of the mean. Both values are infinite if the spread is not above rounding.
    """
    n = gram.shape[0]
    eps = float(xp.finfo(gram.dtype).eps)
    norm = xp.linalg.vector_norm
    gram = gram * off_diagonal(gram)
    rows = xp.sum(gram, axis=1)
    squares = float(norm(gram)) ** 2
    spread = _spread(squares, float(norm(rows)) ** 2, float(xp.sum(rows)), n)
    if not spread > 64 * eps * squares:
        return math.inf, math.inf
    unit = math.sqrt(spread) / eps * EPS32
    # The off-diagonal entries of the raw Gram matrix sum to n^2 |mean|^2 - n (|mean|^2 + size).
    return abs(mean_square - (mean_square + size) / n) / unit, size / n / unit


def in_range(xp: ModuleType, dtype: Any, size: float) -> bool:
    """Whether squares of Gram entries of magnitude ``size`` neither overflow nor underflow; False for NaN."""
    low, high = _range(xp, dtype)
    return low < size < high


def _range(xp: ModuleType, dtype: Any) -> tuple[float, float]:
    return (1e-15, 1e15) if dtype == xp.float32 else (1e-125, 1e125)


def lost_ratio(xp: ModuleType, dtype: Any) -> float:
    """The ratio (squared spread) / (squared mean) below which the spread is lost in the rounding of the mean.

    That rounding shifts all samples alike. Above this ratio the shift is small beside their spread; constant layers lie
    below it.
    """
    return (512 * float(xp.finfo(dtype).eps)) ** 2


def _spread(squares: Any, row_squares: Any, total: Any, n: int) -> Any:
    """||A||^2 of the U-centred Gram matrix A, from sums over the off-diagonal entries of the Gram matrix.

    ``squares`` is the sum of their squares, ``row_squares`` the sum of the squared row sums, ``total`` their sum. The
    rounding of this form matters only where the mean is far too large anyway.
    """
    return squares - 2 / (n - 2) * row_squares + total * total / ((n - 1) * (n - 2))


def mean_over_spread(grams: Array) -> Array:
    """The ratio |sum_{i != j} K_ij| / (n^2 ||A||_F) for each Gram matrix K, with A its U-centred form.

    It is about the squared length of the mean of the features over ||A||_F; ``layer_gram`` compares it with
    ``MEAN_LIMIT``. Nothing is read to the host here: on a GPU it is computed for every minibatch and read once at the
    end. For float64 it is multiplied by the rounding unit of float64 over that of float32.

    Parameters
    ----------
    grams : array (layers, n, n)
        Linear Gram matrices, n >= 4. The squares of their entries must not overflow, nor underflow all together.

    Returns
    -------
    array (layers,) of float64
        Not negative. 0 where the Gram matrix is zero, infinite where its spread is not above rounding, NaN where it is
        not finite.

    Examples
    --------
    >>> import numpy as np
    >>> mean_over_spread(np.array([np.eye(4), np.zeros((4, 4)), np.ones((4, 4))])).tolist()
    [0.0, 0.0, inf]
    """
    xp = array_namespace(grams)
    n = grams.shape[-1]
    eps = float(xp.finfo(grams.dtype).eps)
    # The largest and the smallest entry tell it much faster than all entries.
    finite = xp.isfinite(xp.max(grams, axis=(-2, -1))) & xp.isfinite(xp.min(grams, axis=(-2, -1)))
    if not is_torch_array(grams):  # others warn of infinity minus infinity
        grams = xp.where(finite[:, None, None], grams, xp.zeros_like(grams))
    # Zeros instead of a subtraction: the squares of one far sample would leave only the rounding of all others.
    off = grams * off_diagonal(grams)
    rows = xp.astype(xp.sum(off, axis=-1), xp.float64)
    total = xp.sum(rows, axis=-1)
    squares = xp.astype(xp.linalg.vector_norm(off, axis=(-2, -1)), xp.float64) ** 2
    spread = _spread(squares, xp.sum(rows * rows, axis=-1), total, n)
    told = spread > 64 * eps * squares
    ratio = xp.abs(total) / n / n / xp.sqrt(xp.where(told, spread, xp.ones_like(spread))) * (eps / EPS32)
    ratio = xp.where(told | (total == 0), ratio, xp.full_like(ratio, math.inf))
    return xp.where(finite, ratio, xp.full_like(ratio, math.nan))


def doubtful(grams: Array, mean_squares: Array | None = None) -> Array:
    """Whether each Gram matrix of a stack may be inaccurate, by the criteria of ``layer_gram``.

    Parameters
    ----------
    grams : array (layers, n, n)
        Linear Gram matrices of raw features, or of features minus their mean, n >= 4.
    mean_squares : array (layers,), optional
        For features minus their mean, the squared lengths of the means from ``less_mean``.

    Returns
    -------
    array (layers,) of bool
        True also where a Gram matrix is not finite.

    Examples
    --------
    >>> import numpy as np
    >>> doubtful(np.array([np.eye(4), np.eye(4) + 1e10, np.zeros((4, 4))], dtype=np.float32)).tolist()
    [False, True, True]
    """
    xp = array_namespace(grams)
    sizes = xp.mean(xp.linalg.diagonal(grams), axis=-1)
    low, high = _range(xp, grams.dtype)
    fine = (sizes > low) & (sizes < high)
    if mean_squares is not None:
        fine = fine & (sizes > lost_ratio(xp, grams.dtype) * mean_squares)
    return ~(fine & ~far_in_diagonal(grams) & (mean_over_spread(grams) < MEAN_LIMIT))


def far_in_diagonal(grams: Array) -> Array:
    """Whether one sample of a layer lies far from all others, by the diagonals of Gram matrices.

    Its products then leave only the rounding of all others in float32, which costs CKA up to 6e-5. Far is ``FAR`` times
    the usual distance, or 0.7 (n - 1) times: a far sample moves the mean, so that n - 1 is the largest possible.

    Parameters
    ----------
    grams : array (..., n, n)
        Linear Gram matrices of features minus their mean, or whose mean is small beside their spread.

    Returns
    -------
    array (...) of bool

    Examples
    --------
    >>> import numpy as np
    >>> far_in_diagonal(np.stack([np.diag([1.0, 1.0, 2.0, 4.0]), np.diag([1.0, 1.0, 2.0, 9.0])])).tolist()
    [False, True]
    """
    xp = array_namespace(grams)
    squares = xp.sort(xp.linalg.diagonal(grams), axis=-1)
    n = squares.shape[-1]
    return squares[..., -1] > min(FAR, 0.7 * (n - 1)) ** 2 * squares[..., n // 2]


def has_far_sample(x: Array) -> bool:
    """Whether the distance of one sample from the middle is ``FAR_IN_SINGLE`` times the median distance or more.

    Parameters
    ----------
    x : array (..., n, p)
        Features; a stack has a far sample if one of its layers has.

    Examples
    --------
    >>> import numpy as np
    >>> has_far_sample(np.eye(9)), has_far_sample(np.eye(9) * ([1.0] * 8 + [50.0]))
    (False, True)
    """
    xp = array_namespace(x)
    apart = x - middle_sample(x)
    squares = xp.sum(apart * apart, axis=-1)
    usual = xp.sort(squares, axis=-1)[..., squares.shape[-1] // 2]
    return bool(xp.any(xp.max(squares, axis=-1) > FAR_IN_SINGLE**2 * usual))


def resolution(x: Array, eps: float) -> Array:
    """How coarsely the dtype of features holds their spread: the rounding of the means over the spread.

    About ``eps * |mean| / spread``, where a feature that is equal in all samples does not count. At 1 the differences
    between samples are rounding; at 0.1 it costs CKA up to about 1e-3.

    Parameters
    ----------
    x : array (n, p)
        Features.
    eps : float
        The rounding unit of the dtype that the features were computed in.

    Returns
    -------
    array () of float64
        Not negative. 0 for constant features.

    Examples
    --------
    >>> import numpy as np
    >>> round(float(resolution(np.array([[1e6 - 1.0], [1e6 + 1.0]]), 1e-7)), 6)
    0.1
    """
    xp = array_namespace(x)
    means = spread = xp.zeros((), dtype=xp.float64, device=device(x))
    columns = max(1, BLOCK // x.shape[0])
    for start in range(0, x.shape[1], columns):  # so that no copy in float64 of a wide layer is in memory
        part = x[:, start : min(start + columns, x.shape[1])]
        shift = xp.astype(part[:1, :], xp.float64)
        more = squared_means_and_spread(part - shift, shift)
        means, spread = means + more[0], spread + more[1]
    return eps * xp.sqrt(means / xp.where(spread > 0, spread, xp.ones_like(spread)))


def squared_means_and_spread(apart: Array, shift: Array) -> tuple[Array, Array]:
    """Sums over features of the squared mean, where the feature is not constant, and of the variance.

    Parameters
    ----------
    apart : array (n, p) of float64
        Features minus ``shift``.
    shift : array (1, p) of float64
        Numbers between the smallest and the largest value of each feature.

    Returns
    -------
    array (), array ()

    Examples
    --------
    >>> import numpy as np
    >>> squares, spread = squared_means_and_spread(np.array([[0.0, 0.0], [2.0, 0.0]]), np.array([[4.0, 7.0]]))
    >>> float(squares), float(spread)
    (25.0, 1.0)
    """
    xp = array_namespace(apart, shift)
    n = apart.shape[0]
    weights = xp.full((1, n), 1.0 / n, dtype=xp.float64, device=device(apart))
    # On a CPU these products are several times faster than means over rows.
    centre = weights @ apart
    variances = weights @ (apart * apart) - centre * centre
    means = xp.where(variances > 0, shift + centre, xp.zeros_like(centre))
    return xp.sum(means * means), xp.sum(variances)
