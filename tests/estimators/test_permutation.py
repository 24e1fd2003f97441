"""Permutation tests: exact moments, p-values by moments, counted p-values, all pairs, minibatches."""

import array_api_strict
import numpy as np
import pytest
import reference
from libraries import to_numpy
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats

from cka_probe.estimators import RBF, Linear, MinibatchCKA, cka, cka_matrix_test, cka_test
from cka_probe.estimators.pearson import pearson_sf


def features(rng, n, heavy=True):
    return rng.normal(size=(n, 2)), rng.lognormal(size=(n, 3)) if heavy else rng.normal(size=(n, 3))


class TestExactMoments:
    @pytest.mark.parametrize("n", [4, 5, 6, 7])
    def test_equal_those_of_all_permutations(self, xp, rng, n):
        """Mean, variance and skewness over all n! permutations, up to 5040."""
        x, y = features(rng, n)
        null = reference.null_distribution(reference.centred_linear_gram(x), reference.centred_linear_gram(y))
        found = cka_test(xp.asarray(x), xp.asarray(y))
        variance = 2 / (n * (n - 3))
        assert_allclose(null.mean(), 0, atol=1e-12)
        assert_allclose(null.var(), variance, rtol=1e-10)
        assert_allclose(float(found.skewness), np.mean(null**3) / variance**1.5, rtol=1e-8, atol=1e-12)
        assert_allclose(float(found.value), reference.cka(x, y), rtol=1e-10)
        assert_allclose(float(found.z_score), reference.cka(x, y) / np.sqrt(variance), rtol=1e-10)
        assert found.p_value.dtype == xp.float64
        assert found.permutations is None

    def test_two_kernels(self, xp, rng):
        x, y = features(rng, 6)
        K, L = reference.gram(x, reference.rbf(1.0)), reference.gram(y)
        found = cka_test(xp.asarray(x), xp.asarray(y), kernel=RBF(bandwidth=1.0), kernel_y=Linear())
        null = reference.null_distribution(K, L)
        assert_allclose(float(found.skewness), np.mean(null**3) / (2 / 18) ** 1.5, rtol=1e-8)
        assert_allclose(float(found.value), reference.cka_grams(K, L), rtol=1e-10)


class TestByMoments:
    def test_close_to_the_share_of_all_permutations(self):
        """At n = 7. The normal p-value is less accurate."""
        rng = np.random.default_rng(4)
        off, normal_off = [], []
        for _ in range(3):
            x, y = features(rng, 7)
            null = reference.null_distribution(reference.centred_linear_gram(x), reference.centred_linear_gram(y))
            found = cka_test(x, y)
            exact = np.mean(null >= found.value - 1e-12)
            off.append(abs(found.p_value - exact))
            normal_off.append(abs(stats.norm.sf(found.z_score) - exact))
        assert max(off) < 0.03
        assert sum(off) < sum(normal_off)

    def test_close_to_counted_p_values(self):
        """Both p-values agree up to the noise of counting."""
        rng = np.random.default_rng(5)
        for shared in (0.0, 0.5, 0.8):
            x, noise = rng.normal(size=(2, 40, 4))
            y = shared * x + noise
            exact, counted = cka_test(x, y), cka_test(x, y, permutations=2000, seed=1)
            noise_of_counting = 4 * np.sqrt(exact.p_value * (1 - exact.p_value) / 2000) + 1e-3
            assert abs(exact.p_value - counted.p_value) < noise_of_counting


class TestCounted:
    def test_is_one_plus_as_high_over_one_plus_all(self, xp, rng):
        x, y = features(rng, 8)
        found = cka_test(xp.asarray(x), xp.asarray(y), permutations=99, seed=3)
        assert found.permutations == 99
        generator = np.random.default_rng(3)
        null = [cka(x, y[generator.permutation(8)]) for _ in range(99)]
        assert_allclose(float(found.p_value), (1 + np.sum(null >= cka(x, y) - 1e-12)) / 100, rtol=1e-12)

    def test_never_zero(self, xp, rng):
        x = xp.asarray(rng.normal(size=(30, 3)))
        assert_allclose(float(cka_test(x, x, permutations=50).p_value), 1 / 51)

    def test_ties_count(self, xp):
        """With two groups, many permutations do not change the value."""
        x = xp.asarray(np.repeat([[0.0], [1.0]], 3, axis=0), dtype=xp.float32)
        found = float(cka_test(x, x, permutations=3000).p_value)
        assert_allclose(found, 2 * 36 / 720, atol=0.02)

    def test_seeds(self, rng):
        x, y = features(rng, 12)
        first, again, other = (float(cka_test(x, y, permutations=200, seed=s).p_value) for s in (1, 1, 2))
        assert first == again
        assert first != other
        generator = np.random.default_rng(1)
        assert float(cka_test(x, y, permutations=200, seed=generator).p_value) == first
        assert float(cka_test(x, y, permutations=200, seed=generator).p_value) != first


class TestAllPairs:
    @pytest.mark.parametrize("permutations", [None, 40])
    def test_equals_each_pair(self, xp, rng, permutations):
        layers = [rng.normal(size=(9, p)) for p in (2, 20, 4)]
        layers.append(layers[0] @ rng.normal(size=(2, 3)))
        arrays = [xp.asarray(x) for x in layers]
        found = cka_matrix_test(arrays, permutations=permutations, seed=5)
        two_sides = cka_matrix_test(arrays[:2], arrays[2:], permutations=permutations, seed=5)
        for name in ("value", "z_score", "skewness", "excess_kurtosis", "p_value"):
            matrix = to_numpy(getattr(found, name))
            assert matrix.shape == (4, 4)
            expected = [
                [float(getattr(cka_test(x, y, permutations=permutations, seed=5), name)) for y in layers]
                for x in layers
            ]
            assert_allclose(matrix, expected, rtol=1e-8, atol=1e-12)
            assert_allclose(to_numpy(getattr(two_sides, name)), matrix[:2, 2:], rtol=1e-8, atol=1e-12)

    @pytest.mark.parametrize("permutations", [None, 20])
    def test_constant_layer_is_nan_exactly_for_itself(self, xp, rng, permutations):
        arrays = [xp.asarray(x) for x in (rng.normal(size=(9, 2)), np.full((9, 2), 0.1), rng.normal(size=(9, 2)))]
        found = cka_matrix_test(arrays, permutations=permutations)
        dead = [[False, True, False], [True, True, True], [False, True, False]]
        for name in ("value", "z_score", "skewness", "excess_kurtosis", "p_value"):
            assert_array_equal(np.isnan(to_numpy(getattr(found, name))), dead)

    def test_float32_scales(self, xp, rng):
        x, y = rng.normal(size=(2, 20, 5))
        exact = cka_test(x, y + x)
        found = cka_test(xp.asarray(1e-10 * x, dtype=xp.float32), xp.asarray(1e10 * (y + x), dtype=xp.float32))
        assert_allclose(float(found.skewness), exact.skewness, rtol=1e-4)
        assert_allclose(float(found.excess_kurtosis), exact.excess_kurtosis, rtol=1e-4)
        assert_allclose(float(found.p_value), exact.p_value, rtol=1e-3)


class TestMinibatches:
    def stream(self, rng):
        return [(rng.lognormal(size=(n, 2)), rng.lognormal(size=(n, 3))) for n in (4, 5, 4)]

    def statistics(self, batches, xp=np, skewness=True):
        statistics = MinibatchCKA(skewness=skewness)
        for x, y in batches:
            statistics.update([xp.asarray(x)], [xp.asarray(y)])
        return statistics

    def test_moments_of_shuffles_within_batches(self, xp, rng):
        """Permutations of different batches are independent, so their cumulants add up."""
        batches = self.stream(rng)
        statistics = self.statistics(batches, xp)
        variance = third = fourth = 0.0
        for x, y in batches:
            K, L = reference.centred_linear_gram(x), reference.centred_linear_gram(y)
            size = len(x) * np.sqrt(reference.hsic1(K, K) * reference.hsic1(L, L))
            null = reference.null_distribution(K, L) * size
            variance += np.mean(null**2)
            third += np.mean(null**3)
            fourth += np.mean(null**4) - 3 * np.mean(null**2) ** 2
        assert_allclose(float(statistics.sums["null_variance"][0, 0]), variance, rtol=1e-9)
        assert_allclose(float(statistics.sums["null_third"][0, 0]), third, rtol=1e-9)
        assert_allclose(float(statistics.sums["null_fourth"][0, 0]), fourth, rtol=1e-9)
        expected = pearson_sf(to_numpy(statistics.z_score()), third / variance**1.5, fourth / variance**2)
        assert_allclose(to_numpy(statistics.p_value()), expected, rtol=1e-8)

    def test_of_one_batch_is_that_of_the_pair(self, xp, rng):
        x, y = features(rng, 12)
        found = self.statistics([(x, y)], xp).p_value()
        assert_allclose(float(found[0, 0]), cka_test(x, y).p_value, rtol=1e-8)

    def test_normal_when_not_asked_for_skewness(self, xp, rng):
        statistics = self.statistics(self.stream(rng), xp, skewness=False)
        assert_allclose(to_numpy(statistics.p_value()), stats.norm.sf(to_numpy(statistics.z_score())), rtol=1e-10)

    def test_merge_and_state(self, xp, rng):
        batches = self.stream(rng)
        whole, part = self.statistics(batches, xp), self.statistics(batches[1:], xp)
        first = MinibatchCKA()
        first.load_state_dict(self.statistics(batches[:1], xp).state_dict())
        first.merge(part)
        assert_allclose(to_numpy(first.p_value()), to_numpy(whole.p_value()), rtol=1e-10)
        with pytest.raises(ValueError, match=r"Cannot merge: one side has the shape of the null"):
            first.merge(self.statistics(batches, xp, skewness=False))
        with pytest.raises(ValueError, match=r"The saved state has skewness=True, this one False"):
            MinibatchCKA(skewness=False).load_state_dict(whole.state_dict())

    def test_state_of_an_older_version_is_refused(self, rng):
        """It has no kurtosis, and the minibatches that it holds are gone."""
        state = self.statistics(self.stream(rng)).state_dict()
        del state["sums"]["null_fourth"]
        with pytest.raises(ValueError, match=r"of an older version, without the kurtosis"):
            MinibatchCKA().load_state_dict(state)

    def test_self_comparison_and_dead_layer(self, xp, rng):
        statistics = MinibatchCKA()
        for _ in range(2):
            statistics.update([xp.asarray(x) for x in (rng.normal(size=(9, 2)), np.ones((9, 2)))])
        found = to_numpy(statistics.p_value())
        assert_array_equal(np.isnan(found), [[False, True], [True, True]])
        assert found[0, 0] < 1e-4

    def test_refused(self):
        with pytest.raises(ValueError, match=r"No minibatch has been added yet"):
            MinibatchCKA().p_value()
        biased = MinibatchCKA(estimator="biased")
        biased.update([np.eye(5)])
        with pytest.raises(ValueError, match=r'The z-score is defined for estimator="unbiased"'):
            biased.p_value()


class TestRefused:
    def test_permutations(self, rng):
        x = rng.normal(size=(9, 2))
        for test in (lambda: cka_test(x, x, permutations=0), lambda: cka_matrix_test([x], permutations=-1)):
            with pytest.raises(
                ValueError, match=r"`permutations` must be at least 1, or None for the p-value by the exact"
            ):
                test()

    def test_shapes(self, rng):
        x = rng.normal(size=(2, 9, 2))
        with pytest.raises(ValueError, match=r"`x` and `y` must have shape \(n, p\), got \(2, 9, 2\) and \(2, 9, 2\)"):
            cka_test(x, x)
        with pytest.raises(ValueError, match=r"`x` has 3 samples, but this estimator needs at least 4"):
            cka_test(x[0, :3], x[0, :3])
        with pytest.raises(ValueError, match=r"`xs` hold 9 samples and `ys` 8. Both must hold the same samples"):
            cka_matrix_test([x[0]], [x[0, :8]])

    def test_libraries(self, rng):
        x = rng.normal(size=(9, 2))
        with pytest.raises(TypeError, match=r"`x` is from numpy and `y` is from array_api_strict"):
            cka_test(x, array_api_strict.asarray(x))
