"""Linear regression between layers: how well one predicts the other, and how much their predictions differ (GULP)."""

from __future__ import annotations

from array_api_compat import array_namespace

from ..distances import safe_sqrt
from ..validation import Array
from .subspaces import Subspace, cross_products, prepare_pair, undefined

__all__ = ["explained_variance", "explained_variance_chance", "gulp", "linear_regression_r2", "predictor_distance"]


def explained_variance(x: Subspace, y: Subspace) -> Array:
    """Share of the variance of y that a linear regression on x explains, of two prepared layers."""
    xp = array_namespace(x.basis)
    explained = cross_products(x, y) * y.spread[..., None, :]
    return xp.sum(explained * explained, axis=(-2, -1)) / x.basis.shape[-2] + undefined(x, y)


def explained_variance_chance(x: Subspace, y: Subspace) -> Array:
    """Exact mean of ``explained_variance`` over permutations of the samples: rank(x) / (n - 1)."""
    return x.rank / (x.basis.shape[-2] - 1) + undefined(x, y)


def predictor_distance(x: Subspace, y: Subspace) -> Array:
    """GULP of two prepared layers: ||P - R||_F of their smoothers P and R, as a sum of squares without cancellation.

    With the basis Uy = Ux C + E and E orthogonal to Ux, P - R has the blocks W - CVC', -EVC' and -EVE', where the
    diagonal matrices W and V hold the eigenvalues of P and R.
    """
    xp = array_namespace(x.basis)
    cross = cross_products(x, y)
    rest = y.basis - x.basis @ cross
    w, v = x.shrinkage, y.shrinkage
    root = safe_sqrt(xp, v)[..., None, :]
    inside = xp.eye(w.shape[-1], dtype=w.dtype, device=w.device) * w[..., None, :] - (cross * v[..., None, :]) @ (
        xp.matrix_transpose(cross)
    )
    between = (rest * v[..., None, :]) @ xp.matrix_transpose(cross)
    # ||E V E'|| = ||V^1/2 E'E V^1/2||, without an n x n matrix.
    outside = xp.matrix_transpose(rest * root) @ (rest * root)
    squared = (
        xp.sum(inside * inside, axis=(-2, -1))
        + 2 * xp.sum(between * between, axis=(-2, -1))
        + xp.sum(outside * outside, axis=(-2, -1))
    )
    return safe_sqrt(xp, squared) + undefined(x, y)


def linear_regression_r2(x: Array, y: Array) -> Array:
    """The share of the variance of ``y`` that a linear regression on ``x`` explains, on the samples it is fitted to.

    Parameters
    ----------
    x : array (..., n, p)
        Features that predict, n >= 2.
    y : array (..., n, q)
        Features of the same samples that are predicted.

    Returns
    -------
    array (...) of float64
        From 0 to 1; NaN if a side is constant. Not symmetric. Its mean over permutations of the samples is exactly
        rank(x) / (n - 1), and it is 1 when ``x`` has n - 1 independent features.

    Raises
    ------
    TypeError, ValueError
        As ``cka``.

    References
    ----------
    Kornblith et al., Similarity of Neural Network Representations Revisited, ICML 2019, section 5. docs/theory.md,
    section 5.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(30, 2))
    >>> round(float(linear_regression_r2(x, x[:, :1])), 6), bool(linear_regression_r2(x[:, :1], x) < 0.9)
    (1.0, True)
    """
    return explained_variance(*prepare_pair(x, y))


def gulp(x: Array, y: Array, *, regularization: float = 1e-2) -> Array:
    """The GULP distance between two layers: how much the predictions of ridge regressions on them differ.

    Parameters
    ----------
    x : array (..., n, p)
        Features, n >= 2. They are centred and scaled to a mean squared norm of 1, as in the reference.
    y : array (..., n, q)
        Features of the same samples.
    regularization : float
        lambda, not negative. At 0 only the subspaces matter; larger values weight directions by their variance.

    Returns
    -------
    array (...) of float64
        ||P - R||_F with P = X (X'X + n lambda)^-1 X' for ``x`` and R likewise for ``y``; from 0 to the square root of
        the sum of the ranks. NaN if a side is constant.

    Raises
    ------
    TypeError, ValueError
        As ``cka``, and if ``regularization`` is not a number, negative or infinite.

    References
    ----------
    Boix-Adsera et al., GULP: a Prediction-based Metric between Representations, NeurIPS 2022. docs/theory.md,
    section 5.

    Examples
    --------
    >>> import numpy as np
    >>> x, y = np.random.default_rng(0).normal(size=(2, 30, 2))
    >>> bool(gulp(x, 3 * x[:, ::-1] + 1) < 1e-12), bool(gulp(x, y) > 1)
    (True, True)
    """
    return predictor_distance(*prepare_pair(x, y, regularization=regularization))
