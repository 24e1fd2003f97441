"""Double debiased CKA equals sums over pairs of features, its error equals recomputations, and its bias is small."""

import array_api_strict
import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st
from libraries import to_numpy
from numpy.testing import assert_allclose

from cka_probe.estimators import cka, cka_double_debiased


def pair(rng, n=9, p=4, q=5):
    z = rng.normal(size=(n, 2))
    return tuple(z @ rng.normal(size=(2, width)) + 0.3 * rng.normal(size=(n, width)) + 1 for width in (p, q))


@pytest.mark.parametrize(("n", "p", "q"), [(5, 4, 3), (9, 4, 5), (8, 12, 3)])
def test_equals_pairs_of_features(xp, rng, n, p, q):
    x, y = pair(rng, n, p, q)
    found = cka_double_debiased(xp.asarray(x), xp.asarray(y))
    assert found.value.dtype == xp.float64
    assert_allclose(float(found.value), reference.double_debiased(x, y), rtol=1e-9)


def test_error_equals_recomputations(xp, rng):
    x, y = pair(rng, 12, 5, 6)
    found = cka_double_debiased(xp.asarray(x), xp.asarray(y))
    assert_allclose(float(found.standard_error), reference.double_debiased_error(x, y), rtol=1e-7)
    assert float(found.high) - float(found.value) > 1.96 * float(found.standard_error)


def test_a_stack_equals_its_pairs_one_by_one(xp, rng):
    stack = [pair(rng) for _ in range(3)]
    x, y = (np.stack(side) for side in zip(*stack, strict=True))
    found = cka_double_debiased(xp.asarray(x), xp.asarray(y), level=0.9)
    for i, (a, b) in enumerate(stack):
        one = cka_double_debiased(a, b, level=0.9)
        for name in ("value", "standard_error", "low", "high"):
            assert_allclose(to_numpy(getattr(found, name))[i], getattr(one, name), rtol=1e-8)


@given(st.integers(0, 10**6), st.floats(-5, 5))
def test_does_not_see_scale_shift_or_order(seed, exponent):
    rng = np.random.default_rng(seed)
    x, y = pair(rng, 14, 6, 6)
    value = cka_double_debiased(x, y).value
    order = rng.permutation(14)
    for other in (10**exponent * x, x + rng.normal(size=6), x[:, ::-1]):
        assert_allclose(cka_double_debiased(other, y).value, value, rtol=1e-8)
    assert_allclose(cka_double_debiased(x[order], y[order]).value, value, rtol=1e-8)


def test_mean_over_draws_of_few_samples_and_features():
    """With 12 features of many, plain CKA gives 0.35 on average; the CKA of the layers is 0.79."""
    rng = np.random.default_rng(2)
    in_x, in_y = np.linspace(2, 0.1, 20), np.roll(np.linspace(2, 0.1, 20), 3) ** 2
    truth = np.sum(in_x * in_y) / np.sqrt(np.sum(in_x**2) * np.sum(in_y**2))
    z = rng.normal(size=(300, 64, 20))
    x, y = (z @ (np.sqrt(w)[:, None] * rng.normal(size=(300, 20, 12))) for w in (in_x, in_y))
    found = cka_double_debiased(x, y)
    assert abs(np.mean(found.value) - truth) < 0.05
    assert np.mean(cka(x, y)) < truth - 0.35
    assert np.mean((found.low < truth) & (truth < found.high)) >= 0.9
    assert np.std(found.value) < np.mean(found.standard_error) < 2 * np.std(found.value)


def test_many_features_leave_nothing_to_correct(rng):
    z = rng.normal(size=(40, 3))
    x, y = z @ rng.normal(size=(3, 600)), (z**3) @ rng.normal(size=(3, 600))
    assert_allclose(cka_double_debiased(x, y).value, cka(x, y), atol=1e-2)


def test_constant_layer(xp, rng):
    found = cka_double_debiased(xp.asarray(np.full((9, 4), 0.1)), xp.asarray(rng.normal(size=(9, 4))))
    assert np.isnan([float(found.value), float(found.standard_error), float(found.low)]).all()


def test_unrelated_features_may_have_no_value():
    """For white noise the self term is negative half the time. The value is NaN then."""
    rng = np.random.default_rng(0)
    found = cka_double_debiased(*rng.normal(size=(2, 100, 12, 4)))
    assert 0.5 < np.mean(np.isnan(found.value)) < 1


def test_refused(rng):
    x = rng.normal(size=(9, 4))
    with pytest.raises(ValueError, match=r"`y` has 2 features, but at least 3 are needed. Use `cka`"):
        cka_double_debiased(x, x[:, :2])
    with pytest.raises(ValueError, match=r"`x` has 4 samples, but this estimator needs at least 5"):
        cka_double_debiased(x[:4], x[:4])
    with pytest.raises(ValueError, match=r"`level` must lie between 0 and 1, got 95"):
        cka_double_debiased(x, x, level=95)
    with pytest.raises(TypeError, match=r"`x` is from numpy and `y` is from array_api_strict"):
        cka_double_debiased(x, array_api_strict.asarray(x))
