"""CKA of a pair of layers: definition, invariances and their limits, accuracy, constant layers, chance level."""

import math

import array_api_strict
import numpy as np
import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from libraries import to_numpy
from numpy.testing import assert_allclose

from cka_probe.estimators import (
    RBF,
    Cosine,
    Laplacian,
    Linear,
    Polynomial,
    chance_level,
    cka,
    cka_from_grams,
    participation_ratio,
)
from cka_probe.estimators.alignment import cka_of_features

ESTIMATORS = pytest.mark.parametrize("estimator", ["unbiased", "biased"])
KERNELS = pytest.mark.parametrize(
    "kernel", [Linear(), RBF(), Laplacian(), Polynomial(), Cosine()], ids=lambda k: type(k).__name__
)
BY_PAIRS = [
    pytest.param(RBF(bandwidth=1.5), reference.rbf(1.5), id="rbf"),
    pytest.param(Laplacian(bandwidth=1.5), reference.laplacian(1.5), id="laplacian"),
    pytest.param(Polynomial(gamma=0.5), reference.polynomial(2, 1.0, 0.5), id="polynomial"),
    pytest.param(Cosine(), reference.cosine, id="cosine"),
]


def pair(rng, n=12, p=3, q=5):
    """Two related sets of features."""
    x = rng.normal(size=(n, p))
    return x, x @ rng.normal(size=(p, q)) + rng.normal(size=(n, q)) + 2


@ESTIMATORS
class TestDefinition:
    @pytest.mark.parametrize(("p", "q"), [(2, 3), (40, 30), (1, 25)])
    def test_linear(self, xp, rng, estimator, p, q):
        x, y = pair(rng, 8, p, q)
        found = float(cka(xp.asarray(x), xp.asarray(y), estimator=estimator))
        assert_allclose(found, reference.cka(x, y, estimator), rtol=1e-11)

    @pytest.mark.parametrize(("kernel", "by_pairs"), BY_PAIRS)
    def test_other_kernels(self, xp, rng, estimator, kernel, by_pairs):
        x, y = pair(rng)
        K, L = reference.gram(x, by_pairs), reference.gram(y, by_pairs)
        found = float(cka(xp.asarray(x), xp.asarray(y), kernel=kernel, estimator=estimator))
        assert_allclose(found, reference.cka_grams(K, L, estimator), rtol=1e-10)
        found = float(cka_from_grams(xp.asarray(K), xp.asarray(L), estimator=estimator))
        assert_allclose(found, reference.cka_grams(K, L, estimator), rtol=1e-10)

    def test_a_kernel_for_each_side(self, xp, rng, estimator):
        x, y = pair(rng)
        found = cka(xp.asarray(x), xp.asarray(y), kernel=Linear(), kernel_y=RBF(bandwidth=2.0), estimator=estimator)
        K, L = reference.gram(x), reference.gram(y, reference.rbf(2.0))
        assert_allclose(float(found), reference.cka_grams(K, L, estimator), rtol=1e-10)

    def test_a_function_is_a_kernel(self, rng, estimator):
        x, y = rng.normal(size=(2, 9, 3))
        found = cka(x, y, kernel=lambda x, y=None: np.tanh(x @ (x if y is None else y).T), estimator=estimator)
        assert_allclose(found, reference.cka_grams(np.tanh(x @ x.T), np.tanh(y @ y.T), estimator), rtol=1e-10)

    @KERNELS
    def test_itself(self, xp, rng, estimator, kernel):
        x = xp.asarray(rng.normal(size=(10, 4)), dtype=xp.float32)
        assert abs(float(cka(x, x, kernel=kernel, estimator=estimator)) - 1) < 1e-6

    @KERNELS
    def test_symmetric(self, rng, estimator, kernel):
        x, y = pair(rng)
        forth, back = (cka(a, b, kernel=kernel, estimator=estimator) for a, b in ((x, y), (y, x)))
        assert_allclose(forth, back, rtol=1e-12)

    @KERNELS
    def test_a_stack_equals_its_pairs_one_by_one(self, xp, rng, estimator, kernel):
        x, y = rng.normal(size=(2, 3, 8, 4)), rng.normal(size=(2, 3, 8, 20))
        found = to_numpy(cka(xp.asarray(x), xp.asarray(y), kernel=kernel, estimator=estimator))
        assert found.shape == (2, 3)
        for i in np.ndindex(2, 3):
            one = cka(xp.asarray(x[i]), xp.asarray(y[i]), kernel=kernel, estimator=estimator)
            assert_allclose(found[i], float(one), rtol=1e-10)

    @KERNELS
    def test_gradient(self, rng, estimator, kernel):
        for n, p in ((5, 2), (5, 9)):
            x = torch.tensor(rng.normal(size=(n, p)), requires_grad=True)
            y = torch.tensor(rng.normal(size=(n, p)), requires_grad=True)
            assert torch.autograd.gradcheck(lambda x, y: cka(x, y, kernel=kernel, estimator=estimator), (x, y))

    @KERNELS
    def test_libraries_agree(self, xp, rng, estimator, kernel):
        x, y = pair(rng)
        found = cka(xp.asarray(x), xp.asarray(y), kernel=kernel, estimator=estimator)
        assert found.dtype == xp.float64
        assert type(found) in (type(xp.asarray(x)), np.float64)
        assert_allclose(float(found), float(cka(x, y, kernel=kernel, estimator=estimator)), rtol=1e-12)

    @KERNELS
    def test_stays_on_its_device(self, rng, estimator, kernel):
        device = array_api_strict.Device("device2")
        x, y = (array_api_strict.asarray(a, device=device) for a in pair(rng))
        assert cka(x, y, kernel=kernel, estimator=estimator).device == device
        assert chance_level(x, y, kernel=kernel).device == device


def test_gradient_is_the_closed_form(rng):
    """dc/dX = (2/||Kc||)(Lhat - c Khat) X, with A and B for the unbiased estimator (docs/theory.md, section 8)."""
    x, y = pair(rng)
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    n = len(x)
    H = reference.centring(n)
    for estimator in ("biased", "unbiased"):
        K, L = x @ x.T, y @ y.T
        if estimator == "biased":
            A, B = H @ K @ H, H @ L @ H
        else:
            A, B = (_u_centred(G) for G in (K, L))
        a, b = np.linalg.norm(A), np.linalg.norm(B)
        c = np.sum(A * B) / a / b
        expected = 2 / a * (B / b - c * A / a) @ x
        tensor = torch.tensor(x, requires_grad=True)
        cka(tensor, torch.tensor(y), estimator=estimator).backward()
        assert_allclose(tensor.grad.numpy(), expected, atol=1e-12)
        assert_allclose(np.sum(expected * x), 0, atol=1e-12)


# torch warns that it traces through a cache of array_api_compat. The cache maps types to namespaces: it is harmless.
@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`:UserWarning")
def test_compiled_is_eager(rng):
    """A compiled training step needs one graph without breaks, forward and backward."""
    x, y = (torch.tensor(f, dtype=torch.float32, requires_grad=True) for f in pair(rng))
    values, gradients = [], []
    for compute in (cka_of_features, torch.compile(cka_of_features, backend="aot_eager", fullgraph=True)):
        values.append(compute(torch, x, y, Linear(), Linear(), "unbiased"))
        gradients.append(torch.autograd.grad(values[-1], (x, y)))
    torch._dynamo.reset()
    assert_allclose(*(to_numpy(v) for v in values), rtol=1e-6)
    for eager, compiled in zip(*gradients, strict=True):
        assert_allclose(compiled.numpy(), eager.numpy(), rtol=1e-4, atol=1e-7)


def _u_centred(K):
    n = len(K)
    K = K - np.diag(np.diag(K))
    A = K - K.sum(0) / (n - 2) - K.sum(1)[:, None] / (n - 2) + K.sum() / ((n - 1) * (n - 2))
    return A - np.diag(np.diag(A))


SEEDS = st.integers(0, 10**6)
SIZES = st.tuples(st.integers(5, 16), st.integers(1, 20), st.integers(1, 20))


class TestInvariance:
    @given(SEEDS, SIZES, st.floats(-1e4, 1e4), st.floats(-8, 8), st.sampled_from(["unbiased", "biased"]))
    def test_shift_scale_rotation_and_order(self, seed, sizes, shift, exponent, estimator):
        rng = np.random.default_rng(seed)
        n, p, q = sizes
        x, y = rng.normal(size=(n, p)), rng.normal(size=(n, q))
        value = cka(x, y, estimator=estimator)
        rotation, _ = np.linalg.qr(rng.normal(size=(p, p)))
        order = rng.permutation(n)
        tolerance = 1e-8 if estimator == "biased" else 1e-8 / _conditioning(x, y)
        for changed in (x + shift * rng.normal(size=p), 10.0**exponent * x, -x, x @ rotation):
            assert abs(cka(changed, y, estimator=estimator) - value) < tolerance
        assert abs(cka(x[order], y[order], estimator=estimator) - value) < tolerance

    @given(SEEDS, st.sampled_from([RBF(), RBF(fraction=0.3), Laplacian()]))
    def test_median_kernels_do_not_see_scale_shift_or_rotation(self, seed, kernel):
        rng = np.random.default_rng(seed)
        x, y = pair(rng)
        rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
        value = cka(x, y, kernel=kernel)
        assert_allclose(cka(37 * x @ rotation + 5, y, kernel=kernel), value, rtol=1e-8)

    @given(SEEDS)
    def test_cosine_does_not_see_the_length_of_samples(self, seed):
        rng = np.random.default_rng(seed)
        x, y = pair(rng)
        lengths = rng.lognormal(size=(12, 1))
        assert_allclose(cka(lengths * x, y, kernel=Cosine()), cka(x, y, kernel=Cosine()), rtol=1e-9)

    @ESTIMATORS
    def test_negative_control(self, rng, estimator):
        """CKA changes with a general linear map, another order of one side, and another kernel."""
        x, y = pair(rng)
        value = cka(x, y, estimator=estimator)
        assert abs(cka(x @ np.diag([1.0, 0.1, 20.0]), y, estimator=estimator) - value) > 0.05
        assert abs(cka(x[::-1], y, estimator=estimator) - value) > 0.05
        assert abs(cka(x, y, kernel=RBF(fraction=0.2), estimator=estimator) - value) > 0.05
        assert abs(cka(x, y, kernel=Cosine(), estimator=estimator) - value) > 0.001

    @given(SEEDS, SIZES)
    def test_range(self, seed, sizes):
        rng = np.random.default_rng(seed)
        n, p, q = sizes
        x, y = rng.normal(size=(n, p)), rng.normal(size=(n, q))
        assert -1e-12 <= cka(x, y, estimator="biased") <= 1 + 1e-12
        assert abs(cka(x, y)) <= 1 + 1e-9

    def test_is_not_clamped(self):
        """Independent data: the unbiased value is negative about half the time and 0 on average."""
        rng = np.random.default_rng(0)
        x, y = rng.normal(size=(2, 400, 16, 8))
        values = cka(x, y)
        assert 0.4 < np.mean(values < 0) < 0.65
        assert abs(values.mean()) < 3 * values.std() / 20
        assert cka(x, y, estimator="biased").mean() > 0.3


def _conditioning(x, y):
    """The smallest ratio of an unbiased to a biased self term, at most 1: small where digits cancel."""
    parts = []
    for features in (x, y):
        K = reference.centred_linear_gram(features)
        parts.append(reference.hsic1(K, K) / reference.hsic0(K, K))
    return min(1, *parts)


@ESTIMATORS
class TestAccuracy:
    """float32 is within 1e-6 of float64 for means up to 1e5 times the spread and scales from 1e-10 to 1e10."""

    @pytest.mark.parametrize("mean", [0.0, 3.0, 1e3, 1e5])
    @pytest.mark.parametrize("scale", [1e-10, 1.0, 1e10])
    @pytest.mark.parametrize("p", [4, 100])
    def test_means_and_scales(self, xp, rng, estimator, mean, scale, p):
        noise = rng.normal(size=(2, 48, p))
        x = (scale * (noise[0] + mean)).astype(np.float32)
        y = ((noise[0] + noise[1] - mean) / scale).astype(np.float32)
        found = float(cka(xp.asarray(x), xp.asarray(y), estimator=estimator))
        assert abs(found - reference.cka(x, y, estimator)) <= 1e-6

    @pytest.mark.parametrize("kernel", [RBF(), Laplacian()], ids=lambda k: type(k).__name__)
    @pytest.mark.parametrize("mean", [0.0, 1e5])
    @pytest.mark.parametrize("scale", [1e-10, 1.0, 1e10])
    def test_distance_kernels(self, xp, rng, estimator, kernel, mean, scale):
        noise = rng.normal(size=(2, 24, 6))
        x = (scale * (noise[0] + mean)).astype(np.float32)
        y = ((noise[0] + noise[1] - mean) / scale).astype(np.float32)
        by_pairs = reference.rbf if isinstance(kernel, RBF) else reference.laplacian
        K, L = (reference.gram(f, by_pairs(reference.median_distance(f))) for f in (x, y))
        found = float(cka(xp.asarray(x), xp.asarray(y), kernel=kernel, estimator=estimator))
        assert abs(found - reference.cka_grams(K, L, estimator)) <= 1e-6

    @pytest.mark.parametrize("fraction", [0.1, 0.2])
    def test_a_narrow_kernel(self, xp, rng, estimator, fraction):
        """All off-diagonal entries are far below the diagonal, and still right."""
        x, y = rng.normal(size=(2, 12, 40)).astype(np.float32)
        K, L = (reference.gram(f, reference.rbf(fraction * reference.median_distance(f))) for f in (x, y))
        found = float(cka(xp.asarray(x), xp.asarray(y), kernel=RBF(fraction=fraction), estimator=estimator))
        assert np.isfinite(found)
        assert abs(found - reference.cka_grams(K, L, estimator)) <= 2e-5

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("mean", [0.0, 3.0])
    def test_half_precision(self, rng, estimator, dtype, mean):
        noise = rng.normal(size=(2, 48, 64))
        x, y = (torch.tensor(f + mean).to(dtype) for f in (noise[0], noise.sum(axis=0)))
        found = float(cka(x, y, estimator=estimator))
        assert abs(found - reference.cka(x.double().numpy(), y.double().numpy(), estimator)) <= 1e-4

    def test_half_precision_at_the_ends_of_its_range(self, rng, estimator):
        for scale in (2e-6, 8e3):
            x, y = (torch.tensor(scale * f).half() for f in rng.normal(size=(2, 32, 16)))
            found = float(cka(x, y, estimator=estimator))
            assert abs(found - reference.cka(x.double().numpy(), y.double().numpy(), estimator)) <= 1e-4

    def test_diagonal_of_a_shifted_layer(self, xp, rng, estimator):
        x = xp.asarray(rng.normal(size=(64, 100)) + 1e5, dtype=xp.float32)
        assert abs(float(cka(x, x, estimator=estimator)) - 1) <= 1e-6

    def test_a_far_sample(self, xp, rng, estimator):
        """In both forms of the unbiased self term the square of the far sample cancels."""
        for p, distance in ((3, 100), (60, 100), (3, 1000)):
            x, y = rng.normal(size=(2, 40, p))
            x[0] += distance
            x, y = x.astype(np.float32), y.astype(np.float32)
            found = float(cka(xp.asarray(x), xp.asarray(y), estimator=estimator))
            assert abs(found - reference.cka(x, y, estimator)) <= 1e-6

    def test_many_samples_of_few_features(self, rng, estimator):
        """In some libraries the float32 products of narrow features lose digits with n (in torch 5e-5 here)."""
        x = rng.normal(size=(200_000, 8)).astype(np.float32)
        y = x + rng.normal(size=x.shape).astype(np.float32)
        exact = cka(x.astype(np.float64), y.astype(np.float64), estimator=estimator)
        assert abs(float(cka(torch.tensor(x), torch.tensor(y), estimator=estimator)) - exact) <= 1e-6


@ESTIMATORS
class TestUndefined:
    @pytest.mark.parametrize("p", [1, 3, 50])
    @pytest.mark.parametrize("value", [0.0, 0.1, -1e10, 1e-10])
    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_a_constant_layer_is_nan_exactly_for_itself(self, xp, rng, estimator, p, value, dtype):
        alive = rng.normal(size=(2, 9, p))
        x = np.stack([np.full((9, p), value), alive[0]])
        y = np.stack([alive[1], alive[1]])
        x, y = (xp.asarray(f, dtype=getattr(xp, dtype)) for f in (x, y))
        found = to_numpy(cka(x, y, estimator=estimator))
        assert np.isnan(found[0])
        assert np.isfinite(found[1])
        assert np.isnan(to_numpy(cka(y, x, estimator=estimator))[0])
        assert np.isnan(to_numpy(cka(x, x, estimator=estimator))).tolist() == [True, False]

    @pytest.mark.parametrize("kernel", [RBF(bandwidth=1.0), RBF(), Laplacian(), Polynomial(), Cosine()], ids=repr)
    def test_for_every_kernel(self, xp, rng, estimator, kernel):
        x = xp.asarray(np.full((9, 4), 0.3), dtype=xp.float32)
        y = xp.asarray(rng.normal(size=(9, 4)), dtype=xp.float32)
        assert math.isnan(float(cka(x, y, kernel=kernel, estimator=estimator)))
        assert math.isnan(float(cka(y, x, kernel=kernel, estimator=estimator)))

    def test_its_gradient_is_finite_for_the_other_side(self, rng, estimator):
        """A constant layer must not make the gradients of the other layers of a stack NaN."""
        x = torch.tensor(np.stack([np.ones((9, 4)), rng.normal(size=(9, 4))]), requires_grad=True)
        y = torch.tensor(rng.normal(size=(2, 9, 4)))
        torch.nansum(cka(x, y, estimator=estimator)).backward()
        assert torch.isfinite(x.grad).all()

    def test_grams(self, xp, rng, estimator):
        K = reference.gram(rng.normal(size=(6, 2)))
        constant = xp.asarray(np.full((6, 6), 0.3))
        assert math.isnan(float(cka_from_grams(xp.asarray(K), constant, estimator=estimator)))


class TestChanceLevel:
    @pytest.mark.parametrize("p", [2, 20])
    def test_is_the_mean_over_all_permutations(self, xp, rng, p):
        x, y = rng.normal(size=(7, p)), rng.lognormal(size=(7, 3))
        null = reference.null_distribution(reference.centred_linear_gram(x), reference.centred_linear_gram(y), "biased")
        assert len(null) == 5040
        assert_allclose(float(chance_level(xp.asarray(x), xp.asarray(y))), null.mean(), rtol=1e-10)

    def test_kernels(self, xp, rng):
        x, y = rng.normal(size=(6, 2)), rng.normal(size=(6, 3))
        K, L = reference.gram(x, reference.rbf(1.5)), reference.gram(y, reference.laplacian(2.0))
        found = chance_level(xp.asarray(x), xp.asarray(y), kernel=RBF(bandwidth=1.5), kernel_y=Laplacian(bandwidth=2.0))
        assert_allclose(float(found), reference.null_distribution(K, L, "biased").mean(), rtol=1e-10)

    def test_the_unbiased_estimator_has_none(self, rng):
        x, y = rng.normal(size=(7, 2)), rng.lognormal(size=(7, 3))
        null = reference.null_distribution(reference.centred_linear_gram(x), reference.centred_linear_gram(y))
        assert abs(null.mean()) < 1e-12
        assert_allclose(null.var(), 2 / (7 * 4), rtol=1e-10)

    def test_far_mean_and_scale(self, xp, rng):
        x, y = rng.normal(size=(2, 24, 30))
        near = float(chance_level(x, y))
        far = chance_level(*(xp.asarray(1e-8 * (f + 1e3), dtype=xp.float32) for f in (x, y)))
        assert abs(float(far) - near) < 1e-4

    def test_stack_and_dead_layer(self, xp, rng):
        x = np.stack([rng.normal(size=(8, 3)), np.ones((8, 3))])
        found = to_numpy(chance_level(xp.asarray(x), xp.asarray(x)))
        assert 0 < found[0] < 1
        assert np.isnan(found[1])

    def test_participation_ratio(self, xp, rng):
        K = reference.gram(rng.normal(size=(6, 3)))
        eigenvalues = np.linalg.eigvalsh(reference.centring(6) @ K @ reference.centring(6))
        expected = eigenvalues.sum() ** 2 / (eigenvalues**2).sum()
        assert_allclose(float(participation_ratio(xp.asarray(K))), expected, rtol=1e-10)
        assert_allclose(float(participation_ratio(xp.eye(6, dtype=xp.float64))), 5, rtol=1e-10)
