"""Brute-force float64 definitions of the measures in the form of their papers, some computed by other libraries."""

import math

import numpy as np
import reference
import scipy.linalg
import scipy.spatial
import scipy.stats


def centred(x):
    return x - x.mean(axis=0)


def root(K):
    values, vectors = np.linalg.eigh(K)
    return vectors @ np.diag(np.sqrt(np.where(values > 1e-12 * values.max(), values, 0))) @ vectors.T


def nbs(x, y):
    """tr (K^1/2 L K^1/2)^1/2 / sqrt(tr K tr L), the fidelity of the Gram matrices."""
    K, L = centred(x) @ centred(x).T, centred(y) @ centred(y).T
    return np.trace(root(root(K) @ L @ root(K))) / math.sqrt(np.trace(K) * np.trace(L))


def best_rotation_distance(x, y):
    """Residual after the best orthogonal map, with features padded to one width."""
    x, y = (centred(z) / np.linalg.norm(centred(z)) for z in (x, y))
    width = max(x.shape[1], y.shape[1])
    x, y = (np.pad(z, ((0, 0), (0, width - z.shape[1]))) for z in (x, y))
    rotation, _ = scipy.linalg.orthogonal_procrustes(y, x)
    return np.linalg.norm(x - y @ rotation)


def variates(x, y):
    """Canonical variates of x and the correlations, from the eigenvalues of Cxx^-1 Cxy Cyy^-1 Cyx."""
    x, y = centred(x), centred(y)
    cxx, cyy, cxy = x.T @ x, y.T @ y, x.T @ y
    values, vectors = scipy.linalg.eigh(cxy @ np.linalg.solve(cyy, cxy.T), cxx)
    order = np.argsort(values)[::-1][: min(x.shape[1], y.shape[1])]
    return x @ vectors[:, order], np.sqrt(values[order])


def rhos(x, y):
    return variates(x, y)[1]


def principal(x, variance):
    """Scores of as few principal components as explain the share of the variance."""
    values, vectors = np.linalg.eigh(centred(x).T @ centred(x))
    values, vectors = values[::-1], vectors[:, ::-1]
    count = next(c for c in range(1, len(values) + 1) if values[:c].sum() >= variance * values.sum())
    return centred(x) @ vectors[:, :count]


def weighted(x, y):
    """Morcos et al. 2018: sum_i alpha_i rho_i, alpha_i = sum_j |h_i . x_j|."""
    h, rho = variates(x, y)
    alpha = [sum(abs(h[:, i] @ centred(x)[:, j]) for j in range(x.shape[1])) for i in range(len(rho))]
    return sum(a * r for a, r in zip(alpha, rho, strict=True)) / sum(alpha)


def regression(x, y):
    residual = [np.linalg.lstsq(centred(x), column)[0] for column in centred(y).T]
    fitted = np.stack([centred(x) @ b for b in residual], axis=1)
    return 1 - np.sum((centred(y) - fitted) ** 2) / np.sum(centred(y) ** 2)


def smoother(x, regularization):
    n = len(x)
    x = centred(x) * math.sqrt(n) / np.linalg.norm(centred(x))
    return x @ np.linalg.solve(x.T @ x + n * regularization * np.eye(x.shape[1]), x.T)


def neighbours(x, k):
    """For each sample, the set of the indices of its k nearest neighbours by cosine."""
    K = reference.gram(x, reference.cosine)
    return [set(sorted((j for j in range(len(x)) if j != i), key=lambda j: -K[i, j])[:k]) for i in range(len(x))]


def released(x, y, k):
    """CKNNA as in metrics.py of minyoungg/platonic-rep: equation 5 of Song et al. on masked Gram matrices."""
    n = len(x)

    def term(K, L, a, b):
        mask = [[1.0 if j in a[i] and j in b[i] else 0.0 for j in range(n)] for i in range(n)]
        K, L = np.array(mask) * K, np.array(mask) * L
        first = sum(K[i, j] * L[j, i] for i in range(n) for j in range(n))
        third = sum(K[i, j] * L[j, m] for i in range(n) for j in range(n) for m in range(n))
        return (first + K.sum() * L.sum() / ((n - 1) * (n - 2)) - 2 * third / (n - 2)) / (n * (n - 3))

    K, L = reference.gram(x, reference.cosine), reference.gram(y, reference.cosine)
    a, b = neighbours(x, k), neighbours(y, k)
    return term(K, L, a, b) / math.sqrt(term(K, K, a, a) * term(L, L, b, b))


def article(x, y, k):
    """Huh et al. 2024, appendix A."""
    n = len(x)

    def term(K, L, a, b):
        return sum(
            (K[i, j] - K[i].mean()) * (L[i, j] - L[i].mean())
            for i in range(n)
            for j in range(n)
            if j in a[i] and j in b[i]
        )

    K, L = reference.gram(x, reference.cosine), reference.gram(y, reference.cosine)
    a, b = neighbours(x, k), neighbours(y, k)
    return term(K, L, a, b) / math.sqrt(term(K, K, a, a) * term(L, L, b, b))


def similar(x, y):
    return rsa_by_scipy(x, y, "correlation", "spearman")


def rsa_by_scipy(x, y, metric, comparison):
    vectors = [scipy.spatial.distance.pdist(z, metric) for z in (x, y)]
    return (scipy.stats.spearmanr if comparison == "spearman" else scipy.stats.pearsonr)(*vectors)[0]


def uncentred(x, y):
    K, L = reference.gram(x), reference.gram(y)
    return np.sum(K * L) / math.sqrt(np.sum(K * K) * np.sum(L * L))


def row_mmd(x, y, kernel, centring=True):
    n = len(x)
    h = reference.centring(n) if centring else np.eye(n)
    rho, sigma = (math.sqrt(n) * h @ z @ z.T @ h / np.linalg.norm(h @ z @ z.T @ h) for z in (x, y))
    mean = lambda a, b: np.mean([[kernel(u, v) for v in b] for u in a])  # noqa: E731
    return mean(rho, rho) + mean(sigma, sigma) - 2 * mean(rho, sigma)


DEFINITIONS = {
    "procrustes": best_rotation_distance,
    "angular": lambda x, y: math.acos(nbs(x, y)),
    "nbs": nbs,
    "cca": lambda x, y: rhos(x, y).mean(),
    "cca_r2": lambda x, y: np.mean(rhos(x, y) ** 2),
    "svcca": lambda x, y: rhos(principal(x, 0.99), principal(y, 0.99)).mean(),
    "pwcca": weighted,
    "linear_regression_r2": regression,
    "gulp": lambda x, y: np.linalg.norm(smoother(x, 1e-2) - smoother(y, 1e-2)),
    "rsa": similar,
    "mutual_knn": lambda x, y: np.mean(
        [len(a & b) / 3 for a, b in zip(neighbours(x, 3), neighbours(y, 3), strict=True)]
    ),
    "cknna": lambda x, y: released(x, y, 4),
    "uncentred_alignment": uncentred,
    "mmd": lambda x, y: row_mmd(x, y, reference.rbf(1.0)),
}
