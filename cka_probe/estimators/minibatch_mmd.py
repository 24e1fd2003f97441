"""Layerwise MMD over minibatches, from the Gram matrices that minibatch CKA takes, with its bounds from CKA.

The rows of a centred Gram matrix of norm 1, times the square root of the number of samples, are a cloud of points of
any layer; the MMD of two layers is that of their clouds (docs/theory.md, section 6). Its value over minibatches is the
mean of the biased squared MMD, weighted by their samples.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from array_api_compat import array_namespace

from .hsic import pairwise_inner
from .kernels import RBF, Kernel, Polynomial
from .measures.layer_mmd import mean_kernel
from .validation import Array

__all__ = ["MinibatchMMD", "is_quadratic", "minibatch_mmd", "mmd_sums", "unit_clouds"]

BLOCK = 2**22
"""Largest number of kernel values that are held at once."""


class MinibatchMMD(NamedTuple):
    """Squared MMD of all pairs of layers (layers_x, layers_y) over minibatches, in float64.

    Attributes
    ----------
    value : array
        Mean squared MMD of the minibatches.
    standard_error : array
        Of that mean, from the spread of the minibatches; NaN with fewer than two.
    upper : array
        Mean of an upper bound from CKA in each minibatch: the smaller of T1 and T4 for a Gaussian kernel, T3 for the
        quadratic, else infinite.
    lower : array
        Mean of the lower bound of T3 with the largest possible rank for the quadratic kernel, else 0.
    """

    value: Array
    standard_error: Array
    upper: Array
    lower: Array


def is_quadratic(kernel: Kernel) -> bool:
    """Whether a kernel is a multiple of (u . v)^2, for which T3 holds."""
    return isinstance(kernel, Polynomial) and kernel.degree == 2 and kernel.offset == 0


def unit_clouds(rows: Array, n: int) -> Array:
    """The clouds (layers, n, n) of flattened centred Gram matrices (layers, n * n), in float64; NaN if constant."""
    xp = array_namespace(rows)
    rows = xp.astype(rows, xp.float64)
    squares = xp.sum(rows * rows, axis=1)
    norm = xp.sqrt(xp.where(squares > 0, squares, xp.full_like(squares, xp.nan)))
    return xp.reshape(rows / norm[:, None], (-1, n, n)) * math.sqrt(n)


def mmd_sums(x: Array, y: Array, kernel: Kernel) -> dict[str, Array]:
    """Sums of one minibatch (layers_x, layers_y) for ``minibatch_mmd``; sums of several minibatches add up.

    Parameters
    ----------
    x, y : array (layers, n, n)
        From ``unit_clouds``; the same object to compare a network with itself.
    kernel : Kernel
        Kernel between the points, with a fixed bandwidth.
    """
    xp, n = array_namespace(x), x.shape[-1]
    cross = pairwise_inner(xp.reshape(x, (-1, n * n)), xp.reshape(y, (-1, n * n))) / n  # biased CKA
    value = _values(x, y, kernel)
    defined = xp.isfinite(value) & xp.isfinite(cross)
    gap = xp.where(cross < 1, 1 - cross, xp.zeros_like(cross))
    lower, upper = xp.zeros_like(gap), xp.full_like(gap, xp.inf)
    if isinstance(kernel, RBF):
        width = float(kernel.width(x[0, ...]))
        t1 = -2 * xp.expm1(-gap / width**2)
        t4 = gap * (4 - gap + xp.where(2 * gap < 1, 2 * gap, xp.ones_like(gap))) / width**4
        upper = xp.where(t1 < t4, t1, t4)
    elif is_quadratic(kernel):
        assert isinstance(kernel, Polynomial)
        gamma = 1 / n if kernel.gamma is None else kernel.gamma
        upper = 2 * gap * (2 - gap) * gamma**2
        lower = 4 * gap * gap / (n - 1) * gamma**2
    w = float(n)
    ones = xp.where(defined, xp.ones_like(gap), xp.zeros_like(gap))
    value, upper, lower = (xp.where(defined, part, xp.zeros_like(gap)) for part in (value, upper, lower))
    return {
        "mmd_count": ones,
        "mmd_weight": w * ones,
        "mmd_sum": w * value,
        "mmd_weight2": w * w * ones,
        "mmd_sum2": w * w * value,
        "mmd_squares": w * w * value * value,
        "mmd_upper": w * upper,
        "mmd_lower": w * lower,
    }


def _values(x: Array, y: Array, kernel: Kernel) -> Array:
    """Biased squared MMD (layers_x, layers_y) of all pairs of clouds."""
    xp, n = array_namespace(x), x.shape[-1]
    if is_quadratic(kernel):
        assert isinstance(kernel, Polynomial)
        gamma = 1 / n if kernel.gamma is None else kernel.gamma
        # The mean of (u . v)^2 over two clouds is the inner product of their squared Gram matrices, over n^2.
        flat = [xp.reshape(cloud @ cloud, (-1, n * n)) for cloud in ((x,) if y is x else (x, y))]
        own = [xp.sum(side * side, axis=1) for side in flat]
        total = own[0][:, None] + own[-1][None, :] - 2 * pairwise_inner(flat[0], flat[-1])
        return total * (gamma / n) ** 2
    size = max(1, BLOCK // (n * n))
    own = [xp.stack([mean_kernel(kernel, cloud[i, ...]) for i in range(cloud.shape[0])]) for cloud in (x, y)]
    rows = []
    for i in range(x.shape[0]):
        parts = []
        for start in range(0, y.shape[0], size):
            block = y[start : min(start + size, y.shape[0]), ...]
            if isinstance(kernel, RBF):
                one = xp.broadcast_to(x[i, ...], block.shape)
                parts.append(mean_kernel(kernel, one, block))
            else:
                parts.append(xp.stack([mean_kernel(kernel, x[i, ...], block[j, ...]) for j in range(block.shape[0])]))
        rows.append(xp.concat(parts))
    value = own[0][:, None] + own[1][None, :] - 2 * xp.stack(rows)
    if y is x:
        value = (value + xp.matrix_transpose(value)) / 2
    return value


def minibatch_mmd(sums: dict[str, Array]) -> MinibatchMMD:
    """The MMD of all pairs of layers from the sums of ``mmd_sums``; NaN for a layer that was constant throughout."""
    xp = array_namespace(sums["mmd_sum"])
    weight, count = sums["mmd_weight"], sums["mmd_count"]
    total = xp.where(weight > 0, weight, xp.full_like(weight, xp.nan))
    value = sums["mmd_sum"] / total
    squares = sums["mmd_squares"] - 2 * value * sums["mmd_sum2"] + value * value * sums["mmd_weight2"]
    floor = 1e-14 * sums["mmd_squares"]  # below it the difference is only rounding
    squares = xp.where(squares > floor, squares, xp.where(xp.isnan(squares), squares, xp.zeros_like(squares)))
    several = xp.where(count > 1, count, xp.full_like(count, xp.nan))
    error = xp.sqrt(squares * several / (several - 1)) / total
    return MinibatchMMD(value, error, sums["mmd_upper"] / total, sums["mmd_lower"] / total)
