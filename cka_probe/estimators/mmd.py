"""MMD (maximum mean discrepancy) between two sets of samples, its permutation test, and the energy distance."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import NamedTuple

import numpy as np
from array_api_compat import array_namespace, device

from .centring import off_diagonal
from .distances import safe_sqrt, scaled_distances
from .kernels import RBF, Kernel, Laplacian, Linear, center_features, check_defined, given_kernel
from .validation import Array, check_features, namespace

__all__ = [
    "Distance",
    "MMDTest",
    "energy_distance",
    "mmd_squared",
    "mmd_test",
]

MEDIAN_SAMPLES = 1000
"""Largest number of evenly spaced samples of a side from which blocks and linear time take a median bandwidth."""


def _distances(x: Array, y: Array | None = None) -> Array:
    """Euclidean distances (..., n, m) between all samples; the gradient is 0 where two samples coincide."""
    squared, scale = scaled_distances(x, y)
    return safe_sqrt(array_namespace(x), squared) * scale


@dataclass(frozen=True)
class Distance:
    """The distance kernel k(u, v) = (|u| + |v| - |u - v|) / 2; its squared MMD is half the energy distance.

    References
    ----------
    Sejdinovic et al., Equivalence of Distance-based and RKHS-based Statistics, Annals of Statistics 2013.

    Examples
    --------
    >>> import numpy as np
    >>> Distance()(np.array([[1.0], [3.0]])).tolist()
    [[1.0, 1.0], [1.0, 3.0]]
    """

    def __call__(self, x: Array, y: Array | None = None) -> Array:
        """The Gram matrix of ``x`` (..., n, n), or the cross-Gram matrix with ``y`` (..., n, m)."""
        xp = array_namespace(x)
        norms_x, norms_y = (safe_sqrt(xp, xp.sum(z * z, axis=-1, keepdims=True)) for z in (x, x if y is None else y))
        return (norms_x + xp.matrix_transpose(norms_y) - _distances(x, y)) / 2


def _check_two_samples(x: Array, y: Array, minimum: int = 2) -> tuple[ModuleType, Array, Array]:
    """The shared namespace, and both sets of samples, checked and in one dtype, (..., n, p) and (..., m, p).

    Raises
    ------
    TypeError
        If one is not an array or not real floating, or if they come from different libraries.
    ValueError
        If they are on different devices, differ in width, or one has too few samples, NaN or infinity.
    """
    xp = namespace(x, y, names=("x", "y"))
    if device(x) != device(y):
        raise ValueError(f"`x` is on {device(x)} and `y` on {device(y)}. Move both to one device first.")
    _, x = check_features(x, "x", minimum=minimum)
    _, y = check_features(y, "y", minimum=minimum)
    if x.shape[-1] != y.shape[-1]:
        raise ValueError(
            f"`x` has {x.shape[-1]} features and `y` has {y.shape[-1]}, but an MMD needs one space for both. "
            "For layers of different width use `layer_mmd_squared`."
        )
    if x.shape[:-2] != y.shape[:-2]:
        raise ValueError(
            f"`x` has shape {tuple(x.shape)} and `y` {tuple(y.shape)}: all axes but the last two must agree."
        )
    if x.dtype != y.dtype:
        x, y = xp.astype(x, xp.float64), xp.astype(y, xp.float64)
    return xp, x, y


def _pooled_gram(xp: ModuleType, x: Array, y: Array, kernel: Kernel) -> Array:
    """The Gram matrix (..., n + m, n + m) of both sets together, with one median bandwidth for all samples."""
    pooled = xp.concat([x, y], axis=-2)
    # With these kernels a common shift cancels in the MMD. Removed here, it costs no digits.
    return kernel(center_features(pooled) if isinstance(kernel, Linear | Distance) else pooled)


def _mean_within(xp: ModuleType, gram: Array, *, with_diagonal: bool) -> Array:
    """The mean of all entries of ``gram`` (..., n, n), or of those off the diagonal, summed in float64."""
    n = gram.shape[-1]
    total = xp.sum(gram, axis=(-2, -1), dtype=xp.float64)
    if with_diagonal:
        return total / n**2
    return (total - xp.sum(xp.linalg.diagonal(gram), axis=-1, dtype=xp.float64)) / (n * (n - 1))


def _full(xp: ModuleType, x: Array, y: Array, kernel: Kernel, estimator: str) -> Array:
    n = x.shape[-2]
    gram = _pooled_gram(xp, x, y, kernel)
    biased = estimator == "biased"
    within_x = _mean_within(xp, gram[..., :n, :n], with_diagonal=biased)
    within_y = _mean_within(xp, gram[..., n:, n:], with_diagonal=biased)
    return within_x + within_y - 2 * xp.mean(xp.astype(gram[..., :n, n:], xp.float64), axis=(-2, -1))


def _with_one_bandwidth(x: Array, y: Array, kernel: Kernel) -> tuple[Array, Array, Kernel]:
    """Divide features by a median bandwidth of both sets and give the kernel bandwidth 1; keep all other kernels."""
    if not (isinstance(kernel, RBF | Laplacian) and kernel.bandwidth == "median"):
        return x, y, kernel
    some = [z[..., :: math.ceil(z.shape[-2] / MEDIAN_SAMPLES), :] for z in (x, y)]
    width = kernel.width(*some)
    xp = array_namespace(x)
    pooled = xp.concat([x, y], axis=-2)
    # Without any distance, every bandwidth gives the same Gram matrix.
    width = xp.where(xp.any(pooled != pooled[..., :1, :], axis=(-2, -1), keepdims=True), width, xp.ones_like(width))
    return x / width, y / width, dataclasses.replace(kernel, bandwidth=1.0, fraction=1.0)


def _blocks(xp: ModuleType, x: Array, y: Array, kernel: Kernel, size: int) -> Array:
    """The mean over blocks of ``size`` samples of the U-statistic of k(x, x') + k(y, y') - k(x, y') - k(x', y)."""
    count, p = x.shape[-2] // size, x.shape[-1]
    x, y, kernel = _with_one_bandwidth(x, y, kernel)
    x, y = (xp.reshape(z[..., : count * size, :], (*z.shape[:-2], count, size, p)) for z in (x, y))
    gram = _pooled_gram(xp, x, y, kernel)
    same = gram[..., :size, :size] + gram[..., size:, size:]
    cross = gram[..., :size, size:]
    return xp.mean(_mean_within(xp, same - cross - xp.matrix_transpose(cross), with_diagonal=False), axis=-1)


def mmd_squared(
    x: Array,
    y: Array,
    *,
    kernel: Kernel | None = None,
    estimator: str = "unbiased",
    block_size: int | None = None,
) -> Array:
    """The squared maximum mean discrepancy (MMD) between two sets of samples.

    Parameters
    ----------
    x : array (..., n, p)
        Samples of the first distribution, n >= 2.
    y : array (..., m, p)
        Samples of the second distribution, m >= 2, in the same space. "block" and "linear" need m = n.
    kernel : Kernel, optional
        ``RBF()`` by default. A median bandwidth is taken from both sets together.
    estimator : "unbiased", "biased", "block" or "linear"
        "unbiased" is the U-statistic. "biased" is the V-statistic: it includes k(x_i, x_i), and for a positive
        semi-definite kernel it is never negative. "block" is the mean of U-statistics over blocks of ``block_size``
        samples, at a cost of n times the block size. "linear" uses blocks of 2, at a cost of n. The last two skip the
        samples that do not fill a block, and take a median bandwidth from at most 1000 evenly spaced samples a side.
    block_size : int, optional
        For "block" only: at least 2, the square root of n by default.

    Returns
    -------
    array (...) of float64
        In units of the kernel. All but "biased" may be negative.

    Raises
    ------
    TypeError
        If ``x`` or ``y`` is not a real floating array, they come from different libraries, or the kernel is a class or
        a text instead of an instance.
    ValueError
        If the widths, devices or leading axes differ; there are too few samples; a value is NaN or infinite; the
        estimator is unknown; the block size is out of range or given without "block"; n and m differ for "block" or
        "linear"; or a median bandwidth is 0, because half of all pairs of samples or more are equal.

    Notes
    -----
    Gradients flow, also through a median bandwidth.

    References
    ----------
    Gretton et al., A Kernel Two-Sample Test, JMLR 2012, equations 3 and 5 and section 6 (linear time). Zaremba et al.,
    B-tests, NeurIPS 2013 (blocks). docs/theory.md, section 6.

    Examples
    --------
    >>> import numpy as np
    >>> x, y = np.array([[0.0], [0.0]]), np.array([[2.0], [2.0], [2.0]])
    >>> float(mmd_squared(x, y, kernel=Linear()))
    4.0
    """
    if estimator not in ("unbiased", "biased", "block", "linear"):
        raise ValueError(f'`estimator` must be "unbiased", "biased", "block" or "linear", got {estimator!r}.')
    if block_size is not None and estimator != "block":
        raise ValueError(f'`block_size` belongs to estimator="block", not to {estimator!r}.')
    xp, x, y = _check_two_samples(x, y)
    kernel = given_kernel(kernel, default=RBF())
    if estimator in ("unbiased", "biased"):
        return _finite(xp, x, y, kernel, lambda x, y: _full(xp, x, y, kernel, estimator))
    n = x.shape[-2]
    if y.shape[-2] != n:
        raise ValueError(
            f"`x` has {n} samples and `y` has {y.shape[-2]}, but the estimator {estimator!r} takes them in pairs. "
            'Pass equal numbers, or use estimator="unbiased".'
        )
    size = 2 if estimator == "linear" else max(2, math.isqrt(n)) if block_size is None else block_size
    if not 2 <= size <= n:
        raise ValueError(f"`block_size` must be from 2 to the number of samples, {n}, got {block_size!r}.")
    return _finite(xp, x, y, kernel, lambda x, y: _blocks(xp, x, y, kernel, size))


def _finite(xp: ModuleType, x: Array, y: Array, kernel: Kernel, compute: Callable[[Array, Array], Array]) -> Array:
    """``compute(x, y)``, in float64 if float32 does not hold it.

    Raises
    ------
    ValueError
        If the result is not finite even then.
    """
    value = compute(x, y)
    if bool(xp.all(xp.isfinite(value))):
        return value
    check_defined(xp.full_like(value, xp.nan), [("x and y together", xp.concat([x, y], axis=-2), kernel)])
    value = compute(xp.astype(x, xp.float64), xp.astype(y, xp.float64))
    if not bool(xp.all(xp.isfinite(value))):
        raise ValueError(
            f"The kernel {kernel!r} gives NaN or infinity for these samples. Divide the samples by their largest "
            "magnitude, or choose another kernel."
        )
    return value


class MMDTest(NamedTuple):
    """A permutation test of two samples.

    Attributes
    ----------
    mmd_squared : array (...)
        Squared MMD of the two sets.
    p_value : array (...)
        Share of the permutations, with the given order among them, whose squared MMD is at least this; above 0, at
        most 1.
    null : array (..., permutations)
        Squared MMD under each permutation.
    """

    mmd_squared: Array
    p_value: Array
    null: Array


def mmd_test(
    x: Array,
    y: Array,
    *,
    kernel: Kernel | None = None,
    estimator: str = "unbiased",
    permutations: int = 1000,
    seed: int = 0,
) -> MMDTest:
    """Permutation test of whether two sets of samples have the same distribution, by their squared MMD.

    All permutations are one product K S. K (n + m, n + m) is the Gram matrix of both sets. Each column of S is one
    permutation: +1 for a sample of the first set, -1 for one of the second.

    Parameters
    ----------
    x : array (..., n, p)
        Samples of the first distribution, n >= 2.
    y : array (..., m, p)
        Samples of the second distribution, m >= 2.
    kernel : Kernel, optional
        ``RBF()`` by default, with the median distance of both sets together, which no permutation changes.
    estimator : "unbiased" or "biased"
        U-statistic or V-statistic.
    permutations : int
        Number of random permutations. The smallest possible p-value is 1 / (permutations + 1).
    seed : int
        Seed of numpy's generator; all libraries and devices give the same permutations.

    Returns
    -------
    MMDTest
        Arrays of float64. The p-value is exact: if the distributions are equal, it is at most a with probability at
        most a.

    Raises
    ------
    TypeError, ValueError
        As ``mmd_squared``, and if ``permutations`` is below 1.

    References
    ----------
    Phipson and Smyth, Permutation P-values Should Never Be Zero, 2010 (the given order counts). docs/theory.md,
    section 6.

    Examples
    --------
    >>> import numpy as np
    >>> x, y = np.random.default_rng(0).normal(size=(2, 30, 2))
    >>> bool(mmd_test(x, y + 2).p_value < 0.01)
    True
    """
    if estimator not in ("unbiased", "biased"):
        raise ValueError(f'`estimator` must be "unbiased" or "biased", got {estimator!r}.')
    if permutations < 1:
        raise ValueError(f"`permutations` must be at least 1, got {permutations!r}.")
    xp, x, y = _check_two_samples(x, y)
    n, m = x.shape[-2], y.shape[-2]
    given = np.concatenate([np.ones(n), -np.ones(m)])
    shuffled = np.random.default_rng(seed).permuted(np.tile(given, (permutations, 1)), axis=1)
    signs = xp.asarray(np.vstack([given, shuffled]).T, dtype=xp.float64, device=device(x))  # (n + m, 1 + permutations)
    kernel = given_kernel(kernel, default=RBF())
    gram = xp.astype(_pooled_gram(xp, x, y, kernel), xp.float64)
    if not bool(xp.all(xp.isfinite(gram))):
        # float32 did not hold it, or it is not defined: `_finite` then says why.
        x, y = xp.astype(x, xp.float64), xp.astype(y, xp.float64)
        _finite(xp, x, y, kernel, lambda x, y: _full(xp, x, y, kernel, estimator))
        gram = _pooled_gram(xp, x, y, kernel)
    unbiased = estimator == "unbiased"
    if unbiased:
        gram = gram * off_diagonal(gram)
    product = gram @ signs
    squares = xp.sum(signs * product, axis=-2)  # s'Ks = xx + yy - 2 xy
    difference = xp.sum(product, axis=-2)  # 1'Ks = xx - yy
    total = xp.sum(gram, axis=(-2, -1))[..., None]  # 1'K1 = xx + yy + 2 xy
    sum_x, sum_y = (total + squares) / 4 + difference / 2, (total + squares) / 4 - difference / 2
    norm_x, norm_y = (n * (n - 1), m * (m - 1)) if unbiased else (n * n, m * m)
    values = sum_x / norm_x + sum_y / norm_y - (total - squares) / (2 * n * m)
    statistic, null = values[..., 0], values[..., 1:]
    # A permutation with the same two sets has the same statistic up to rounding. It must count.
    rounding = 64 * float(xp.finfo(xp.float64).eps) * xp.max(xp.abs(gram), axis=(-2, -1))
    reached = xp.sum(xp.astype(null >= (statistic - rounding)[..., None], xp.float64), axis=-1)
    p_value = (1 + reached) / (1 + permutations)
    return MMDTest(statistic, xp.where(xp.isnan(statistic), statistic, p_value), null)


def energy_distance(x: Array, y: Array, *, estimator: str = "unbiased") -> Array:
    """The energy distance 2 E|x - y| - E|x - x'| - E|y - y'| between two sets of samples.

    Parameters
    ----------
    x : array (..., n, p)
        Samples of the first distribution, n >= 2.
    y : array (..., m, p)
        Samples of the second distribution, m >= 2.
    estimator : "unbiased" or "biased"
        As ``mmd_squared``: "unbiased" leaves out the pairs of a sample with itself in E|x - x'| and E|y - y'|; "biased"
        includes them, as Szekely and Rizzo define it.

    Returns
    -------
    array (...) of float64
        In units of the features: twice the squared MMD of the kernel ``Distance()``. The unbiased value may be
        negative, the biased never is.

    Raises
    ------
    TypeError, ValueError
        As ``mmd_squared``.

    References
    ----------
    Szekely and Rizzo, Energy Statistics, Journal of Statistical Planning and Inference 2013. In one dimension,
    ``scipy.stats.energy_distance`` is the square root of the biased value.

    Examples
    --------
    >>> import numpy as np
    >>> float(energy_distance(np.array([[0.0], [0.0]]), np.array([[3.0], [3.0]])))
    6.0
    """
    if estimator not in ("unbiased", "biased"):
        raise ValueError(f'`estimator` must be "unbiased" or "biased", got {estimator!r}.')
    xp, x, y = _check_two_samples(x, y)
    # The norms |u| and |v| of the distance kernel cancel in the MMD. Without them no digits are lost.
    return _full(xp, x, y, lambda z, _=None: -_distances(z), estimator)
