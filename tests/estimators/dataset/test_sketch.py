"""SketchCKA: no bias over seeds (the naive sketch has one), error, merging, RBF, messages."""

import array_api_strict
import numpy as np
import pytest
import reference
import torch
from libraries import to_numpy
from numpy.testing import assert_allclose, assert_array_equal

from cka_probe.estimators import RBF, Laplacian, SketchCKA
from cka_probe.estimators.dataset.projections import Frequencies, Signs
from cka_probe.estimators.dataset.unit_sums import UnitSums


def wide_pair(rng, n=150, d=1500, rank=60, noise=0.3):
    """Make two wide layers that share a space of ``rank`` dimensions."""
    shared = rng.normal(size=(n, rank)) * np.arange(1, rank + 1) ** -0.25
    return [shared @ rng.normal(size=(rank, d)) / np.sqrt(rank) + noise * rng.normal(size=(n, d)) + 3 for _ in range(2)]


def feed(xs, xp=np, batch=64, split=1, statistics=None, **settings):
    statistics = statistics or SketchCKA(**settings)
    for start in range(0, len(xs[0]), batch):
        part = [
            xp.asarray(x[start : start + batch] if xp is not array_api_strict else np.array(x[start : start + batch]))
            for x in xs
        ]
        statistics.update(part) if split is None else statistics.update(part[:split], part[split:])
    return statistics


def rbf_gram(x, bandwidth):
    squared = ((x[:, None, :] - x[None, :, :]) ** 2).sum(axis=-1)
    return np.exp(-squared / (2 * bandwidth**2))


class TestUnbiased:
    """Means over seeds against the n x n definition, within four standard errors."""

    def test_cka_where_the_naive_sketch_is_far_off(self, rng):
        # A small version of the example in docs/theory.md, section 2.
        x, y = wide_pair(rng, n=100, d=600, rank=80)
        truth = reference.cka(x, y)
        found, naive = [], []
        for seed in range(40):
            found.append(feed([x, y], size=64, seed=seed).compute()[0, 0])
            projected = [Signs(z, 64, (seed, i))(z) for i, z in enumerate((x, y))]
            naive.append(reference.cka(*projected))
        error = np.std(found, ddof=1) / np.sqrt(len(found))
        assert abs(np.mean(found) - truth) < 4 * error + 0.01  # the ratio of unbiased terms has a bias of about 1/size
        assert truth - np.mean(naive) > 0.3

    def test_cross_and_self_terms(self, rng):
        """Each term alone, without the ratio."""
        x, y = wide_pair(rng, n=60, d=100, rank=10)
        K, L = (reference.centred_linear_gram(z) for z in (x, y))
        cross, own = [], []
        for seed in range(200):
            statistics = feed([x, y], size=32, seed=seed)
            centred = statistics._centred()
            terms = centred.layers(centred.inner("unbiased")) * np.outer(centred.sums.scale**2, centred.sums.scale**2)
            units = statistics._units(centred).sum(axis=1) * centred.sums.scale**4
            cross.append(terms[0, 1] / 32**2 / (60 * 57))
            own.append((terms[0, 0] - units[0]) / (32 * 31) / (60 * 57))
        for values, truth in ((cross, reference.hsic1(K, L)), (own, reference.hsic1(K, K))):
            assert abs(np.mean(values) - truth) < 4 * np.std(values, ddof=1) / np.sqrt(200)

    def test_rbf(self, rng):
        x, y = wide_pair(rng, n=80, d=60, rank=5)
        grams = [rbf_gram(z, 8.0) for z in (x, y)]
        truth = reference.cka_grams(*grams)
        found = [feed([x, y], size=128, kernel=RBF(bandwidth=8.0), seed=seed).compute()[0, 0] for seed in range(30)]
        assert abs(np.mean(found) - truth) < 4 * np.std(found, ddof=1) / np.sqrt(30) + 0.01
        assert np.std(found) < 0.1

    def test_one_network_with_itself(self, rng):
        x, y = wide_pair(rng)
        found = [feed([x, y], split=None, size=128, seed=seed).compute() for seed in range(10)]
        truth = reference.cka(x, y)
        for values in found:
            assert_allclose(np.diag(values), 1, atol=1e-12)
            assert_array_equal(values, values.T)
        assert abs(np.mean([values[0, 1] for values in found]) - truth) < 0.05


class TestError:
    @pytest.mark.parametrize("split", [1, None])
    def test_is_the_spread_over_seeds(self, rng, split):
        x, y = wide_pair(rng, n=100, d=800)
        at = (0, 0) if split else (0, 1)
        runs = [feed([x, y], size=64, seed=seed, split=split) for seed in range(60)]
        spread = np.std([run.compute()[at] for run in runs], ddof=1)
        error = np.sqrt(np.mean([run.projection_error()[at] ** 2 for run in runs]))
        # The spread of 60 values has an error of 9 %. The estimate may be above it, never far below.
        assert 0.85 * spread < error < 1.6 * spread

    def test_falls_with_the_square_root_of_the_size(self, rng):
        x, y = wide_pair(rng, n=100, d=800)
        small, large = (
            np.mean([feed([x, y], size=size, seed=seed).projection_error()[0, 0] for seed in range(8)])
            for size in (64, 1024)
        )
        assert large < small / 3

    def test_is_zero_for_a_layer_with_itself(self, rng):
        error = feed(wide_pair(rng), split=None, size=64).projection_error()
        assert_array_equal(np.diag(error), 0)
        assert error[0, 1] > 0


class TestStream:
    def test_libraries_agree(self, xp, rng):
        xs = wide_pair(rng, d=5000)
        found = feed(xs, xp, size=64).compute()
        assert found.dtype == xp.float64
        assert type(found) is type(xp.asarray(xs[0]))
        assert_allclose(to_numpy(found), feed(xs, size=64).compute(), rtol=1e-9)
        assert_allclose(
            to_numpy(feed(xs, xp, size=64).projection_error()), feed(xs, size=64).projection_error(), rtol=1e-6
        )

    @pytest.mark.parametrize("kernel", [None, RBF(bandwidth=20.0)], ids=repr)
    @pytest.mark.parametrize("split", [1, None])
    def test_merged_parts_equal_the_whole_for_other_shifts(self, xp, rng, kernel, split):
        xs = wide_pair(rng, d=200)
        xs = [np.concatenate([x[:40], x[40:] + 5]) for x in xs]
        settings = {"size": 32, "kernel": kernel, "split": split}
        whole = feed(xs, xp, **settings)
        merged = SketchCKA(size=32, kernel=kernel)
        for part in (slice(90, 150), slice(0, 40), slice(40, 90)):
            merged.merge(feed([x[part] for x in xs], xp, batch=17, **settings))
        merged.merge(SketchCKA(size=32, kernel=kernel))
        assert merged.samples == whole.samples == 150
        for name in ("compute", "projection_error"):
            assert_allclose(to_numpy(getattr(merged, name)()), to_numpy(getattr(whole, name)()), rtol=1e-7, atol=1e-12)

    @pytest.mark.parametrize("kernel", [None, RBF()], ids=repr)
    def test_state_round_trip(self, xp, rng, kernel):
        xs = wide_pair(rng, d=200)
        whole = feed(xs, xp, size=32, kernel=kernel, batch=50)
        state = feed([x[:100] for x in xs], xp, size=32, kernel=kernel, batch=50).state_dict()
        resumed = SketchCKA(size=32, kernel=kernel)
        resumed.load_state_dict(state)
        feed([x[100:] for x in xs], xp, statistics=resumed, batch=50)
        assert_allclose(to_numpy(resumed.compute()), to_numpy(whole.compute()), rtol=1e-10)
        assert (resumed.samples, resumed.batches) == (150, 3)

    @pytest.mark.parametrize("kernel", [None, RBF()], ids=repr)
    def test_only_a_constant_layer_is_nan(self, xp, rng, kernel):
        xs = wide_pair(rng, d=300)
        alone = to_numpy(feed(xs, xp, size=32, kernel=kernel, split=None).compute())
        found = to_numpy(feed([*xs, np.full((150, 9), 1 / 3)], xp, size=32, kernel=kernel, split=None).compute())
        assert np.isnan(found[2]).all()
        assert np.isnan(found[:, 2]).all()
        assert_allclose(found[:2, :2], alone, rtol=1e-10)

    @pytest.mark.parametrize("kernel", [None, RBF()], ids=repr)
    @pytest.mark.parametrize(("mean", "scale"), [(1e5, 1.0), (0.0, 1e10), (0.0, 1e-10)])
    def test_means_and_scales_in_float32(self, rng, kernel, mean, scale):
        xs = [(scale * (x + mean)).astype(np.float32) for x in wide_pair(rng, d=300)]
        double = [x.astype(np.float64) for x in xs]
        settings = {"size": 64, "kernel": kernel}
        assert_allclose(feed(xs, torch, **settings).compute(), feed(double, **settings).compute(), atol=1e-6)

    def test_a_median_bandwidth_is_measured_on_the_first_batch(self, rng):
        xs = wide_pair(rng, d=50)
        statistics = feed(xs, size=32, kernel=RBF(fraction=0.5), batch=30)
        assert_allclose(statistics.bandwidths, [reference.median_distance(x[:30]) / 2 for x in xs])


class TestProjections:
    def test_signs(self):
        x = np.eye(300)
        signs = Signs(x, 64, (0, 1))(x)
        assert_allclose(np.abs(signs), 1, atol=1e-12)
        assert abs(signs.mean()) < 4 / np.sqrt(signs.size)
        assert_array_equal(Signs(x, 64, (0, 1))(x), signs)
        assert np.abs(Signs(x, 64, (0, 2))(x) - signs).max() > 1
        # Different projections are uncorrelated.
        assert np.abs(np.corrcoef(signs.T) - np.eye(64)).max() < 0.35

    def test_signs_of_one_seed_stay_the_same(self):
        """A saved sketch continues with the same signs: they come from raw bits, the same in all versions of numpy."""
        x = np.eye(16)
        raw = np.random.PCG64([7, 0]).random_raw(4)
        bits = np.array(
            [[(int(word) >> (8 * byte + 7 - k)) & 1 for byte in range(8) for k in range(8)] for word in raw]
        )
        assert_allclose(Signs(x, 16, (7, 0))(x), 2.0 * bits.reshape(16, 16) - 1, atol=1e-12)

    def test_frequencies_give_the_rbf_kernel(self, rng):
        x = rng.normal(size=(12, 5)) + 100
        features = Frequencies(x, 40_000, (0, 0), 2.0)(x)
        assert_allclose(features @ features.T / 40_000, rbf_gram(x, 2.0), atol=0.02)
        other_shift = Frequencies(x[5:], 40_000, (0, 0), 2.0)(x)
        assert_allclose(other_shift, features, atol=1e-9)

    def test_features_wider_than_one_product(self, rng):
        x = rng.normal(size=(5, 9000))
        matrix = Signs(np.zeros((2, 9000)), 16, (0, 0)).matrix
        assert_allclose(Signs(x, 16, (0, 0))(x), x @ matrix, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("size", [1, 2])
def test_unit_sums_equal_the_definition(xp, rng, size):
    v = rng.normal(size=(30, 4 * size)) + 1
    parts = [UnitSums(size), UnitSums(size)]
    parts[0].add(xp.asarray(v[:10]))
    parts[1].add(xp.asarray(v[10:] / 2 + 3))  # as with another shift and scale
    back = parts[1].moved(xp.asarray(np.full(4 * size, 2.0)), xp.asarray(np.full(4 * size, -6.0)))
    parts[0].add_products(back.products)
    found = to_numpy(parts[0].centred().inner())
    columns = [v[:, size * p : size * (p + 1)] for p in range(4)]
    grams = [reference.centred_linear_gram(column) for column in columns]
    assert_allclose(found, [30 * 27 * reference.hsic1(K, K) for K in grams], rtol=1e-9)


class TestMessages:
    def test_size(self):
        for size in (0, 100, -16):
            with pytest.raises(ValueError, match=f"`size` must be a positive multiple of 16, got {size}"):
                SketchCKA(size=size)

    def test_kernel(self):
        with pytest.raises(TypeError, match="SketchCKA supports the Linear and the RBF kernel, got Laplacian"):
            SketchCKA(kernel=Laplacian())

    def test_too_few_samples(self, rng):
        with pytest.raises(ValueError, match="No batch has been added yet"):
            SketchCKA().compute()
        with pytest.raises(ValueError, match="needs at least 4 samples, got 3"):
            feed([x[:3] for x in wide_pair(rng, d=20)], size=16).compute()
        with pytest.raises(ValueError, match="A median bandwidth needs at least 2 samples in the first batch, got 1"):
            feed(wide_pair(rng, d=20), size=16, kernel=RBF(), batch=1)

    def test_other_layers_or_library(self, rng):
        xs = wide_pair(rng, d=20)
        statistics = feed(xs, size=16)
        with pytest.raises(
            ValueError, match=r"this batch are of widths \[20, 20\], those before of widths \[20\] against"
        ):
            statistics.update(xs)
        with pytest.raises(TypeError, match="must come from one library"):
            feed(xs, torch, statistics=statistics)

    def test_merging_with_other_settings(self, rng):
        xs = wide_pair(rng, d=20)
        with pytest.raises(ValueError, match="Cannot merge: `size` is 16 on one side and 32 on the other"):
            feed(xs, size=16).merge(feed(xs, size=32))
        with pytest.raises(ValueError, match="Cannot merge: `seed` is 0 on one side and 1"):
            feed(xs, size=16).merge(feed(xs, size=16, seed=1))
        with pytest.raises(ValueError, match="the two sides have measured different bandwidths"):
            feed(xs, size=16, kernel=RBF()).merge(feed([2 * x for x in xs], size=16, kernel=RBF()))

    def test_a_state_of_other_settings(self, rng):
        state = feed(wide_pair(rng, d=20), size=16).state_dict()
        with pytest.raises(ValueError, match="The saved state has size=16, this SketchCKA 32"):
            SketchCKA(size=32).load_state_dict(state)
