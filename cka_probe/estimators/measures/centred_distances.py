"""Distance correlation of two layers: the correlation between their centred distances."""

from __future__ import annotations

from functools import partial

from array_api_compat import array_namespace

from ..centring import center_gram, u_center_gram
from ..distances import safe_sqrt, squared_distances
from ..hsic import scaled_features
from ..validation import Array, check_pair

__all__ = ["CentredDistances", "correlation", "distance_correlation", "prepare"]

CentredDistances = tuple[Array, bool]
"""Centred distances (..., n, n) of norm 1, and whether they are centred without bias."""


def prepare(x: Array, *, bias_corrected: bool = False) -> CentredDistances:
    """Centred distances of one layer from its checked features (..., n, p); NaN for a constant layer."""
    if not isinstance(bias_corrected, bool):
        raise TypeError(f"`bias_corrected` must be True or False, got {bias_corrected!r}.")
    if bias_corrected and x.shape[-2] < 4:
        raise ValueError(f"`bias_corrected=True` needs at least 4 samples, got {x.shape[-2]}.")
    xp = array_namespace(x)
    z, _ = scaled_features(xp.astype(x, xp.float64))
    squared = squared_distances(z)
    # The distance of two equal samples is 0. As the root of a rounding error it would be 1e-8.
    norms = xp.sum(z * z, axis=-1)
    rounding = 64 * float(xp.finfo(xp.float64).eps) * (norms[..., :, None] + norms[..., None, :])
    distances = safe_sqrt(xp, xp.where(squared > rounding, squared, xp.zeros_like(squared)))
    centred = (u_center_gram if bias_corrected else center_gram)(distances)
    squares = xp.sum(centred * centred, axis=(-2, -1), keepdims=True)
    defined = squares > 1e-24 * xp.sum(distances * distances, axis=(-2, -1), keepdims=True)
    return centred / xp.sqrt(xp.where(defined, squares, xp.full_like(squares, xp.nan))), bias_corrected


def correlation(x: CentredDistances, y: CentredDistances) -> Array:
    """Distance correlation of two prepared layers."""
    (a, corrected), (b, _) = x, y
    xp = array_namespace(a)
    squared = xp.sum(a * b, axis=(-2, -1))
    if corrected:
        return squared
    return safe_sqrt(xp, xp.where(squared < 0, xp.zeros_like(squared), squared))


def distance_correlation(x: Array, y: Array, *, bias_corrected: bool = False) -> Array:
    """The distance correlation of two layers: 0 in the limit of many samples only if the layers are independent.

    Parameters
    ----------
    x : array (..., n, p)
        Features, n >= 2; n >= 4 if ``bias_corrected``.
    y : array (..., n, q)
        Features of the same samples.
    bias_corrected : bool
        False: the square root of <A, B> / (||A|| ||B||) of the doubly centred Euclidean distances A and B, which few
        samples in wide layers bring near 1. True: the same ratio of U-centred distances without the root. It is the
        unbiased CKA of the distance kernel, 0 on average for unrelated layers, and may be negative.

    Returns
    -------
    array (...) of float64
        From 0 to 1 (bias-corrected: up to 1). NaN if a side is constant.

    Raises
    ------
    TypeError, ValueError
        As ``cka``, and if ``bias_corrected`` is not a bool or has too few samples.

    References
    ----------
    Szekely, Rizzo, Bakirov, Measuring and Testing Dependence by Correlation of Distances, Annals of Statistics 2007.
    Szekely and Rizzo, Partial Distance Correlation, Annals of Statistics 2014 (bias-corrected).

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(30, 2))
    >>> round(float(distance_correlation(x, 3 * x[:, ::-1] + 1)), 6)
    1.0
    """
    _, x, y = check_pair(x, y)
    layer = partial(prepare, bias_corrected=bias_corrected)
    return correlation(layer(x), layer(y))
