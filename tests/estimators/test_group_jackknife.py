"""Errors of any measure by leaving out blocks of samples: against a loop, and against the exact jackknife."""

import numpy as np
import pytest
from libraries import to_numpy
from numpy.testing import assert_allclose
from scipy import stats

from cka_probe.estimators import MEASURES, cka_matrix, cka_with_error, measure_matrix_with_error


def pair(rng, n, noise=1.0):
    x = rng.normal(size=(n, 4))
    return x, x @ rng.normal(size=(4, 3)) + noise * rng.normal(size=(n, 3))


@pytest.mark.parametrize("name", ["procrustes", "nbs", "rsa", "linear_regression_r2"])
def test_by_hand(name, xp, rng):
    x, y = pair(rng, 23)
    found = measure_matrix_with_error(name, [xp.asarray(x)], [xp.asarray(y)], blocks=5, level=0.9, seed=2)
    order = np.random.default_rng(2).permutation(23)
    values = []
    for block in range(5):
        out = {order[i] for i in range(23) if i % 5 == block}
        kept = [i for i in range(23) if i not in out]
        values.append(float(MEASURES[name].function(x[kept], y[kept])))
    error = np.sqrt(4 / 5 * sum((v - np.mean(values)) ** 2 for v in values))
    value = float(MEASURES[name].function(x, y))
    assert_allclose(to_numpy(found.value), [[value]], rtol=1e-10)
    assert_allclose(to_numpy(found.standard_error), [[error]], rtol=1e-8)
    assert_allclose(to_numpy(found.high), [[value + stats.t(4).ppf(0.95) * error]], rtol=1e-8)


def test_one_sample_a_block_is_the_exact_jackknife_of_cka(rng):
    x, y = pair(rng, 20)
    found = measure_matrix_with_error("cka", [x], [y], blocks=20)
    exact = cka_with_error(x, y)
    assert_allclose(found.standard_error[0, 0], exact.standard_error, rtol=1e-6)
    assert_allclose(found.low[0, 0], exact.low, rtol=1e-6)


def test_the_error_is_the_spread_over_data_sets(rng):
    """Mean of the errors within a third of the standard deviation over 60 draws from one population."""
    mixing = rng.normal(size=(4, 3))
    for name in ("nbs", "procrustes", "distance_correlation"):
        values, errors = [], []
        for _ in range(60):
            x = rng.normal(size=(80, 4))
            found = measure_matrix_with_error(name, [x], [x @ mixing + rng.normal(size=(80, 3))], blocks=10)
            values.append(found.value[0, 0])
            errors.append(found.standard_error[0, 0])
        assert 2 / 3 < np.mean(errors) / np.std(values) < 3 / 2


def test_all_pairs_of_one_network_and_constant_layers(rng):
    xs = [rng.normal(size=(30, 3)), rng.normal(size=(30, 2)), np.ones((30, 2))]
    found = measure_matrix_with_error("nbs", xs, blocks=6)
    assert_allclose(np.diag(found.standard_error)[:2], 0, atol=1e-9)
    assert np.isnan(found.standard_error[2]).all()
    assert_allclose(found.standard_error, found.standard_error.T)
    assert_allclose(measure_matrix_with_error("cka", xs, blocks=6).value, cka_matrix(xs))


def test_refused(rng):
    x, y = pair(rng, 12)
    for blocks, error in ((1, ValueError), (13, ValueError), (2.0, TypeError), (True, TypeError)):
        with pytest.raises(error, match="`blocks` must be"):
            measure_matrix_with_error("nbs", [x], [y], blocks=blocks)
    with pytest.raises(ValueError, match=r"With one of the 2 blocks left out, 6 samples remain\. .*`k`"):
        measure_matrix_with_error("mutual_knn", [x], [y], blocks=2, k=8)
    with pytest.raises(ValueError, match="`level`"):
        measure_matrix_with_error("nbs", [x], [y], level=95)
