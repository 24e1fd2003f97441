"""Upper tails of the Pearson distributions with given skewness and excess kurtosis.

A gamma distribution has 1.5 times the squared skewness as excess kurtosis (type III). Those with more are a beta
distribution of the second kind (type VI) or, with still more, Pearson's type IV.
"""

from __future__ import annotations

from functools import cache

import numpy as np

__all__ = ["pearson3_sf", "pearson_sf"]

NODES = 20
"""Points of the Gauss-Legendre rule for the tail of type IV."""

LOWEST = 36.0
"""A tail is integrated until its density has fallen by exp(-36)."""

PAIRS = 2**14
"""Distributions of type IV that are integrated at once."""


def pearson3_sf(z: np.ndarray | float, skewness: np.ndarray | float) -> np.ndarray:
    """P(Z > z) for the Pearson III distribution with mean 0, variance 1 and the given skewness.

    It is a shifted Gamma distribution of shape 4 / skewness^2, mirrored for negative skewness; without skewness it is
    the normal distribution.
    """
    from scipy.special import gammainc, gammaincc, ndtr

    z, skewness = np.broadcast_arrays(np.asarray(z, dtype=float), np.asarray(skewness, dtype=float))
    # The incomplete Gamma function, and so scipy.stats.pearson3, loses its far tail at shapes above 1e6. There the cube
    # root of Wilson and Hilferty is used: it is normal, with a relative error of p of 2e-5 at z = 5 and 6e-4 at z = 10.
    small, tiny = np.abs(skewness) < 0.005, np.abs(skewness) < 1e-7
    g = np.where(tiny, 1.0, skewness)
    normal = ndtr(-np.where(tiny, z, (np.cbrt(1 + g * z / 2) - 1) * 6 / g + g / 6))
    shape = 4 / np.where(small, 1.0, skewness) ** 2
    at = np.maximum(shape + np.sqrt(shape) * z * np.sign(skewness), 0)
    return np.where(small, normal, np.where(skewness < 0, gammainc(shape, at), gammaincc(shape, at)))


def pearson_sf(z: np.ndarray | float, skewness: np.ndarray | float, excess_kurtosis: np.ndarray | float) -> np.ndarray:
    """P(Z > z) for the Pearson distribution with mean 0, variance 1 and this skewness and excess kurtosis.

    It is type III, whatever the excess kurtosis, where this is at most 1.5 times the squared skewness, or not finite:
    a distribution of lighter tails would end soon after its largest values, and give a p-value of 0 there.

    Parameters
    ----------
    z, skewness, excess_kurtosis : array or float
        Of shapes that broadcast.

    Returns
    -------
    array of float64
        NaN where ``z`` or ``skewness`` is.

    References
    ----------
    Johnson, Kotz, Balakrishnan, Continuous Univariate Distributions 1, 1994, chapter 12. Heinrich, A Guide to the
    Pearson Type IV Distribution, 2004.
    """
    z, g, e = np.broadcast_arrays(*(np.asarray(a, dtype=float) for a in (z, skewness, excess_kurtosis)))
    p = pearson3_sf(z, g)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        # r is the sum of the exponents of type VI, and minus that of the powers of type IV; it is -inf for type III.
        heavy = np.isfinite(z) & np.isfinite(g) & np.isfinite(e) & (e - 1.5 * g * g > 1e-6 * (1 + g * g))
        r = -6 * (e + 2 - g * g) / (2 * e - 3 * g * g)
        square = g * g * (r + 2) ** 2 + 16 * (r + 1)
    sixth, fourth = heavy & (square > 0), heavy & (square <= 0)
    # Where square is 0 the distribution is of type V, the limit of both, and neither formula is well conditioned.
    if np.any(sixth):
        p[sixth] = _sixth(z[sixth], g[sixth], r[sixth], square[sixth])
    if np.any(fourth):
        p[fourth] = _fourth(z[fourth], g[fourth], -r[fourth], -square[fourth])
    return p


def _sixth(z: np.ndarray, g: np.ndarray, r: np.ndarray, square: np.ndarray) -> np.ndarray:
    """Type VI: y, which has density y^(a-1) (1+y)^(-a-b), up to a shift, a scale and the sign of the skewness."""
    from scipy.special import betainc

    a = r / 2 * (1 + (r + 2) * np.abs(g) / np.sqrt(square))
    b = 1 - r
    scale = np.sqrt(a * (a + b - 1) / (b - 2)) / (b - 1)
    y = np.maximum(a / (b - 1) + np.sign(g) * z * scale, 0)
    return np.where(g > 0, betainc(b, a, 1 / (1 + y)), betainc(a, b, y / (1 + y)))


def _fourth(z: np.ndarray, g: np.ndarray, r: np.ndarray, square: np.ndarray) -> np.ndarray:
    """Type IV: density sin(t)^r exp(-v t) for 0 < t < pi, where cot(t) is z up to a shift and a scale."""
    p = np.empty_like(z)
    for start in range(0, len(z), PAIRS):
        part = slice(start, start + PAIRS)
        own, skew, power = z[part], np.abs(g[part]), r[part]
        root = np.maximum(np.sqrt(square[part]), 1e-9)  # of 16 (r-1) - g^2 (r-2)^2
        v = power * (power - 2) * skew / root
        mirrored = g[part] < 0
        t = np.arctan2(root / 4, np.where(mirrored, -own, own) + (power - 2) * skew / 4)
        mode = np.arctan2(power, v)
        before = t < mode
        whole = _tail(mode, power, v, np.zeros_like(t)) + _tail(mode, power, v, np.full_like(t, np.pi))
        share = np.exp(_log_density(t, power, v) - _log_density(mode, power, v)) / whole
        share *= _tail(t, power, v, np.where(before, 0.0, np.pi))
        # The tail on the far side of the mode is accurate; that with the mode is what remains.
        p[part] = np.where(before != mirrored, share, 1 - share)
    return p


@cache
def _rule() -> tuple[np.ndarray, np.ndarray]:
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    return nodes, weights


def _log_density(t: np.ndarray, r: np.ndarray, v: np.ndarray) -> np.ndarray:
    return r * np.log(np.sin(t)) - v * t


def _tail(t: np.ndarray, r: np.ndarray, v: np.ndarray, end: np.ndarray) -> np.ndarray:
    """The integral of the density between t and an end, 0 or pi, divided by its value at t; the mode is not between."""
    top = _log_density(t, r, v)
    # The second derivative of the log density is at most -r: Newton's steps from a point beyond come down to where the
    # log density is LOWEST below.
    far = t + np.sign(end - t) * np.minimum(np.sqrt(2 * LOWEST / r), 0.999 * np.abs(end - t))
    reached = _log_density(far, r, v) < top - LOWEST
    for _ in range(8):
        far = far - np.where(reached, (_log_density(far, r, v) - top + LOWEST) / (r / np.tan(far) - v), 0.0)
    far = np.where(reached, far, end)
    nodes, weights = _rule()
    half = (far - t) / 2
    s = t[:, None] + half[:, None] * (nodes + 1)
    inside = np.exp(_log_density(s, r[:, None], v[:, None]) - top[:, None])
    return np.abs(half) * (inside @ weights)
