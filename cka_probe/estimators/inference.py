"""Exact jackknife errors and confidence intervals of CKA, and the influence of each sample.

Let T = <A, B> be the inner product of two Gram matrices (n, n) and t_i = sum_j A_ij B_ij. Without sample i it becomes
T - 2 t_i (n-2)/(n-3) if A and B are U-centred, and T - 2 t_i n/(n-1) + A_ii B_ii (n/(n-1))^2 if they are centred. So
all n leave-one-out values of CKA cost no more than CKA itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import ModuleType

from array_api_compat import array_namespace

from .alignment import ratio, self_term
from .closed_form import jackknife_degrees, without_each
from .hsic import Centred, both_sides, pairwise_inner, row_inner, wide_unless_linear
from .kernels import Kernel, check_defined, given_kernel
from .layer_grams import layer_rows
from .leave_one_out import jackknife_pairs, sample_weights
from .outliers import Outliers, OutlierWarning, find_outliers, warn_of_outliers
from .validation import Array, as_numpy, check_estimator, check_layer_lists, check_pair, check_same_samples

__all__ = [
    "Estimate",
    "OutlierWarning",
    "check_level",
    "cka_matrix_with_error",
    "cka_with_error",
    "jackknife_matrix",
    "sample_influence",
]


@dataclass(frozen=True)
class Estimate:
    """A similarity with its standard error and confidence interval.

    Attributes
    ----------
    value, standard_error, low, high : array of float64
        All have the same shape. The interval from ``low`` to ``high`` is not cut at 1 or -1.
    level : float
        Coverage of the interval.
    outliers : tuple of Outliers
        One entry for each layer in which a few samples hold much of the weight.
    """

    value: Array
    standard_error: Array
    low: Array
    high: Array
    level: float
    outliers: tuple[Outliers, ...] = ()

    @classmethod
    def of(cls, value: Array, error: Array, level: float, degrees: Array | int) -> Estimate:
        """An estimate whose interval is ``value`` plus and minus Student's t quantile (``degrees``) times ``error``."""
        from scipy.special import stdtrit

        quantile = stdtrit(degrees if isinstance(degrees, int) else as_numpy(degrees), (1 + level) / 2)
        xp = array_namespace(value)
        half = xp.asarray(quantile, dtype=xp.float64, device=value.device) * error
        return cls(value, error, value - half, value + half, level)


def check_level(level: float) -> None:
    """Raise ValueError unless ``level`` lies between 0 and 1."""
    if not 0 < level < 1:
        raise ValueError(f"`level` must lie between 0 and 1, got {level!r}. Use 0.95 for a 95 % interval.")


def _minimum(estimator: str) -> int:
    """The smallest number of samples from which one can be left out."""
    return check_estimator(estimator) + 1


def _leave_one_out(
    xp: ModuleType, left: Centred, right: Centred, estimator: str
) -> tuple[Array, Array, tuple[Array, Array]]:
    """CKA (...), CKA without each sample (..., n), and the weights of the samples (..., n) in each side."""
    n = left.samples
    shares = [row_inner(left, right), row_inner(left, left)]
    shares.append(shares[1] if right is left else row_inner(right, right))
    diagonals: list[Array | float] = [0.0, 0.0, 0.0]
    if estimator == "biased":
        a, b = left.diagonal(), right.diagonal()
        diagonals = [a * b, a * a, b * b]
    totals = [xp.sum(t, axis=-1, keepdims=True) for t in shares]
    floors = [
        floor if isinstance(floor, float) else floor[..., None]
        for _, floor in (self_term(xp, left), self_term(xp, right))
    ]
    whole = ratio(xp, *totals, *floors)
    parts = [without_each(total, t, d, n, estimator) for total, t, d in zip(totals, shares, diagonals, strict=True)]
    # The diagonal is left out, as in the unbiased estimator. With few samples it would give one of them much weight.
    weights = (sample_weights(xp, shares[1] - diagonals[1]), sample_weights(xp, shares[2] - diagonals[2]))
    return whole[..., 0], ratio(xp, *parts, *floors), weights


def cka_with_error(
    x: Array,
    y: Array,
    *,
    kernel: Kernel | None = None,
    kernel_y: Kernel | None = None,
    estimator: str = "unbiased",
    level: float = 0.95,
) -> Estimate:
    """CKA with its exact jackknife standard error and a confidence interval.

    Parameters
    ----------
    x : array (..., n, p)
        Features. The unbiased estimator needs n >= 5, the biased n >= 3.
    y : array (..., n, q)
        Features of the same samples in the same order, from the same library and on the same device.
    kernel, kernel_y : Kernel, optional
        As in ``cka``. A median bandwidth is taken once from all samples.
    estimator : "unbiased" or "biased"
        As in ``cka``.
    level : float
        Coverage of the interval.

    Returns
    -------
    Estimate
        Arrays (...) of float64; NaN where one side is constant. The interval is the value plus and minus the error
        times the quantile of Student's t with n - 1 degrees of freedom, or fewer if a few samples hold much of the
        variance. A 95 % interval contained the true value in 94 to 98 % of simulations with 32 to 256 samples
        (benchmarks/coverage.py), in 91 % where 1 % of the samples of a real layer hold half of the variance
        (benchmarks/calibration.py). For unrelated features it did so in more than 99 %: use ``cka_test`` there.

    Raises
    ------
    TypeError, ValueError
        As ``cka``, and if ``level`` is not between 0 and 1.

    Warns
    -----
    OutlierWarning
        If 1 % of the samples (at least one) hold two fifths of the weight of a side: they can move CKA to any value.

    References
    ----------
    Tukey, Bias and confidence in not quite large samples, 1958. Davari et al., Reliability of CKA as a Similarity
    Measure in Deep Learning, ICLR 2023 (outliers). docs/theory.md, section 4.

    Examples
    --------
    >>> import numpy as np
    >>> x, noise = np.random.default_rng(0).normal(size=(2, 100, 3))
    >>> estimate = cka_with_error(x, x + noise)
    >>> bool(estimate.low < 0.5 < estimate.high)
    True
    """
    check_level(level)
    xp, x, y = check_pair(x, y, minimum=_minimum(estimator))
    kernel = given_kernel(kernel)
    kernel_y = given_kernel(kernel_y, "kernel_y", kernel)
    left, right = both_sides(*wide_unless_linear(x, y, kernel, kernel_y), kernel, kernel_y, estimator)
    value, without, weights = _leave_one_out(xp, left, right, estimator)
    check_defined(value, [("x", x, kernel), ("y", y, kernel_y)])
    outliers = [found for side in (0, 1) for found in find_outliers(xp, weights[side], side)]
    warn_of_outliers(outliers, "`{}`")
    n = left.samples
    spread = without - xp.mean(without, axis=-1, keepdims=True)
    squares = xp.sum(spread * spread, axis=-1)
    degrees = jackknife_degrees(xp, squares, xp.sum(spread**4, axis=-1), n)
    error = xp.sqrt((n - 1) / n * squares)
    return replace(Estimate.of(value, error, level, degrees), outliers=tuple(outliers))


def sample_influence(
    x: Array, y: Array, *, kernel: Kernel | None = None, kernel_y: Kernel | None = None, estimator: str = "unbiased"
) -> Array:
    """Influence of each sample on CKA: CKA of all samples minus CKA without that sample.

    Parameters
    ----------
    x, y : array (..., n, p) and (..., n, q)
        As in ``cka_with_error``.
    kernel, kernel_y : Kernel, optional
        As in ``cka``. A median bandwidth is taken once from all samples.
    estimator : "unbiased" or "biased"
        As in ``cka``.

    Returns
    -------
    array (..., n) of float64
        About 1/n for an ordinary sample. NaN where CKA, or CKA without the sample, is undefined.

    Raises
    ------
    TypeError, ValueError
        As ``cka_with_error``.

    Warns
    -----
    OutlierWarning
        As ``cka_with_error``.

    References
    ----------
    Davari et al., Reliability of CKA as a Similarity Measure in Deep Learning, ICLR 2023. docs/theory.md, section 4.

    Examples
    --------
    >>> import numpy as np
    >>> x, y = np.random.default_rng(0).normal(size=(2, 100, 3))
    >>> x[7], y[7] = 4.0, 4.0
    >>> int(np.argmax(sample_influence(x, y)))
    7
    """
    xp, x, y = check_pair(x, y, minimum=_minimum(estimator))
    kernel = given_kernel(kernel)
    kernel_y = given_kernel(kernel_y, "kernel_y", kernel)
    left, right = both_sides(*wide_unless_linear(x, y, kernel, kernel_y), kernel, kernel_y, estimator)
    value, without, weights = _leave_one_out(xp, left, right, estimator)
    check_defined(value, [("x", x, kernel), ("y", y, kernel_y)])
    warn_of_outliers([found for side in (0, 1) for found in find_outliers(xp, weights[side], side)], "`{}`")
    return value[..., None] - without


def cka_matrix_with_error(
    xs: Sequence[Array],
    ys: Sequence[Array] | None = None,
    *,
    kernel: Kernel | None = None,
    estimator: str = "unbiased",
    level: float = 0.95,
) -> Estimate:
    """CKA of every pair of layers with its exact jackknife error, at about twice the cost of the matrix alone.

    Parameters
    ----------
    xs : sequence of arrays (n, p_i)
        Features of the layers of one network. The unbiased estimator needs n >= 5, the biased n >= 3.
    ys : sequence of arrays (n, q_j), optional
        Features of the layers of the other network; ``xs`` by default.
    kernel : Kernel, optional
        Linear by default. A median bandwidth is taken once from all samples.
    estimator : "unbiased" or "biased"
        As in ``cka``.
    level : float
        Coverage of the intervals.

    Returns
    -------
    Estimate
        Arrays (len(xs), len(ys)) of float64, NaN in the rows and columns of constant layers.

    Raises
    ------
    TypeError, ValueError
        As ``cka_matrix``, and if ``level`` is not between 0 and 1.

    Warns
    -----
    OutlierWarning
        For each layer in which 1 % of the samples (at least one) hold two fifths of the weight.

    References
    ----------
    docs/theory.md, section 4.

    Examples
    --------
    >>> import numpy as np
    >>> x, y = np.random.default_rng(0).normal(size=(2, 100, 3))
    >>> cka_matrix_with_error([x, y, x + y]).standard_error.shape
    (3, 3)
    """
    estimate = jackknife_matrix(xs, ys, kernel=kernel, estimator=estimator, level=level)
    warn_of_outliers(estimate.outliers, "`{}s[{}]`")
    return estimate


def jackknife_matrix(
    xs: Sequence[Array],
    ys: Sequence[Array] | None = None,
    *,
    kernel: Kernel | None = None,
    estimator: str = "unbiased",
    level: float = 0.95,
) -> Estimate:
    """``cka_matrix_with_error`` without its warnings: the result holds the ``outliers`` instead."""
    check_level(level)
    check_layer_lists(xs, ys)
    kernel = given_kernel(kernel)
    left = _Network.of(xs, 0, kernel, estimator)
    right = left if ys is None else _Network.of(ys, 1, kernel, estimator)
    check_same_samples(left.samples, right.samples)
    value, error, degrees = _all_pairs(left, right, estimator)
    outliers = left.outliers if right is left else (*left.outliers, *right.outliers)
    return replace(Estimate.of(value, error, level, degrees), outliers=outliers)


@dataclass(frozen=True)
class _Network:
    """Centred Gram matrices (layers, n, n) of one network, and the shares (layers, n) of the samples in <A, A>."""

    grams: Array
    shares: Array
    samples: int
    outliers: tuple[Outliers, ...]

    @classmethod
    def of(cls, features: Sequence[Array], side: int, kernel: Kernel, estimator: str) -> _Network:
        name = ("xs", "ys")[side]
        rows, _, n = layer_rows(features, name, kernel, estimator)
        if n < _minimum(estimator):
            raise ValueError(
                f"`{name}[0]` has {n} samples, but the jackknife needs at least {_minimum(estimator)}. "
                "Pass more samples."
            )
        xp = array_namespace(rows)
        grams = xp.reshape(rows, (rows.shape[0], n, n))
        shares = xp.sum(grams * grams, axis=-1, dtype=xp.float64)
        diagonal = xp.astype(xp.linalg.diagonal(grams), xp.float64)
        weights = sample_weights(xp, shares - diagonal * diagonal)
        outliers = [found for i in range(len(features)) for found in find_outliers(xp, weights[i, ...], side, i)]
        return cls(grams, shares, n, tuple(outliers))

    def block(self, start: int, stop: int) -> Array:
        """Rows ``start`` to ``stop`` of all matrices, (layers, stop - start, n), in float64."""
        return array_namespace(self.grams).astype(self.grams[:, start:stop, :], array_namespace(self.grams).float64)


def _all_pairs(left: _Network, right: _Network, estimator: str) -> tuple[Array, Array, Array]:
    """CKA, its jackknife error and the degrees of freedom of that for all pairs of layers."""
    xp = array_namespace(left.grams)
    n = left.samples
    rows = [xp.reshape(side.grams, (-1, n * n)) for side in (left, right)]
    cross = pairwise_inner(*rows)
    self_x, self_y = (xp.sum(side.shares, axis=-1) for side in (left, right))
    value = ratio(xp, cross, self_x[:, None], self_y[None, :])
    return value, *jackknife_pairs(xp, left, right, cross, estimator)
