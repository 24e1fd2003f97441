"""Comparison of two layers after the best rotation: with their size, partly whitened, and sample by sample."""

from __future__ import annotations

from functools import partial
from numbers import Real
from typing import NamedTuple

from array_api_compat import array_namespace

from ..distances import safe_sqrt
from ..hsic import scaled_features
from ..validation import Array, check_pair, constant
from .shapes import Shape, angle, distance, reduced, shape_of

__all__ = [
    "Uncentred",
    "aligned_cosine",
    "mean_cosine",
    "partial_whitening_distance",
    "prepare_size",
    "prepare_uncentred",
    "prepare_whitened",
    "procrustes_size_and_shape",
]


def prepare_size(x: Array) -> Shape:
    """Centred features of one layer in their own size, from its checked features (..., n, p)."""
    xp = array_namespace(x)
    z, scale = scaled_features(xp.astype(x, xp.float64))
    shape = shape_of(z)
    size = safe_sqrt(xp, xp.sum(z * z, axis=(-2, -1))) * scale
    return Shape(shape.features * size[..., None, None], shape.undefined)


def prepare_whitened(x: Array, *, alpha: float = 0.5) -> Shape:
    """Partly whitened features of one layer, of Frobenius norm 1, from its checked features (..., n, p)."""
    if isinstance(alpha, bool) or not isinstance(alpha, Real):
        raise TypeError(f"`alpha` must be a number, got {type(alpha).__name__}.")
    if not 0 <= alpha <= 1:
        raise ValueError(f"`alpha` must be from 0 (whitened) to 1 (rotation only), got {alpha!r}.")
    xp = array_namespace(x)
    n, p = x.shape[-2:]
    z, scale = scaled_features(xp.astype(x, xp.float64))
    basis, spread, _ = xp.linalg.svd(z, full_matrices=False)
    kept = spread > max(n, p) * float(xp.finfo(x.dtype).eps) * spread[..., :1]
    # X (alpha I + (1 - alpha) (X'X)^-1/2) has the singular values alpha s + 1 - alpha.
    whitened = alpha * spread * scale[..., None] + (1 - alpha)
    whitened = xp.where(kept, whitened, xp.zeros_like(whitened))
    largest = xp.max(whitened, axis=-1, keepdims=True)
    whitened = whitened / xp.where(largest > 0, largest, xp.ones_like(largest))
    return shape_of(basis * whitened[..., None, :])


class Uncentred(NamedTuple):
    """Features of a layer without centring, in at most n columns. ``undefined`` is NaN for a constant layer, else 0."""

    features: Array
    undefined: Array


def prepare_uncentred(x: Array) -> Uncentred:
    """Features of one layer divided by their largest magnitude, from its checked features (..., n, p)."""
    xp = array_namespace(x)
    x = xp.astype(x, xp.float64)
    z, _ = scaled_features(x)
    varied = xp.any(constant(z) != 0, axis=(-2, -1))
    largest = xp.max(xp.abs(constant(x)), axis=(-2, -1), keepdims=True)
    zero = xp.zeros_like(largest[..., 0, 0])
    features = reduced(x / xp.where(largest > 0, largest, xp.ones_like(largest)))
    return Uncentred(features, xp.where(varied, zero, xp.full_like(zero, xp.nan)))


def mean_cosine(x: Uncentred, y: Uncentred) -> Array:
    """Aligned cosine similarity of two prepared layers."""
    xp = array_namespace(x.features)
    left, values, right = xp.linalg.svd(xp.matrix_transpose(x.features) @ y.features, full_matrices=False)
    # Directions that the layers do not share have no alignment, so they add nothing.
    shared = constant(values) > max(x.features.shape) * float(xp.finfo(xp.float64).eps) * constant(values)[..., :1]
    a, b = x.features @ left, y.features @ xp.matrix_transpose(right)
    products = xp.sum(a * b * xp.astype(shared, xp.float64)[..., None, :], axis=-1)
    norms = [safe_sqrt(xp, xp.sum(side.features * side.features, axis=-1)) for side in (x, y)]
    both = norms[0] * norms[1]
    known = xp.astype(both > 0, xp.float64)
    cosines = known * products / xp.where(both > 0, both, xp.ones_like(both))
    count = xp.sum(known, axis=-1)
    return (
        xp.sum(cosines, axis=-1) / xp.where(count > 0, count, xp.full_like(count, xp.nan)) + x.undefined + y.undefined
    )


def procrustes_size_and_shape(x: Array, y: Array) -> Array:
    """The Procrustes distance of two layers with their size: min ||X - Y R||_F over orthogonal R, of centred features.

    Parameters
    ----------
    x : array (..., n, p)
        Features, n >= 2. They are centred but not scaled.
    y : array (..., n, q)
        Features of the same samples.

    Returns
    -------
    array (...) of float64
        In units of the features; it grows with the number of samples. A metric. NaN if a side is constant.

    Raises
    ------
    TypeError, ValueError
        As ``cka``.

    References
    ----------
    Williams et al., Generalized Shape Metrics on Neural Representations, NeurIPS 2021. Klabunde et al., ReSi, ICLR
    2025.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.array([[1.0], [-1.0]])
    >>> round(float(procrustes_size_and_shape(x, 3 * x)), 6)  # sqrt((3 - 1)^2 + (3 - 1)^2)
    2.828427
    """
    _, x, y = check_pair(x, y)
    return distance(prepare_size(x), prepare_size(y))


def partial_whitening_distance(x: Array, y: Array, *, alpha: float = 0.5) -> Array:
    """The angular shape distance of partly whitened layers: netrep's ``LinearMetric(alpha)``.

    Parameters
    ----------
    x : array (..., n, p)
        Features, n >= 2.
    y : array (..., n, q)
        Features of the same samples.
    alpha : float
        From 0 to 1. The centred features X become X (alpha I + (1 - alpha) (X'X)^(-1/2)). At 1 the value is
        ``angular_distance``; at 0 the features are white, and any invertible linear map leaves the value unchanged.
        Between, it depends on the size of the features and the number of samples, as in netrep.

    Returns
    -------
    array (...) of float64
        Angle after the best rotation, from 0 to pi / 2; a metric for each alpha. NaN if a side is constant.

    Raises
    ------
    TypeError, ValueError
        As ``cka``, and if ``alpha`` is not a number from 0 to 1.

    References
    ----------
    Williams et al., Generalized Shape Metrics on Neural Representations, NeurIPS 2021, section 2.2.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(30, 2))
    >>> bool(partial_whitening_distance(x, x @ np.array([[1.0, 2.0], [3.0, 4.0]]), alpha=0.0) < 1e-6)
    True
    """
    _, x, y = check_pair(x, y)
    layer = partial(prepare_whitened, alpha=alpha)
    return angle(layer(x), layer(y))


def aligned_cosine(x: Array, y: Array) -> Array:
    """The mean cosine between the two representations of a sample, after the best rotation of one layer onto the other.

    Parameters
    ----------
    x : array (..., n, p)
        Features, n >= 2. They are not centred, so large means alone bring the value near 1.
    y : array (..., n, q)
        Features of the same samples. The narrower layer gets features of 0 until both have the same width.

    Returns
    -------
    array (...) of float64
        From -1 to 1. Samples whose features are all 0 in a layer are left out. NaN if a side is constant.

    Raises
    ------
    TypeError, ValueError
        As ``cka``.

    References
    ----------
    Hamilton, Leskovec, Jurafsky, Diachronic Word Embeddings Reveal Statistical Laws of Semantic Change, ACL 2016.
    Klabunde et al., ReSi, ICLR 2025.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(30, 2))
    >>> round(float(aligned_cosine(x, 3 * x[:, ::-1])), 6)
    1.0
    """
    _, x, y = check_pair(x, y)
    return mean_cosine(prepare_uncentred(x), prepare_uncentred(y))
