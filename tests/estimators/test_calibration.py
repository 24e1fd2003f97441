"""Counted p-values of any measure, corrected for the number of pairs, and scores that are scaled by the null."""

import itertools

import numpy as np
import pytest
import reference
from libraries import to_numpy
from numpy.testing import assert_allclose, assert_array_equal

from cka_probe.estimators import MEASURES, Calibration, MinibatchCKA, calibrate, cka_matrix, cka_matrix_test
from cka_probe.estimators.calibration import packed_rows, permuted_inner

NAMES = ("procrustes", "rsa", "mutual_knn", "cka", "pwcca")
OPTIONS = {"mutual_knn": {"k": 3}}


def layers(rng, count, n=12):
    return [rng.normal(size=(n, 3)) for _ in range(count)]


def orders(n, permutations, seed=0):
    generator = np.random.default_rng(seed)
    return [generator.permutation(n) for _ in range(permutations)]


def values(name, xs, ys):
    options = OPTIONS.get(name, {})
    return cka_matrix(xs, ys) if name == "cka" else MEASURES[name].matrix(xs, ys, **options).values


@pytest.mark.parametrize("name", NAMES)
def test_by_hand(name, xp, rng):
    """Every number from a loop over permutations and pairs."""
    xs, ys = layers(rng, 2), layers(rng, 3)
    ys[1] = xs[0] + 0.3 * ys[1]
    found = calibrate(
        name, [xp.asarray(x) for x in xs], [xp.asarray(y) for y in ys], permutations=39, **OPTIONS.get(name, {})
    )
    sign = -1 if name == "procrustes" else 1
    own = sign * to_numpy(values(name, xs, ys))
    null = np.array([sign * to_numpy(values(name, xs, [y[order] for y in ys])) for order in orders(12, 39)])
    every = np.concatenate([own[None], null])
    unit = (every - every.mean(0)) / every.std(0)
    for i, j in itertools.product(range(2), range(3)):
        drawn = null[:, i, j]
        at_least = sum(one >= own[i, j] - 1e-12 for one in drawn)
        assert_allclose(float(found.p_value[i, j]), (1 + at_least) / 40)
        maxima = [unit[b].max() for b in range(1, 40)]
        corrected = (1 + sum(one >= unit[0, i, j] - 1e-9 for one in maxima)) / 40
        assert_allclose(float(found.corrected_p_value[i, j]), corrected)
        assert_allclose(float(found.z_score[i, j]), (own[i, j] - drawn.mean()) / drawn.std(ddof=1), rtol=1e-6)
        assert_allclose(float(found.mean[i, j]), sign * drawn.mean(), rtol=1e-8, atol=1e-12)
        threshold = sorted(every[:, i, j])[37]  # 38 of 40, at level 0.05
        best = 0.0 if sign < 0 else 1.0
        assert_allclose(float(found.score[i, j]), (own[i, j] - threshold) / (best - threshold), rtol=1e-6, atol=1e-9)
        assert float(found.score[i, j]) <= 0 or float(found.p_value[i, j]) <= 0.05
    assert_allclose(to_numpy(found.value), sign * own)
    assert found.value.dtype == xp.float64


def test_equal_layers_score_1_and_the_smallest_p_value(rng):
    x = layers(rng, 1, 30)
    for name in ("procrustes", "rsa", "cka", "cca"):
        found = calibrate(name, x, permutations=19)
        assert_allclose([found.score, found.p_value, found.corrected_p_value], [[[1.0]], [[0.05]], [[0.05]]], atol=1e-7)


def test_constant_layers_are_nan_and_the_others_right(rng):
    xs = layers(rng, 2)
    alone = calibrate("nbs", xs, permutations=19)
    found = calibrate("nbs", [*xs, np.ones((12, 2))], permutations=19)
    for part in ("value", "z_score", "p_value", "corrected_p_value", "score"):
        array = getattr(found, part)
        assert np.isnan(array[2]).all()
        assert np.isnan(array[:, 2]).all()
        assert_allclose(array[:2, :2], getattr(alone, part))


def test_p_values_are_valid_under_the_null(rng):
    """P(p <= 0.1) is 0.1; so is that of the smallest of all corrected ones."""
    single, smallest = [], []
    for seed in range(200):
        xs, ys = [x[:, :1] ** 3 for x in layers(rng, 2, 8)], layers(rng, 3, 8)
        found = calibrate("distance_correlation", xs, ys, permutations=19, seed=seed)
        single.append(found.p_value[0, 0])
        smallest.append(found.corrected_p_value.min())
    for p in (single, smallest):
        assert abs(np.mean(np.array(p) <= 0.1) - 0.1) < 4 * np.sqrt(0.1 * 0.9 / 200)


def test_a_permutation_that_changes_nothing_counts():
    value = np.array([[0.5]])
    found = Calibration.of(value, [np.array([[0.5 - 1e-14]])] * 19)
    assert_array_equal(found.p_value, [[1.0]])
    assert np.isnan(found.z_score[0, 0])  # a null without spread has no scale


@pytest.mark.parametrize("diagonal", [False, True])
def test_permuted_inner_products(diagonal, xp, rng):
    n, grams = 7, rng.normal(size=(5, 7, 7))
    grams = grams + grams.transpose(0, 2, 1)
    if not diagonal:
        grams[:, range(n), range(n)] = 0
    rows = xp.asarray(grams.reshape(5, -1))
    left, right = (packed_rows(part, n, diagonal=diagonal) for part in (rows[:2, :], rows[2:, :]))
    found = permuted_inner(left, right, n, 6, np.random.default_rng(0), diagonal=diagonal)
    for one, order in zip(found, orders(n, 6), strict=True):
        expected = [[np.sum(a * reference.permuted(b, order)) for b in grams[2:]] for a in grams[:2]]
        assert_allclose(to_numpy(one), expected, atol=1e-12)


@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
def test_minibatches_are_permuted_within_themselves(estimator, xp, rng):
    batches = [(layers(rng, 2, n), layers(rng, 2, n)) for n in (6, 9)]
    statistics = MinibatchCKA(estimator=estimator, permutations=19, seed=3)
    for xs, ys in batches:
        statistics.update([xp.asarray(x) for x in xs], [xp.asarray(y) for y in ys])
    found = statistics.calibration()
    draws = [np.random.default_rng([3, index]) for index in range(2)]
    null = []
    for _ in range(19):
        shuffled = MinibatchCKA(estimator=estimator)
        for (xs, ys), generator in zip(batches, draws, strict=True):
            order = generator.permutation(len(xs[0]))
            shuffled.update(xs, [y[order] for y in ys])
        null.append(shuffled.compute())
    expected = Calibration.of(to_numpy(statistics.compute()), null)
    for part in ("value", "mean", "deviation", "p_value", "corrected_p_value", "score"):
        assert_allclose(to_numpy(getattr(found, part)), getattr(expected, part), rtol=1e-6, atol=1e-9)


def test_minibatches_merge_and_resume(rng):
    batches = [(layers(rng, 2, 6), layers(rng, 2, 6)) for _ in range(3)]
    whole, first, rest = (MinibatchCKA(permutations=19) for _ in range(3))
    uncounted = MinibatchCKA()
    uncounted.update(*batches[0])
    for xs, ys in batches:
        whole.update(xs, ys)
    first.update(*batches[0])
    rest.load_state_dict(first.state_dict())
    rest.update(*batches[1])
    rest.update(*batches[2])
    assert_array_equal(rest.calibration().p_value, whole.calibration().p_value)
    with pytest.raises(ValueError, match=r"The saved state has permutations=19, this one 0"):
        MinibatchCKA().load_state_dict(whole.state_dict())
    with pytest.raises(ValueError, match=r"Cannot merge: permutations=0 and 19"):
        MinibatchCKA().merge(whole)
    with pytest.raises(ValueError, match=r"No permutations were counted"):
        uncounted.calibration()


def test_cka_matrix_test_corrects_for_all_pairs(rng):
    xs = layers(rng, 3, 15)
    found = cka_matrix_test(xs, [xs[0] + 0.1 * xs[1], xs[2]], permutations=99)
    assert found.corrected_p_value[0, 0] == 0.01
    assert (found.corrected_p_value >= found.p_value - 1e-12).all()
    assert cka_matrix_test(xs).corrected_p_value is None


def test_refused(rng):
    xs = layers(rng, 1)
    for permutations, error in ((5, ValueError), (True, TypeError), (99.0, TypeError)):
        with pytest.raises(error, match="`permutations` must be"):
            calibrate("cka", xs, permutations=permutations)
    with pytest.raises(ValueError, match=r"`level` must lie between 0 and 1"):
        calibrate("cka", xs, level=1.5)
    with pytest.raises(ValueError, match=r"No measure is called 'prokrustes'"):
        calibrate("prokrustes", xs)
    with pytest.raises(TypeError, match=r"`mutual_knn` has no option `n_neighbours`"):
        calibrate("mutual_knn", xs, n_neighbours=3)
    with pytest.raises(ValueError, match="`permutations` must be at least 19"):
        MinibatchCKA(permutations=3)
