"""Canonical correlations of two layers: their mean, their mean square, SVCCA and PWCCA."""

from __future__ import annotations

from array_api_compat import array_namespace

from ..validation import Array
from .subspaces import Subspace, cross_products, prepare_pair, smaller_rank, undefined

__all__ = [
    "canonical_correlations",
    "cca_r2",
    "correlations",
    "mean_cca",
    "mean_correlation",
    "mean_squared_correlation",
    "mean_squared_correlation_chance",
    "projection_weighted",
    "pwcca",
    "svcca",
]


def correlations(x: Subspace, y: Subspace) -> Array:
    """All canonical correlations (..., r) of two prepared layers."""
    return array_namespace(x.basis).linalg.svdvals(cross_products(x, y)) + undefined(x, y)[..., None]


def mean_correlation(x: Subspace, y: Subspace) -> Array:
    """Mean canonical correlation of two prepared layers."""
    return array_namespace(x.basis).sum(correlations(x, y), axis=-1) / smaller_rank(x, y)


def mean_squared_correlation(x: Subspace, y: Subspace) -> Array:
    """Mean squared canonical correlation of two prepared layers."""
    cross = cross_products(x, y)
    return array_namespace(cross).sum(cross * cross, axis=(-2, -1)) / smaller_rank(x, y)


def mean_squared_correlation_chance(x: Subspace, y: Subspace) -> Array:
    """Exact mean of ``mean_squared_correlation`` over permutations of the samples: the larger rank over n - 1."""
    return x.rank * y.rank / (x.basis.shape[-2] - 1) / smaller_rank(x, y)


def projection_weighted(x: Subspace, y: Subspace) -> Array:
    """PWCCA of two prepared layers."""
    xp = array_namespace(x.basis)
    left, values, _ = xp.linalg.svd(cross_products(x, y), full_matrices=False)
    # Canonical variates of x. The weight of each is the sum of its absolute inner products with the features of x.
    variates = x.basis @ left
    weights = xp.sum(xp.abs(xp.matrix_transpose(variates) @ x.features), axis=-1)
    places = xp.arange(values.shape[-1], dtype=xp.float64, device=values.device)
    weights = weights * xp.astype(places < smaller_rank(x, y)[..., None], xp.float64)
    total = xp.sum(weights, axis=-1)
    return xp.sum(weights * values, axis=-1) / xp.where(total > 0, total, xp.ones_like(total)) + undefined(x, y)


def canonical_correlations(x: Array, y: Array) -> Array:
    """The canonical correlations of two layers, largest first.

    Parameters
    ----------
    x : array (..., n, p)
        Features, n >= 2.
    y : array (..., n, q)
        Features of the same samples.

    Returns
    -------
    array (..., min(n, p, q)) of float64
        From 0 to 1. Beyond the smaller rank they are 0. NaN if a side is constant.

    Raises
    ------
    TypeError, ValueError
        As ``cka``.

    Notes
    -----
    Directions count as noise and are ignored if their singular value, relative to the largest, is below max(n, p) times
    the resolution of the dtype. If one side has n - 1 independent features, all correlations are 1 for any features of
    the other side.

    References
    ----------
    Hotelling, Relations Between Two Sets of Variates, Biometrika 1936. docs/theory.md, section 5.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(30, 2))
    >>> canonical_correlations(x, x @ np.array([[1.0, 2.0], [3.0, 4.0]])).round(6).tolist()
    [1.0, 1.0]
    """
    return correlations(*prepare_pair(x, y))


def mean_cca(x: Array, y: Array) -> Array:
    """The mean canonical correlation of two layers.

    Parameters
    ----------
    x : array (..., n, p)
        Features, n >= 2.
    y : array (..., n, q)
        Features of the same samples.

    Returns
    -------
    array (...) of float64
        From 0 to 1: the mean over as many correlations as the smaller rank. NaN if a side is constant. For unrelated
        layers it is far above 0 unless n is far above the widths, and 1 if a rank is n - 1.

    Raises
    ------
    TypeError, ValueError
        As ``cka``.

    References
    ----------
    Raghu et al., SVCCA, NeurIPS 2017. Kornblith et al., Similarity of Neural Network Representations Revisited, ICML
    2019, table 1.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(30, 2))
    >>> round(float(mean_cca(x, x @ np.array([[1.0, 2.0], [3.0, 4.0]]))), 6)
    1.0
    """
    return mean_correlation(*prepare_pair(x, y))


def cca_r2(x: Array, y: Array) -> Array:
    """The mean squared canonical correlation of two layers.

    Parameters
    ----------
    x : array (..., n, p)
        Features, n >= 2.
    y : array (..., n, q)
        Features of the same samples.

    Returns
    -------
    array (...) of float64
        From 0 to 1; NaN if a side is constant. The mean over permutations of the samples is exactly the larger rank
        over n - 1.

    Raises
    ------
    TypeError, ValueError
        As ``cka``.

    References
    ----------
    Kornblith et al., Similarity of Neural Network Representations Revisited, ICML 2019, table 1 (R^2_CCA).

    Examples
    --------
    >>> import numpy as np
    >>> x, y = np.random.default_rng(0).normal(size=(2, 5, 8))
    >>> round(float(cca_r2(x, y)), 6)
    1.0
    """
    return mean_squared_correlation(*prepare_pair(x, y))


def svcca(x: Array, y: Array, *, variance: float = 0.99) -> Array:
    """The mean canonical correlation of the leading principal components of two layers.

    Parameters
    ----------
    x : array (..., n, p)
        Features, n >= 2.
    y : array (..., n, q)
        Features of the same samples.
    variance : float
        Share of the variance of each side to keep, by as few components as possible; above 0 and at most 1.

    Returns
    -------
    array (...) of float64
        From 0 to 1; NaN if a side is constant.

    Raises
    ------
    TypeError, ValueError
        As ``cka``, and if ``variance`` is not a number or out of range.

    References
    ----------
    Raghu et al., SVCCA: Singular Vector Canonical Correlation Analysis, NeurIPS 2017.

    Examples
    --------
    >>> import numpy as np
    >>> x, noise = np.random.default_rng(0).normal(size=(2, 200, 3))
    >>> y = x.copy()
    >>> y[:, 2] = 0.01 * noise[:, 2]
    >>> bool(svcca(x[:, :2], y) > 0.999 > mean_cca(x, y))
    True
    """
    return mean_correlation(*prepare_pair(x, y, variance=variance))


def pwcca(x: Array, y: Array) -> Array:
    """The mean canonical correlation of two layers, weighted by how strongly each direction is present in ``x``.

    Parameters
    ----------
    x : array (..., n, p)
        Features, n >= 2. The weights depend on the single columns, so a rotation of ``x`` changes the value.
    y : array (..., n, q)
        Features of the same samples.

    Returns
    -------
    array (...) of float64
        From 0 to 1; NaN if a side is constant. Not symmetric.

    Raises
    ------
    TypeError, ValueError
        As ``cka``.

    References
    ----------
    Morcos, Raghu, Bengio, Insights on Representational Similarity in Neural Networks with Canonical Correlation,
    NeurIPS 2018, section 2.2: the weight of variate h_i is sum_j |h_i . x_j|.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(30, 2))
    >>> round(float(pwcca(x, x @ np.array([[1.0, 2.0], [3.0, 4.0]]))), 6)
    1.0
    """
    return projection_weighted(*prepare_pair(x, y))
