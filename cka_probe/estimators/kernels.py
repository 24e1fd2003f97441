"""Kernels turn features (..., n, p) into Gram matrices (..., n, n).

A kernel is a small immutable object. ``kernel(x)`` is its Gram matrix, ``kernel(x, y)`` the cross-Gram matrix
(..., n, m) of two sets of samples. Its ``repr`` is the call that makes it, and ``kernel_from_name`` reads it back.
"""

from __future__ import annotations

import ast
import dataclasses
import math
from dataclasses import dataclass
from typing import Literal, Protocol

from array_api_compat import array_namespace

from .validation import Array, constant

__all__ = [
    "KERNELS",
    "RBF",
    "Cosine",
    "Kernel",
    "Laplacian",
    "Linear",
    "Polynomial",
    "center_features",
    "kernel_from_name",
    "median_distance",
    "safe_sqrt",
    "squared_distances",
]


class Kernel(Protocol):
    """Anything that turns features into a Gram matrix: one of the classes here, or your own function."""

    def __call__(self, x: Array, y: Array | None = None) -> Array:
        """The Gram matrix of ``x`` (..., n, n), or the cross-Gram matrix of ``x`` and ``y`` (..., n, m)."""
        ...


def center_features(x: Array) -> Array:
    """Features minus their mean over the samples.

    The first sample is subtracted before the mean. So a constant column becomes exactly 0, and the spread keeps its
    digits when the mean is 1e5 times larger. No shift changes a centred Gram matrix.

    Parameters
    ----------
    x : array (..., n, p)
        Features.

    Returns
    -------
    array (..., n, p)
        Centred features of the same dtype.

    Examples
    --------
    >>> import numpy as np
    >>> center_features(np.array([[1000.0], [1002.0]])).tolist()
    [[-1.0], [1.0]]
    """
    xp = array_namespace(x)
    x = x - constant(x[..., :1, :])
    return x - xp.mean(x, axis=-2, keepdims=True)


def _transpose(x: Array) -> Array:
    return array_namespace(x).matrix_transpose(x)


def _off_diagonal(xp, n: int, like: Array) -> Array:
    return 1 - xp.eye(n, dtype=like.dtype, device=like.device)


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
        Squared distances, never negative. The diagonal is exactly 0 without ``y``.
    """
    xp = array_namespace(x)
    # A shared shift does not change distances, and it keeps float32 accurate when the mean is far above the spread. The
    # first sample is subtracted first, so that a constant layer gives exactly 0 instead of the rounding of its mean.
    first = constant(x[..., :1, :])
    a = x - first
    mean = constant(xp.mean(a, axis=-2, keepdims=True))
    a = a - mean
    b = a if y is None else y - first - mean
    norms_a = xp.sum(a * a, axis=-1)[..., :, None]
    norms_b = xp.sum(b * b, axis=-1)[..., None, :]
    squared = norms_a + norms_b - 2 * (a @ _transpose(b))
    # Negative values are rounding: the exact value is a sum of squares.
    squared = xp.where(squared < 0, xp.zeros_like(squared), squared)
    return squared * _off_diagonal(xp, x.shape[-2], x) if y is None else squared


def safe_sqrt(xp, squared: Array) -> Array:
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
    x = x if y is None else xp.concat([x, y], axis=-2)
    n = x.shape[-2]
    # The diagonal is set to -1, so the n diagonal entries sort first. Then each pair follows twice.
    squared = squared_distances(x) - (1 - _off_diagonal(xp, n, x))
    ordered = xp.sort(xp.reshape(squared, (*squared.shape[:-2], n * n)), axis=-1)
    pairs = n * (n - 1) // 2
    upper = safe_sqrt(xp, ordered[..., n + 2 * (pairs // 2)])
    if pairs % 2:
        return upper
    return (upper + safe_sqrt(xp, ordered[..., n + 2 * (pairs // 2 - 1)])) / 2


@dataclass(frozen=True)
class Linear:
    """The linear kernel k(u, v) = u . v.

    Examples
    --------
    >>> import numpy as np
    >>> Linear()(np.array([[1.0, 2.0], [3.0, 4.0]])).tolist()
    [[5.0, 11.0], [11.0, 25.0]]
    """

    def __call__(self, x: Array, y: Array | None = None) -> Array:
        """The Gram matrix of ``x`` (..., n, n), or the cross-Gram matrix with ``y`` (..., n, m)."""
        return x @ _transpose(x if y is None else y)


@dataclass(frozen=True)
class _Bandwidth:
    bandwidth: float | Literal["median"] = "median"
    fraction: float = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.bandwidth, str):
            if self.bandwidth != "median":
                raise ValueError(f'`bandwidth` must be "median" or a positive number, got {self.bandwidth!r}.')
        elif not 0 < self.bandwidth < math.inf:
            raise ValueError(f'`bandwidth` must be "median" or a positive number, got {self.bandwidth!r}.')
        if not 0 < self.fraction < math.inf:
            raise ValueError(f"`fraction` must be a positive number, got {self.fraction!r}.")

    def width(self, x: Array, y: Array | None = None) -> Array | float:
        """The bandwidth in units of the features: ``fraction`` times the given number, or times the median distance.

        It is NaN, and so is the Gram matrix, where the median distance is 0: more than half of all pairs coincide.
        """
        if self.bandwidth == "median":
            xp = array_namespace(x)
            median = median_distance(x, y)[..., None, None]
            # A median of 0 says nothing about the scale, and an invented bandwidth would be a silent error.
            return self.fraction * xp.where(median > 0, median, xp.full_like(median, math.nan))
        return self.fraction * float(self.bandwidth)

    def fixed(self, x: Array):
        """The same kernel with the bandwidth that it has on ``x`` (n, p), as a number, for use on other samples.

        Raises
        ------
        ValueError
            If more than half of all pairs of samples coincide, so that their median distance is 0.
        """
        width = self.width(x)
        width = width if isinstance(width, float) else float(width[0, 0])
        if math.isnan(width):
            raise ValueError(
                "More than half of all pairs of samples coincide, so the median distance gives no bandwidth. "
                "Pass a number as `bandwidth`."
            )
        return dataclasses.replace(self, bandwidth=width, fraction=1.0)


@dataclass(frozen=True)
class RBF(_Bandwidth):
    """The Gaussian kernel k(u, v) = exp(-|u - v|^2 / (2 bandwidth^2)).

    Parameters
    ----------
    bandwidth : float or "median"
        A number in units of the features; "median" takes the median distance over all pairs i < j of the samples.
    fraction : float
        Factor of the bandwidth.

    Raises
    ------
    ValueError
        If the bandwidth or the fraction is not positive.

    References
    ----------
    Kornblith et al., Similarity of Neural Network Representations Revisited, ICML 2019, section 3 (fractions of the
    median distance).

    Examples
    --------
    >>> import numpy as np
    >>> round(float(RBF(bandwidth=1.0)(np.array([[0.0], [1.0]]))[0, 1]), 4)
    0.6065
    """

    def __call__(self, x: Array, y: Array | None = None) -> Array:
        """The Gram matrix of ``x`` (..., n, n), or the cross-Gram matrix with ``y`` (..., n, m)."""
        xp = array_namespace(x)
        width = self.width(x, y)
        return xp.exp(-squared_distances(x, y) / (2 * width * width))


@dataclass(frozen=True)
class Laplacian(_Bandwidth):
    """The Laplacian kernel k(u, v) = exp(-|u - v| / bandwidth) with the Euclidean distance.

    Parameters
    ----------
    bandwidth : float or "median"
        A number in units of the features; "median" takes the median distance over all pairs i < j of the samples.
    fraction : float
        Factor of the bandwidth.

    Raises
    ------
    ValueError
        If the bandwidth or the fraction is not positive.

    Examples
    --------
    >>> import numpy as np
    >>> round(float(Laplacian(bandwidth=2.0)(np.array([[0.0], [2.0]]))[0, 1]), 4)
    0.3679
    """

    def __call__(self, x: Array, y: Array | None = None) -> Array:
        """The Gram matrix of ``x`` (..., n, n), or the cross-Gram matrix with ``y`` (..., n, m)."""
        xp = array_namespace(x)
        return xp.exp(-safe_sqrt(xp, squared_distances(x, y)) / self.width(x, y))


@dataclass(frozen=True)
class Polynomial:
    """The polynomial kernel k(u, v) = (gamma u . v + offset)^degree.

    Parameters
    ----------
    degree : int
        At least 1.
    offset : float
        At least 0, so that the kernel is positive semi-definite.
    gamma : float or None
        Factor of u . v, above 0; None means 1 / p for p features.

    Raises
    ------
    ValueError
        If a parameter is outside its range.

    Examples
    --------
    >>> import numpy as np
    >>> Polynomial(degree=2, offset=0.0, gamma=1.0)(np.array([[1.0, 2.0], [3.0, 4.0]])).tolist()
    [[25.0, 121.0], [121.0, 625.0]]
    """

    degree: int = 2
    offset: float = 1.0
    gamma: float | None = None

    def __post_init__(self) -> None:
        if self.degree < 1 or self.degree != int(self.degree):
            raise ValueError(f"`degree` must be a whole number of at least 1, got {self.degree!r}.")
        if not self.offset >= 0:
            raise ValueError(f"`offset` must not be negative, got {self.offset!r}.")
        if self.gamma is not None and not self.gamma > 0:
            raise ValueError(f"`gamma` must be positive or None, got {self.gamma!r}.")

    def __call__(self, x: Array, y: Array | None = None) -> Array:
        """The Gram matrix of ``x`` (..., n, n), or the cross-Gram matrix with ``y`` (..., n, m)."""
        gamma = 1 / x.shape[-1] if self.gamma is None else self.gamma
        return (gamma * (x @ _transpose(x if y is None else y)) + self.offset) ** self.degree


@dataclass(frozen=True)
class Cosine:
    """The cosine kernel k(u, v) = u . v / (|u| |v|); a sample of norm 0 has the value 0 with every sample.

    Examples
    --------
    >>> import numpy as np
    >>> Cosine()(np.array([[2.0, 0.0], [3.0, 3.0]])).round(3).tolist()
    [[1.0, 0.707], [0.707, 1.0]]
    """

    def __call__(self, x: Array, y: Array | None = None) -> Array:
        """The Gram matrix of ``x`` (..., n, n), or the cross-Gram matrix with ``y`` (..., n, m)."""
        a = _unit_rows(x)
        return a @ _transpose(a if y is None else _unit_rows(y))


def _unit_rows(x: Array) -> Array:
    xp = array_namespace(x)
    # Divide by the largest entry first, so that squares of very large or tiny features stay in range.
    largest = constant(xp.max(xp.abs(x), axis=-1, keepdims=True))
    x = x / xp.where(largest > 0, largest, xp.ones_like(largest))
    norms = safe_sqrt(xp, xp.sum(x * x, axis=-1, keepdims=True))
    return x / xp.where(norms > 0, norms, xp.ones_like(norms))


KERNELS = {"linear": Linear, "rbf": RBF, "laplacian": Laplacian, "polynomial": Polynomial, "cosine": Cosine}


def kernel_from_name(text: str) -> Kernel:
    """The kernel with this name (``"rbf"``) or this ``repr`` (``"RBF(bandwidth=0.5, fraction=1.0)"``).

    Raises
    ------
    ValueError
        If the name or a parameter is unknown.

    Examples
    --------
    >>> kernel_from_name("rbf(fraction=0.5)")
    RBF(bandwidth='median', fraction=0.5)
    """
    name, _, rest = text.strip().partition("(")
    kernel = KERNELS.get(name.strip().lower())
    if kernel is None:
        raise ValueError(f"No kernel is called {name!r}. The kernels are {', '.join(KERNELS)}.")
    try:
        call = ast.parse(f"f({rest}" if rest else "f()", mode="eval").body
        if not isinstance(call, ast.Call) or call.args or not all(k.arg for k in call.keywords):
            raise ValueError("arguments must be given by name")
        return kernel(**{k.arg: ast.literal_eval(k.value) for k in call.keywords if k.arg})
    except (SyntaxError, TypeError, ValueError) as error:
        raise ValueError(f"Cannot read the kernel {text!r}: {error}. Write it like {kernel()!r}.") from error
