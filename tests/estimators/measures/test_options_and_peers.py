"""Options of the measures of neighbours, matchings, folds and loops, against plain loops and other packages."""

import itertools
import math
import sys

import dcor
import measure_definitions as definitions
import numpy as np
import ot
import pytest
import reference
import rsatoolbox
from libraries import to_numpy
from numpy.testing import assert_allclose
from ripser import ripser
from scipy.spatial.distance import cdist
from sklearn.linear_model import Ridge

from cka_probe.estimators import (
    MEASURES,
    RBF,
    Distance,
    aligned_cosine,
    angular_distance,
    cka,
    cycle_knn,
    distance_correlation,
    edit_distance_knn,
    hard_correlation,
    held_out_cca,
    held_out_regression_r2,
    jaccard,
    lcs_knn,
    mutual_knn,
    partial_whitening_distance,
    permutation_procrustes,
    procrustes_size_and_shape,
    rank_similarity,
    rsa,
    rsa_corrected,
    rtd,
    second_order_cosine,
    soft_correlation,
    soft_matching,
)

# --- neighbours -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 2, 6, 13])
def test_number_of_neighbours(xp, pair, k):
    x, y = pair
    lists = list(zip(definitions.neighbour_lists(x, k), definitions.neighbour_lists(y, k), strict=True))
    sets = [(set(a), set(b)) for a, b in lists]
    expected = {
        jaccard: np.mean([len(a & b) / len(a | b) for a, b in sets]),
        rank_similarity: np.mean([definitions.rank_score(a, b) for a, b in lists]),
        edit_distance_knn: np.mean([definitions.edit_score(tuple(a), tuple(b)) for a, b in lists]),
        lcs_knn: np.mean([definitions.subsequence_score(a, b) for a, b in lists]),
        cycle_knn: definitions.cycle(x, y, k),
        second_order_cosine: definitions.second_order(x, y, k),
    }
    for function, value in expected.items():
        assert_allclose(float(function(xp.asarray(x), xp.asarray(y), k=k)), value, rtol=1e-10, err_msg=repr(function))


def test_both_forms_of_the_second_order_cosine(xp, pair):
    for form in ("paper", "released"):
        value = second_order_cosine(xp.asarray(pair[0]), xp.asarray(pair[1]), k=5, form=form)
        assert_allclose(float(value), definitions.second_order(*pair, 5, form), rtol=1e-10)
    with pytest.raises(ValueError, match='`form` must be "released" or "paper"'):
        second_order_cosine(*pair, k=5, form="resi")


def test_equal_samples_are_left_out_of_the_second_order_cosine(rng):
    """The distance of a sample to itself and to its copies is 0, so with k = 1 the vector of a copy is 0."""
    x, y = rng.normal(size=(2, 5, 3))
    x, y = np.concatenate([x, x[:1]]), np.concatenate([y, y[:1]])
    value = second_order_cosine(x, y, k=1, form="released")
    assert_allclose(value, definitions_without(x, y, {0, 5}), rtol=1e-10)


def definitions_without(x, y, left_out):
    K, L = 1 - reference.gram(x, reference.cosine), 1 - reference.gram(y, reference.cosine)
    cosines = []
    for i, (a, b) in enumerate(zip(definitions.neighbours(x, 1), definitions.neighbours(y, 1), strict=True)):
        if i not in left_out:
            u, v = K[i, sorted(a | b)], L[i, sorted(a | b)]
            cosines.append(u @ v / np.linalg.norm(u) / np.linalg.norm(v))
    return np.mean(cosines)


def test_the_kernel_decides_which_samples_are_neighbours(rng):
    x, y = rng.normal(size=(2, 20, 3)) + 2
    distances = [cdist(z, z) for z in (x, y)]
    near = [[set(np.argsort(d[i])[1:5].tolist()) for i in range(20)] for d in distances]
    expected = np.mean([len(a & b) / len(a | b) for a, b in zip(*near, strict=True)])
    assert_allclose(jaccard(x, y, k=4, kernel=RBF()), expected, rtol=1e-12)
    assert abs(jaccard(x, y, k=4) - expected) > 1e-3


def test_shared_neighbours_order_the_measures(rng):
    x = rng.normal(size=(40, 6))
    y = x + 0.5 * rng.normal(size=(40, 6))
    found = {f.__name__: float(f(x, y, k=8)) for f in (jaccard, mutual_knn, lcs_knn, edit_distance_knn)}
    assert found["jaccard"] < found["mutual_knn"]
    assert found["edit_distance_knn"] < found["lcs_knn"] < found["mutual_knn"]


@pytest.mark.parametrize("name", ["jaccard", "rank_similarity", "cycle_knn"])
def test_chance_with_the_default_k_is_the_mean_over_random_permutations(name):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 60, 5))
    measure = MEASURES[name]
    values = [measure.function(x[rng.permutation(60)], y) for _ in range(300)]
    assert abs(np.mean(values) - measure.chance(x, y)) < 4 * np.std(values) / math.sqrt(300)


# --- distance correlation ---------------------------------------------------------------------------------------------


def test_distance_correlation_agrees_with_dcor(xp, pair):
    x, y = (xp.asarray(z) for z in pair)
    assert_allclose(float(distance_correlation(x, y)), dcor.distance_correlation(*pair), rtol=1e-10)
    corrected = float(distance_correlation(x, y, bias_corrected=True))
    assert_allclose(corrected, dcor.u_distance_correlation_sqr(*pair), rtol=1e-10)


def test_bias_corrected_distance_correlation_is_the_unbiased_cka_of_the_distance_kernel(rng):
    x, y = rng.normal(size=(2, 20, 5))
    assert_allclose(distance_correlation(x, y, bias_corrected=True), cka(x, y, kernel=Distance()), rtol=1e-9)


def test_distance_correlation_of_equal_samples(rng):
    x = np.repeat(rng.normal(size=(6, 3)), 2, axis=0)
    y = np.repeat(rng.normal(size=(6, 300)), 2, axis=0)
    assert_allclose(distance_correlation(x, y), definitions.distance_correlation(x, y), rtol=1e-10)


# --- matching ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("size", [True, False])
def test_permutation_procrustes_with_and_without_mean_and_size(xp, pair, centred, size):
    value = permutation_procrustes(xp.asarray(pair[0]), xp.asarray(pair[1]), centred=centred, size=size)
    assert_allclose(float(value), definitions.best_order_distance(*pair, centred, size), rtol=1e-10)


def test_soft_matching_agrees_with_pot_and_with_the_permutation_distance(rng):
    x, y = rng.normal(size=(20, 6)), rng.normal(size=(20, 9))
    unit = [definitions.centred(z) * math.sqrt(z.shape[1]) / np.linalg.norm(definitions.centred(z)) for z in (x, y)]
    cost = ot.dist(unit[0].T, unit[1].T)
    assert_allclose(soft_matching(x, y) ** 2, ot.emd2(ot.unif(6), ot.unif(9), cost), rtol=1e-10)
    assert_allclose(soft_matching(x, y[:, :6]), permutation_procrustes(x, y[:, :6]), rtol=1e-10)


def test_soft_matching_is_a_metric():
    for seed in range(30):
        rng = np.random.default_rng(seed)
        x, y, z = (rng.normal(size=(6, p)) for p in rng.integers(1, 5, size=3))
        assert soft_matching(x, z) <= soft_matching(x, y) + soft_matching(y, z) + 1e-9


def test_soft_matching_of_layers_of_one_width_needs_no_pot(rng, monkeypatch):
    monkeypatch.setitem(sys.modules, "ot", None)
    monkeypatch.setattr("cka_probe.capture.extras.find_spec", lambda _: None)
    x, y = rng.normal(size=(2, 12, 3))
    assert soft_matching(x, y) > 0
    line = r"needs POT, which is not installed: pip install 'cka-probe\[matching\]'"
    with pytest.raises(ModuleNotFoundError, match=line):
        soft_matching(x, y[:, :2])


def test_a_constant_feature_matches_nothing(xp, rng):
    x, y = rng.normal(size=(12, 3)), rng.normal(size=(12, 3))
    x[:, 1] = 7.0
    r = np.zeros((3, 3))
    r[[0, 2]] = definitions.correlations(x[:, [0, 2]], y)
    soft = (r.max(axis=1).mean() + r.max(axis=0).mean()) / 2
    hard = max(np.mean([r[i, j] for i, j in enumerate(order)]) for order in itertools.permutations(range(3)))
    assert_allclose(float(soft_correlation(xp.asarray(x), xp.asarray(y))), soft, rtol=1e-10)
    assert_allclose(float(hard_correlation(xp.asarray(x), xp.asarray(y))), hard, rtol=1e-10)


# --- rotations --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.9, 1.0])
def test_partial_whitening_is_the_linear_metric_of_netrep(xp, pair, alpha):
    value = partial_whitening_distance(xp.asarray(pair[0]), xp.asarray(pair[1]), alpha=alpha)
    assert_allclose(float(value), definitions.whitened_angle(*pair, alpha), rtol=1e-10)


def test_the_ends_of_partial_whitening(pair, rng):
    x, y = pair
    assert_allclose(partial_whitening_distance(x, y, alpha=1.0), angular_distance(x, y), rtol=1e-12)
    rhos = definitions.rhos(x, y)
    expected = math.acos(rhos.sum() / math.sqrt(x.shape[1] * y.shape[1]))
    assert_allclose(partial_whitening_distance(x, y, alpha=0.0), expected, rtol=1e-10)
    skewed = x @ rng.normal(size=(4, 4))
    assert_allclose(partial_whitening_distance(skewed, y, alpha=0.0), expected, rtol=1e-9)


def test_the_distance_with_size_is_in_units_of_the_features(pair):
    x, y = pair
    assert_allclose(procrustes_size_and_shape(1e3 * x, 1e3 * y), 1e3 * procrustes_size_and_shape(x, y), rtol=1e-12)


def test_a_sample_of_zeros_is_left_out_of_the_aligned_cosine(pair):
    x, y = (np.concatenate([z, np.zeros((1, z.shape[1]))]) for z in pair)
    assert_allclose(aligned_cosine(x, y), definitions.aligned(*pair), rtol=1e-10)


# --- held-out samples -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folds", [2, 3, 4])
@pytest.mark.parametrize("seed", [0, 7])
def test_number_of_folds(xp, pair, folds, seed):
    x, y = (xp.asarray(z) for z in pair)
    value = held_out_regression_r2(x, y, folds=folds, seed=seed)
    assert_allclose(float(value), definitions.held_out_regression(*pair, folds, seed), rtol=1e-10)
    value = held_out_cca(x, y, folds=folds, seed=seed)
    assert_allclose(float(value), definitions.held_out_correlation(*pair, folds, seed), rtol=1e-10)


def test_held_out_ridge_regression_agrees_with_scikit_learn(pair):
    x, y = pair
    errors = total = 0.0
    for fitted, held in definitions.splits(len(x), 3):
        penalty = 0.1 * np.sum(definitions.centred(x[fitted]) ** 2)  # n times the mean squared norm
        missed = y[held] - Ridge(alpha=penalty).fit(x[fitted], y[fitted]).predict(x[held])
        errors, total = errors + np.sum(missed**2), total + np.sum((y[held] - y[fitted].mean(axis=0)) ** 2)
    assert_allclose(held_out_regression_r2(x, y, folds=3, regularization=0.1), 1 - errors / total, rtol=1e-9)


def test_held_out_samples_show_what_fitted_samples_hide(rng):
    """On the samples of the fit, wide unrelated layers have a correlation of 1."""
    x, y = rng.normal(size=(40, 200)), rng.normal(size=(40, 200))
    assert MEASURES["cca"].function(x, y) > 0.999
    assert abs(held_out_cca(x, y)) < 0.1
    assert held_out_regression_r2(x, y, regularization=1.0) < 0.05
    assert held_out_cca(x, x @ np.linalg.qr(rng.normal(size=(200, 200)))[0]) > 0.999


def test_a_side_that_is_constant_on_a_fit_is_nan(rng):
    x = np.zeros((12, 2))
    x[0] = 1.0
    y = rng.normal(size=(12, 3))
    for function in (held_out_regression_r2, held_out_cca):
        assert math.isnan(function(x, y, folds=2))


# --- topology ---------------------------------------------------------------------------------------------------------


def test_rtd_agrees_with_ripser_on_the_matrix_of_the_reference(rng):
    x = rng.normal(size=(40, 3))
    y = x + 0.5 * rng.normal(size=(40, 3))

    def one_order(a, b):
        d = np.block([[np.zeros((40, 40)), a.T], [a, np.minimum(a, b)]])
        bars = ripser(d, maxdim=1, distance_matrix=True)["dgms"][1]
        return np.sum(bars[:, 1] - bars[:, 0])

    a, b = (cdist(z, z) for z in (x, y))
    a, b = a / np.quantile(a, 0.9), b / np.quantile(b, 0.9)
    # ripser computes in float32.
    assert_allclose(rtd(x, y), (one_order(a, b) + one_order(b, a)) / 2, rtol=1e-5)


def test_rtd_of_more_samples_than_a_batch_is_the_mean_over_subsets(xp, rng):
    x = rng.normal(size=(20, 3))
    y = rng.normal(size=(20, 2))
    order = np.random.default_rng(5)
    subsets = [np.sort(order.permutation(20)[:8]) for _ in range(3)]
    expected = np.mean([definitions.topology_divergence(x[rows], y[rows]) for rows in subsets])
    value = rtd(xp.asarray(x), xp.asarray(y), batch=8, trials=3, seed=5)
    assert_allclose(float(value), expected, rtol=1e-10)


def test_rtd_without_ripser_names_the_extra(pair, monkeypatch):
    monkeypatch.setitem(sys.modules, "ripser", None)
    monkeypatch.setattr("cka_probe.capture.extras.find_spec", lambda _: None)
    with pytest.raises(ModuleNotFoundError, match=r"rtd needs ripser.*pip install 'cka-probe\[topology\]'"):
        rtd(*pair)


# --- noise ceiling ----------------------------------------------------------------------------------------------------


@pytest.fixture
def repeats(rng):
    x = rng.normal(size=(12, 6))
    return x, [x + rng.normal(size=(12, 6)) for _ in range(4)]


@pytest.mark.parametrize("comparison", ["spearman", "pearson"])
def test_rsa_and_its_noise_ceiling_by_plain_loops(xp, repeats, comparison):
    x, others = repeats
    found = rsa_corrected(xp.asarray(x), [xp.asarray(z) for z in others], comparison=comparison)
    vectors = [definitions.scipy.spatial.distance.pdist(z, "correlation") for z in others]
    if comparison == "spearman":
        vectors = [definitions.scipy.stats.rankdata(v) for v in vectors]
    vectors = [(v - v.mean()) / np.std(v) for v in vectors]
    corr = lambda u, v: np.corrcoef(u, v)[0, 1]  # noqa: E731
    upper = np.mean([corr(v, np.mean(vectors, axis=0)) for v in vectors])
    lower = np.mean([corr(v, np.mean([u for u in vectors if u is not v], axis=0)) for v in vectors])
    value = np.mean([definitions.rsa_by_scipy(x, z, "correlation", comparison) for z in others])
    assert_allclose([float(part) for part in found], [value, lower, upper, value / upper], rtol=1e-10)
    assert to_numpy(found.value).shape == ()


def test_the_noise_ceiling_agrees_with_rsatoolbox(repeats):
    x, others = repeats
    vectors = np.stack([definitions.scipy.spatial.distance.pdist(z, "euclidean") for z in others])
    lower, upper = rsatoolbox.inference.boot_noise_ceiling(rsatoolbox.rdm.RDMs(vectors), method="corr")
    found = rsa_corrected(x, others, comparison="pearson", dissimilarity="euclidean")
    assert_allclose([found.lower, found.upper], [lower, upper], rtol=1e-8)


def test_no_layer_is_above_the_noise_ceiling(repeats):
    x, others = repeats
    for layer in (x, others[0], sum(others) / len(others)):
        assert rsa_corrected(layer, others).corrected <= 1
    equal = rsa_corrected(x, [x, x])
    assert_allclose([float(part) for part in equal], 1, rtol=1e-12)


def test_rsa_agrees_with_rsatoolbox(pair):
    rdms = [rsatoolbox.rdm.calc_rdm(rsatoolbox.data.Dataset(z), method="correlation", remove_mean=False) for z in pair]
    for comparison, method in (("pearson", "corr"), ("spearman", "spearman")):
        expected = float(rsatoolbox.rdm.compare(*rdms, method=method)[0, 0])
        assert_allclose(rsa(*pair, comparison=comparison), expected, rtol=1e-8)


def test_bad_repeats_are_named(repeats):
    x, others = repeats
    with pytest.raises(ValueError, match="at least two repeats of the layer, got 1"):
        rsa_corrected(x, others[:1])
    with pytest.raises(ValueError, match=r"`x` has 12 samples and `repeats\[1\]` has 11"):
        rsa_corrected(x, [others[0], others[1][:11]])
    with pytest.raises(TypeError, match="must be a sequence of arrays"):
        rsa_corrected(x, others[0])


# --- bad options ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "function", [jaccard, second_order_cosine, rank_similarity, edit_distance_knn, lcs_knn, cycle_knn]
)
def test_bad_numbers_of_neighbours(pair, function):
    with pytest.raises(
        ValueError, match=r"`k` must be from 1 to 13 neighbours for 14 samples, got 14\. Pass more samples"
    ):
        function(*pair, k=14)
    with pytest.raises(TypeError, match="`k` must be an int, got float"):
        function(*pair, k=3.0)


def test_bad_options(pair):
    for function in (held_out_cca, held_out_regression_r2):
        with pytest.raises(ValueError, match=r"`folds` must be from 2 to 4 for 14 samples.*got 5\. Pass more samples"):
            function(*pair, folds=5)
        with pytest.raises(ValueError, match=r"`folds` must be at least 2, got 1"):
            function(*pair, folds=1)
        with pytest.raises(TypeError, match="`seed` must be an int, got str"):
            function(*pair, folds=2, seed="a")
        with pytest.raises(ValueError, match="`seed` must not be negative"):
            function(*pair, folds=2, seed=-1)
        for bad in (-1.0, math.inf, math.nan):
            with pytest.raises(ValueError, match="`regularization` must be not negative, and finite"):
                function(*pair, folds=2, regularization=bad)
        with pytest.raises(TypeError, match="`regularization` must be a number, got str"):
            function(*pair, folds=2, regularization="1")
    for bad in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="`alpha` must be from 0"):
            partial_whitening_distance(*pair, alpha=bad)
    with pytest.raises(TypeError, match="`alpha` must be a number, got str"):
        partial_whitening_distance(*pair, alpha="1")
    with pytest.raises(TypeError, match="`size` must be True or False, got 1"):
        permutation_procrustes(*pair, size=1)
    with pytest.raises(TypeError, match="`bias_corrected` must be True or False, got 'yes'"):
        distance_correlation(*pair, bias_corrected="yes")
    with pytest.raises(ValueError, match="`bias_corrected=True` needs at least 4 samples, got 3"):
        distance_correlation(pair[0][:3], pair[1][:3], bias_corrected=True)
    with pytest.raises(ValueError, match="`batch` must be at least 3, got 2"):
        rtd(*pair, batch=2)
    with pytest.raises(TypeError, match="`trials` must be an int, got float"):
        rtd(*pair, trials=2.0)


def test_an_unknown_option_gets_the_nearest():
    x = np.random.default_rng(0).normal(size=(12, 3))
    with pytest.raises(TypeError, match=r"`gulp` has no option `regularisation`\. Did you mean `regularization`"):
        MEASURES["gulp"].matrix([x], regularisation=1.0)
