"""The subspace of R^n that the features of a layer span, from which CCA, linear regression and GULP are computed."""

from __future__ import annotations

import math
from functools import partial
from numbers import Real
from typing import NamedTuple

from array_api_compat import array_namespace

from ..distances import safe_sqrt
from ..hsic import scaled_features
from ..validation import Array, check_pair

__all__ = ["Subspace", "cross_products", "prepare", "prepare_pair", "smaller_rank", "undefined"]


class Subspace(NamedTuple):
    """Singular value decomposition of the centred ``features`` (..., n, p) of a layer, in float64.

    ``basis`` (..., n, r) holds the left singular vectors. ``spread`` (..., r) holds the singular values, scaled to a
    mean squared norm of the samples of 1. ``shrinkage`` (..., r) holds the eigenvalues of the smoother of a ridge
    regression on the features. All three are 0 beyond the rank. ``rank`` (...) is NaN for a constant layer.
    """

    basis: Array
    spread: Array
    rank: Array
    features: Array
    shrinkage: Array


def prepare(x: Array, *, variance: float = 1.0, regularization: float = 0.0) -> Subspace:
    """Subspace of one layer from its checked features (..., n, p).

    Parameters
    ----------
    x : array (..., n, p)
        Features.
    variance : float
        Share of the variance to keep, by as few principal components as possible.
    regularization : float
        lambda of the smoother X (X'X + n lambda)^-1 X', for features of mean squared norm 1.

    Raises
    ------
    TypeError, ValueError
        If ``variance`` or ``regularization`` is not a number or out of range.
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
    # Smaller singular values are rounding errors of the features in their own dtype.
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
        spread=safe_sqrt(xp, squares),
        rank=xp.where(rank > 0, rank, xp.full_like(rank, xp.nan)),
        features=z,
        shrinkage=squares / (squares + n * regularization + (1 - weight)),
    )


def cross_products(x: Subspace, y: Subspace) -> Array:
    """Inner products Ux'Uy of both bases (..., r, s)."""
    return array_namespace(x.basis).matrix_transpose(x.basis) @ y.basis


def smaller_rank(x: Subspace, y: Subspace) -> Array:
    """min(rank(x), rank(y)); NaN if a side is constant."""
    xp = array_namespace(x.rank)
    return xp.where(x.rank < y.rank, x.rank, y.rank) + 0 * x.rank


def undefined(x: Subspace, y: Subspace) -> Array:
    """NaN if a side is constant, else 0."""
    return 0 * (x.rank + y.rank)


def prepare_pair(
    x: Array, y: Array, *, variance: float = 1.0, regularization: float = 0.0
) -> tuple[Subspace, Subspace]:
    """Check a pair of layers and return both subspaces."""
    _, x, y = check_pair(x, y)
    layer = partial(prepare, variance=variance, regularization=regularization)
    return layer(x), layer(y)
