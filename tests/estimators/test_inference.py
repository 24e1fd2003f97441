"""Jackknife errors, intervals and the influence of samples equal n recomputations."""

import dataclasses
import warnings

import array_api_strict
import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st
from libraries import to_numpy
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats

from cka_probe.estimators import (
    RBF,
    Cosine,
    Linear,
    OutlierWarning,
    cka_matrix,
    cka_matrix_with_error,
    cka_with_error,
    leave_one_out,
    sample_influence,
)
from cka_probe.estimators.hsic import CentredFeatures, CentredGram, inner, row_inner

ESTIMATORS = pytest.mark.parametrize("estimator", ["unbiased", "biased"])


def layers(rng, n=11, widths=(3, 30, 5)):
    x = rng.normal(size=(n, widths[0]))
    found = [x]
    for width in widths[1:]:
        found.append(found[-1] @ rng.normal(size=(found[-1].shape[1], width)) + 2 * rng.normal(size=(n, width)) + 1)
    return found


def recomputed(x, y, estimator, by_pairs=None):
    """CKA without each sample, from Gram matrices without its row and column."""
    grams = [reference.centred_linear_gram(f) if by_pairs is None else reference.gram(f, by_pairs) for f in (x, y)]
    return reference.leave_one_out(*grams, estimator)


@ESTIMATORS
class TestOnePair:
    @pytest.mark.parametrize(("p", "q"), [(2, 3), (40, 30), (1, 25)])
    @pytest.mark.parametrize("n", [5, 6, 12])
    def test_equals_n_recomputations(self, xp, rng, estimator, p, q, n):
        x, y = layers(rng, n, (p, q))
        values = recomputed(x, y, estimator)
        found = cka_with_error(xp.asarray(x), xp.asarray(y), estimator=estimator)
        assert_allclose(float(found.value), reference.cka(x, y, estimator), rtol=1e-10)
        assert_allclose(float(found.standard_error), reference.jackknife_error(values), rtol=1e-8)
        assert found.standard_error.dtype == xp.float64
        influence = sample_influence(xp.asarray(x), xp.asarray(y), estimator=estimator)
        assert_allclose(to_numpy(influence), reference.cka(x, y, estimator) - values, atol=1e-9)

    def test_other_kernels(self, xp, rng, estimator):
        x, y = layers(rng, 9, (3, 4))
        found = cka_with_error(xp.asarray(x), xp.asarray(y), kernel=RBF(bandwidth=2.0), estimator=estimator)
        values = recomputed(x, y, estimator, reference.rbf(2.0))
        assert_allclose(float(found.standard_error), reference.jackknife_error(values), rtol=1e-8)
        values = reference.leave_one_out(reference.gram(x, reference.cosine), reference.gram(y), estimator)
        found = cka_with_error(xp.asarray(x), xp.asarray(y), kernel=Cosine(), kernel_y=None, estimator=estimator)
        both_cosine = recomputed(x, y, estimator, reference.cosine)
        assert_allclose(float(found.standard_error), reference.jackknife_error(both_cosine), rtol=1e-8)

    def test_interval(self, xp, rng, estimator):
        x, y = layers(rng, 12, (3, 4))
        for level in (0.5, 0.95, 0.99):
            found = cka_with_error(xp.asarray(x), xp.asarray(y), estimator=estimator, level=level)
            kurtosis = stats.kurtosis(recomputed(x, y, estimator), fisher=False)
            degrees = min(11, 24 / (kurtosis - 1 + 2 / 11))
            half = stats.t(degrees).ppf(0.5 + level / 2) * float(found.standard_error)
            assert_allclose([float(found.low), float(found.high)], float(found.value) + np.array([-half, half]))
            assert found.level == level

    def test_few_samples_with_most_of_the_variance_widen_the_interval(self, xp, rng, estimator):
        """100 samples, of which 3 are far: the error is known as badly as from few samples."""
        x, noise = rng.normal(size=(2, 100, 3))
        half = []
        for far in (1.0, 6.0):
            x[:3] *= far
            y = x + noise
            y[2] *= 1 if far == 1 else -1
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", OutlierWarning)
                found = cka_with_error(xp.asarray(x), xp.asarray(y), estimator=estimator)
            half.append(float(found.high - found.value) / float(found.standard_error) / stats.t(99).ppf(0.975))
        assert 0.999 < half[0] < 1.15 < half[1]

    def test_a_stack_equals_its_pairs_one_by_one(self, xp, rng, estimator):
        x, y = rng.normal(size=(2, 3, 9, 4)), rng.normal(size=(3, 9, 20))
        found = cka_with_error(xp.asarray(x), xp.asarray(y), estimator=estimator)
        influence = to_numpy(sample_influence(xp.asarray(x), xp.asarray(y), estimator=estimator))
        assert influence.shape == (2, 3, 9)
        for i in np.ndindex(2, 3):
            one = cka_with_error(x[i], y[i[1]], estimator=estimator)
            assert_allclose(to_numpy(found.standard_error)[i], one.standard_error, rtol=1e-8)
            assert_allclose(influence[i], sample_influence(x[i], y[i[1]], estimator=estimator), atol=1e-10)

    def test_of_a_layer_with_itself(self, xp, rng, estimator):
        x = xp.asarray(rng.normal(size=(20, 4)))
        found = cka_with_error(x, x, estimator=estimator)
        assert_allclose([float(found.value), float(found.standard_error)], [1, 0], atol=1e-12)

    def test_float32_far_from_the_origin(self, xp, rng, estimator):
        x, y = (f + 1e4 for f in layers(rng, 40, (3, 60)))
        x, y = x.astype(np.float32), y.astype(np.float32)
        found = cka_with_error(xp.asarray(x), xp.asarray(y), estimator=estimator)
        assert_allclose(float(found.standard_error), reference.jackknife_error(recomputed(x, y, estimator)), rtol=1e-4)

    def test_constant_layer(self, xp, rng, estimator):
        x, y = xp.asarray(np.ones((9, 3))), xp.asarray(rng.normal(size=(9, 3)))
        for field in dataclasses.astuple(cka_with_error(x, y, estimator=estimator))[:4]:
            assert np.isnan(to_numpy(field)).all()
        assert np.isnan(to_numpy(sample_influence(x, y, estimator=estimator))).all()

    def test_undefined_without_one_sample(self, xp, rng, estimator):
        """All samples but one coincide: without that sample the layer is constant."""
        x = np.ones((9, 2))
        x[4] = 3.0
        y = xp.asarray(rng.normal(size=(9, 3)))
        if estimator == "unbiased":
            # U-centring makes the Gram matrix of such a layer zero.
            assert np.isnan(float(cka_with_error(xp.asarray(x), y, estimator=estimator).value))
            return
        with pytest.warns(OutlierWarning, match="index 4"):
            found = cka_with_error(xp.asarray(x), y, estimator=estimator)
        assert np.isfinite(float(found.value))
        assert np.isnan(float(found.standard_error))


class TestSharesOfSamples:
    @given(st.integers(0, 10**6), st.integers(4, 12), st.integers(1, 6), st.sampled_from(["unbiased", "biased"]))
    def test_features_equal_grams_and_add_up(self, seed, n, p, estimator):
        rng = np.random.default_rng(seed)
        x, y = rng.normal(size=(n, p)) + 1, rng.normal(size=(n, 3))
        shares = []
        grams = [CentredGram.of_features(f, Linear(), estimator) for f in (x, y)]
        features = [CentredFeatures.of(f, estimator) for f in (x, y)]
        for left, right in (grams, features):
            scale = left.scale * right.scale
            shares.append(row_inner(left, right) * scale)
            assert_allclose(shares[-1].sum(), inner(left, right) * scale, atol=1e-10)
        assert_allclose(*shares, atol=1e-10)


@ESTIMATORS
class TestAllPairs:
    def test_equals_each_pair(self, xp, rng, estimator):
        features = layers(rng)
        arrays = [xp.asarray(f) for f in features]
        found = cka_matrix_with_error(arrays, estimator=estimator, level=0.9)
        assert found.value.dtype == xp.float64
        assert_allclose(to_numpy(found.value), to_numpy(cka_matrix(arrays, estimator=estimator)), atol=1e-12)
        for i, x in enumerate(features):
            for j, y in enumerate(features):
                expected = reference.jackknife_error(recomputed(x, y, estimator))
                assert_allclose(to_numpy(found.standard_error)[i, j], expected, rtol=1e-8, atol=1e-12)
        two_sides = cka_matrix_with_error(arrays[:1], arrays[1:], estimator=estimator, level=0.9)
        for name in ("value", "standard_error", "low", "high"):
            assert_allclose(
                to_numpy(getattr(two_sides, name)), to_numpy(getattr(found, name))[:1, 1:], rtol=1e-10, atol=1e-14
            )

    @pytest.mark.parametrize("numbers", [1, 100, 500])
    def test_blocks_of_samples(self, rng, estimator, numbers, monkeypatch):
        features = layers(rng)
        whole = cka_matrix_with_error(features, estimator=estimator)
        monkeypatch.setattr(leave_one_out, "BLOCK", numbers)
        assert_allclose(
            cka_matrix_with_error(features, estimator=estimator).standard_error, whole.standard_error, atol=1e-14
        )

    def test_intervals_widen_as_those_of_one_pair(self, xp, rng, estimator):
        x, noise = rng.normal(size=(2, 100, 3))
        x[:3] *= 6
        y = x + noise
        y[2] = -y[2]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", OutlierWarning)
            found = cka_matrix_with_error([xp.asarray(x)], [xp.asarray(y)], estimator=estimator)
            one = cka_with_error(x, y, estimator=estimator)
        assert_allclose(float(found.low[0, 0]), one.low, rtol=1e-7)
        half = float(found.high[0, 0]) - float(found.value[0, 0])
        assert half > 1.1 * stats.t(99).ppf(0.975) * float(found.standard_error[0, 0])

    def test_kernel(self, xp, rng, estimator):
        features = layers(rng)
        found = cka_matrix_with_error([xp.asarray(f) for f in features], kernel=RBF(), estimator=estimator)
        one = cka_with_error(features[0], features[2], kernel=RBF(), estimator=estimator)
        assert_allclose(to_numpy(found.standard_error)[0, 2], one.standard_error, rtol=1e-8)

    def test_constant_layer_is_nan_exactly_for_itself(self, xp, rng, estimator):
        features = [*layers(rng), np.full((11, 4), 0.1)]
        found = cka_matrix_with_error([xp.asarray(f) for f in features], estimator=estimator)
        dead = np.zeros((4, 4), dtype=bool)
        dead[3] = dead[:, 3] = True
        for name in ("value", "standard_error", "low", "high"):
            assert_array_equal(np.isnan(to_numpy(getattr(found, name))), dead)

    def test_stays_on_its_device(self, rng, estimator):
        device = array_api_strict.Device("device1")
        arrays = [array_api_strict.asarray(f, device=device) for f in layers(rng)]
        assert cka_matrix_with_error(arrays, estimator=estimator).high.device == device
        assert cka_with_error(arrays[0], arrays[1], estimator=estimator).low.device == device
        assert sample_influence(arrays[0], arrays[1], estimator=estimator).device == device


class TestRefused:
    @pytest.mark.parametrize("level", [0, 1, -0.5, 95])
    def test_level(self, rng, level):
        for estimate in (
            lambda x: cka_with_error(x, x, level=level),
            lambda x: cka_matrix_with_error([x], level=level),
        ):
            with pytest.raises(
                ValueError, match=r"`level` must lie between 0 and 1, got .* Use 0.95 for a 95 % interval"
            ):
                estimate(rng.normal(size=(9, 2)))

    def test_too_few_samples(self, rng):
        x = rng.normal(size=(4, 2))
        for estimate in (cka_with_error, sample_influence):
            with pytest.raises(ValueError, match=r"`x` has 4 samples, but this estimator needs at least 5"):
                estimate(x, x)
            with pytest.raises(ValueError, match=r"`x` has 2 samples, but this estimator needs at least 3"):
                estimate(x[:2], x[:2], estimator="biased")
        with pytest.raises(ValueError, match=r"`xs\[0\]` has 4 samples, but the jackknife needs at least 5. Pass more"):
            cka_matrix_with_error([x])

    def test_sides_must_fit(self, rng):
        with pytest.raises(ValueError, match=r"`xs` hold 9 samples and `ys` 8. Both must hold the same samples"):
            cka_matrix_with_error([rng.normal(size=(9, 2))], [rng.normal(size=(8, 2))])

    def test_estimate_does_not_change(self, rng):
        with pytest.raises(dataclasses.FrozenInstanceError):
            cka_with_error(*rng.normal(size=(2, 9, 3))).value = 1
