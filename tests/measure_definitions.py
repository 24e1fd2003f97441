"""Brute-force float64 definitions of the measures in the form of their papers, some computed by other libraries."""

import functools
import itertools
import math

import numpy as np
import reference
import scipy.linalg
import scipy.optimize
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


def distance_correlation(x, y):
    """Szekely, Rizzo, Bakirov 2007, definitions 3 and 4."""
    n = len(x)

    def doubly_centred(z):
        d = np.array([[math.dist(u, v) for v in z] for u in z])
        return np.array([[d[i, j] - d[i].mean() - d[:, j].mean() + d.mean() for j in range(n)] for i in range(n)])

    A, B = doubly_centred(x), doubly_centred(y)
    return math.sqrt(np.mean(A * B) / math.sqrt(np.mean(A * A) * np.mean(B * B)))


def neighbour_lists(x, k):
    """For each sample, the indices of its k nearest neighbours by cosine, the nearest first."""
    K = reference.gram(x, reference.cosine)
    return [sorted((j for j in range(len(x)) if j != i), key=lambda j: -K[i, j])[:k] for i in range(len(x))]


def mean_of_lists(score):
    return lambda x, y: np.mean(
        [score(a, b) for a, b in zip(neighbour_lists(x, 3), neighbour_lists(y, 3), strict=True)]
    )


def second_order(x, y, k, form="paper"):
    K, L = reference.gram(x, reference.cosine), reference.gram(y, reference.cosine)
    if form == "released":
        K, L = 1 - K, 1 - L
    cosines = []
    for i, (a, b) in enumerate(zip(neighbours(x, k), neighbours(y, k), strict=True)):
        places = sorted(a | b)
        u, v = K[i, places], L[i, places]
        cosines.append(u @ v / np.linalg.norm(u) / np.linalg.norm(v))
    return np.mean(cosines)


def rank_score(a, b):
    shared = set(a) & set(b)
    if not shared:
        return 0.0
    ranks = [(a.index(j) + 1, b.index(j) + 1) for j in shared]
    return sum(2 / ((1 + abs(r - s)) * (r + s)) for r, s in ranks) / sum(1 / m for m in range(1, len(shared) + 1))


def edit_score(a, b):
    @functools.cache
    def distance(i, j):
        if not i or not j:
            return i + j
        return min(distance(i - 1, j) + 1, distance(i, j - 1) + 1, distance(i - 1, j - 1) + (a[i - 1] != b[j - 1]))

    return 1 - distance(len(a), len(b)) / len(a)


def subsequence_score(a, b):
    def holds(some, every):
        rest = iter(every)
        return all(any(j == other for other in rest) for j in some)

    lengths = [m for m in range(len(a) + 1) if any(holds(some, b) for some in itertools.combinations(a, m))]
    return max(lengths) / len(a)


def cycle(x, y, k):
    a, b = neighbours(x, k), neighbours(y, k)
    return np.mean([any(i in a[j] for j in b[i]) for i in range(len(x))])


def correlations(x, y):
    return np.array([[np.corrcoef(u, v)[0, 1] for v in y.T] for u in x.T])


def soft(x, y):
    r = correlations(x, y)
    return (np.mean([max(row) for row in r]) + np.mean([max(column) for column in r.T])) / 2


def hard(x, y):
    r = correlations(x, y)
    r = r if r.shape[0] <= r.shape[1] else r.T
    orders = itertools.permutations(range(r.shape[1]), r.shape[0])
    return max(np.mean([r[i, j] for i, j in enumerate(order)]) for order in orders)


def best_order_distance(x, y, centring=True, size=False):
    x, y = (centred(z) if centring else z for z in (x, y))
    x, y = (z if size else z / np.linalg.norm(z) for z in (x, y))
    width = max(x.shape[1], y.shape[1])
    x, y = (np.pad(z, ((0, 0), (0, width - z.shape[1]))) for z in (x, y))
    return min(np.linalg.norm(x - y[:, order]) for order in itertools.permutations(range(width)))


def transport(x, y):
    """Uniform weights 1/p and 1/q are an assignment after each feature is repeated up to the common multiple."""
    x, y = (centred(z) * math.sqrt(z.shape[1]) / np.linalg.norm(centred(z)) for z in (x, y))
    count = math.lcm(x.shape[1], y.shape[1])
    x, y = (np.repeat(z, count // z.shape[1], axis=1) for z in (x, y))
    cost = np.array([[np.sum((u - v) ** 2) for v in y.T] for u in x.T])
    return math.sqrt(cost[scipy.optimize.linear_sum_assignment(cost)].mean())


def with_size(x, y):
    x, y = centred(x), centred(y)
    width = max(x.shape[1], y.shape[1])
    x, y = (np.pad(z, ((0, 0), (0, width - z.shape[1]))) for z in (x, y))
    rotation, _ = scipy.linalg.orthogonal_procrustes(y, x)
    return np.linalg.norm(x - y @ rotation)


def whitened_angle(x, y, alpha):
    """LinearMetric(alpha) of netrep (ahwillia/netrep, metrics/linear.py and utils.py), by matrix functions."""
    sides = []
    for z in (x, y):
        z = centred(z)
        root = np.real(scipy.linalg.sqrtm(z.T @ z))
        sides.append(z @ (alpha * np.eye(z.shape[1]) + (1 - alpha) * np.linalg.inv(root)))
    nuclear = np.linalg.svd(sides[0].T @ sides[1], compute_uv=False).sum()
    return math.acos(nuclear / np.linalg.norm(sides[0]) / np.linalg.norm(sides[1]))


def aligned(x, y):
    width = max(x.shape[1], y.shape[1])
    x, y = (np.pad(z, ((0, 0), (0, width - z.shape[1]))) for z in (x, y))
    x = x @ scipy.linalg.orthogonal_procrustes(x, y)[0]
    return np.mean([u @ v / np.linalg.norm(u) / np.linalg.norm(v) for u, v in zip(x, y, strict=True)])


def splits(n, folds, seed=0):
    order = np.random.default_rng(seed).permutation(n)
    for place in range(folds):
        held = set(order[place::folds].tolist())
        yield [i for i in range(n) if i not in held], sorted(held)


def held_out_regression(x, y, folds, seed=0):
    errors = total = 0.0
    for fitted, held in splits(len(x), folds, seed):
        design = np.column_stack([np.ones(len(x)), x])
        weights = np.linalg.lstsq(design[fitted], y[fitted])[0]
        errors += np.sum((y[held] - design[held] @ weights) ** 2)
        total += np.sum((y[held] - y[fitted].mean(axis=0)) ** 2)
    return 1 - errors / total


def held_out_correlation(x, y, folds, seed=0):
    scores = []
    for fitted, held in splits(len(x), folds, seed):
        u, v = centred(x[fitted]), centred(y[fitted])
        values, a = scipy.linalg.eigh(u.T @ v @ np.linalg.solve(v.T @ v, v.T @ u), u.T @ u)
        a = a[:, np.argsort(values)[::-1][: min(x.shape[1], y.shape[1])]]
        b = np.linalg.solve(v.T @ v, v.T @ u) @ a
        b = b / np.sqrt(np.sum((v @ b) ** 2, axis=0))  # all variates have the same variance on the fitted samples
        pairs = list(zip((x[held] @ a).T, (y[held] @ b).T, strict=True))
        variances = [sum(np.var(pair[side]) for pair in pairs) for side in (0, 1)]
        scores.append(sum(np.cov(s, t, bias=True)[0, 1] for s, t in pairs) / math.sqrt(variances[0] * variances[1]))
    return np.mean(scores)


def loops(a, b):
    """Total length of the bars of H_1 of the complex of IlyaTrofimov/RTD, by reduction of the boundary matrix mod 2."""
    n = len(a)
    d = np.block([[np.zeros((n, n)), a.T], [a, np.minimum(a, b)]])
    d[d < 1e-6 * a.mean()] = 0
    edges = sorted(itertools.combinations(range(2 * n), 2), key=lambda e: d[e])
    place = {edge: i for i, edge in enumerate(edges)}
    value = [d[edge] for edge in edges]
    sides = lambda t: [place[t[0], t[1]], place[t[0], t[2]], place[t[1], t[2]]]  # noqa: E731
    triangles = sorted((sides(t) for t in itertools.combinations(range(2 * n), 3)), key=lambda s: value[max(s)])
    reduced, total = {}, 0.0
    for triangle in triangles:
        column = set(triangle)
        while column and max(column) in reduced:
            column ^= reduced[max(column)]
        if column:
            reduced[max(column)] = column
            total += value[max(triangle)] - value[max(column)]
    return total


def topology_divergence(x, y):
    a, b = (scipy.spatial.distance.cdist(z, z) for z in (x, y))
    a, b = a / np.quantile(a, 0.9), b / np.quantile(b, 0.9)
    return (loops(a, b) + loops(b, a)) / 2


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
    "distance_correlation": distance_correlation,
    "jaccard": mean_of_lists(lambda a, b: len(set(a) & set(b)) / len(set(a) | set(b))),
    "second_order_cosine": lambda x, y: second_order(x, y, 3),
    "rank_similarity": mean_of_lists(rank_score),
    "edit_distance_knn": mean_of_lists(edit_score),
    "lcs_knn": mean_of_lists(subsequence_score),
    "cycle_knn": lambda x, y: cycle(x, y, 3),
    "soft_correlation": soft,
    "hard_correlation": hard,
    "soft_matching": transport,
    "permutation_procrustes": best_order_distance,
    "procrustes_size_and_shape": with_size,
    "partial_whitening": lambda x, y: whitened_angle(x, y, 0.5),
    "aligned_cosine": aligned,
    "held_out_regression_r2": lambda x, y: held_out_regression(x, y, 2),
    "held_out_cca": lambda x, y: held_out_correlation(x, y, 2),
    "rtd": topology_divergence,
}

NEIGHBOURS = ("jaccard", "second_order_cosine", "rank_similarity", "edit_distance_knn", "lcs_knn", "cycle_knn")

# The definitions above have few neighbours and few folds, so that few samples are enough.
OPTIONS = {
    "mutual_knn": {"k": 3},
    "cknna": {"k": 4},
    **{name: {"k": 3} for name in NEIGHBOURS},
    "held_out_regression_r2": {"folds": 2},
    "held_out_cca": {"folds": 2},
}
