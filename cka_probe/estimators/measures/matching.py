"""Similarity of two layers by matching their single features: correlations, permutations, optimal transport."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
from array_api_compat import array_namespace

from ...capture.extras import require
from ..distances import safe_sqrt
from ..hsic import scaled_features
from ..validation import Array, as_numpy, check_pair, constant

__all__ = [
    "Columns",
    "hard_correlation",
    "matched_correlation",
    "nearest_correlation",
    "permutation_distance",
    "permutation_procrustes",
    "prepare",
    "prepare_columns",
    "prepare_correlations",
    "soft_correlation",
    "soft_matching",
    "transport_distance",
]


class Columns(NamedTuple):
    """Features (..., n, p) of a layer as a measure compares them. ``undefined`` is NaN for a constant layer, else 0."""

    features: Array
    undefined: Array


def prepare(x: Array, *, centred: bool = True, size: bool = False) -> Columns:
    """Features of one layer, centred and of Frobenius norm 1, from its checked features (..., n, p)."""
    for value, name in ((centred, "centred"), (size, "size")):
        if not isinstance(value, bool):
            raise TypeError(f"`{name}` must be True or False, got {value!r}.")
    xp = array_namespace(x)
    x = xp.astype(x, xp.float64)
    z, scale = scaled_features(x)
    varied = xp.any(constant(z) != 0, axis=(-2, -1))
    nan = xp.full_like(scale, xp.nan)
    undefined = xp.where(varied, xp.zeros_like(nan), nan)
    if not centred:
        largest = xp.max(xp.abs(constant(x)), axis=(-2, -1), keepdims=True)
        scale = xp.where(largest > 0, largest, xp.ones_like(largest))[..., 0, 0]
        z = x / scale[..., None, None]
    if size:
        return Columns(z * scale[..., None, None], undefined)
    squares = xp.sum(z * z, axis=(-2, -1), keepdims=True)
    return Columns(z / xp.sqrt(xp.where(squares > 0, squares, xp.ones_like(squares))), undefined)


def prepare_columns(x: Array) -> Columns:
    """Centred features of one layer with a mean squared norm of 1."""
    z, undefined = prepare(x)
    return Columns(z * math.sqrt(x.shape[-1]), undefined)


def prepare_correlations(x: Array) -> Columns:
    """Centred features of one layer, each of norm 1; a constant feature is 0."""
    z, undefined = prepare(x)
    xp = array_namespace(z)
    norms = safe_sqrt(xp, xp.sum(z * z, axis=-2, keepdims=True))
    return Columns(z / xp.where(norms > 0, norms, xp.ones_like(norms)), undefined)


def _products(x: Columns, y: Columns) -> Array:
    """Inner products (..., p, q) of the features of two layers."""
    return array_namespace(x.features).matrix_transpose(x.features) @ y.features


def _assignment(products: Array) -> Array:
    """1 where feature i of x is matched to feature j of y, else 0 (..., p, q): the largest sum of products."""
    from scipy.optimize import linear_sum_assignment

    xp = array_namespace(products)
    numbers = as_numpy(products)
    matched = np.zeros_like(numbers)
    for place in np.ndindex(numbers.shape[:-2]):
        if np.isfinite(numbers[place]).all():
            matched[place][linear_sum_assignment(numbers[place], maximize=True)] = 1.0
    return xp.asarray(matched, dtype=products.dtype, device=products.device)


def nearest_correlation(x: Columns, y: Columns) -> Array:
    """Soft correlation match of two prepared layers."""
    xp = array_namespace(x.features)
    correlations = _products(x, y)
    best = [xp.mean(xp.max(correlations, axis=axis), axis=-1) for axis in (-1, -2)]
    return (best[0] + best[1]) / 2 + x.undefined + y.undefined


def matched_correlation(x: Columns, y: Columns) -> Array:
    """Hard correlation match of two prepared layers."""
    xp = array_namespace(x.features)
    correlations = _products(x, y)
    total = xp.sum(correlations * _assignment(correlations), axis=(-2, -1))
    return total / min(correlations.shape[-2:]) + x.undefined + y.undefined


def permutation_distance(x: Columns, y: Columns) -> Array:
    """Permutation Procrustes distance of two prepared layers, as a sum of squares."""
    xp = array_namespace(x.features)
    matched = _assignment(_products(x, y))
    apart = x.features - y.features @ xp.matrix_transpose(matched)  # an unmatched feature of x is compared with 0
    left_out = y.features * (1 - xp.sum(matched, axis=-2))[..., None, :]
    squared = xp.sum(apart * apart, axis=(-2, -1)) + xp.sum(left_out * left_out, axis=(-2, -1))
    return safe_sqrt(xp, squared) + x.undefined + y.undefined


def _plan(products: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, columns and weights of the transport plan with uniform marginals and the largest sum of products."""
    p, q = products.shape
    if p == q:
        from scipy.optimize import linear_sum_assignment

        rows, columns = linear_sum_assignment(products, maximize=True)
        return rows, columns, np.full(p, 1 / p)
    require("ot", "matching", "The soft matching of two layers with different numbers of features")
    import ot

    plan = ot.emd(np.full(p, 1 / p), np.full(q, 1 / q), products.max() - products, numItermax=10_000_000)
    rows, columns = plan.nonzero()
    return rows, columns, plan[rows, columns]


def transport_distance(x: Columns, y: Columns) -> Array:
    """Soft matching distance of two prepared layers, as a sum of squares over the matched pairs of features."""
    xp = array_namespace(x.features)
    products = as_numpy(_products(x, y))
    stack = products.shape[:-2]
    left, right = (xp.broadcast_to(side.features, (*stack, *side.features.shape[-2:])) for side in (x, y))
    values = []
    for place in np.ndindex(stack):
        rows, columns, weights = _plan(products[place])
        rows, columns = (xp.asarray(places, dtype=xp.int64, device=left.device) for places in (rows, columns))
        apart = xp.take(left[(*place, ...)], rows, axis=-1) - xp.take(right[(*place, ...)], columns, axis=-1)
        values.append(xp.sum(apart * apart * xp.asarray(weights, dtype=xp.float64, device=left.device)))
    return safe_sqrt(xp, xp.reshape(xp.stack(values), stack)) + x.undefined + y.undefined


def _prepared(x: Array, y: Array, layer: Callable[[Array], Columns]) -> tuple[Columns, Columns]:
    """Check a pair of layers and prepare both."""
    _, x, y = check_pair(x, y)
    return layer(x), layer(y)


def soft_correlation(x: Array, y: Array) -> Array:
    """The soft correlation match: the mean correlation of each feature with the one in the other layer most like it.

    Parameters
    ----------
    x : array (..., n, p)
        Features, n >= 2.
    y : array (..., n, q)
        Features of the same samples.

    Returns
    -------
    array (...) of float64
        Mean of both directions, from -1 to 1. Several features may have the same partner. A constant feature has
        correlation 0 with all others. NaN if a side is constant. Few samples and many features bring the value of
        unrelated layers far above 0.

    Raises
    ------
    TypeError, ValueError
        As ``cka``.

    References
    ----------
    Li et al., Convergent Learning: Do Different Neural Networks Learn the Same Representations?, ICLR 2016. Klabunde et
    al., ReSi, ICLR 2025 (the mean of both directions).

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(30, 2))
    >>> round(float(soft_correlation(x, 3 * x[:, ::-1] + 1)), 6)
    1.0
    """
    return nearest_correlation(*_prepared(x, y, prepare_correlations))


def hard_correlation(x: Array, y: Array) -> Array:
    """The hard correlation match: the mean correlation of features matched one to one, under the best matching.

    Parameters
    ----------
    x : array (..., n, p)
        Features, n >= 2.
    y : array (..., n, q)
        Features of the same samples.

    Returns
    -------
    array (...) of float64
        From -1 to 1. The wider layer has features without partner, which do not count. A constant feature has
        correlation 0 with all others. NaN if a side is constant.

    Raises
    ------
    TypeError, ValueError
        As ``cka``.

    References
    ----------
    Li et al., Convergent Learning: Do Different Neural Networks Learn the Same Representations?, ICLR 2016. The
    matching is scipy's ``linear_sum_assignment``.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(30, 2))
    >>> round(float(hard_correlation(x, 3 * x[:, ::-1] + 1)), 6)
    1.0
    """
    return matched_correlation(*_prepared(x, y, prepare_correlations))


def permutation_procrustes(x: Array, y: Array, *, centred: bool = True, size: bool = False) -> Array:
    """The permutation Procrustes distance: min ||X - Y P||_F over all orders P of the features.

    The narrower layer gets features of 0 until both have the same width.

    Parameters
    ----------
    x : array (..., n, p)
        Features, n >= 2.
    y : array (..., n, q)
        Features of the same samples.
    centred : bool
        Whether the features are centred first.
    size : bool
        False: both layers are scaled to Frobenius norm 1. True: they keep their size. ``centred=False, size=True`` is
        the measure of the ReSi benchmark.

    Returns
    -------
    array (...) of float64
        From 0 to 2, or in units of the features if ``size``; a metric. NaN if a side is constant.

    Raises
    ------
    TypeError, ValueError
        As ``cka``, and if ``centred`` or ``size`` is not a bool.

    References
    ----------
    Williams et al., Generalized Shape Metrics on Neural Representations, NeurIPS 2021. Klabunde et al., ReSi, ICLR
    2025. The matching is scipy's ``linear_sum_assignment``.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(30, 2))
    >>> bool(permutation_procrustes(x, 3 * x[:, ::-1] + 1) < 1e-12)
    True
    """
    return permutation_distance(*_prepared(x, y, partial(prepare, centred=centred, size=size)))


def soft_matching(x: Array, y: Array) -> Array:
    """The soft matching distance: optimal transport between the features of two layers, all of equal weight.

    With features x_i and y_j as columns, centred and scaled to a mean squared norm of 1, it is the square root of the
    minimum of sum_ij T_ij |x_i - y_j|^2 over all plans T >= 0 with row sums 1/p and column sums 1/q.

    Parameters
    ----------
    x : array (..., n, p)
        Features, n >= 2.
    y : array (..., n, q)
        Features of the same samples. If q differs from p, the plan is computed by POT (the extra "matching").

    Returns
    -------
    array (...) of float64
        From 0 to 2, a metric. For layers of one width it is ``permutation_procrustes``. NaN if a side is constant.

    Raises
    ------
    TypeError, ValueError
        As ``cka``.
    ModuleNotFoundError
        If the widths differ and POT is not installed.

    References
    ----------
    Khosla and Williams, Soft Matching Distance: A Metric on Neural Representations that Captures Single-Neuron Tuning,
    UniReps 2024. The article leaves the scale to the user.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(30, 2))
    >>> bool(soft_matching(x, 3 * x[:, ::-1] + 1) < 1e-12)
    True
    """
    return transport_distance(*_prepared(x, y, prepare_columns))
