"""MomentCKA: the n x n definition over the whole data set, merging, float32 accuracy, jackknife error, messages."""

import array_api_strict
import numpy as np
import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from libraries import to_numpy
from numpy.testing import assert_allclose, assert_array_equal

from cka_probe.estimators import MomentCKA
from cka_probe.estimators.dataset import moment_layout, moment_sums

HSIC = {"unbiased": reference.hsic1, "biased": reference.hsic0}
ESTIMATORS = pytest.mark.parametrize("estimator", ["unbiased", "biased"])


def layers(rng, n=40, widths=(3, 7, 5), mean=2.0):
    """Related layers of n samples."""
    shared = rng.normal(size=(n, 4))
    return [shared @ rng.normal(size=(4, w)) + 0.7 * rng.normal(size=(n, w)) + mean for w in widths]


def definition(xs, estimator, ys=None):
    """CKA of all pairs from the n x n matrices, in float64."""
    grams_x = [reference.centred_linear_gram(x) for x in xs]
    grams_y = grams_x if ys is None else [reference.centred_linear_gram(y) for y in ys]
    return np.array([[reference.cka_grams(K, L, estimator) for L in grams_y] for K in grams_x])


def feed(xs, sizes=(7,), xp=np, split=None, statistics=None, **settings):
    """Feed layers in batches of ``sizes``, in turn; ``split`` compares the first layers with the rest."""
    statistics = statistics or MomentCKA(**settings)
    start, turn = 0, 0
    while start < len(xs[0]):
        stop = min(start + sizes[turn % len(sizes)], len(xs[0]))
        batch = [xp.asarray(x[start:stop]) for x in xs]
        statistics.update(batch) if split is None else statistics.update(batch[:split], batch[split:])
        start, turn = stop, turn + 1
    return statistics


@ESTIMATORS
class TestDefinition:
    def test_whole_data_set_in_one_pass(self, xp, rng, estimator):
        xs = layers(rng)
        expected = definition(xs, estimator)
        statistics = feed(xs, (7, 1, 11), xp)
        found = statistics.compute(estimator)
        assert found.dtype == xp.float64
        assert type(found) is type(xp.asarray(xs[0]))
        assert_allclose(to_numpy(found), expected, rtol=1e-10)
        assert_array_equal(to_numpy(found), to_numpy(found).T)
        assert statistics.samples == 40
        assert statistics.batches == 7

    def test_one_network_against_another(self, xp, rng, estimator):
        xs = layers(rng)
        found = feed(xs, (9,), xp, split=1).compute(estimator)
        assert_allclose(to_numpy(found), definition(xs[:1], estimator, xs[1:]), rtol=1e-10)

    def test_hsic_in_the_units_of_the_features(self, xp, rng, estimator):
        xs = layers(rng)
        K, L = (reference.centred_linear_gram(x) for x in xs[:2])
        for split, at in ((None, (0, 1)), (1, (0, 0))):
            found = feed(xs, (9,), xp, split=split).hsic(estimator)
            assert float(found[at]) == pytest.approx(HSIC[estimator](K, L), rel=1e-10)

    @pytest.mark.parametrize("split", [None, 2])
    def test_layers_wider_than_a_strip(self, xp, rng, monkeypatch, estimator, split):
        monkeypatch.setattr(moment_layout, "STRIP", 4)
        xs = layers(rng, widths=(3, 11, 6))
        ys = None if split is None else xs[split:]
        statistics = feed(xs, (9,), xp, split=split)
        assert_allclose(to_numpy(statistics.compute(estimator)), definition(xs[:split], estimator, ys), rtol=1e-10)
        other = feed(xs, (9,), xp, split=split)
        statistics.merge(other)
        twice = [np.concatenate([x, x]) for x in xs]
        ys = None if split is None else twice[split:]
        assert_allclose(to_numpy(statistics.compute(estimator)), definition(twice[:split], estimator, ys), rtol=1e-10)

    def test_merged_parts_equal_the_whole_for_other_shifts_and_scales(self, xp, rng, estimator):
        xs = layers(rng)
        # The second part has another mean and scale.
        xs = [np.concatenate([x[:15], 50 + 300 * x[15:]]) for x in xs]
        expected = definition(xs, estimator)
        for split in (None, 1):
            for parts in ((slice(0, 15), slice(15, 40)), (slice(30, 40), slice(0, 9), slice(9, 30))):
                merged = MomentCKA()
                for part in parts:
                    merged.merge(feed([x[part] for x in xs], (4,), xp, split=split))
                merged.merge(MomentCKA())
                found = to_numpy(merged.compute(estimator))
                assert_allclose(found, expected if split is None else expected[:1, 1:], rtol=1e-9)
                assert merged.samples == 40

    def test_order_does_not_matter(self, xp, rng, estimator):
        xs = layers(rng)
        order = rng.permutation(40)
        found = [feed(each, (8,), xp).compute(estimator) for each in (xs, [x[order] for x in xs])]
        assert_allclose(to_numpy(found[0]), to_numpy(found[1]), rtol=1e-11)

    def test_state_round_trip(self, xp, rng, estimator):
        xs = layers(rng)
        whole = feed(xs, (8,), xp)
        half = feed([x[:16] for x in xs], (8,), xp)
        state = half.state_dict()
        for _ in range(2):  # continuing from a state leaves the state unchanged
            resumed = MomentCKA()
            resumed.load_state_dict(state)
            feed([x[16:] for x in xs], (8,), xp, statistics=resumed)
            assert_allclose(to_numpy(resumed.compute(estimator)), to_numpy(whole.compute(estimator)), rtol=1e-11)
            assert (resumed.samples, resumed.batches) == (40, 5)
        assert_allclose(to_numpy(half.compute(estimator)), definition([x[:16] for x in xs], estimator), rtol=1e-10)

    def test_only_a_constant_layer_is_nan(self, xp, rng, estimator):
        xs = layers(rng)
        alone = definition(xs, estimator)
        constant = np.full((40, 6), 1 / 3)
        found = to_numpy(feed([*xs, constant], (9,), xp).compute(estimator))
        assert np.isnan(found[3]).all()
        assert np.isnan(found[:, 3]).all()
        assert_allclose(found[:3, :3], alone, rtol=1e-10)
        found = to_numpy(feed([*xs, constant], (9,), xp, split=2).compute(estimator))
        assert np.isnan(found[:, 1]).all()
        assert_allclose(found[:, 0], alone[:2, 2], rtol=1e-10)
        # Merged from two accumulators with different first batches.
        merged = feed([x[:20] for x in [*xs, constant]], (9,), xp)
        merged.merge(feed([x[20:] for x in [*xs, constant]], (9,), xp))
        assert np.isnan(to_numpy(merged.compute(estimator))[3]).all()

    def test_error_is_the_full_jackknife_when_all_samples_are_kept(self, xp, rng, estimator):
        xs = layers(rng, n=24)
        K, L = (reference.centred_linear_gram(x) for x in xs[:2])
        expected = reference.jackknife_error(reference.leave_one_out(K, L, estimator))
        for split, at in ((None, (0, 1)), (1, (0, 0))):
            statistics = feed(xs, (5,), xp, split=split)
            error = to_numpy(statistics.standard_error(estimator))
            assert error[at] == pytest.approx(expected, rel=1e-9)
            assert statistics.degrees_of_freedom == 23
        assert_allclose(np.diag(to_numpy(feed(xs, (5,), xp).standard_error(estimator))), 0, atol=1e-12)


class TestError:
    def test_error_from_some_samples_is_near_that_from_all(self, rng):
        xs = layers(rng, n=4000)
        whole = feed(xs, (100,), error_samples=4000).standard_error()
        some = np.array([feed(xs, (100,), error_samples=400, seed=seed).standard_error() for seed in range(24)])
        off = ~np.eye(3, dtype=bool)
        # The relative error of a standard deviation from 400 values is 1/sqrt(800) when they are Gaussian.
        assert_allclose(some.mean(axis=0)[off], whole[off], rtol=0.05)
        assert (np.abs(some / whole - 1)[:, off] < 0.25).all()

    def test_every_sample_is_equally_likely_to_be_kept_after_merging(self, rng):
        n, counts = 60, np.zeros(60)
        for seed in range(400):
            parts = [MomentCKA(error_samples=12, seed=2 * seed + k) for k in range(2)]
            index = np.arange(n, dtype=float)[:, None]
            feed([index[:20]], (7,), statistics=parts[0])
            feed([index[20:]], (7,), statistics=parts[1])
            parts[0].merge(parts[1])
            kept = parts[0].state_dict()["sums"]["rows"][:, 0].astype(int)
            assert len(set(kept)) == 12
            counts[kept] += 1
        # 400 draws of one fifth: mean 80, standard deviation 8.
        assert np.abs(counts - 80).max() < 4 * 8
        assert abs(counts[:20].mean() - 80) < 6

    def test_covers_the_truth(self, rng):
        mix = rng.normal(size=(3, 6))
        truth = feed([z := rng.normal(size=(200_000, 3)), z @ mix + 2 * rng.normal(size=(200_000, 6))], (10_000,))
        truth = truth.compute()[0, 1]
        inside = []
        for _ in range(100):
            z = rng.normal(size=(300, 3))
            statistics = feed([z, z @ mix + 2 * rng.normal(size=(300, 6))], (64,), error_samples=128)
            inside.append(abs(statistics.compute()[0, 1] - truth) < 2 * statistics.standard_error()[0, 1])
        assert 0.87 <= np.mean(inside) <= 1

    @pytest.mark.parametrize("settings", [{"error_samples": 0}, {}])
    def test_nan_without_an_error(self, rng, settings):
        xs = layers(rng, n=4 if not settings else 40)
        assert np.isnan(feed(xs, **settings).standard_error()).all()

    def test_nan_for_constant_layers(self, rng):
        error = feed([*layers(rng), np.ones((40, 2))]).standard_error()
        assert np.isnan(error[3]).all()
        assert np.isfinite(error[:3, :3]).all()


class TestAccuracy:
    """Errors of float32 features are below 1e-6, against float64 on the same numbers."""

    @staticmethod
    def error(xs, size=64, split=None):
        xs = [x.astype(np.float32) for x in xs]
        found = feed(xs, (size,), array_api_strict, split=split).compute()
        double = [x.astype(np.float64) for x in xs]
        ys = None if split is None else double[split:]
        return np.abs(to_numpy(found) - definition(double[:split], "unbiased", ys)).max()

    @pytest.fixture
    def xs(self, rng, monkeypatch):
        monkeypatch.setattr(moment_sums, "NARROW", 256)  # so that these are wide, and multiplied in float32
        return layers(rng, n=400, widths=(200, 120))

    @pytest.mark.parametrize("mean", [0.0, 1.0, 1e3, 1e5])
    @pytest.mark.parametrize("split", [None, 1])
    def test_means(self, xs, mean, split):
        assert self.error([x + mean for x in xs], split=split) < 1e-6

    @pytest.mark.parametrize("scale", [1e-19, 1e-10, 1e10, 1e17])
    def test_scales(self, xs, scale):
        assert self.error([scale * xs[0], xs[1]]) < 1e-6
        assert self.error([scale * xs[0], xs[1]], split=1) < 1e-6

    @pytest.mark.parametrize("at", [3, 300])
    def test_a_sample_far_away(self, xs, at):
        for x in xs:
            x[at] *= 300
        assert self.error(xs) < 1e-6

    def test_float32_alone_is_not_enough(self, xs, monkeypatch):
        """Negative control: without float64 for samples far away, the error is much larger."""
        for x in xs:
            x[300] *= 300
        monkeypatch.setattr(moment_sums, "FAR", np.inf)
        assert self.error(xs) > 1e-5

    def test_heavy_tails(self, xs, rng):
        assert self.error([x * rng.standard_t(1.5, size=(400, 1)) for x in xs]) < 1e-6

    def test_sparse_layers(self, xs):
        assert self.error([np.maximum(x - 4, 0) for x in xs]) < 1e-6

    def test_data_far_from_the_first_batch(self, xs):
        assert self.error([np.concatenate([x[:100], x[100:] + 1000]) for x in xs]) < 1e-6

    @pytest.mark.parametrize("factor", [0.0, 1e-6])
    def test_a_layer_that_is_nearly_constant_at_first(self, xs, factor):
        assert self.error([np.concatenate([factor * x[:100], 1e12 * x[100:]]) for x in xs], size=32) < 1e-6

    def test_batches_of_one(self, xs):
        assert self.error(xs, size=1) < 1e-6

    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 1e-4), (torch.bfloat16, 1e-4)])
    def test_half_precision_is_computed_in_float32(self, xs, dtype, tolerance):
        halves = [torch.from_numpy(x).to(dtype) for x in xs]
        statistics = MomentCKA()
        statistics.update(halves)
        expected = definition([x.double().numpy() for x in halves], "unbiased")
        assert_allclose(statistics.compute().numpy(), expected, atol=tolerance)

    def test_dtypes_may_change_between_batches(self, xs):
        statistics = MomentCKA()
        statistics.update([x[:100].astype(np.float32) for x in xs])
        statistics.update([xs[0][100:], xs[1][100:].astype(np.float32)])
        assert_allclose(statistics.compute(), definition(xs, "unbiased"), atol=1e-6)


class TestInvariances:
    @given(st.integers(0, 2**31), st.floats(-1e4, 1e4), st.floats(1e-6, 1e6))
    def test_shift_scale_rotation_and_sign(self, seed, shift, scale):
        rng = np.random.default_rng(seed)
        xs = layers(rng, n=20)
        turn, _ = np.linalg.qr(rng.normal(size=(7, 7)))
        changed = [xs[0], scale * (xs[1] @ turn) + shift * scale, -xs[2]]
        assert_allclose(feed(changed).compute(), feed(xs).compute(), atol=1e-8)

    def test_not_invariant_to_a_general_linear_map(self, rng):
        xs = layers(rng)
        skewed = [xs[0], xs[1] @ np.diag([10.0, 1, 1, 1, 1, 1, 1]), xs[2]]
        assert np.abs(feed(skewed).compute() - feed(xs).compute()).max() > 0.01

    def test_libraries_agree(self, rng):
        xs = layers(rng, widths=(200, 100))
        found = [to_numpy(feed(xs, (9,), xp).compute()) for xp in (np, torch, array_api_strict)]
        assert_allclose(found[1], found[0], rtol=1e-11)
        assert_allclose(found[2], found[0], rtol=1e-11)


def test_memory_does_not_grow_with_the_samples(rng):
    def numbers(n):
        state = feed(layers(rng, n=n), (50,), error_samples=20).state_dict()["sums"]
        return sum(
            np.size(part) for value in state.values() for part in (value if isinstance(value, list) else [value])
        )

    assert numbers(200) == numbers(1000)


def test_batches_may_be_overwritten_after_update(rng):
    xs = layers(rng)
    statistics = MomentCKA()
    batch = [x.copy() for x in xs]
    statistics.update(batch)
    for x in batch:
        x[:] = np.nan
    assert_allclose(statistics.compute(), definition(xs, "unbiased"), rtol=1e-10)


def test_gradients_are_not_kept(rng):
    xs = [torch.from_numpy(x).requires_grad_() for x in layers(rng)]
    statistics = MomentCKA()
    statistics.update(xs)
    assert not statistics.compute().requires_grad


class TestMessages:
    def test_too_few_samples(self, rng):
        with pytest.raises(ValueError, match="No batch has been added yet"):
            MomentCKA().compute()
        statistics = feed(layers(rng, n=3))
        with pytest.raises(ValueError, match="needs at least 4 samples, got 3"):
            statistics.compute()
        assert np.isfinite(statistics.compute("biased")).all()

    def test_unknown_estimator(self, rng):
        with pytest.raises(ValueError, match='`estimator` must be "unbiased" or "biased"'):
            feed(layers(rng)).compute("debiased")

    def test_negative_number_of_kept_samples(self):
        with pytest.raises(ValueError, match="`error_samples` must not be negative, got -1"):
            MomentCKA(error_samples=-1)

    def test_layers_that_differ_from_before(self, rng):
        xs = layers(rng)
        statistics = feed(xs)
        with pytest.raises(ValueError, match=r"this batch are of widths \[3, 7\], those before of widths \[3, 7, 5\]"):
            statistics.update(xs[:2])
        with pytest.raises(ValueError, match=r"of widths \[3\] against \[7, 5\], those before"):
            statistics.update(xs[:1], xs[1:])
        with pytest.raises(ValueError, match=r"the statistics to merge are of widths \[3, 7\]"):
            statistics.merge(feed(xs[:2]))

    def test_bad_features_are_named(self, rng):
        xs = layers(rng)
        with pytest.raises(ValueError, match=r"`xs\[1\]` holds NaN or infinity"):
            MomentCKA().update([xs[0], xs[1] * np.nan])
        with pytest.raises(TypeError, match=r"`ys\[0\]` must have a real floating dtype"):
            MomentCKA().update(xs, [xs[0].astype(int)])
        with pytest.raises(TypeError, match=r"`xs` must be a sequence of arrays"):
            MomentCKA().update(xs[0])
        with pytest.raises(TypeError, match="must come from one library"):
            MomentCKA().update([xs[0], torch.from_numpy(xs[1])])
        with pytest.raises(ValueError, match=r"`xs` hold 40 samples and `ys` 39"):
            MomentCKA().update(xs, [xs[0][1:]])
        with pytest.raises(ValueError, match=r"`xs` holds no layers"):
            MomentCKA().update([])

    def test_another_library_or_device_than_before(self, rng):
        xs = layers(rng)
        statistics = feed(xs)
        with pytest.raises(TypeError, match="must come from one library"):
            statistics.update([torch.from_numpy(x) for x in xs])
        with pytest.raises(TypeError, match="must come from one library"):
            statistics.merge(feed(xs, xp=torch))
        elsewhere = array_api_strict.Device("device1")
        moved = [array_api_strict.asarray(x, device=elsewhere) for x in xs]
        statistics = feed(xs, xp=array_api_strict)
        with pytest.raises(ValueError, match="the samples before are on"):
            statistics.update(moved)

    def test_a_state_of_other_settings(self, rng):
        state = feed(layers(rng), error_samples=10).state_dict()
        with pytest.raises(ValueError, match="has error_samples=10, this MomentCKA 512"):
            MomentCKA().load_state_dict(state)
