"""Permutation tests of unbiased CKA: are two layers more similar than layers of samples in random order?

The null hypothesis permutes the samples of one side. For any data, unbiased CKA then has mean 0 and variance
2 / (n(n-3)). Its third moment follows from two sums over each U-centred Gram matrix A (n, n):
kappa = sum_{i<j} A_ij^3 and tau = sum_{i<j<k} A_ij A_jk A_ki.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

from array_api_compat import array_namespace

from .alignment import ratio
from .calibration import Calibration, packed_rows, permuted_inner
from .hsic import pairwise_inner
from .kernels import Kernel, given_kernel
from .layer_grams import layer_rows
from .validation import Array, as_numpy, check_estimator, check_layer_lists, check_pair, check_same_samples

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "PermutationTest",
    "cka_matrix_test",
    "cka_test",
    "cubic_sums",
    "null_skewness",
    "pearson3_sf",
    "permutation_p",
    "third_moment",
    "unit_cubes",
    "upper_tail",
]

# Three pairs of samples form one of eight graphs, in this order: one pair three times; one pair twice and one that
# shares a sample with it; one pair twice and one apart from it; a triangle; a star; a path; two that share a sample and
# one apart; three apart. For each graph: its multiplicity m, and the sum of the products of three entries of A over all
# its triples, as (factor of kappa, factor of tau). docs/theory.md, section 4, has the table.
_MULTIPLES = (1, 3, 3, 1, 1, 3, 3, 1)
_SUMS = ((1, 0), (-2, 0), (1, 0), (0, 6), (4, 0), (2, -6), (-4, 6), (4, -6))

HALVED = 128
"""Gram matrices of this size and more are multiplied by halves: half the operations, but more and smaller products."""


def _counts(n: int) -> tuple[float, ...]:
    """The number of triples of pairs of n samples that form each graph (N_g in docs/theory.md, section 4)."""
    pairs = math.comb(n, 2)
    return (
        pairs,
        pairs * 2 * (n - 2),
        pairs * math.comb(n - 2, 2),
        math.perm(n, 3),
        math.perm(n, 4),
        math.perm(n, 4),
        math.perm(n, 5) / 2,
        math.perm(n, 6) / 8,
    )


def third_moment(cubes_x: Array, cubes_y: Array, n: int) -> Array:
    """The mean of <A, B>^3 over all permutations of the n samples of one side.

    Parameters
    ----------
    cubes_x, cubes_y : array (..., 2)
        kappa and tau of both sides, from ``cubic_sums``.
    n : int
        Number of samples, at least 4.

    Returns
    -------
    array (...) of float64
        Exact for any data; may be negative.

    References
    ----------
    docs/theory.md, section 4.
    """
    xp = array_namespace(cubes_x, cubes_y)
    total = xp.zeros_like(cubes_x[..., 0] * cubes_y[..., 0])
    for multiple, (kappa, tau), count in zip(_MULTIPLES, _SUMS, _counts(n), strict=True):
        if count:  # some graphs need 5 or 6 samples
            x, y = (kappa * c[..., 0] + tau * c[..., 1] for c in (cubes_x, cubes_y))
            total = total + 8 * multiple / count * x * y
    return total


def null_skewness(cubes_x: Array, cubes_y: Array, n: int) -> Array:
    """Skewness (layers_x, layers_y) of unbiased CKA over all permutations, from ``unit_cubes`` (layers, 2)."""
    return third_moment(cubes_x[:, None, :], cubes_y[None, :, :], n) * (n * (n - 3) / 2) ** 1.5


def unit_cubes(features: Sequence[Array], kernel: Kernel, n: int) -> Array:
    """Kappa and tau of U-centred Gram matrices of norm 1, for all n samples, from the features of m of them.

    They are exact for m = n. For m < n samples drawn at random they are estimates: a sum of three entries that form a
    triangle has a mean that does not depend on n, and kappa is proportional to 1 / n.

    Parameters
    ----------
    features : sequence of arrays (m, p_i)
        Features of the layers, m >= 4.
    kernel : Kernel
        Of the Gram matrices.
    n : int
        Number of all samples.

    Returns
    -------
    array (layers, 2) of float64
        NaN for constant layers.
    """
    xp = array_namespace(*features)
    found = []
    for x in features:  # one Gram matrix at a time
        _, cubes = _unit_grams(layer_rows([x], "xs", kernel, "unbiased")[0], x.shape[0])
        found.append(xp.stack([cubes[0, 0] * (x.shape[0] / n), cubes[0, 1]]))
    return xp.stack(found)


def cubic_sums(grams: Array) -> Array:
    """The sums kappa = sum_{i<j} A_ij^3 and tau = tr A^3 / 6 of U-centred Gram matrices A.

    Parameters
    ----------
    grams : array (..., n, n)
        U-centred Gram matrices.

    Returns
    -------
    array (..., 2) of float64
        kappa and tau.
    """
    xp = array_namespace(grams)
    kappa = xp.sum(grams * grams * grams, axis=(-2, -1), dtype=xp.float64) / 2
    n = grams.shape[-1]
    if n < HALVED:
        return xp.stack([kappa, _inner(xp, grams @ grams, grams) / 6], axis=-1)
    # With A = [[P, Q], [Q', R]]: tr A^3 = tr P^3 + tr R^3 + 3 tr QQ'P + 3 tr Q'QR.
    half = n // 2
    p, q, r = grams[..., :half, :half], grams[..., :half, half:], grams[..., half:, half:]
    turned = xp.matrix_transpose(q)
    trace = _inner(xp, p @ p + 3 * (q @ turned), p) + _inner(xp, r @ r + 3 * (turned @ q), r)
    return xp.stack([kappa, trace / 6], axis=-1)


def _inner(xp: ModuleType, a: Array, b: Array) -> Array:
    return xp.sum(a * b, axis=(-2, -1), dtype=xp.float64)


def pearson3_sf(z: np.ndarray | float, skewness: np.ndarray | float) -> np.ndarray:
    """P(Z > z) for the Pearson III distribution with mean 0, variance 1 and the given skewness.

    It is a shifted Gamma distribution of shape 4 / skewness^2, mirrored for negative skewness; without skewness it is
    the normal distribution.
    """
    import numpy as np
    from scipy.special import gammainc, gammaincc, ndtr

    z, skewness = np.broadcast_arrays(np.asarray(z, dtype=float), np.asarray(skewness, dtype=float))
    # The incomplete Gamma function, and so scipy.stats.pearson3, loses its far tail at shapes above 1e6. There the cube
    # root of Wilson and Hilferty is used: it is normal, with a relative error of p of 2e-5 at z = 5 and 6e-4 at z = 10.
    small, tiny = np.abs(skewness) < 0.005, np.abs(skewness) < 1e-7
    g = np.where(tiny, 1.0, skewness)
    normal = ndtr(-np.where(tiny, z, (np.cbrt(1 + g * z / 2) - 1) * 6 / g + g / 6))
    shape = 4 / np.where(small, 1.0, skewness) ** 2
    at = np.maximum(shape + np.sqrt(shape) * z * np.sign(skewness), 0)
    return np.where(small, normal, np.where(skewness < 0, gammainc(shape, at), gammaincc(shape, at)))


def upper_tail(z: Array, skewness: Array | None = None) -> Array:
    """One-sided p-values of z-scores, in the library of ``z``: Pearson III if ``skewness`` is given, else normal."""
    xp = array_namespace(z)
    import numpy as np

    p = pearson3_sf(as_numpy(z), 0.0 if skewness is None else as_numpy(skewness))
    p = np.maximum(p, np.finfo(np.float64).tiny)  # the exact value is above 0; NaN stays NaN
    return xp.asarray(p, dtype=xp.float64, device=z.device)


def permutation_p(value: Array, skewness: Array, n: int) -> Array:
    """One-sided p-values of unbiased CKA of n samples; normal where the skewness is not known (NaN)."""
    xp = array_namespace(value, skewness)
    known = xp.where(xp.isfinite(skewness), skewness, xp.zeros_like(skewness))
    return upper_tail(value * math.sqrt(n * (n - 3) / 2), known)


@dataclass(frozen=True)
class PermutationTest:
    """Unbiased CKA, compared with its distribution over all permutations of the samples of one side (the null).

    Attributes
    ----------
    value : array of float64
        Unbiased CKA.
    z_score : array of float64
        The value divided by the exact standard deviation of the null, whose mean is 0.
    skewness : array of float64
        The exact skewness of the null.
    p_value : array of float64
        One-sided: the probability that a random permutation gives at least this value.
    permutations : int or None
        Number of permutations that the p-value was counted from; None if it is that of the Pearson III distribution
        with the exact moments.
    corrected_p_value : array of float64 or None
        The counted p-value of the largest of all pairs of layers (``Calibration``); None without counted permutations.
    """

    value: Array
    z_score: Array
    skewness: Array
    p_value: Array
    permutations: int | None
    corrected_p_value: Array | None = None


def cka_test(
    x: Array,
    y: Array,
    *,
    kernel: Kernel | None = None,
    kernel_y: Kernel | None = None,
    permutations: int | None = None,
    seed: int | np.random.Generator = 0,
) -> PermutationTest:
    """Unbiased CKA and its p-value under the null hypothesis that the samples of one side are in random order.

    Parameters
    ----------
    x : array (n, p)
        Features, n >= 4.
    y : array (n, q)
        Features of the same samples in the same order, from the same library and on the same device.
    kernel, kernel_y : Kernel, optional
        As in ``cka``.
    permutations : int, optional
        Number of random permutations to count the p-value from: (1 + number at least as high) / (1 + permutations).
        By default the p-value is that of the Pearson III distribution with the exact mean, variance and skewness. It
        needs no permutations. For light tails it is good far below 1e-3; where a few samples hold most of a Gram
        matrix, p-values of 1e-3 can be half of the counted ones (benchmarks/calibration.py).
    seed : int or numpy.random.Generator
        Seed of the permutations.

    Returns
    -------
    PermutationTest
        0-d arrays of float64; NaN where one side is constant.

    Raises
    ------
    TypeError, ValueError
        As ``cka``, and if the features have more than two axes or ``permutations`` is below 1.

    References
    ----------
    Kazi-Aoual et al., Refined approximations to permutation tests for multivariate inference, Computational Statistics
    and Data Analysis 1995 (moments and Pearson III). Phipson and Smyth, Permutation p-values should never be zero,
    Statistical Applications in Genetics and Molecular Biology 2010. docs/theory.md, section 4.

    Examples
    --------
    >>> import numpy as np
    >>> x, noise = np.random.default_rng(0).normal(size=(2, 30, 3))
    >>> bool(cka_test(x, x + noise).p_value < 1e-6)
    True
    >>> bool(cka_test(x, noise).p_value > 0.05)
    True
    """
    _, x, y = check_pair(x, y, minimum=check_estimator("unbiased"))
    if x.ndim != 2 or y.ndim != 2:
        raise ValueError(f"`x` and `y` must have shape (n, p), got {tuple(x.shape)} and {tuple(y.shape)}.")
    _check_permutations(permutations)
    kernel = given_kernel(kernel)
    rows = [
        layer_rows([f], "x", k, "unbiased")[0]
        for f, k in ((x, kernel), (y, given_kernel(kernel_y, "kernel_y", kernel)))
    ]
    return _test(rows[0], rows[1], x.shape[0], permutations, seed, lambda a: a[0, 0, ...])


def cka_matrix_test(
    xs: Sequence[Array],
    ys: Sequence[Array] | None = None,
    *,
    kernel: Kernel | None = None,
    permutations: int | None = None,
    seed: int | np.random.Generator = 0,
) -> PermutationTest:
    """Unbiased CKA and p-value of every pair of layers; each permutation serves all pairs at once.

    Parameters
    ----------
    xs : sequence of arrays (n, p_i)
        Features of the layers of one network, n >= 4.
    ys : sequence of arrays (n, q_j), optional
        Features of the layers of the other network; ``xs`` by default.
    kernel : Kernel, optional
        Linear by default.
    permutations, seed
        As in ``cka_test``.

    Returns
    -------
    PermutationTest
        Arrays (len(xs), len(ys)) of float64, NaN in the rows and columns of constant layers. ``p_value`` is not
        corrected for the number of pairs: with ``permutations`` there is ``corrected_p_value``, and
        ``scipy.stats.false_discovery_control`` corrects any.

    Raises
    ------
    TypeError, ValueError
        As ``cka_matrix``, and if ``permutations`` is below 1.

    Examples
    --------
    >>> import numpy as np
    >>> x, y = np.random.default_rng(0).normal(size=(2, 30, 3))
    >>> (cka_matrix_test([x, y, x + y]).p_value < 0.01).tolist()
    [[True, False, True], [False, True, True], [True, True, True]]
    """
    check_layer_lists(xs, ys)
    _check_permutations(permutations)
    kernel = given_kernel(kernel)
    rows_x, _, samples = layer_rows(xs, "xs", kernel, "unbiased")
    rows_y, _, samples_y = (rows_x, None, samples) if ys is None else layer_rows(ys, "ys", kernel, "unbiased")
    check_same_samples(samples, samples_y)
    return _test(rows_x, rows_y, samples, permutations, seed, lambda a: a)


def _check_permutations(permutations: int | None) -> None:
    if permutations is not None and permutations < 1:
        raise ValueError(f"`permutations` must be at least 1, or None for the Pearson III p-value, got {permutations}.")


def _test(
    rows_x: Array,
    rows_y: Array,
    n: int,
    permutations: int | None,
    seed: int | np.random.Generator,
    pick: Callable[[Array], Array],
) -> PermutationTest:
    """The test of all pairs of flattened Gram matrices; ``pick`` gives each array the shape that the caller needs."""
    xp = array_namespace(rows_x, rows_y)
    units_x, cubes_x = _unit_grams(rows_x, n)
    units_y, cubes_y = (units_x, cubes_x) if rows_y is rows_x else _unit_grams(rows_y, n)
    value = pairwise_inner(units_x, units_y)
    deviation = math.sqrt(2 / (n * (n - 3)))
    z_score = value / deviation
    skewness = null_skewness(cubes_x, cubes_y, n)
    if permutations is None:
        return PermutationTest(pick(value), pick(z_score), pick(skewness), pick(upper_tail(z_score, skewness)), None)
    import numpy as np

    packed_x, packed_y = (packed_rows(units, n) for units in (units_x, units_y))
    null = permuted_inner(packed_x, packed_y, n, permutations, np.random.default_rng(seed))
    # A permutation that does not change the value must count, although rounding depends on the order of the sum.
    found = Calibration.of(value, null, rounding=64 * float(xp.finfo(units_x.dtype).eps))
    p_value, corrected = pick(found.p_value), pick(found.corrected_p_value)
    return PermutationTest(pick(value), pick(z_score), pick(skewness), p_value, permutations, corrected)


def _unit_grams(rows: Array, n: int) -> tuple[Array, Array]:
    """Flattened U-centred Gram matrices divided by their norms (NaN for constant layers), and their cubic sums."""
    xp = array_namespace(rows)
    squares = xp.sum(rows * rows, axis=1, dtype=xp.float64)
    inverse = ratio(xp, xp.ones_like(squares), squares, xp.ones_like(squares))
    units = rows * xp.astype(inverse, rows.dtype)[:, None]
    return units, cubic_sums(xp.reshape(units, (-1, n, n)))
