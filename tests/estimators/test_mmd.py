"""The four estimators of MMD^2, its permutation test and the energy distance equal loops over samples."""

import math
from itertools import combinations

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import reference
import scipy.stats
import torch
from array_api_compat import array_namespace
from hypothesis import given
from hypothesis import strategies as st
from libraries import to_numpy
from numpy.testing import assert_allclose

from cka_probe.estimators import (
    RBF,
    Distance,
    Laplacian,
    Linear,
    Polynomial,
    energy_distance,
    hsic,
    mmd_squared,
    mmd_test,
)

# --- brute force -------------------------------------------------------------------------------------------------


def mean(values):
    values = list(values)
    return math.fsum(values) / len(values)


def unbiased(x, y, k):
    """Gretton et al. 2012, equation 3."""
    within = [mean(k(a[i], a[j]) for i in range(len(a)) for j in range(len(a)) if i != j) for a in (x, y)]
    return sum(within) - 2 * mean(k(u, v) for u in x for v in y)


def biased(x, y, k):
    """Gretton et al. 2012, equation 5."""
    return (
        mean(k(u, v) for u in x for v in x)
        + mean(k(u, v) for u in y for v in y)
        - 2 * mean(k(u, v) for u in x for v in y)
    )


def h(x, y, i, j, k):
    return k(x[i], x[j]) + k(y[i], y[j]) - k(x[i], y[j]) - k(x[j], y[i])


def blocks(x, y, k, size):
    """Zaremba et al. 2013: the mean over blocks of the U-statistic with the kernel h."""
    starts = range(0, len(x) - size + 1, size)
    return mean(mean(h(x, y, i, j, k) for i, j in combinations(range(s, s + size), 2)) for s in starts)


def linear_time(x, y, k):
    """Gretton et al. 2012, section 6."""
    return mean(h(x, y, 2 * i, 2 * i + 1, k) for i in range(len(x) // 2))


def distance_kernel(u, v):
    zero = np.zeros(len(u))
    return (reference.distance(u, zero) + reference.distance(v, zero) - reference.distance(u, v)) / 2


KERNELS = [
    pytest.param(Linear(), reference.linear, id="linear"),
    pytest.param(RBF(bandwidth=1.3), reference.rbf(1.3), id="rbf"),
    pytest.param(Laplacian(bandwidth=0.7), reference.laplacian(0.7), id="laplacian"),
    pytest.param(Polynomial(degree=3), reference.polynomial(3, 1.0, 1 / 3), id="polynomial"),
    pytest.param(Distance(), distance_kernel, id="distance"),
]


@pytest.fixture
def samples(rng):
    return rng.normal(size=(9, 3)), rng.normal(size=(7, 3)) + 0.5


@pytest.mark.parametrize(("kernel", "by_pairs"), KERNELS)
class TestDefinition:
    def test_full_forms(self, xp, samples, kernel, by_pairs):
        x, y = samples
        for estimator, definition in (("unbiased", unbiased), ("biased", biased)):
            value = mmd_squared(xp.asarray(x), xp.asarray(y), kernel=kernel, estimator=estimator)
            assert_allclose(float(value), definition(x, y, by_pairs), rtol=1e-10, atol=1e-13)

    def test_blocks_leave_out_the_remainder(self, xp, samples, kernel, by_pairs):
        x, y = samples[0], samples[0] ** 2
        for size in (2, 3, 4, 9):
            value = mmd_squared(xp.asarray(x), xp.asarray(y), kernel=kernel, estimator="block", block_size=size)
            assert_allclose(float(value), blocks(x, y, by_pairs, size), rtol=1e-10, atol=1e-13)

    def test_linear_time(self, xp, samples, kernel, by_pairs):
        x, y = samples[0], samples[0] ** 2
        value = mmd_squared(xp.asarray(x), xp.asarray(y), kernel=kernel, estimator="linear")
        assert_allclose(float(value), linear_time(x, y, by_pairs), rtol=1e-10, atol=1e-13)

    def test_a_stack_equals_its_pairs_one_by_one(self, xp, rng, kernel, by_pairs):
        x, y = xp.asarray(rng.normal(size=(2, 3, 6, 3))), xp.asarray(rng.normal(size=(2, 3, 6, 3)))
        for estimator in ("unbiased", "biased", "block", "linear"):
            stacked = to_numpy(mmd_squared(x, y, kernel=kernel, estimator=estimator))
            assert stacked.shape == (2, 3)
            single = mmd_squared(x[1, 2, ...], y[1, 2, ...], kernel=kernel, estimator=estimator)
            assert_allclose(stacked[1, 2], float(single), rtol=1e-11, atol=1e-14)

    def test_the_permutation_test_equals_new_calls(self, xp, samples, kernel, by_pairs):
        x, y = samples
        pooled = np.concatenate([x, y])
        given_order = np.array([1.0] * 9 + [-1.0] * 7)
        orders = np.random.default_rng(5).permuted(np.tile(given_order, (20, 1)), axis=1)
        for estimator, definition in (("unbiased", unbiased), ("biased", biased)):
            test = mmd_test(xp.asarray(x), xp.asarray(y), kernel=kernel, estimator=estimator, permutations=20, seed=5)
            expected = np.array([definition(pooled[o > 0], pooled[o < 0], by_pairs) for o in orders])
            assert_allclose(to_numpy(test.null), expected, rtol=1e-9, atol=1e-12)
            assert_allclose(float(test.mmd_squared), definition(x, y, by_pairs), rtol=1e-9, atol=1e-12)
            assert_allclose(float(test.p_value), (1 + np.sum(expected >= float(test.mmd_squared))) / 21)

    def test_gradient(self, rng, kernel, by_pairs):
        x = torch.tensor(rng.normal(size=(5, 3)), requires_grad=True)
        y = torch.tensor(rng.normal(size=(5, 3)), requires_grad=True)
        for estimator in ("unbiased", "biased", "block", "linear"):
            assert torch.autograd.gradcheck(
                lambda a, b, e=estimator: mmd_squared(a, b, kernel=kernel, estimator=e), (x, y)
            )


# --- bandwidth, dtype, accuracy ----------------------------------------------------------------------------------


def test_a_median_bandwidth_is_that_of_both_samples(xp, samples):
    x, y = samples
    width = reference.median_distance(np.concatenate([x, y]))
    for kernel, by_pairs in (
        (RBF(fraction=0.5), reference.rbf(0.5 * width)),
        (Laplacian(), reference.laplacian(width)),
    ):
        value = mmd_squared(xp.asarray(x), xp.asarray(y), kernel=kernel)
        assert_allclose(float(value), unbiased(x, y, by_pairs), rtol=1e-10)
        value = mmd_squared(xp.asarray(x[:6]), xp.asarray(y[:6]), kernel=kernel, estimator="block", block_size=3)
        width6 = reference.median_distance(np.concatenate([x[:6], y[:6]]))
        fixed = type(kernel)(bandwidth=width6, fraction=kernel.fraction)
        expected = mmd_squared(x[:6], y[:6], kernel=fixed, estimator="block", block_size=3)
        assert_allclose(float(value), expected, rtol=1e-10)


def test_the_default_is_rbf_with_the_median(samples):
    x, y = samples
    assert_allclose(mmd_squared(x, y), mmd_squared(x, y, kernel=RBF()), rtol=0)


def test_the_linear_form_reads_the_median_off_evenly_spaced_samples(rng):
    x, y = rng.normal(size=(2, 2500, 2))
    width = RBF().width(x[::3], y[::3])[0, 0]
    expected = mmd_squared(x, y, kernel=RBF(bandwidth=width), estimator="linear")
    assert_allclose(mmd_squared(x, y, estimator="linear"), expected, rtol=1e-10)


def test_the_default_block_is_the_square_root_of_n(rng):
    x, y = rng.normal(size=(2, 50, 2))
    kernel = RBF(bandwidth=1.0)
    expected = mmd_squared(x, y, kernel=kernel, estimator="block", block_size=7)
    assert_allclose(mmd_squared(x, y, kernel=kernel, estimator="block"), expected, rtol=0)


def test_float64_of_the_caller_s_library(xp, samples):
    x, y = (xp.asarray(z, dtype=xp.float32) for z in samples)
    for value in (mmd_squared(x, y), energy_distance(x, y), *mmd_test(x, y, permutations=3)):
        assert array_namespace(value) is array_namespace(x)
        assert value.dtype == xp.float64
    x32, y32 = (z.astype(np.float32).astype(np.float64) for z in samples)
    assert_allclose(float(mmd_squared(x, y)), mmd_squared(x32, y32), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(rng, dtype):
    x, y = torch.tensor(rng.normal(size=(2, 8, 3))).to(dtype)
    assert_allclose(mmd_squared(x, y).item(), mmd_squared(x.double(), y.double()).item(), atol=1e-6)


@pytest.mark.parametrize("kernel", [Linear(), RBF(bandwidth=1.0), Distance()])
def test_float32_with_a_mean_far_above_the_spread(rng, kernel):
    x, y = rng.normal(size=(2, 40, 3)) + np.array([[[1000.0]], [[1001.0]]])
    x, y = x.astype(np.float32), y.astype(np.float32)
    exact = mmd_squared(x.astype(float), y.astype(float), kernel=kernel)
    assert_allclose(mmd_squared(x, y, kernel=kernel), exact, rtol=1e-4)


def test_more_than_half_of_the_pairs_coincide():
    x, y = np.zeros((6, 2)), np.concatenate([np.zeros((5, 2)), np.ones((1, 2))])
    for estimator in ("unbiased", "biased", "block", "linear"):
        with pytest.raises(ValueError, match=r"median distance of `x and y together` is 0.*RBF\(bandwidth=1.0\)"):
            mmd_squared(x, y, estimator=estimator)
    with pytest.raises(ValueError, match="half of all pairs of samples or more are equal"):
        mmd_test(x, y)
    assert not np.isnan(mmd_squared(x, y, kernel=RBF(bandwidth=1.0)))


# --- statistics --------------------------------------------------------------------------------------------------


def test_all_but_the_v_statistic_are_unbiased():
    """n = 50. The spread grows from the U-statistic to blocks to linear time."""
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(2, 1000, 50, 1))
    y = y + 0.25
    # E k for Gaussians of variance 1 and bandwidth 1: exp(-shift^2 / (2 * 3)) / sqrt(3).
    truth = 2 / math.sqrt(3) * (1 - math.exp(-(0.25**2) / 6))
    spread = {}
    for estimator in ("unbiased", "block", "linear", "biased"):
        values = mmd_squared(x, y, kernel=RBF(bandwidth=1.0), estimator=estimator)
        spread[estimator] = values.std()
        error = values.std() / math.sqrt(1000)
        assert (abs(values.mean() - truth) < 4 * error) == (estimator != "biased"), estimator
    assert spread["unbiased"] < 0.6 * spread["block"] < 0.6 * spread["linear"]


def test_p_values_are_uniform_under_the_null():
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(2, 400, 8, 2))
    test = mmd_test(x, y, kernel=RBF(bandwidth=1.0), permutations=199)
    assert abs(np.mean(test.p_value <= 0.05) - 0.05) < 4 * math.sqrt(0.05 * 0.95 / 400)
    assert scipy.stats.kstest(test.p_value, "uniform").pvalue > 1e-3


def test_a_test_counts_ties(xp):
    """With two samples a side, a third of all permutations give the same two sets, so the p-value cannot be small."""
    x, y = xp.asarray([[0.0], [1.0]]), xp.asarray([[5.0], [6.0]])
    p = float(mmd_test(x, y, kernel=RBF(bandwidth=1.0), permutations=3000).p_value)
    assert_allclose(p, 1 / 3, atol=0.04)


def test_the_seed_decides_the_permutations(samples):
    a, b, c = (mmd_test(*samples, permutations=5, seed=s).null for s in (1, 1, 2))
    assert_allclose(a, b, rtol=0)
    assert np.abs(a - c).max() > 1e-6


# --- energy distance ---------------------------------------------------------------------------------------------


def test_energy_distance_equals_its_definition(xp, samples):
    x, y = samples
    value = energy_distance(xp.asarray(x), xp.asarray(y), estimator="biased")
    expected = biased(x, y, lambda u, v: -reference.distance(u, v))
    assert_allclose(float(value), expected, rtol=1e-11)
    value = energy_distance(xp.asarray(x), xp.asarray(y))
    assert_allclose(float(value), unbiased(x, y, lambda u, v: -reference.distance(u, v)), rtol=1e-11)


@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
def test_energy_distance_is_twice_the_mmd_of_the_distance_kernel(samples, estimator):
    assert_allclose(
        energy_distance(*samples, estimator=estimator),
        2 * mmd_squared(*samples, kernel=Distance(), estimator=estimator),
        rtol=1e-10,
    )


def test_energy_distance_agrees_with_scipy(rng):
    x, y = rng.normal(size=(30, 1)), rng.normal(size=(20, 1)) + 1
    assert_allclose(
        math.sqrt(energy_distance(x, y, estimator="biased")), scipy.stats.energy_distance(x[:, 0], y[:, 0]), rtol=1e-10
    )


def test_biased_hsic_with_the_distance_kernel_is_distance_covariance(rng):
    """It is a quarter of dCov^2 (Sejdinovic et al. 2013), computed here from doubly centred distances."""
    x, y = rng.normal(size=(12, 2)), rng.normal(size=(12, 3))
    H = reference.centring(12)
    a, b = (H @ reference.gram(z, reference.distance) @ H for z in (x, y))
    value = hsic(x, y, kernel=Distance(), estimator="biased") * (11 / 12) ** 2
    assert_allclose(value, np.mean(a * b) / 4, rtol=1e-10)


# --- properties --------------------------------------------------------------------------------------------------

elements = st.floats(-20, 20, allow_subnormal=False).map(lambda v: round(v, 6))
two_samples = st.tuples(
    hnp.arrays(float, st.tuples(st.integers(2, 6), st.just(2)), elements=elements),
    hnp.arrays(float, st.tuples(st.integers(2, 6), st.just(2)), elements=elements),
)
translation_invariant = st.sampled_from([Linear(), RBF(bandwidth=2.0), Laplacian(bandwidth=3.0), Distance()])


@given(two_samples, translation_invariant, st.sampled_from(["unbiased", "biased"]))
def test_invariances(pair, kernel, estimator):
    x, y = pair
    value = mmd_squared(x, y, kernel=kernel, estimator=estimator)
    # For coinciding points a squared distance of 1e-15, which is rounding, gives a distance of 3e-8.
    close = {"rtol": 1e-8, "atol": 1e-7}
    assert_allclose(mmd_squared(y, x, kernel=kernel, estimator=estimator), value, **close)
    assert_allclose(mmd_squared(x[::-1], y, kernel=kernel, estimator=estimator), value, **close)
    assert_allclose(mmd_squared(x + 7, y + 7, kernel=kernel, estimator=estimator), value, **close)
    rotation = np.array([[0.6, 0.8], [-0.8, 0.6]])
    assert_allclose(mmd_squared(x @ rotation, y @ rotation, kernel=kernel, estimator=estimator), value, **close)


@given(two_samples, translation_invariant)
def test_the_v_statistic_is_not_negative_and_0_for_equal_samples(pair, kernel):
    x, y = pair
    assert mmd_squared(x, y, kernel=kernel, estimator="biased") >= -1e-9
    assert_allclose(mmd_squared(x, x, kernel=kernel, estimator="biased"), 0, atol=1e-7)


def test_negative_control(rng):
    """The MMD changes with scale, and with a shift of one side."""
    x, y = rng.normal(size=(2, 20, 2)) + np.array([[[0.0]], [[1.0]]])
    kernel = RBF(bandwidth=1.0)
    value = mmd_squared(x, y, kernel=kernel)
    assert abs(mmd_squared(3 * x, 3 * y, kernel=kernel) - value) > 0.01
    assert abs(mmd_squared(x, y + 1, kernel=kernel) - value) > 0.01


# --- bad input ---------------------------------------------------------------------------------------------------


def test_bad_arguments(samples):
    x, y = samples
    with pytest.raises(ValueError, match='must be "unbiased", "biased", "block" or "linear"'):
        mmd_squared(x, y, estimator="quadratic")
    with pytest.raises(ValueError, match='`block_size` belongs to estimator="block"'):
        mmd_squared(x, y, block_size=3)
    with pytest.raises(ValueError, match="`x` has 9 samples and `y` has 7"):
        mmd_squared(x, y, estimator="linear")
    for size in (1, 10):
        with pytest.raises(ValueError, match="`block_size` must be from 2 to the number of samples, 9"):
            mmd_squared(x, x, estimator="block", block_size=size)
    with pytest.raises(ValueError, match="`permutations` must be at least 1"):
        mmd_test(x, y, permutations=0)
    for function in (mmd_test, energy_distance):
        with pytest.raises(ValueError, match='must be "unbiased" or "biased"'):
            function(x, y, estimator="block")


@pytest.mark.parametrize("function", [mmd_squared, mmd_test, energy_distance])
def test_bad_samples(samples, function):
    x, y = samples
    with pytest.raises(ValueError, match="`x` has 3 features and `y` has 2"):
        function(x, y[:, :2])
    with pytest.raises(ValueError, match="all axes but the last two must agree"):
        function(np.stack([x, x]), np.stack([y, y, y]))
    with pytest.raises(ValueError, match="`y` has 1 samples"):
        function(x, y[:1])
    with pytest.raises(ValueError, match="`x` holds NaN"):
        function(np.full((4, 3), np.inf), y)
    with pytest.raises(TypeError, match="`y` is from torch"):
        function(x, torch.tensor(y))
    with pytest.raises(TypeError, match="`x` must have a real floating dtype"):
        function(x.astype(int), y)


def test_another_device():
    x = torch.zeros(4, 2)
    with pytest.raises(ValueError, match="`x` is on cpu and `y` on meta"):
        mmd_squared(x, torch.zeros(4, 2, device="meta"))
