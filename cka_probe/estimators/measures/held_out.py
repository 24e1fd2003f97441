"""Linear regression and CCA between layers, fitted to some samples and evaluated on others."""

from __future__ import annotations

import math
from functools import partial
from numbers import Integral, Real
from typing import NamedTuple

import numpy as np
from array_api_compat import array_namespace

from ..distances import safe_sqrt
from ..hsic import scaled_features
from ..validation import Array, check_pair

__all__ = [
    "Fold",
    "held_out_cca",
    "held_out_correlation",
    "held_out_r2",
    "held_out_regression_r2",
    "prepare",
]

SMALLEST_FOLD = 3
"""Smallest number of held-out samples: the correlation over two samples is 1 or -1."""


class Fold(NamedTuple):
    """One layer, split into fitted and held-out samples; both are centred by the mean of the fitted samples.

    ``basis`` (..., m, r) holds the left singular vectors of the fitted samples, ``held`` (..., h, r) the same
    coordinates of the held-out samples. Both are 0 beyond the rank. ``shrinkage`` (..., r) holds the eigenvalues of the
    smoother of a ridge regression. ``undefined`` is NaN for a layer that is constant on the fitted samples, else 0.
    """

    basis: Array
    held: Array
    shrinkage: Array
    fitted_features: Array
    held_features: Array
    rank: Array
    undefined: Array


def _check(folds: int, regularization: float, seed: int, n: int) -> None:
    for value, name in ((folds, "folds"), (seed, "seed")):
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise TypeError(f"`{name}` must be an int, got {type(value).__name__}.")
    if isinstance(regularization, bool) or not isinstance(regularization, Real):
        raise TypeError(f"`regularization` must be a number, got {type(regularization).__name__}.")
    if not 0 <= regularization < math.inf:
        raise ValueError(f"`regularization` must be not negative, and finite, got {regularization!r}.")
    if seed < 0:
        raise ValueError(f"`seed` must not be negative, got {seed}.")
    if folds < 2:
        raise ValueError(f"`folds` must be at least 2, got {folds}.")
    if folds > n // SMALLEST_FOLD:
        raise ValueError(
            f"`folds` must be from 2 to {n // SMALLEST_FOLD} for {n} samples, so that each fold has at least "
            f"{SMALLEST_FOLD}, got {folds}. Pass more samples or fewer `folds`."
        )


def prepare(x: Array, *, folds: int = 5, regularization: float = 0.0, seed: int = 0) -> list[Fold]:
    """All splits of one layer from its checked features (..., n, p)."""
    n, p = x.shape[-2:]
    _check(folds, regularization, seed, n)
    xp = array_namespace(x)
    resolution = float(xp.finfo(x.dtype).eps)
    z, _ = scaled_features(xp.astype(x, xp.float64))
    order = np.random.default_rng(seed).permutation(n)
    splits = []
    for place in range(folds):
        held = np.sort(order[place::folds])
        fitted = np.setdiff1d(np.arange(n), held)
        inside, outside = (
            xp.take(z, xp.asarray(rows, dtype=xp.int64, device=z.device), axis=-2) for rows in (fitted, held)
        )
        mean = xp.mean(inside, axis=-2, keepdims=True)
        inside, outside = inside - mean, outside - mean
        basis, spread, directions = xp.linalg.svd(inside, full_matrices=False)
        # Features are rounding errors below this part of the largest of all samples, also on the fitted ones.
        kept = spread > max(n, p) * resolution * spread[..., :1]
        kept = kept & (spread > 64 * float(xp.finfo(xp.float64).eps))
        weight = xp.astype(kept, xp.float64)
        safe = xp.where(kept, spread, xp.ones_like(spread))
        squares = spread * spread * weight
        total = xp.sum(squares, axis=-1, keepdims=True)
        penalty = regularization * xp.where(total > 0, total, xp.ones_like(total))
        rank = xp.sum(weight, axis=-1)
        splits.append(
            Fold(
                basis=basis * weight[..., None, :],
                held=outside @ xp.matrix_transpose(directions) * (weight / safe)[..., None, :],
                shrinkage=squares / (squares + penalty + (1 - weight)),
                fitted_features=inside,
                held_features=outside,
                rank=rank,
                undefined=xp.where(rank > 0, xp.zeros_like(rank), xp.full_like(rank, xp.nan)),
            )
        )
    return splits


def held_out_r2(x: list[Fold], y: list[Fold]) -> Array:
    """Share of the variance of held-out samples of y that regressions on x explain, of two prepared layers."""
    xp = array_namespace(x[0].basis)
    residual = total = xp.asarray(0.0, dtype=xp.float64, device=x[0].basis.device)
    for a, b in zip(x, y, strict=True):
        weights = xp.matrix_transpose(a.basis) @ b.fitted_features
        missed = b.held_features - (a.held * a.shrinkage[..., None, :]) @ weights
        residual = residual + xp.sum(missed * missed, axis=(-2, -1)) + a.undefined + b.undefined
        total = total + xp.sum(b.held_features * b.held_features, axis=(-2, -1))
    return 1 - residual / xp.where(total > 0, total, xp.full_like(total, xp.nan))


def held_out_correlation(x: list[Fold], y: list[Fold]) -> Array:
    """Mean over folds of the correlation of canonical variates on held-out samples, of two prepared layers."""
    xp = array_namespace(x[0].basis)
    values = xp.asarray(0.0, dtype=xp.float64, device=x[0].basis.device)
    for a, b in zip(x, y, strict=True):
        roots = [safe_sqrt(xp, side.shrinkage)[..., None, :] for side in (a, b)]
        left, _, right = xp.linalg.svd(
            xp.matrix_transpose(a.basis * roots[0]) @ (b.basis * roots[1]), full_matrices=False
        )
        variates = [(a.held * roots[0]) @ left, (b.held * roots[1]) @ xp.matrix_transpose(right)]
        u, v = (z - xp.mean(z, axis=-2, keepdims=True) for z in variates)
        # All pairs together: where canonical correlations are equal, as in layers with more features than samples, the
        # single variates are determined up to a rotation only, which does not change these sums.
        smaller = xp.where(a.rank < b.rank, a.rank, b.rank)
        places = xp.arange(u.shape[-1], dtype=xp.float64, device=u.device)
        counted = xp.astype(places < smaller[..., None], xp.float64)[..., None, :]
        u, v = u * counted, v * counted
        norms = safe_sqrt(xp, xp.sum(u * u, axis=(-2, -1))) * safe_sqrt(xp, xp.sum(v * v, axis=(-2, -1)))
        correlation = xp.sum(u * v, axis=(-2, -1)) / xp.where(norms > 0, norms, xp.ones_like(norms))
        values = values + correlation + a.undefined + b.undefined
    return values / len(x)


def held_out_regression_r2(x: Array, y: Array, *, folds: int = 5, regularization: float = 0.0, seed: int = 0) -> Array:
    """The share of the variance of ``y`` that linear regressions on ``x`` explain, on samples that they did not see.

    Parameters
    ----------
    x : array (..., n, p)
        Features that predict, n >= 6.
    y : array (..., n, q)
        Features of the same samples that are predicted.
    folds : int
        Number of parts of the samples, each of at least 3. Each part is predicted by a regression fitted to the others.
    regularization : float
        lambda of a ridge regression, relative to the mean squared norm of the fitted samples, as in ``gulp``; 0 is
        ordinary least squares.
    seed : int
        Seed of the random split of the samples into folds; all libraries give the same split.

    Returns
    -------
    array (...) of float64
        1 - (squared errors of all held-out samples) / (their squared distances from the mean of the fitted samples). At
        most 1; negative if predictions are worse than that mean. Not symmetric. NaN if a side is constant on the
        samples of a fit.

    Raises
    ------
    TypeError, ValueError
        As ``cka``, and if an option is of the wrong type or out of range.

    References
    ----------
    Schrimpf et al., Brain-Score, 2018 (linear predictivity on held-out stimuli). Kornblith et al., Similarity of Neural
    Network Representations Revisited, ICML 2019, section 5 (without held-out samples).

    Examples
    --------
    >>> import numpy as np
    >>> x, y = np.random.default_rng(0).normal(size=(2, 30, 20))
    >>> round(float(held_out_regression_r2(x, x + 1)), 6), bool(held_out_regression_r2(x, y) < 0)
    (1.0, True)
    """
    _, x, y = check_pair(x, y, minimum=2 * SMALLEST_FOLD)
    layer = partial(prepare, folds=folds, regularization=regularization, seed=seed)
    return held_out_r2(layer(x), layer(y))


def held_out_cca(x: Array, y: Array, *, folds: int = 5, regularization: float = 0.0, seed: int = 0) -> Array:
    """The canonical correlation of two layers on samples to which the canonical directions were not fitted.

    Parameters
    ----------
    x : array (..., n, p)
        Features, n >= 6.
    y : array (..., n, q)
        Features of the same samples.
    folds, regularization, seed
        As ``held_out_regression_r2``; ``regularization`` is added to both covariances.

    Returns
    -------
    array (...) of float64
        From -1 to 1, near 0 for unrelated layers of any width: the mean over the folds of sum_i cov(u_i, v_i) /
        sqrt(sum_i var(u_i) sum_i var(v_i)) of the held-out canonical variates u_i and v_i, as many as the smaller rank.
        NaN if a side is constant on the samples of a fit.

    Raises
    ------
    TypeError, ValueError
        As ``held_out_regression_r2``.

    References
    ----------
    Bilenko and Gallant, Pyrcca: Regularized Kernel Canonical Correlation Analysis in Python, Frontiers in
    Neuroinformatics 2016 (prediction of held-out samples).

    Examples
    --------
    >>> import numpy as np
    >>> x, y = np.random.default_rng(0).normal(size=(2, 300, 20))
    >>> bool(held_out_cca(x, x @ np.diag(np.arange(1.0, 21))) > 0.999), bool(abs(held_out_cca(x, y)) < 0.2)
    (True, True)
    """
    _, x, y = check_pair(x, y, minimum=2 * SMALLEST_FOLD)
    layer = partial(prepare, folds=folds, regularization=regularization, seed=seed)
    return held_out_correlation(layer(x), layer(y))
