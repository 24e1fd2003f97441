"""MinibatchCKA: ratio of means, merging, weights, standard errors, z-scores, constant layers, accuracy."""

import array_api_strict
import numpy as np
import pytest
import reference
import torch
from libraries import to_numpy
from numpy.testing import assert_allclose, assert_array_equal

from cka_probe.estimators import RBF, Cosine, Laplacian, Linear, MinibatchCKA, Polynomial, cka, cka_matrix

ESTIMATORS = pytest.mark.parametrize("estimator", ["unbiased", "biased"])


def stream(rng, sizes=(8, 8, 6, 9, 8), widths=(3, 30, 5)):
    """Minibatches of related layers: for each batch, a list with the features of each layer."""
    batches = []
    for n in sizes:
        x = rng.normal(size=(n, widths[0]))
        layers = [x]
        for width in widths[1:]:
            layers.append(layers[-1] @ rng.normal(size=(layers[-1].shape[1], width)) + rng.normal(size=(n, width)) + 1)
        batches.append(layers)
    return batches


def feed(batches, xp=np, split=None, **settings):
    """MinibatchCKA of all pairs of layers; with ``split``, of the first layers and the others."""
    statistics = MinibatchCKA(**settings)
    for layers in batches:
        arrays = [xp.asarray(x) for x in layers]
        statistics.update(arrays) if split is None else statistics.update(arrays[:split], arrays[split:])
    return statistics


def by_pairs(batches, of):
    """A matrix of ``of([(x, y), ...])``, with the minibatches of every pair of layers."""
    layers = range(len(batches[0]))
    return np.array([[of([(b[i], b[j]) for b in batches]) for j in layers] for i in layers])


@ESTIMATORS
class TestDefinition:
    def test_is_the_ratio_of_means_weighed_by_samples(self, xp, rng, estimator):
        batches = stream(rng)
        expected = by_pairs(batches, lambda pairs: reference.minibatch_cka(pairs, estimator))
        statistics = feed(batches, xp, estimator=estimator)
        found = statistics.compute()
        assert found.dtype == xp.float64
        assert type(found) is type(xp.asarray(batches[0][0]))
        assert_allclose(to_numpy(found), expected, rtol=1e-10)
        assert (statistics.samples, statistics.batches) == (39, 5)
        two_sides = feed(batches, xp, split=1, estimator=estimator)
        assert_allclose(to_numpy(two_sides.compute()), expected[:1, 1:], rtol=1e-10)

    def test_is_not_the_mean_of_ratios(self, rng, estimator):
        batches = stream(rng)
        ratios = [by_pairs([b], lambda pairs: reference.minibatch_cka(pairs, estimator)) for b in batches]
        assert np.abs(np.mean(ratios, axis=0) - feed(batches, estimator=estimator).compute()).max() > 0.005

    def test_one_batch_is_cka(self, xp, rng, estimator):
        (layers,) = stream(rng, sizes=(10,))
        arrays = [xp.asarray(x) for x in layers]
        expected = [[float(cka(a, b, estimator=estimator)) for b in arrays] for a in arrays]
        assert_allclose(to_numpy(cka_matrix(arrays, estimator=estimator)), expected, rtol=1e-10)
        assert_allclose(to_numpy(cka_matrix(arrays[:2], arrays, estimator=estimator)), expected[:2], rtol=1e-10)

    @pytest.mark.parametrize("kernel", [RBF(), Laplacian(bandwidth=2.0), Polynomial(), Cosine()], ids=repr)
    def test_kernels(self, xp, rng, estimator, kernel):
        (layers,) = stream(rng, sizes=(10,))
        arrays = [xp.asarray(x) for x in layers]
        expected = [[float(cka(a, b, kernel=kernel, estimator=estimator)) for b in arrays] for a in arrays]
        assert_allclose(to_numpy(cka_matrix(arrays, kernel=kernel, estimator=estimator)), expected, rtol=1e-9)

    def test_merge_is_the_whole_in_any_order(self, xp, rng, estimator):
        batches = stream(rng)
        whole = feed(batches, xp, estimator=estimator)
        for parts in ([batches[:2], batches[2:]], [batches[3:], batches[:1], batches[1:3]]):
            merged = MinibatchCKA(estimator=estimator)
            for part in parts:
                merged.merge(feed(part, xp, estimator=estimator))
            merged.merge(MinibatchCKA(estimator=estimator))
            assert (merged.samples, merged.batches) == (whole.samples, whole.batches)
            for name in ("compute", "standard_error", "chance_level"):
                assert_allclose(to_numpy(getattr(merged, name)()), to_numpy(getattr(whole, name)()), atol=1e-9)

    def test_state_round_trip(self, xp, rng, estimator):
        batches = stream(rng)
        whole = feed(batches, xp, kernel=RBF(fraction=0.5), estimator=estimator)
        half = feed(batches[:2], xp, kernel=RBF(fraction=0.5), estimator=estimator)
        resumed = MinibatchCKA(kernel=RBF(fraction=0.5), estimator=estimator)
        resumed.load_state_dict(half.state_dict())
        for layers in batches[2:]:
            resumed.update([xp.asarray(x) for x in layers])
        assert_array_equal(to_numpy(resumed.compute()), to_numpy(whole.compute()))
        assert (resumed.samples, resumed.batches) == (whole.samples, whole.batches)
        assert half.batches == 2

    def test_chance_level_is_the_mean_over_permutations_within_batches(self, xp, rng, estimator):
        batches = stream(rng, sizes=(5, 6))
        found = to_numpy(feed(batches, xp, estimator=estimator).chance_level())
        if estimator == "unbiased":
            assert_array_equal(found, 0)
            return
        K, L = ([reference.centred_linear_gram(b[i]) for b in batches] for i in (0, 1))
        # The mean of a sum is the sum of the means, so each batch is permuted by itself.
        cross = sum(
            len(k)
            * reference.hsic0(m, m) ** 0.5
            * reference.hsic0(k, k) ** 0.5
            * reference.null_distribution(k, m, "biased").mean()
            for k, m in zip(K, L, strict=True)
        )
        norm = [sum(len(k) * reference.hsic0(k, k) for k in side) for side in (K, L)]
        assert_allclose(found[0, 1], cross / np.sqrt(norm[0] * norm[1]), rtol=1e-9)

    def test_layers_of_different_dtypes(self, xp, rng, estimator):
        (layers,) = stream(rng, sizes=(10,))
        mixed = [xp.asarray(x, dtype=d) for x, d in zip(layers, (xp.float32, xp.float64, xp.float32), strict=True)]
        expected = cka_matrix(layers, estimator=estimator)
        assert_allclose(to_numpy(cka_matrix(mixed, estimator=estimator)), expected, atol=1e-6)
        assert_allclose(to_numpy(cka_matrix(mixed[:1], mixed[1:], estimator=estimator)), expected[:1, 1:], atol=1e-6)

    def test_stays_on_its_device(self, rng, estimator):
        device = array_api_strict.Device("device1")
        statistics = MinibatchCKA(estimator=estimator)
        for layers in stream(rng):
            statistics.update([array_api_strict.asarray(x, device=device) for x in layers])
        for name in ("compute", "standard_error", "chance_level"):
            assert getattr(statistics, name)().device == device


class TestSettings:
    def test_merge_needs_the_same_settings(self, rng):
        statistics = feed(stream(rng))
        with pytest.raises(
            ValueError, match=r"Cannot merge biased HSIC with Linear\(\) into unbiased HSIC with Linear"
        ):
            statistics.merge(MinibatchCKA(estimator="biased"))
        with pytest.raises(
            ValueError, match=r"Cannot merge unbiased HSIC with RBF\(bandwidth='median', fraction=1.0\)"
        ):
            statistics.merge(MinibatchCKA(kernel=RBF()))
        with pytest.raises(ValueError, match=r"These statistics have \(2, 2\) layers, the earlier ones have \(3, 3\)"):
            statistics.merge(feed(stream(rng, widths=(2, 2))))

    def test_state_of_other_settings(self, rng):
        state = feed(stream(rng)).state_dict()
        with pytest.raises(ValueError, match=r"The saved state has unbiased HSIC with Linear\(\), not biased HSIC"):
            MinibatchCKA(estimator="biased").load_state_dict(state)
        with pytest.raises(ValueError, match=r"not unbiased HSIC with RBF\("):
            MinibatchCKA(kernel=RBF()).load_state_dict(state)

    @pytest.mark.parametrize("method", ["compute", "standard_error", "chance_level", "z_score"])
    def test_nothing_added(self, method):
        with pytest.raises(ValueError, match=r"No minibatch has been added yet"):
            getattr(MinibatchCKA(), method)()

    def test_unknown_estimator(self):
        with pytest.raises(ValueError, match=r"`estimator` must be"):
            MinibatchCKA(estimator="mean")


class TestStandardError:
    def test_equals_explicit_influences(self, xp, rng):
        batches = stream(rng, sizes=(8, 8, 6, 9, 8, 12))
        found = to_numpy(feed(batches, xp).standard_error())
        for i in range(3):
            for j in range(3):
                influence = reference.minibatch_influence([(b[i], b[j]) for b in batches])
                expected = np.sqrt(np.mean(influence**2) * len(batches) / (len(batches) - 1)) / np.sqrt(len(batches))
                assert_allclose(found[i, j], expected, rtol=1e-6, atol=3e-8)

    def test_close_to_a_jackknife_over_batches(self, rng):
        batches = stream(rng, sizes=(16,) * 40, widths=(3, 5))
        values = [feed(batches[:b] + batches[b + 1 :]).compute()[0, 1] for b in range(40)]
        assert_allclose(feed(batches).standard_error()[0, 1], reference.jackknife_error(values), rtol=0.1)

    def test_is_the_spread_over_repeated_experiments(self):
        rng = np.random.default_rng(3)
        mix = rng.normal(size=(3, 5))
        values, errors = [], []
        for _ in range(100):
            statistics = MinibatchCKA()
            for _ in range(20):
                x = rng.normal(size=(16, 3))
                statistics.update([x], [x @ mix + 3 * rng.normal(size=(16, 5))])
            values.append(statistics.compute()[0, 0])
            errors.append(statistics.standard_error()[0, 0])
        assert_allclose(np.mean(errors), np.std(values), rtol=0.2)

    def test_of_a_layer_with_itself_is_zero(self, xp, rng):
        found = to_numpy(feed(stream(rng), xp).standard_error())
        assert_array_equal(np.diag(found), 0)
        assert found[0, 1] > 0

    def test_one_batch_has_none(self, xp, rng):
        assert np.isnan(to_numpy(feed(stream(rng, sizes=(8,)), xp).standard_error())).all()


class TestZScore:
    def test_of_one_batch(self, xp, rng):
        (layers,) = stream(rng, sizes=(10,))
        found = to_numpy(feed([layers], xp).z_score())
        assert_allclose(found, cka_matrix(layers) * np.sqrt(10 * 7 / 2), rtol=1e-10)

    def test_standard_normal_over_permutations_within_batches(self):
        rng = np.random.default_rng(5)
        batches = stream(rng, sizes=(8, 8, 12), widths=(3, 5))
        scores = []
        for _ in range(1000):
            statistics = MinibatchCKA()
            for x, y in batches:
                statistics.update([x], [y[rng.permutation(len(y))]])
            scores.append(statistics.z_score()[0, 0])
        assert abs(np.mean(scores)) < 4 / np.sqrt(1000)
        assert abs(np.var(scores) - 1) < 0.15

    def test_biased_has_none(self, rng):
        with pytest.raises(ValueError, match=r'The z-score is defined for estimator="unbiased"'):
            feed(stream(rng), estimator="biased").z_score()


KERNELS = [Linear(), RBF(bandwidth=1.0), Laplacian(bandwidth=1.0), RBF(), Polynomial(), Cosine()]


@ESTIMATORS
class TestDeadLayers:
    @pytest.mark.parametrize("kernel", KERNELS, ids=repr)
    @pytest.mark.parametrize("value", [0.0, 0.3, -1e5])
    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_nan_exactly_for_itself(self, xp, rng, estimator, kernel, value, dtype):
        dtype = getattr(xp, dtype)
        alive = [xp.asarray(x, dtype=dtype) for x in rng.normal(size=(2, 13, 4))]
        dead = xp.asarray(np.full((13, 4), value), dtype=dtype)
        statistics = MinibatchCKA(kernel=kernel, estimator=estimator)
        for _ in range(2):
            statistics.update([alive[0], dead, alive[1]])
        expected = [[False, True, False], [True, True, True], [False, True, False]]
        assert_array_equal(np.isnan(to_numpy(statistics.compute())), expected)
        assert_array_equal(np.isnan(to_numpy(statistics.standard_error())), expected)
        assert_array_equal(np.isnan(to_numpy(statistics.chance_level())), expected)
        assert_allclose(to_numpy(statistics.compute())[0, 2], cka_matrix_of(alive, kernel, estimator), atol=1e-6)
        if estimator == "unbiased":
            assert_array_equal(np.isnan(to_numpy(statistics.z_score())), expected)

    def test_dead_in_one_batch_only(self, xp, rng, estimator):
        batches = stream(rng, sizes=(8, 8))
        batches[0][1] = np.ones((8, 30))
        found = to_numpy(feed(batches, xp, estimator=estimator).compute())
        assert np.isfinite(found).all()


def cka_matrix_of(layers, kernel, estimator):
    return float(cka(*layers, kernel=kernel, estimator=estimator))


@ESTIMATORS
class TestAccuracy:
    """float32 is within 1e-6 of float64, although Gram matrices of raw features are tried first."""

    @pytest.mark.parametrize("mean", [0.0, 0.5, 1.5, 2.5, 10.0, 1e3, 1e5])
    @pytest.mark.parametrize("scale", [1e-10, 1.0, 1e10])
    def test_means_and_scales(self, xp, rng, estimator, mean, scale):
        noise = rng.normal(size=(2, 32, 40))
        x = (scale * (noise[0] + mean)).astype(np.float32)
        y = ((noise[0] + noise[1] - mean) / scale).astype(np.float32)
        found = to_numpy(cka_matrix([xp.asarray(x), xp.asarray(y)], estimator=estimator))
        assert abs(found[0, 1] - reference.cka(x, y, estimator)) <= 1e-6
        assert_allclose(np.diag(found), 1, atol=1e-6)
        assert_array_equal(found, found.T)

    def test_batches_of_different_scale_weigh_right(self, xp, rng, estimator):
        batches = stream(rng)
        for factor, layers in zip((1, 1e-3, 20, 5, 0.1), batches, strict=True):
            layers[1] = (layers[1] * factor).astype(np.float32)
        expected = by_pairs(batches, lambda pairs: reference.minibatch_cka(pairs, estimator))
        assert_allclose(to_numpy(feed(batches, xp, estimator=estimator).compute()), expected, atol=1e-6)

    @pytest.mark.parametrize("p", [3, 300])
    def test_a_far_sample(self, xp, rng, estimator, p):
        x, y = rng.normal(size=(2, 40, p)).astype(np.float32)
        x[3] += 300
        found = to_numpy(cka_matrix([xp.asarray(x), xp.asarray(y)], estimator=estimator))
        assert abs(found[0, 1] - reference.cka(x, y, estimator)) <= 1e-6

    def test_half_precision(self, rng, estimator):
        for dtype in (torch.float16, torch.bfloat16):
            layers = [torch.tensor(x + 2).to(dtype) for x in rng.normal(size=(2, 32, 64))]
            found = cka_matrix(layers, estimator=estimator)
            exact = reference.cka(*(x.double().numpy() for x in layers), estimator)
            assert abs(float(found[0, 1]) - exact) <= 1e-4
