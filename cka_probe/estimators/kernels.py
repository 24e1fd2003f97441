"""Kernels turn features (..., n, p) into Gram matrices (..., n, n).

A kernel is a small immutable object. ``kernel(x)`` is its Gram matrix, ``kernel(x, y)`` the cross-Gram matrix
(..., n, m) of two sets of samples. Its ``repr`` is the call that makes it, and ``kernel_from_name`` reads it back.
"""

from __future__ import annotations

import ast
import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Literal, Protocol

from .distances import median_of_squared, safe_sqrt, scaled_distances
from .traceable import array_namespace
from .validation import Array, constant

__all__ = [
    "KERNELS",
    "MEDIAN_ZERO",
    "RBF",
    "Cosine",
    "Kernel",
    "Laplacian",
    "Linear",
    "Polynomial",
    "center_features",
    "check_defined",
    "given_kernel",
    "kernel_from_name",
]


MEDIAN_ZERO = "half of all pairs of samples or more are equal, so that it gives no bandwidth"
"""Why the Gram matrix of a kernel with a median bandwidth is not defined."""


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

        It is NaN where the median distance is 0: half of all pairs or more are equal.
        """
        if self.bandwidth != "median":
            return self.fraction * float(self.bandwidth)
        xp = array_namespace(x)
        squared, scale = scaled_distances(x if y is None else xp.concat([x, y], axis=-2))
        return self._of_median(xp, squared, scale) * xp.where(scale > 0, scale, xp.full_like(scale, math.nan))

    def _of_median(self, xp: ModuleType, squared: Array, scale: Array) -> Array:
        """Bandwidth (..., 1, 1) in units of ``scale``, from the squared distances of all samples in these units."""
        median = median_of_squared(xp, squared)[..., None, None]
        # A median of 0 says nothing about the scale, and an invented bandwidth would be a silent error. Only if all
        # samples are equal, no bandwidth is needed.
        unknown = xp.where(scale > 0, xp.full_like(median, math.nan), xp.ones_like(median))
        return self.fraction * xp.where(median > 0, median, unknown)

    def _distances(self, x: Array, y: Array | None) -> tuple[Array, Array]:
        """Squared distances (..., n, m) in units of a scale, and that scale over the bandwidth (..., 1, 1)."""
        xp = array_namespace(x)
        squared, scale = scaled_distances(x, y)
        if self.bandwidth != "median":
            # Beyond this limit, the kernel of any two samples that the dtype tells apart is 0. An infinite ratio would
            # make it NaN for a sample with itself.
            limit = 1e18 if x.dtype == xp.float32 else 1e150
            over = scale / self.width(x)
            return squared, xp.where(over < limit, over, xp.where(over >= limit, xp.full_like(over, limit), over))
        if y is None:
            return squared, 1 / self._of_median(xp, squared, scale)
        own, own_scale = scaled_distances(xp.concat([x, y], axis=-2))
        factor = scale / xp.where(own_scale > 0, own_scale, xp.ones_like(own_scale))
        return squared, factor / self._of_median(xp, own, own_scale)

    def fixed(self, x: Array):
        """The same kernel with the bandwidth that it has on ``x`` (n, p), as a number, for use on other samples.

        Raises
        ------
        ValueError
            If half of all pairs of samples or more are equal, so that their median distance is 0.
        """
        width = self.width(x)
        width = width if isinstance(width, float) else float(width[0, 0])
        if math.isnan(width):
            raise ValueError(f"The median distance is 0: {MEDIAN_ZERO}. Pass a number as `bandwidth`.")
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
        squared, over = self._distances(x, y)
        return array_namespace(x).exp(-(squared * over * over) / 2)


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
        squared, over = self._distances(x, y)
        return xp.exp(-safe_sqrt(xp, squared) * over)


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


def given_kernel(kernel: Kernel | None, name: str = "kernel", default: Kernel | None = None) -> Kernel:
    """The kernel that a caller gave, or ``default`` (``Linear()`` when left out) for None.

    Parameters
    ----------
    kernel : Kernel or None
        The argument of the caller.
    name : str
        Name of that argument in the message.
    default : Kernel, optional
        The kernel for None.

    Raises
    ------
    TypeError
        If ``kernel`` is a class, a text, or anything else that cannot be called on features.

    Examples
    --------
    >>> given_kernel(None)
    Linear()
    """
    if kernel is None:
        return Linear() if default is None else default
    if callable(kernel) and not isinstance(kernel, type):
        return kernel
    if isinstance(kernel, type):
        shown, like = f"the class {kernel.__name__}", kernel.__name__
    else:
        shown = f"the text {kernel!r}" if isinstance(kernel, str) else f"of type {type(kernel).__name__}"
        known = KERNELS.get(kernel.partition("(")[0].strip().lower()) if isinstance(kernel, str) else None
        like = (known or RBF).__name__
    prefix = "cp." if like in {known.__name__ for known in KERNELS.values()} else ""
    raise TypeError(f"`{name}` is {shown}. Pass an instance, such as {prefix}{like}().")


def check_defined(values: Array, sides: Sequence[tuple[str, Array, Kernel]]) -> None:
    """Raise ValueError if values are NaN because a median bandwidth is 0.

    Parameters
    ----------
    values : array
        Values computed from the sides.
    sides : sequence of (str, array, Kernel)
        Name, features and kernel of each side.
    """
    xp = array_namespace(values)
    if not bool(xp.any(xp.isnan(values))):
        return
    for name, x, kernel in sides:
        if isinstance(kernel, _Bandwidth) and kernel.bandwidth == "median":
            differ = xp.any(x != x[..., :1, :], axis=(-2, -1), keepdims=True)
            if bool(xp.any(xp.isnan(constant(kernel.width(x))) & differ)):
                raise ValueError(
                    f"The median distance of `{name}` is 0: {MEDIAN_ZERO}. Pass a number as `bandwidth`, such as "
                    f"{type(kernel).__name__}(bandwidth=1.0)."
                )


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
