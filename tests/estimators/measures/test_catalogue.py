"""Every measure against its definition and other libraries, and the options of the measures."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import reference
import scipy.spatial
import torch
from array_api_compat import array_namespace
from libraries import to_numpy
from measure_definitions import (
    DEFINITIONS,
    NEIGHBOURS,
    OPTIONS,
    article,
    neighbours,
    principal,
    released,
    rhos,
    row_mmd,
    rsa_by_scipy,
    smoother,
)
from numpy.testing import assert_allclose
from sklearn.cross_decomposition import CCA
from sklearn.linear_model import LinearRegression
from sklearn.neighbors import NearestNeighbors

from cka_probe.estimators import (
    MEASURES,
    RBF,
    Laplacian,
    Linear,
    Polynomial,
    canonical_correlations,
    cka_mmd_bounds,
    cknna,
    gulp,
    layer_mmd_squared,
    linear_regression_r2,
    mean_cca,
    mutual_knn,
    normalized_bures_similarity,
    rsa,
    svcca,
)

NAMES = list(MEASURES)


def score(name, x, y):
    return MEASURES[name].function(x, y, **OPTIONS.get(name, {}))


# --- definitions ------------------------------------------------------------------------------------------------------


def test_every_measure_has_a_definition():
    assert set(DEFINITIONS) == set(MEASURES)


@pytest.mark.parametrize("name", NAMES)
class TestDefinition:
    def test_equals_its_definition(self, xp, pair, name):
        for x, y in (pair, pair[::-1]):
            value = score(name, xp.asarray(x), xp.asarray(y))
            assert_allclose(float(value), DEFINITIONS[name](x, y), rtol=1e-10, atol=1e-12)

    def test_returns_float64_of_the_same_library(self, xp, pair, name):
        x, y = (xp.asarray(z, dtype=xp.float32) for z in pair)
        value = score(name, x, y)
        assert array_namespace(value) is array_namespace(x)
        assert value.dtype == xp.float64
        assert value.shape == ()
        exact = score(name, *(np.asarray(to_numpy(z), dtype=float) for z in (x, y)))
        assert_allclose(float(value), exact, rtol=1e-12, atol=1e-12)

    def test_a_stack_equals_its_pairs_one_by_one(self, xp, rng, name):
        x, y = xp.asarray(rng.normal(size=(2, 2, 9, 3))), xp.asarray(rng.normal(size=(2, 2, 9, 4)))
        stacked = to_numpy(score(name, x, y))
        for i, j in itertools.product(range(2), range(2)):
            assert_allclose(stacked[i, j], float(score(name, x[i, j, ...], y[i, j, ...])), rtol=1e-10, atol=1e-12)

    def test_a_layer_with_itself(self, xp, pair, name):
        measure = MEASURES[name]
        x = xp.asarray(pair[0])
        value = float(score(name, x, 1 * x))
        expected = 0 if measure.kind == "distance" else 1
        if name == "cycle_knn":  # a sample need not be a neighbour of its neighbours
            expected = DEFINITIONS[name](*[pair[0]] * 2)
        assert_allclose(value, expected, atol=1e-12)

    def test_a_constant_layer_is_nan(self, xp, pair, name):
        y = xp.asarray(pair[0])
        x = xp.zeros((14, 2), dtype=xp.float64) if name == "uncentred_alignment" else xp.full((14, 2), 0.1 * 3)
        assert math.isnan(float(score(name, x, y)))
        assert math.isnan(float(score(name, y, x)))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision(self, pair, name, dtype):
        x, y = (torch.tensor(z).to(dtype) for z in pair)
        assert_allclose(score(name, x, y).item(), score(name, x.double(), y.double()).item(), rtol=1e-5, atol=1e-7)


SHIFTED = [
    name
    for name in NAMES
    if "shift" in MEASURES[name].invariances
    and name not in ("rsa", "procrustes_size_and_shape", "partial_whitening")  # their values depend on the scale
]


@pytest.mark.parametrize("name", SHIFTED)
def test_float32_features_of_every_scale_and_mean(name):
    # Features with few bits: float32 holds them exactly after a shift by 1024.
    x, y = (np.round(z * 2**6) / 2**6 for z in np.random.default_rng(0).normal(size=(2, 30, 4)))
    expected = score(name, x, y)
    for scale in (2.0**-33, 2.0**33):
        shifted = ((x + 1024) * scale).astype(np.float32), (y * scale).astype(np.float32)
        assert_allclose(score(name, *shifted), expected, rtol=1e-6, atol=1e-9)


def test_more_features_than_samples(xp, rng):
    """Shape distances reduce the width; regression and CCA give 1."""
    x, y = rng.normal(size=(8, 20)), rng.normal(size=(8, 30))
    names = ["procrustes", "angular", "nbs", "rsa", "mutual_knn", "cknna", "mmd", "uncentred_alignment", *NEIGHBOURS]
    names += [
        "distance_correlation",
        "soft_correlation",
        "soft_matching",
        "procrustes_size_and_shape",
        "aligned_cosine",
    ]
    for name in [*names, "rtd"]:
        value = float(score(name, xp.asarray(x), xp.asarray(y)))
        assert_allclose(value, DEFINITIONS[name](x, y), rtol=1e-9, atol=1e-12)
    for name in ("cca", "cca_r2", "pwcca", "linear_regression_r2"):
        assert_allclose(float(score(name, xp.asarray(x), xp.asarray(y))), 1, rtol=1e-9)
    P, R = smoother(x, 1e-2), smoother(y, 1e-2)
    assert_allclose(float(gulp(xp.asarray(x), xp.asarray(y))), np.linalg.norm(P - R), rtol=1e-9)


def test_dependent_features_change_nothing(xp, rng):
    x, y = rng.normal(size=(20, 3)), rng.normal(size=(20, 4))
    wide = xp.asarray(np.concatenate([x, x @ rng.normal(size=(3, 3))], axis=1))
    y_ = xp.asarray(y)
    for name in ("cca", "cca_r2", "linear_regression_r2"):
        assert_allclose(float(score(name, wide, y_)), DEFINITIONS[name](x, y), rtol=1e-8)
    assert_allclose(float(gulp(wide, y_, regularization=0)), np.linalg.norm(smoother(x, 0) - smoother(y, 0)), rtol=1e-8)
    correlations = to_numpy(canonical_correlations(wide, y_))
    assert_allclose(correlations, [*rhos(x, y), 0.0], atol=1e-8)


# --- other libraries --------------------------------------------------------------------------------------------------


def test_cca_agrees_with_scikit_learn(rng):
    x = rng.normal(size=(60, 3))
    y = x @ rng.normal(size=(3, 2)) + rng.normal(size=(60, 2))
    scores = CCA(n_components=2, tol=1e-12, max_iter=10_000).fit(x, y).transform(x, y)
    expected = [abs(np.corrcoef(scores[0][:, i], scores[1][:, i])[0, 1]) for i in range(2)]
    assert_allclose(canonical_correlations(x, y), sorted(expected, reverse=True), rtol=1e-5)


def test_procrustes_agrees_with_scipy(rng):
    x, y = rng.normal(size=(2, 20, 3))
    _, _, disparity = scipy.spatial.procrustes(x, y)
    assert_allclose(1 - normalized_bures_similarity(x, y) ** 2, disparity, rtol=1e-10)


def test_regression_agrees_with_scikit_learn(pair):
    x, y = pair
    fitted = LinearRegression().fit(x, y).predict(x)
    expected = 1 - np.sum((y - fitted) ** 2) / np.sum((y - y.mean(axis=0)) ** 2)
    assert_allclose(linear_regression_r2(x, y), expected, rtol=1e-10)


def test_neighbours_agree_with_scikit_learn(rng):
    x, y = rng.normal(size=(2, 40, 5))
    for metric, kernel in (("cosine", None), ("euclidean", RBF()), ("euclidean", RBF(bandwidth=1.0))):
        found = [
            NearestNeighbors(n_neighbors=6, metric=metric).fit(z).kneighbors(return_distance=False) for z in (x, y)
        ]
        expected = np.mean([len(set(a) & set(b)) / 6 for a, b in zip(*found, strict=True)])
        assert_allclose(mutual_knn(x, y, k=6, kernel=kernel), expected, rtol=1e-12)


@pytest.mark.parametrize("comparison", ["spearman", "pearson"])
@pytest.mark.parametrize("dissimilarity", ["correlation", "cosine", "euclidean"])
def test_rsa_agrees_with_scipy(xp, pair, comparison, dissimilarity):
    x, y = pair
    value = rsa(xp.asarray(x), xp.asarray(y), comparison=comparison, dissimilarity=dissimilarity)
    assert_allclose(float(value), rsa_by_scipy(x, y, dissimilarity, comparison), rtol=1e-9)


def test_rsa_gives_ties_their_mean_rank(xp):
    """Distances between small integers are often exactly equal."""
    rng = np.random.default_rng(3)
    x, y = rng.integers(0, 2, size=(2, 12, 2)).astype(float)
    value = rsa(xp.asarray(x), xp.asarray(y), dissimilarity="euclidean")
    expected = rsa_by_scipy(np.asarray(x), np.asarray(y), "euclidean", "spearman")
    assert_allclose(float(value), expected, rtol=1e-12)


# --- options ----------------------------------------------------------------------------------------------------------


def test_svcca_keeps_the_components_that_explain_the_variance(pair):
    x, y = pair
    for variance in (0.5, 0.9, 0.99):
        expected = rhos(principal(x, variance), principal(y, variance)).mean()
        assert_allclose(svcca(x, y, variance=variance), expected, rtol=1e-9)
    assert_allclose(svcca(x, y, variance=1.0), mean_cca(x, y), rtol=1e-12)


def test_regularization_of_gulp(pair):
    x, y = pair
    for regularization in (0.0, 1e-3, 1.0, 1e6):
        expected = np.linalg.norm(smoother(x, regularization) - smoother(y, regularization))
        assert_allclose(gulp(x, y, regularization=regularization), expected, rtol=1e-9)


@pytest.mark.parametrize("k", [1, 2, 5, 13])
def test_number_of_neighbours(xp, pair, k):
    x, y = pair
    expected = np.mean([len(a & b) / k for a, b in zip(neighbours(x, k), neighbours(y, k), strict=True)])
    assert_allclose(float(mutual_knn(xp.asarray(x), xp.asarray(y), k=k)), expected, rtol=1e-12)
    value = cknna(xp.asarray(x), xp.asarray(y), k=k, form="paper")
    assert_allclose(float(value), article(x, y, k), rtol=1e-9)
    if k > 1:
        assert_allclose(float(cknna(xp.asarray(x), xp.asarray(y), k=k)), released(x, y, k), rtol=1e-8)


def test_cknna_with_all_neighbours_is_unbiased_cka(rng):
    x, y = rng.normal(size=(2, 12, 3))
    K, L = reference.gram(x, reference.cosine), reference.gram(y, reference.cosine)
    assert_allclose(cknna(x, y, k=11), reference.cka_grams(K, L), rtol=1e-9)


def test_kernels_of_layer_mmd(xp, pair):
    x, y = pair
    cases = [
        (Polynomial(degree=2, offset=0.0, gamma=1.0), lambda u, v: reference.linear(u, v) ** 2),
        (Laplacian(bandwidth=2.0), reference.laplacian(2.0)),
        (RBF(bandwidth=0.5), reference.rbf(0.5)),
    ]
    for kernel, by_pairs in cases:
        for flag in (True, False):
            value = layer_mmd_squared(xp.asarray(x), xp.asarray(y), kernel=kernel, centred=flag)
            assert_allclose(float(value), row_mmd(x, y, by_pairs, flag), rtol=1e-9, atol=1e-12)
    linear = layer_mmd_squared(xp.asarray(x), xp.asarray(y), kernel=Linear())
    assert_allclose(float(linear), 0, atol=1e-14)


def test_layer_mmd_equals_the_mmd_of_cka_mmd_bounds(pair):
    terms = cka_mmd_bounds(*pair, tau=1.7)
    assert_allclose(layer_mmd_squared(*pair, kernel=RBF(bandwidth=1.7)), terms.gaussian_mmd_squared, rtol=1e-12)
    quadratic = Polynomial(degree=2, offset=0.0, gamma=1.0)
    assert_allclose(layer_mmd_squared(*pair, kernel=quadratic), terms.quadratic_mmd_squared, rtol=1e-9)


def test_the_table_of_docs_measures_agrees_with_the_code():
    text = (Path(__file__).parents[3] / "docs" / "measures.md").read_text(encoding="utf-8")
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| `")
    ]
    table = {row[0].strip("`"): row for row in rows if len(row) == 6}
    assert list(table) == list(MEASURES)
    for name, measure in MEASURES.items():
        _, function, kind, _, _, chance = table[name]
        assert function.strip("`") == measure.function.__name__
        assert kind.startswith(measure.kind), name
        assert ("not symmetric" in kind) != measure.symmetric, name
        assert (chance == "-") == (measure.chance is None), name
