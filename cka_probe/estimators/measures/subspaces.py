"""The subspace of R^n that a layer spans over the samples: what CCA, linear regression and GULP are made of."""

from __future__ import annotations

import math
from functools import partial
from numbers import Real
from typing import NamedTuple

from array_api_compat import array_namespace

from ..hsic import scaled_features
from ..kernels import _sqrt
from ..validation import Array, check_pair


class Subspace(NamedTuple):
    """Centred features Z = basis diag(spread) W' in float64, zero beyond the rank.

    ``basis`` (..., n, r) has orthonormal columns, ``spread`` (..., r) is scaled to a mean squared sample norm of 1,
    ``shrinkage`` (..., r) holds the eigenvalues of the smoother of a linear regression on the features.
    """

    basis: Array
    spread: Array
    rank: Array
    features: Array
    shrinkage: Array


def prepare(x: Array, *, variance: float = 1.0, regularization: float = 0.0) -> Subspace:
    """The subspace of one layer from its checked features (..., n, p).

    Parameters
    ----------
    x : array (..., n, p)
        Features.
    variance : float
        Keep the fewest principal components that explain this share of the variance.
    regularization : float
        lambda of the smoother X (X'X + n lambda)^-1 X', for features of mean squared norm 1.
    """
    for value, name, high in ((variance, "variance", 1.0), (regularization, "regularization", math.inf)):
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(f"`{name}` must be a number, got {type(value).__name__}.")
        if not 0 <= value <= high or math.isinf(value) or (name == "variance" and value == 0):
            limits = "above 0 and at most 1" if name == "variance" else "not negative, and finite"
            raise ValueError(f"`{name}` must be {limits}, got {value!r}.")
    xp = array_namespace(x)
    n, p = x.shape[-2:]
    z, _ = scaled_features(xp.astype(x, xp.float64))
    basis, spread, _ = xp.linalg.svd(z, full_matrices=False)
    # Directions below the rounding of the features as they came are noise.
    kept = spread > max(n, p) * float(xp.finfo(x.dtype).eps) * spread[..., :1]
    squares = xp.where(kept, spread * spread, xp.zeros_like(spread))
    total = xp.sum(squares, axis=-1, keepdims=True)
    if variance < 1:
        kept = kept & (xp.cumulative_sum(squares, axis=-1) - squares < variance * total)
        squares = xp.where(kept, squares, xp.zeros_like(squares))
    alive = total > 0
    squares = squares * n / xp.where(alive, total, xp.ones_like(total))
    weight = xp.astype(kept, xp.float64)
    rank = xp.sum(weight, axis=-1)
    return Subspace(
        basis=basis * weight[..., None, :],
        spread=_sqrt(xp, squares),
        rank=xp.where(rank > 0, rank, xp.full_like(rank, xp.nan)),
        features=z,
        shrinkage=squares / (squares + n * regularization + (1 - weight)),
    )


def cross_products(x: Subspace, y: Subspace) -> Array:
    """Ux'Uy: the inner products of both bases."""
    return array_namespace(x.basis).matrix_transpose(x.basis) @ y.basis


def smaller_rank(x: Subspace, y: Subspace) -> Array:
    """min(rank x, rank y), NaN where a side is constant."""
    xp = array_namespace(x.rank)
    return xp.where(x.rank < y.rank, x.rank, y.rank) + 0 * x.rank


def undefined(x: Subspace, y: Subspace) -> Array:
    """NaN where a side is constant, else 0."""
    return 0 * (x.rank + y.rank)


def prepare_pair(
    x: Array, y: Array, *, variance: float = 1.0, regularization: float = 0.0
) -> tuple[Subspace, Subspace]:
    """Both subspaces of a pair of layers, checked."""
    _, x, y = check_pair(x, y)
    layer = partial(prepare, variance=variance, regularization=regularization)
    return layer(x), layer(y)
