"""Brute-force definitions in float64, as the papers write them. This module imports nothing from `cka_probe`.

Every function is slow on purpose: it loops over samples, tuples and permutations, without algebra.
"""

from __future__ import annotations

import math
from itertools import combinations, permutations

import numpy as np


def _rows(x) -> np.ndarray:
    return np.asarray(x, dtype=np.float64)


# --- kernels -----------------------------------------------------------------------------------------------------


def linear(u, v) -> float:
    return sum(float(a) * float(b) for a, b in zip(u, v, strict=True))


def distance(u, v) -> float:
    return math.sqrt(sum((float(a) - float(b)) ** 2 for a, b in zip(u, v, strict=True)))


def rbf(bandwidth):
    return lambda u, v: math.exp(-(distance(u, v) ** 2) / (2 * bandwidth**2))


def laplacian(bandwidth):
    return lambda u, v: math.exp(-distance(u, v) / bandwidth)


def polynomial(degree, offset, gamma):
    return lambda u, v: (gamma * linear(u, v) + offset) ** degree


def cosine(u, v) -> float:
    return linear(u, v) / math.sqrt(linear(u, u) * linear(v, v))


def gram(x, kernel=linear, y=None) -> np.ndarray:
    """The Gram matrix k(x_i, y_j), with one call for each entry."""
    x = _rows(x)
    y = x if y is None else _rows(y)
    return np.array([[kernel(u, v) for v in y] for u in x])


def median_distance(x) -> float:
    """The median over pairs i < j, by sorting them."""
    ordered = sorted(distance(u, v) for u, v in combinations(_rows(x), 2))
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


# --- HSIC and CKA ------------------------------------------------------------------------------------------------


def centring(n: int) -> np.ndarray:
    return np.eye(n) - np.ones((n, n)) / n


def unit_gram(K, centred=True) -> np.ndarray:
    """The Gram matrix, centred or not, divided by its Frobenius norm."""
    h = centring(len(K)) if centred else np.eye(len(K))
    K = h @ K @ h
    return K / np.linalg.norm(K)


def hsic0(K, L) -> float:
    """Gretton et al. 2005: tr(KHLH) / (n-1)^2."""
    n = len(K)
    h = centring(n)
    return float(np.trace(K @ h @ L @ h)) / (n - 1) ** 2


def hsic1_tuples(K, L) -> float:
    """Song et al. 2012: the U-statistic over all ordered tuples of four different samples."""
    n = len(K)
    total = 0.0
    for i, j, q, r in permutations(range(n), 4):
        total += K[i, j] * (L[i, j] + L[q, r] - 2 * L[i, q])
    return total / math.perm(n, 4)


def hsic1(K, L) -> float:
    """Song et al. 2012, equation 5, for more samples than `hsic1_tuples` can take."""
    n = len(K)
    K = K - np.diag(np.diag(K))
    L = L - np.diag(np.diag(L))
    one = np.ones(n)
    terms = (
        np.trace(K @ L) + (one @ K @ one) * (one @ L @ one) / ((n - 1) * (n - 2)) - 2 / (n - 2) * (one @ K @ L @ one)
    )
    return float(terms) / (n * (n - 3))


def centred_linear_gram(x) -> np.ndarray:
    x = _rows(x)
    x = x - x[0]
    x = x - x.mean(axis=0)
    return x @ x.T


def cka_grams(K, L, estimator="unbiased") -> float:
    hsic = hsic1 if estimator == "unbiased" else hsic0
    return hsic(K, L) / math.sqrt(hsic(K, K)) / math.sqrt(hsic(L, L))


def cka(x, y, estimator="unbiased") -> float:
    """Linear CKA in float64."""
    return cka_grams(centred_linear_gram(x), centred_linear_gram(y), estimator)


def permuted(K, order) -> np.ndarray:
    return K[np.ix_(order, order)]


def null_distribution(K, L, estimator="unbiased") -> np.ndarray:
    """CKA under every permutation of the samples of one side."""
    return np.array([cka_grams(permuted(K, list(p)), L, estimator) for p in permutations(range(len(K)))])


# --- uncertainty -------------------------------------------------------------------------------------------------


def leave_one_out(K, L, estimator="unbiased") -> np.ndarray:
    """CKA without sample i, for every i."""
    n = len(K)
    kept = [[j for j in range(n) if j != i] for i in range(n)]
    return np.array([cka_grams(permuted(K, rest), permuted(L, rest), estimator) for rest in kept])


def jackknife_error(values) -> float:
    """Tukey's standard error from the delete-one values."""
    values = np.asarray(values)
    n = len(values)
    return math.sqrt((n - 1) / n * sum((v - values.mean()) ** 2 for v in values))


def minibatch_cka(batches, estimator="unbiased") -> float:
    """Nguyen et al. 2021: the ratio of the means of minibatch HSIC, each batch weighted by its number of samples."""
    hsic = hsic1 if estimator == "unbiased" else hsic0
    cross = self_x = self_y = 0.0
    for x, y in batches:
        K, L = centred_linear_gram(x), centred_linear_gram(y)
        cross += len(K) * hsic(K, L)
        self_x += len(K) * hsic(K, K)
        self_y += len(K) * hsic(L, L)
    return cross / math.sqrt(self_x) / math.sqrt(self_y)


def minibatch_influence(batches) -> np.ndarray:
    """The influence of each batch on the ratio of means (docs/theory.md, section 4)."""
    terms = []
    for x, y in batches:
        K, L = centred_linear_gram(x), centred_linear_gram(y)
        terms.append([len(K) * hsic1(K, L), len(K) * hsic1(K, K), len(K) * hsic1(L, L)])
    h = np.array(terms)
    m = h.mean(axis=0)
    c = m[0] / math.sqrt(m[1] * m[2])
    return c * (h[:, 0] / m[0] - h[:, 1] / (2 * m[1]) - h[:, 2] / (2 * m[2]))


# --- few features ------------------------------------------------------------------------------------------------


def double_debiased(x, y) -> float:
    """CKA whose self terms use pairs of different features only, with one HSIC_1 for each pair."""
    x, y = _rows(x), _rows(y)

    def mean(a, b, different):
        pairs = [(r, s) for r in range(a.shape[1]) for s in range(b.shape[1]) if not (different and r == s)]
        return sum(hsic1(np.outer(a[:, r], a[:, r]), np.outer(b[:, s], b[:, s])) for r, s in pairs) / len(pairs)

    return mean(x, y, False) / math.sqrt(mean(x, x, True)) / math.sqrt(mean(y, y, True))


def double_debiased_error(x, y) -> float:
    """Root of the summed squares of three jackknife errors: over samples, features of x, features of y."""
    n, p, q = len(x), x.shape[1], y.shape[1]
    errors = (
        jackknife_error([double_debiased(np.delete(x, i, 0), np.delete(y, i, 0)) for i in range(n)]),
        jackknife_error([double_debiased(np.delete(x, r, 1), y) for r in range(p)]),
        jackknife_error([double_debiased(x, np.delete(y, s, 1)) for s in range(q)]),
    )
    return math.sqrt(sum(e**2 for e in errors))
