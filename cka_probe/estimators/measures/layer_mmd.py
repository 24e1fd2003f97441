"""MMD between layers of any width: between the scaled rows of their normalised Gram matrices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from array_api_compat import array_namespace

from ..alignment import normalized_gram
from ..distances import squared_distances
from ..kernels import RBF, Kernel, Laplacian, Linear
from ..validation import Array, check_pair
from .pairing import pair_matrix

__all__ = [
    "Cloud",
    "cloud",
    "clouds_mmd_squared",
    "layer_mmd_squared",
    "mean_kernel",
    "mmd_matrix",
    "prepare",
    "row_kernel",
]


class Cloud(NamedTuple):
    """Scaled rows of the normalised Gram matrix of one layer, and the mean of the kernel over all pairs of them."""

    rows: Array
    self_mean: Array
    kernel: Kernel


def mean_kernel(kernel: Kernel, a: Array, b: Array | None = None) -> Array:
    """Mean of the kernel over all pairs of rows; for the Gaussian kernel 1 less, which cancels in MMD^2."""
    xp = array_namespace(a)
    if isinstance(kernel, RBF):
        width = kernel.width(a)
        # exp - 1 keeps all digits when the bandwidth is large and the MMD tiny.
        return xp.mean(xp.expm1(-squared_distances(a, b) / (2 * width * width)), axis=(-2, -1))
    return xp.mean(kernel(a) if b is None else kernel(a, b), axis=(-2, -1))


def cloud(kernel: Kernel, rows: Array) -> Cloud:
    """Statistics of one side of an MMD, from its rows (..., n, n)."""
    return Cloud(rows, mean_kernel(kernel, rows), kernel)


def clouds_mmd_squared(x: Cloud, y: Cloud) -> Array:
    """Biased MMD^2 between two clouds with the same kernel."""
    return x.self_mean + y.self_mean - 2 * mean_kernel(x.kernel, x.rows, y.rows)


def row_kernel(kernel: Kernel | None) -> Kernel:
    """The kernel on the rows, ``RBF(bandwidth=1.0)`` for None. Raise ValueError if its bandwidth is not fixed."""
    kernel = kernel or RBF(bandwidth=1.0)
    if isinstance(kernel, RBF | Laplacian) and kernel.bandwidth == "median":
        raise ValueError(
            "A median bandwidth would give each pair of layers another kernel. "
            "Pass a number, for example RBF(bandwidth=1.0): the rows have a mean squared norm of 1."
        )
    return kernel


def prepare(
    x: Array, *, kernel: Kernel | None = None, gram_kernel: Kernel | None = None, centred: bool = True
) -> Cloud:
    """Cloud of one layer from its checked features (..., n, p)."""
    unit = normalized_gram(x, gram_kernel or Linear(), centring="biased" if centred else "none")
    return cloud(row_kernel(kernel), math.sqrt(x.shape[-2]) * unit)


def layer_mmd_squared(
    x: Array,
    y: Array,
    *,
    kernel: Kernel | None = None,
    gram_kernel: Kernel | None = None,
    centred: bool = True,
) -> Array:
    """The squared MMD between two layers of any width, taken over the scaled rows of their normalised Gram matrices.

    Parameters
    ----------
    x : array (..., n, p)
        Features, n >= 2.
    y : array (..., n, q)
        Features of the same samples.
    kernel : Kernel, optional
        Kernel on the rows, with a fixed bandwidth; ``RBF(bandwidth=1.0)`` when left out. The rows have a mean squared
        norm of 1, and paired rows a mean squared distance of 2 (1 - CKA).
    gram_kernel : Kernel, optional
        Kernel of the Gram matrices. Linear when left out.
    centred : bool
        Whether the Gram matrices are centred. If they are, the MMD with ``kernel=Linear()`` is 0 for any layers.

    Returns
    -------
    array (...) of float64
        The biased V-statistic, which CKA bounds (``cka_mmd_bounds``). There is no unbiased form, because the rows of a
        Gram matrix are not independent samples. NaN if a side is constant.

    Raises
    ------
    TypeError
        Unless both are real floating arrays of one library.
    ValueError
        As ``cka``, and if the kernel has a median bandwidth.

    References
    ----------
    Zhou et al., Rethinking Centered Kernel Alignment in Knowledge Distillation, IJCAI 2024. docs/theory.md, sections 6
    and 7.

    Examples
    --------
    >>> import numpy as np
    >>> x, y = np.random.default_rng(0).normal(size=(2, 40, 3))
    >>> bool(abs(layer_mmd_squared(x, 5 * x + 1)) < 1e-12), bool(layer_mmd_squared(x, y) > 0.01)
    (True, True)
    """
    _, x, y = check_pair(x, y)
    prepared = partial(prepare, kernel=kernel, gram_kernel=gram_kernel, centred=centred)
    return clouds_mmd_squared(prepared(x), prepared(y))


def mmd_matrix(
    xs: Sequence[Array],
    ys: Sequence[Array] | None = None,
    *,
    kernel: Kernel | None = None,
    gram_kernel: Kernel | None = None,
    centred: bool = True,
) -> Array:
    """The squared MMD of every pair of layers; each Gram matrix is computed once.

    Parameters
    ----------
    xs : sequence of arrays (n, p_i)
        Features of the layers of one network.
    ys : sequence of arrays (n, q_j), optional
        Features of the layers of the other network; ``xs`` when left out.
    kernel, gram_kernel, centred
        As in ``layer_mmd_squared``.

    Returns
    -------
    array (len(xs), len(ys)) of float64
        Rows follow ``xs``, columns ``ys``. NaN in the rows and columns of constant layers.

    Raises
    ------
    TypeError, ValueError
        As ``layer_mmd_squared``; the message names the layer by its place.

    Examples
    --------
    >>> import numpy as np
    >>> x, y = np.random.default_rng(0).normal(size=(2, 40, 3))
    >>> mmd_matrix([x, y]).shape
    (2, 2)
    """
    prepared = partial(prepare, kernel=kernel, gram_kernel=gram_kernel, centred=centred)
    return pair_matrix(xs, ys, prepared, clouds_mmd_squared)
