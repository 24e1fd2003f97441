"""Invariances of the measures with negative controls, limits, symmetry, and chance levels."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from measure_definitions import NEIGHBOURS, OPTIONS
from numpy.testing import assert_allclose

from cka_probe.estimators import MEASURES, angular_distance, gulp, normalized_bures_similarity, procrustes_distance, rsa

NAMES = list(MEASURES)


def score(name, x, y):
    return MEASURES[name].function(x, y, **OPTIONS.get(name, {}))


# --- invariances and their negative controls --------------------------------------------------------------------------

SHIFT, SCALE, ROTATION, LINEAR, ORDER, SAMPLES = "shift", "scale", "rotation", "linear", "order", "samples"
SHAPE = {SHIFT, SCALE, ROTATION, ORDER}
INVARIANT = {  # changes of x, changes of y
    "procrustes": (SHAPE, SHAPE),
    "angular": (SHAPE, SHAPE),
    "nbs": (SHAPE, SHAPE),
    "cca": (SHAPE | {LINEAR}, SHAPE | {LINEAR}),
    "cca_r2": (SHAPE | {LINEAR}, SHAPE | {LINEAR}),
    "svcca": (SHAPE, SHAPE),
    "pwcca": ({SHIFT, SCALE, ORDER}, SHAPE | {LINEAR}),
    "linear_regression_r2": (SHAPE | {LINEAR}, SHAPE),
    "gulp": (SHAPE, SHAPE),
    "rsa": ({SCALE, ORDER, SAMPLES}, {SCALE, ORDER, SAMPLES}),
    "mutual_knn": ({SCALE, ROTATION, ORDER, SAMPLES}, {SCALE, ROTATION, ORDER, SAMPLES}),
    "cknna": ({SCALE, ROTATION, ORDER, SAMPLES}, {SCALE, ROTATION, ORDER, SAMPLES}),
    "uncentred_alignment": ({SCALE, ROTATION, ORDER}, {SCALE, ROTATION, ORDER}),
    "mmd": (SHAPE, SHAPE),
    "distance_correlation": (SHAPE, SHAPE),
    **{name: ({SCALE, ROTATION, ORDER, SAMPLES},) * 2 for name in NEIGHBOURS},
    **{name: ({SHIFT, SCALE, ORDER},) * 2 for name in ("soft_correlation", "hard_correlation")},
    **{name: ({SHIFT, SCALE, ORDER},) * 2 for name in ("soft_matching", "permutation_procrustes")},
    **{name: ({SHIFT, ROTATION, ORDER},) * 2 for name in ("procrustes_size_and_shape", "partial_whitening")},
    "aligned_cosine": ({SCALE, ROTATION, ORDER}, {SCALE, ROTATION, ORDER}),
    "held_out_regression_r2": (SHAPE | {LINEAR}, SHAPE),
    "held_out_cca": (SHAPE | {LINEAR}, SHAPE | {LINEAR}),
    "rtd": (SHAPE, SHAPE),
}


def changed(x, how, rng):
    p = x.shape[1]
    if how == SHIFT:
        return x + 4 * rng.normal(size=p)
    if how == SCALE:
        return x * 37.0
    if how == ROTATION:
        return x @ scipy.stats.ortho_group.rvs(p, random_state=rng)
    if how == LINEAR:
        # Neither a rotation nor a scale: lengths of columns and directions change.
        return x @ (np.diag(np.geomspace(0.05, 20, p)) @ scipy.stats.ortho_group.rvs(p, random_state=rng))
    if how == ORDER:
        return x[:, rng.permutation(p)]
    return x * rng.uniform(0.2, 5, size=(len(x), 1))  # a different factor for each sample


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("how", [SHIFT, SCALE, ROTATION, LINEAR, ORDER, SAMPLES])
@pytest.mark.parametrize("side", [0, 1])
def test_invariant_to_the_listed_changes_only(name, how, side):
    moved = []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(20, 4)) + 1
        pair = [x, x @ rng.normal(size=(4, 4)) + rng.normal(size=(20, 4))]
        before = score(name, *pair)
        pair[side] = changed(pair[side], how, rng)
        moved.append(abs(score(name, *pair) - before))
    if how in INVARIANT[name][side]:
        assert max(moved) < 1e-9
    else:
        assert max(moved) > 1e-3


def test_rsa_of_distances_is_invariant_to_shift_scale_and_rotation(pair):
    x, y = pair
    value = rsa(x, y, dissimilarity="euclidean")
    for how in (SHIFT, SCALE, ROTATION, LINEAR):
        after = rsa(changed(x, how, np.random.default_rng(0)), y, dissimilarity="euclidean")
        assert (abs(after - value) < 1e-9) == (how != LINEAR), how


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_the_samples_does_not_matter_and_the_pairing_does(name, pair, rng):
    x, y = pair
    order = rng.permutation(len(x))
    if not name.startswith("held_out"):  # the split into folds goes by place
        assert_allclose(score(name, x[order], y[order]), score(name, x, y), rtol=1e-9)
    assert abs(score(name, x[order], y) - score(name, x, y)) > 1e-3


@pytest.mark.parametrize("name", NAMES)
@given(seed=st.integers(0, 10_000), n=st.integers(6, 12), p=st.integers(1, 5), q=st.integers(1, 5))
def test_limits_and_symmetry(name, seed, n, p, q):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, p)), rng.normal(size=(n, q))
    if name == "rsa" and min(p, q) < 3:
        return  # the correlation over two features is 1 or -1, over one it is undefined
    if name == "cknna" and min(p, q) < 2:
        return  # the cosine of one feature is 1 or -1, so all nearest neighbours are ties
    measure = MEASURES[name]
    value = score(name, x, y)
    low, high = measure.limits
    assert np.isnan(value) == (name == "cknna" and np.isnan(value))
    assert np.isnan(value) or low - 1e-9 <= value <= high + 1e-9
    if measure.symmetric:
        assert_allclose(score(name, y, x), value, rtol=1e-7, atol=1e-9)


def test_measures_that_are_not_symmetric(pair):
    for name, measure in MEASURES.items():
        forth, back = score(name, *pair), score(name, *pair[::-1])
        assert (abs(forth - back) > 1e-3) == (not measure.symmetric), name


@given(seed=st.integers(0, 10_000))
def test_shape_distances_are_metrics(seed):
    x, y, z = np.random.default_rng(seed).normal(size=(3, 6, 2))
    for distance in (procrustes_distance, angular_distance, gulp):
        assert distance(x, z) <= distance(x, y) + distance(y, z) + 1e-9
    assert_allclose(procrustes_distance(x, y), math.sqrt(2 - 2 * normalized_bures_similarity(x, y)), rtol=1e-9)
    assert_allclose(math.cos(angular_distance(x, y)), normalized_bures_similarity(x, y), rtol=1e-9)


@given(st.floats(1e-12, 1e-3))
def test_small_distances_keep_their_digits(size):
    """Below 1e-8, 2 - 2 NBS and the difference of traces in GULP would be rounding errors only."""
    rng = np.random.default_rng(0)
    x, direction = rng.normal(size=(2, 12, 3))
    ratio = [f(x, x + 2 * size * direction) / f(x, x + size * direction) for f in (procrustes_distance, gulp)]
    assert_allclose(ratio, 2, rtol=max(20 * size, 1e-15 / size))


# --- chance -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in NAMES if MEASURES[name].chance])
def test_chance_is_the_mean_over_all_permutations(xp, name):
    x, y = np.random.default_rng(4).normal(size=(2, 5, 3)) + 0.3
    options = {"k": 2} if "k" in MEASURES[name].options else {}
    function, chance = MEASURES[name].function, MEASURES[name].chance
    mean = np.mean([function(x[list(order)], y, **options) for order in itertools.permutations(range(5))])
    assert_allclose(float(chance(xp.asarray(x), xp.asarray(y), **options)), mean, rtol=1e-10, atol=1e-12)


def test_chance_where_the_ranks_differ():
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(5, 2)), rng.normal(size=(5, 3))
    for name in ("cca_r2", "linear_regression_r2"):
        for a, b in ((x, y), (y, x)):
            mean = np.mean([score(name, a[list(order)], b) for order in itertools.permutations(range(5))])
            assert_allclose(MEASURES[name].chance(a, b), mean, rtol=1e-10)


def test_chance_of_mutual_knn_is_k_over_n_minus_1(rng):
    x, y = rng.normal(size=(2, 31, 4))
    assert_allclose(MEASURES["mutual_knn"].chance(x, y), 10 / 30)
