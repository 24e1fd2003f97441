"""Accurate Gram matrices of layers: centre and scale features as needed, and stack all layers for one product."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Literal, NamedTuple

from array_api_compat import array_namespace, device

from .centring import without_diagonal
from .distances import middle_sample
from .gram_accuracy import (
    FAR,
    MANY,
    MEAN_LIMIT,
    SUMMED_LIMIT,
    far_in_diagonal,
    in_range,
    lost_ratio,
    over_spread,
    squared_means_and_spread,
)
from .hsic import flat_centred, scaled_features
from .kernels import Kernel, Linear, center_features
from .validation import Array, check_estimator, check_layer_features, constant

__all__ = [
    "CPU_BLOCK",
    "FEW",
    "GPU_BLOCK",
    "LayerGram",
    "Mode",
    "float64_gram",
    "layer_gram",
    "layer_rows",
    "less_mean",
    "less_row",
    "repeated_gram",
    "unit_stack",
    "wide_gram",
]

FEW = 16
"""Gram matrices of fewer samples than this are computed in float64.

So few entries do not average out the rounding of a float32 product, which costs up to 7e-6 at 8 samples even if the
features are centred."""

CPU_BLOCK, GPU_BLOCK = 2**18, 2**25
"""Chunk size, in numbers, for centring features: small on a CPU to fit the cache, larger on a GPU to fill it."""

Mode = Literal["raw", "shifted", "scaled"]
"""How features are prepared: as they are, minus their mean, or minus their mean and over their largest magnitude."""


class LayerGram(NamedTuple):
    """A Gram matrix (n, n), the factor that it was divided by, and the mode for later minibatches of this layer.

    ``far`` is the index of a sample that needed float64, because it lies far from all others, and its distance over the
    usual one; None as a rule. ``by_sample`` is what ``mean_over_spread`` would be at most if not the mean was
    subtracted but the features of one of the samples; infinite if unknown. ``over_spread`` is that measure of the Gram
    matrix itself; 0 if it was not needed. ``mean_over_deviation`` is ``resolution`` over the rounding unit; None if
    the features were not looked at so closely.
    """

    gram: Array
    factor: Array | float
    mode: Mode
    far: tuple[int, float] | None = None
    by_sample: float = math.inf
    over_spread: float = 0.0
    mean_over_deviation: float | None = None


def layer_gram(x: Array, kernel: Kernel | None = None, *, limit: float = MEAN_LIMIT) -> LayerGram:
    """The Gram matrix of one layer, as accurate as its features allow.

    For the linear kernel the mean of the features is subtracted. If their squares leave the range of the dtype, the
    spread is lost in the mean, or one sample lies so far from all others that the rounding of its square is above
    their spread, ``float64_gram`` takes over. The Gram matrix and the mean tell all this, and also whether later
    minibatches may keep their mean: subtracting it costs half as much as the product. Features in float64, and those
    on a GPU, are first tried divided by their largest magnitude. Other kernels are computed in float64.

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
    xp = array_namespace(x)
    if kernel is not None and not isinstance(kernel, Linear):
        return LayerGram(kernel(xp.astype(x, xp.float64)), 1.0, "raw")
    n = x.shape[0]
    if n > 3:
        gram, mean_square = less_mean(x)
        known, square = constant(gram), float(mean_square)
        size = float(xp.sum(xp.linalg.diagonal(known))) / n
        fine = in_range(xp, gram.dtype, size) and size > lost_ratio(xp, gram.dtype) * square
        if fine and bool(far_in_diagonal(known)):
            return float64_gram(x)
        if fine:
            raw, shifted = over_spread(xp, known, size, square)
            if raw < limit and shifted > max(raw, limit / 4):
                # One far sample has moved the mean away from all others.
                return LayerGram(_gram(xp, x), 1.0, "raw", over_spread=raw)
            most = SUMMED_LIMIT if _on_cpu(x) and n * x.shape[1] >= MANY * CPU_BLOCK else MEAN_LIMIT
            if shifted < most and raw < limit:
                return LayerGram(gram, 1.0, "raw", over_spread=raw)
            if shifted < most:
                # U-centring takes away what the sample adds to rows and columns, so the spread stays as it is.
                farthest = float(xp.max(xp.linalg.diagonal(known)))
                by_sample = shifted * abs((n - 1) * farthest / size - 1)
                return LayerGram(gram, 1.0, "shifted", by_sample=by_sample, over_spread=shifted)
    if n > 3 and x.dtype != xp.float64 and _on_cpu(x):
        return float64_gram(x)
    z, scale = scaled_features(_wide_if_few(xp, x))
    gram = z @ xp.matrix_transpose(z)
    if n > 3:
        known = constant(gram)
        size = float(xp.sum(xp.linalg.diagonal(known))) / n
        if size > 0 and not over_spread(xp, known, size, 0.0)[1] < MEAN_LIMIT:
            return float64_gram(x, scale)
    return LayerGram(gram, scale * scale, "scaled")


def float64_gram(x: Array, scale: Array | float = 1.0) -> LayerGram:
    """The Gram matrix in float64 of features over ``scale``, the far sample if there is one, and how large the mean is.

    Parameters
    ----------
    x : array (n, p)
        Features.
    scale : array () or float
        So large that the squares of ``x / scale`` stay in the range of float64; 1 for float32.

    Returns
    -------
    LayerGram
        Of mode "scaled".

    Examples
    --------
    >>> import numpy as np
    >>> found = float64_gram(np.array([[5.0], [7.0], [5.0]], dtype=np.float32))
    >>> found.gram.tolist(), found.far
    ([[0.0, 0.0, 0.0], [0.0, 4.0, 0.0], [0.0, 0.0, 0.0]], None)
    """
    xp = array_namespace(x)
    gram, means, spread = None, 0.0, 0.0
    for z, shift in _float64_parts(x, scale):
        product = z @ xp.matrix_transpose(z)
        gram = product if gram is None else gram + product
        more = squared_means_and_spread(constant(z), constant(shift))
        means, spread = means + more[0], spread + more[1]
    squares = constant(xp.linalg.diagonal(gram))
    usual = float(xp.sort(squares)[x.shape[0] // 2]) ** 0.5
    farthest = float(xp.max(squares)) ** 0.5
    far = (int(xp.argmax(squares)), farthest / usual) if 0 < FAR * usual < farthest else None
    factor = xp.ones((), dtype=xp.float64, device=device(x)) * scale * scale
    ratio = math.sqrt(float(means) / float(spread)) if float(spread) > 0 else 0.0
    return LayerGram(gram, factor, "scaled", far, mean_over_deviation=ratio)


def wide_gram(x: Array) -> Array:
    """The Gram matrix in float64 of features minus the middle of a few samples, which one far sample does not move.

    Parameters
    ----------
    x : array (n, p)
        Features.

    Returns
    -------
    array (n, n) of float64

    Examples
    --------
    >>> import numpy as np
    >>> wide_gram(np.array([[5.0], [7.0]])).tolist()
    [[4.0, 0.0], [0.0, 0.0]]
    """
    xp = array_namespace(x)
    gram = None
    for z, _ in _float64_parts(x):
        product = z @ xp.matrix_transpose(z)
        gram = product if gram is None else gram + product
    return gram


def _float64_parts(x: Array, scale: Array | float = 1.0) -> Iterator[tuple[Array, Array]]:
    """Some columns at a time, features in float64 minus their ``middle_sample``, and that, both over ``scale``.

    On a CPU so few columns that their copies stay in its cache.
    """
    xp = array_namespace(x)
    columns = max(1, _block(x) // x.shape[0])
    scaled = not isinstance(scale, float) or scale != 1.0
    for start in range(0, x.shape[1], columns):
        part = x[:, start : min(start + columns, x.shape[1])]
        shift = xp.astype(middle_sample(constant(part)), xp.float64)
        # The difference of float32 and float64 is computed in float64, without a copy of the features.
        apart = part - shift
        yield (apart / scale, shift / scale) if scaled else (apart, shift)


def _block(x: Array) -> int:
    return CPU_BLOCK if _on_cpu(x) else GPU_BLOCK


def _on_cpu(x: Array) -> bool:
    return "cpu" in str(device(x)).lower()


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


def less_row(x: Array, row: Array) -> Array:
    """The Gram matrix of the features minus one row: those of the first sample, or the mean of an earlier minibatch.

    This takes less time than ``less_mean``. With the first sample, a constant layer gives exactly zero, and the mean of
    what is left is about as long as the distance of two samples. So check the result with ``doubtful``, as that of raw
    features.

    Parameters
    ----------
    x : array (n, p)
        Features.
    row : array (1, p)
        What is subtracted.

    Returns
    -------
    array (n, n)
        float64 for fewer than ``FEW`` samples, else the dtype of the features.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.array([[5.0], [7.0]])
    >>> less_row(x, x[:1]).tolist()
    [[0.0, 0.0], [0.0, 4.0]]
    """
    n, width = x.shape
    if n >= FEW and n * width <= CPU_BLOCK:  # the usual case, in which the look-up of names would take half the time
        apart = x - row
        return apart @ apart.T
    return _gram(array_namespace(x), x, row=row)


def _gram(xp: ModuleType, x: Array, centre: Callable[[Array], Array] | None = None, row: Array | None = None) -> Array:
    """The Gram matrix of the features, of ``centre(features)`` or of features minus a row, without a copy of them all.

    A few columns at a time are centred, and converted to float64 if the samples are few, so that the copy stays in the
    cache. A full copy costs passes over the memory and, for wide layers, half as much memory as the forward.
    """
    few = x.shape[0] < FEW and x.dtype != xp.float64
    if centre is None and row is None and not few:
        return x @ xp.matrix_transpose(x)
    width = x.shape[1]
    columns = max(1, _block(x) // x.shape[0])
    total = None
    for start in range(0, width, columns):
        part = x if width <= columns else x[:, start : min(start + columns, width)]
        part = _wide_if_few(xp, part)
        part = part if centre is None else centre(part)
        part = part if row is None else part - row[:, start : start + part.shape[1]]
        product = part @ xp.matrix_transpose(part)
        if width <= columns:
            return product
        product = xp.astype(product, xp.float64)
        total = product if total is None else total + product
    return total if few else xp.astype(total, x.dtype)


def _wide_if_few(xp: ModuleType, x: Array) -> Array:
    return xp.astype(x, xp.float64) if x.shape[0] < FEW and x.dtype != xp.float64 else x


def unit_stack(
    grams: Sequence[Array], factors: Sequence[Array | float], *, estimator: str = "biased"
) -> tuple[Array, Array]:
    """Gram matrices of all layers as one stack (layers, n, n) with largest magnitude 1, and their divisors (layers,).

    The float64 divisors include the factors of ``layer_gram``. So products of layers with activations of 1e-10 or 1e10
    stay in the range of float32. For ``estimator="unbiased"``, which does not use the diagonal, it is set to 0: the
    square of one far sample may be above all that the dtype can hold beside the other entries.
    """
    xp = array_namespace(*grams)
    dtypes = {g.dtype for g in grams}
    if len(dtypes) > 1:
        grams = [xp.astype(g, xp.float64) for g in grams]
    stack = xp.stack(list(grams), axis=0)
    if estimator == "unbiased":
        stack = without_diagonal(stack)
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
    grams, factors, *_ = zip(*(layer_gram(x, kernel) for x in checked), strict=True)
    stack, divisors = unit_stack(grams, factors, estimator=estimator)
    return flat_centred(stack, estimator), divisors, checked[0].shape[0]
