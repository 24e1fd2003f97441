"""Permutation tests of unbiased CKA: are two layers more similar than layers of samples in random order?

The null hypothesis permutes the samples of one side. For any data, unbiased CKA then has mean 0 and variance
2 / (n(n-3)); its skewness and kurtosis are exact too (null_moments.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from array_api_compat import array_namespace

from .calibration import Calibration, packed_rows, permuted_inner
from .hsic import pairwise_inner
from .kernels import Kernel, given_kernel
from .layer_grams import layer_rows
from .null_moments import NullShape, null_shape, null_sums, unit_grams
from .pearson import pearson_sf
from .validation import Array, as_numpy, check_estimator, check_layer_lists, check_pair, check_same_samples

if TYPE_CHECKING:
    import numpy as np

__all__ = ["PermutationTest", "cka_matrix_test", "cka_test", "permutation_p", "upper_tail"]


def upper_tail(z: Array, shape: NullShape | None = None) -> Array:
    """One-sided p-values of z-scores, in the library of ``z``: by ``pearson_sf`` if the shape is given, else normal."""
    import numpy as np

    xp = array_namespace(z)
    p = pearson_sf(as_numpy(z), *((0.0, 0.0) if shape is None else map(as_numpy, shape)))
    p = np.maximum(p, np.finfo(np.float64).tiny)  # the exact value is above 0; NaN stays NaN
    return xp.asarray(p, dtype=xp.float64, device=z.device)


def permutation_p(value: Array, shape: NullShape, n: int) -> Array:
    """One-sided p-values of unbiased CKA of n samples; normal where the shape of the null is not known (NaN)."""
    xp = array_namespace(value, *shape)
    known = NullShape(*(xp.where(xp.isfinite(x), x, xp.zeros_like(x)) for x in shape))
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
    skewness, excess_kurtosis : array of float64
        Those of the null, exactly.
    p_value : array of float64
        One-sided: the probability that a random permutation gives at least this value.
    permutations : int or None
        Number of permutations that the p-value was counted from; None if it is that of the Pearson distribution with
        the exact moments.
    corrected_p_value : array of float64 or None
        The counted p-value of the largest of all pairs of layers (``Calibration``); None without counted permutations.
    """

    value: Array
    z_score: Array
    skewness: Array
    excess_kurtosis: Array
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
        By default the p-value is that of the Pearson distribution with the exact mean, variance, skewness and kurtosis
        (``pearson_sf``). It needs no permutations (benchmarks/calibration.py shows how well it holds).
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
    and Data Analysis 1995 (three moments). Phipson and Smyth, Permutation p-values should never be zero,
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
        raise ValueError(
            f"`permutations` must be at least 1, or None for the p-value by the exact moments, got {permutations}."
        )


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
    units_x = unit_grams(rows_x)
    units_y = units_x if rows_y is rows_x else unit_grams(rows_y)
    sums_x = null_sums(xp.reshape(units_x, (-1, n, n)))
    sums_y = sums_x if rows_y is rows_x else null_sums(xp.reshape(units_y, (-1, n, n)))
    value = pairwise_inner(units_x, units_y)
    deviation = math.sqrt(2 / (n * (n - 3)))
    z_score = value / deviation
    shape = null_shape(sums_x, sums_y, n)
    skewness, excess = map(pick, shape)
    if permutations is None:
        p_value = pick(upper_tail(z_score, shape))
        return PermutationTest(pick(value), pick(z_score), skewness, excess, p_value, None)
    import numpy as np

    packed_x, packed_y = (packed_rows(units, n) for units in (units_x, units_y))
    null = permuted_inner(packed_x, packed_y, n, permutations, np.random.default_rng(seed))
    # A permutation that does not change the value must count, although rounding depends on the order of the sum.
    counted = Calibration.of(value, null, rounding=64 * float(xp.finfo(units_x.dtype).eps))
    p_value, corrected = pick(counted.p_value), pick(counted.corrected_p_value)
    return PermutationTest(pick(value), pick(z_score), skewness, excess, p_value, permutations, corrected)
