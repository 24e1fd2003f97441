"""Accurate Gram matrices of layers: centre and scale features as needed, and stack all layers for one product."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, Literal, NamedTuple

from array_api_compat import array_namespace, device

from .hsic import flat_centred, scaled_features
from .kernels import Kernel, Linear, center_features
from .validation import Array, check_estimator, check_layer_features, constant

__all__ = [
    "CPU_BLOCK",
    "FEW",
    "GPU_BLOCK",
    "MEAN_LIMIT",
    "LayerGram",
    "Mode",
    "doubtful",
    "layer_gram",
    "layer_rows",
    "less_mean",
    "mean_over_spread",
    "repeated_gram",
    "unit_stack",
]

MEAN_LIMIT = 0.5
"""Largest ``mean_over_spread`` of raw features whose Gram matrix is U-centred in float32.

The rounding of the mean then costs CKA less than 6e-7 over all pairs of leaves of ResNet-18 and -50, DenseNet-121 and
Swin-T with 16 to 64 samples; at a limit of 2 it costs up to 1.8e-6."""

FEW = 16
"""Gram matrices of fewer samples than this are computed in float64.

So few entries do not average out the rounding of a float32 product, which costs up to 7e-6 at 8 samples even if the
features are centred."""

CPU_BLOCK, GPU_BLOCK = 2**18, 2**27
"""Chunk size, in numbers, for centring features: small on a CPU to fit the cache, large on a GPU to fill it."""

EPS32 = 2.0**-23
"""Rounding unit of float32: ``mean_over_spread`` of another dtype is converted to this one."""


def _over_spread(xp: ModuleType, gram: Array, size: float, mean_square: float) -> tuple[float, float]:
    """``mean_over_spread`` of the raw features and of the features minus their mean.

    ``gram`` (n, n) is the Gram matrix of the features minus their mean, ``size`` the mean of its diagonal,
    ``mean_square`` the squared length of the mean. Both values are infinite if the spread is not above rounding.
    """
    n = gram.shape[0]
    eps = float(xp.finfo(gram.dtype).eps)
    norm = xp.linalg.vector_norm
    diagonal = xp.linalg.diagonal(gram)
    rows = xp.sum(gram, axis=1) - diagonal
    squares = float(norm(gram)) ** 2 - float(norm(diagonal)) ** 2
    spread = _spread(squares, float(norm(rows)) ** 2, float(xp.sum(rows)), n)
    if not spread > 64 * eps * squares:
        return math.inf, math.inf
    unit = math.sqrt(spread) / eps * EPS32
    # The off-diagonal entries of the raw Gram matrix sum to n^2 |mean|^2 - n (|mean|^2 + size).
    return abs(mean_square - (mean_square + size) / n) / unit, size / n / unit


def _in_range(xp: ModuleType, dtype: Any, size: float) -> bool:
    """Whether squares of Gram entries of magnitude ``size`` neither overflow nor underflow; False for NaN."""
    low, high = _range(xp, dtype)
    return low < size < high


def _range(xp: ModuleType, dtype: Any) -> tuple[float, float]:
    return (1e-15, 1e15) if dtype == xp.float32 else (1e-125, 1e125)


def _lost(xp: ModuleType, dtype: Any) -> float:
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
        Linear Gram matrices whose largest magnitude is 1 (``unit_stack``), n >= 4.

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
    finite = xp.all(xp.isfinite(grams), axis=(-2, -1))
    grams = xp.where(finite[:, None, None], grams, xp.zeros_like(grams))
    diagonal = xp.astype(xp.linalg.diagonal(grams), xp.float64)
    rows = xp.sum(grams, axis=-1, dtype=xp.float64) - diagonal
    total = xp.sum(rows, axis=-1)
    squares = xp.sum(grams * grams, axis=(-2, -1), dtype=xp.float64) - xp.sum(diagonal * diagonal, axis=-1)
    spread = _spread(squares, xp.sum(rows * rows, axis=-1), total, n)
    told = spread > 64 * eps * squares
    ratio = xp.abs(total) / n / n / xp.sqrt(xp.where(told, spread, xp.ones_like(spread))) * (eps / EPS32)
    ratio = xp.where(told | (total == 0), ratio, xp.full_like(ratio, math.inf))
    return xp.where(finite, ratio, xp.full_like(ratio, math.nan))


Mode = Literal["raw", "shifted", "scaled"]
"""How features are prepared: as they are, minus their mean, or minus their mean and over their largest magnitude."""


class LayerGram(NamedTuple):
    """A Gram matrix (n, n), the factor that it was divided by, and the mode for later minibatches of this layer."""

    gram: Array
    factor: Array | float
    mode: Mode


def layer_gram(x: Array, kernel: Kernel | None = None, *, limit: float = MEAN_LIMIT) -> LayerGram:
    """The Gram matrix of one layer, as accurate as its features allow.

    For the linear kernel the mean of the features is subtracted. If their squares leave the range of the dtype, or the
    spread is lost in the mean, they are also divided by their largest magnitude. The Gram matrix and the mean tell
    both, and also whether later minibatches may keep their mean: subtracting it costs half as much as the product.

    Parameters
    ----------
    x : array (n, p)
        Features, float32 or float64.
    kernel : Kernel, optional
        Linear by default.
    limit : float
        Later minibatches are "raw" if ``mean_over_spread`` of the raw features is below this.

    Returns
    -------
    LayerGram
        The Gram matrix divided by ``factor``, up to terms that centring removes. Not finite if ``x`` is not.
    """
    if kernel is not None and not isinstance(kernel, Linear):
        return LayerGram(kernel(x), 1.0, "raw")
    xp = array_namespace(x)
    if x.shape[0] > 3:
        gram, mean_square = less_mean(x)
        known, square = constant(gram), float(mean_square)
        size = float(xp.sum(xp.linalg.diagonal(known))) / x.shape[0]
        if _in_range(xp, gram.dtype, size) and size > _lost(xp, gram.dtype) * square:
            raw, shifted = _over_spread(xp, known, size, square)
            if raw < limit and shifted > max(raw, limit / 4):
                gram = _gram(xp, x)  # one far sample has moved the mean away from all others
            return LayerGram(gram, 1.0, "raw" if raw < limit else "shifted")
    z, scale = scaled_features(_wide_if_few(xp, x))
    return LayerGram(z @ xp.matrix_transpose(z), scale * scale, "scaled")


def repeated_gram(x: Array, mode: Mode, product: Callable[[Array], Array] | None = None) -> LayerGram:
    """The linear Gram matrix of a later minibatch of a layer, in a given mode, without a read to the host.

    Parameters
    ----------
    x : array (n, p)
        Features, float32 or float64.
    mode : "raw", "shifted" or "scaled"
        The ``mode`` that ``layer_gram`` returned for the first minibatch.
    product : callable, optional
        Function from features (n, p) to their Gram matrix (n, n); x @ x.T by default.

    Returns
    -------
    LayerGram
        As ``layer_gram``.

    Examples
    --------
    >>> import numpy as np
    >>> repeated_gram(np.array([[5.0], [7.0]]), "shifted").gram.tolist()
    [[1.0, -1.0], [-1.0, 1.0]]
    """
    xp = array_namespace(x)
    if mode == "scaled":
        z, scale = scaled_features(_wide_if_few(xp, x))
        return LayerGram((product or Linear())(z), scale * scale, "scaled")
    shifted = mode == "shifted"
    if product is None:
        return LayerGram(_gram(xp, x, center_features if shifted else None), 1.0, mode)
    x = _wide_if_few(xp, x)
    return LayerGram(product(center_features(x) if shifted else x), 1.0, mode)


def less_mean(x: Array) -> tuple[Array, Array]:
    """The Gram matrix of the features minus their mean, and the squared length of that mean.

    It takes one pass over the features, where ``center_features`` takes two. A constant column keeps the rounding of
    its mean, so check the result with ``doubtful``, or use ``layer_gram``.

    Parameters
    ----------
    x : array (n, p)
        Features.

    Returns
    -------
    gram : array (n, n)
        float64 for fewer than ``FEW`` samples, else the dtype of the features.
    mean_square : array ()
        Without gradient.

    Examples
    --------
    >>> import numpy as np
    >>> gram, mean_square = less_mean(np.array([[5.0], [7.0]]))
    >>> gram.tolist(), float(mean_square)
    ([[1.0, -1.0], [-1.0, 1.0]], 36.0)
    """
    xp = array_namespace(x)
    squares = []
    n = x.shape[0]
    weights = xp.full((1, n), 1.0 / n, dtype=xp.float64 if n < FEW else x.dtype, device=device(x))

    def centre(part: Array) -> Array:
        # On a CPU this product is several times faster than a mean over rows.
        mean = weights @ part
        squares.append(xp.sum(constant(mean * mean)))
        return part - mean

    return _gram(xp, x, centre), sum(squares[1:], squares[0])


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
        return ~(fine & (sizes > _lost(xp, grams.dtype) * mean_squares))
    unit = grams / xp.where(fine, sizes, xp.ones_like(sizes))[:, None, None]
    return ~(fine & (mean_over_spread(unit) < MEAN_LIMIT))


def _gram(xp: ModuleType, x: Array, centre: Callable[[Array], Array] | None = None) -> Array:
    """The Gram matrix of features as they are, or of ``centre(features)``, without a copy of all features.

    A few columns at a time are centred, and converted to float64 if the samples are few, so that the copy stays in the
    cache. A full copy costs passes over the memory and, for wide layers, half as much memory as the forward.
    """
    few = x.shape[0] < FEW and x.dtype != xp.float64
    if centre is None and not few:
        return x @ xp.matrix_transpose(x)
    width = x.shape[1]
    columns = max(1, (CPU_BLOCK if "cpu" in str(x.device).lower() else GPU_BLOCK) // x.shape[0])
    total = None
    for start in range(0, width, columns):
        part = x if width <= columns else x[:, start : min(start + columns, width)]
        part = _wide_if_few(xp, part)
        part = part if centre is None else centre(part)
        product = part @ xp.matrix_transpose(part)
        if width <= columns:
            return product
        product = xp.astype(product, xp.float64)
        total = product if total is None else total + product
    return total if few else xp.astype(total, x.dtype)


def _wide_if_few(xp: ModuleType, x: Array) -> Array:
    return xp.astype(x, xp.float64) if x.shape[0] < FEW and x.dtype != xp.float64 else x


def unit_stack(grams: Sequence[Array], factors: Sequence[Array | float]) -> tuple[Array, Array]:
    """Gram matrices of all layers as one stack (layers, n, n) with largest magnitude 1, and their divisors (layers,).

    The float64 divisors include the factors of ``layer_gram``. So products of layers with activations of 1e-10 or 1e10
    stay in the range of float32.
    """
    xp = array_namespace(*grams)
    dtypes = {g.dtype for g in grams}
    if len(dtypes) > 1:
        grams = [xp.astype(g, xp.float64) for g in grams]
    stack = xp.stack(list(grams), axis=0)
    largest = xp.max(xp.abs(stack), axis=(-2, -1), keepdims=True)
    largest = xp.where(largest > 0, largest, xp.ones_like(largest))
    divisors = xp.astype(largest[:, 0, 0], xp.float64)
    if any(isinstance(f, float) is False or f != 1.0 for f in factors):
        # full instead of asarray: copying a Python number to a GPU would wait for the GPU.
        arrays = [
            xp.full((), f, dtype=xp.float64, device=stack.device) if isinstance(f, float) else xp.astype(f, xp.float64)
            for f in factors
        ]
        divisors = divisors * xp.stack(arrays, axis=0)
    return stack / largest, divisors


def layer_rows(features: Sequence[Array], name: str, kernel: Kernel, estimator: str) -> tuple[Array, Array, int]:
    """Check features and return flattened centred Gram matrices (layers, n * n), their divisors (layers,), and n.

    Raises
    ------
    TypeError, ValueError
        If features are invalid (the message names the layer by its place in ``name``), or the numbers of samples
        differ.
    """
    checked = check_layer_features(features, name, minimum=check_estimator(estimator))
    grams, factors, _ = zip(*(layer_gram(x, kernel) for x in checked), strict=True)
    stack, divisors = unit_stack(grams, factors)
    return flat_centred(stack, estimator), divisors, checked[0].shape[0]
