"""Gram matrices stay right when one sample, one feature or one layer is of another scale; what a dtype resolves."""

import numpy as np
import pytest
import reference
import torch
from libraries import to_numpy
from numpy.testing import assert_allclose

from cka_probe.estimators import RBF, Cosine, Laplacian, Polynomial, cka, cka_matrix, hsic
from cka_probe.estimators.gram_accuracy import doubtful, resolution
from cka_probe.estimators.layer_grams import layer_gram

RELATED = np.random.default_rng(5).normal(size=(6, 6))


def features(n, seed=0):
    """Two related layers in float32, and the same numbers in float64."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 6))
    y = x @ RELATED + rng.normal(size=(n, 6))
    return [a.astype(np.float32) for a in (x, y)]


def exact_linear(x, y):
    """Unbiased linear CKA with integers as wide as needed: float32 numbers are exact fractions."""
    from fractions import Fraction

    def u_centred(z):
        n = len(z)
        z = [[Fraction(float(v)) for v in row] for row in z]
        K = [[sum(a * b for a, b in zip(u, v, strict=True)) for v in z] for u in z]
        for i in range(n):
            K[i][i] = Fraction(0)
        rows = [sum(row) / (n - 2) for row in K]
        total = sum(rows) / (n - 1)
        return [[K[i][j] - rows[i] - rows[j] + total if i != j else Fraction(0) for j in range(n)] for i in range(n)]

    A, B = u_centred(x), u_centred(y)

    def inner(left, right):
        return sum(a * b for u, v in zip(left, right, strict=True) for a, b in zip(u, v, strict=True))

    cross, self_x, self_y = inner(A, B), inner(A, A), inner(B, B)
    square = cross * cross / (self_x * self_y)
    return (1 if cross > 0 else -1) * float(square) ** 0.5


class TestOneFarSample:
    @pytest.mark.parametrize("far", [1e2, 1e4, 1e6, 1e8, 1e12, 1e18])
    @pytest.mark.parametrize("mean", [0.0, 300.0])
    @pytest.mark.parametrize("n", [8, 24])
    def test_equals_exact_arithmetic(self, far, mean, n):
        x, y = features(n)
        x, y = x + np.float32(mean), y + np.float32(mean)
        x[3], y[3] = x[3] * np.float32(far), y[3] * np.float32(far)
        found = cka_matrix([torch.from_numpy(x)], [torch.from_numpy(y)])  # numpy would warn of squares that overflow
        assert_allclose(float(found), exact_linear(x, y), atol=2e-6)

    def test_two_far_samples_of_different_scales(self):
        x, y = features(20)
        for layer in (x, y):
            layer[3] *= np.float32(1e18)
            layer[11] *= np.float32(1e9)
        assert_allclose(cka_matrix([x], [y])[0, 0], exact_linear(x, y), atol=2e-6)

    def test_the_other_layer_may_be_ordinary(self):
        x, y = features(20)
        x[3] *= np.float32(1e18)
        assert_allclose(cka_matrix([x], [np.tanh(y)])[0, 0], exact_linear(x, np.tanh(y)), atol=2e-6)

    def test_one_feature_of_another_scale(self):
        x, y = features(20)
        x[:, 2] *= np.float32(1e18)
        assert_allclose(cka_matrix([x], [y])[0, 0], exact_linear(x, y), atol=2e-6)

    def test_a_repeated_gram_with_a_far_sample_is_doubtful(self, rng):
        x = rng.normal(size=(24, 6)).astype(np.float32)
        x[4] *= 1e5
        z = x - x.mean(0)
        assert doubtful((z @ z.T)[None], np.array([(x.mean(0) ** 2).sum()], dtype=np.float32)).tolist() == [True]

    @pytest.mark.parametrize("kernel", [RBF(), Laplacian(), RBF(bandwidth=2.0), Cosine(), Polynomial(degree=2)])
    def test_other_kernels(self, kernel):
        x, y = features(14)
        x[3] *= np.float32(1e12)
        pairs = {
            "RBF": lambda z: reference.rbf(width(kernel, z)),
            "Laplacian": lambda z: reference.laplacian(width(kernel, z)),
            "Cosine": lambda _: reference.cosine,
            "Polynomial": lambda _: reference.polynomial(2, 1.0, 1 / 6),
        }[type(kernel).__name__]
        K, L = reference.gram(x, pairs(x)), reference.gram(y, pairs(y))
        for found in (cka(x, y, kernel=kernel), cka_matrix([x], [y], kernel=kernel)[0, 0]):
            assert_allclose(found, reference.cka_grams(K, L), atol=1e-6)


def width(kernel, z):
    return reference.median_distance(z) if kernel.bandwidth == "median" else kernel.bandwidth


class TestScale:
    @pytest.mark.parametrize("scale", [1e-30, 1e-10, 1e10, 1e20, 1e30])
    @pytest.mark.parametrize("kernel", [RBF(), RBF(fraction=0.3), Laplacian(), Cosine()])
    def test_a_scale_free_kernel_is_scale_free(self, xp, scale, kernel):
        x, _ = (xp.asarray(a) for a in features(12))
        y = xp.asarray(x, copy=True) * scale
        assert_allclose(to_numpy(kernel(y)), to_numpy(kernel(x)), rtol=2e-5, atol=1e-6)

    @pytest.mark.parametrize("scale", [1e-25, 1e20, 1e30])
    @pytest.mark.parametrize("kernel", [RBF, Laplacian])
    def test_a_fixed_bandwidth_in_the_units_of_the_features(self, scale, kernel):
        x, y = features(12)
        expected = kernel(bandwidth=2.0)(x, y)
        found = kernel(bandwidth=2.0 * scale)(x * np.float32(scale), y * np.float32(scale))
        assert_allclose(found, expected, rtol=2e-5, atol=1e-6)

    @pytest.mark.parametrize("kernel", [RBF(bandwidth=1.0), Laplacian(bandwidth=1.0)])
    def test_a_bandwidth_far_below_all_distances_gives_the_identity(self, kernel):
        x, _ = features(12)
        assert_allclose(kernel(x * np.float32(1e25)), np.eye(12), atol=0)

    def test_powers_beyond_float32(self):
        x, y = features(12)
        kernel = Polynomial(degree=3, offset=0.0)
        assert_allclose(cka(x * np.float32(1e20), y, kernel=kernel), cka(x, y, kernel=kernel), atol=1e-6)
        found = cka_matrix([torch.from_numpy(x) * 1e20], [torch.from_numpy(y)], kernel=kernel)
        assert_allclose(found, cka_matrix([x], [y], kernel=kernel), atol=1e-6)

    @pytest.mark.parametrize("kernel", [Cosine(), Polynomial(degree=2)])
    def test_a_mean_far_above_the_spread_in_float32(self, kernel):
        """The cosines of such features differ in their sixth digit only."""
        x, y = (a + np.float32(500.0) for a in features(20))
        right = reference.cosine if kernel == Cosine() else reference.polynomial(2, 1.0, 1 / 6)
        # Centring removes any number that is added to all entries. Without it, the reference would lose the digits.
        K, L = (gram - gram.mean() for gram in (reference.gram(x, right), reference.gram(y, right)))
        expected = reference.cka_grams(K, L)
        assert_allclose(cka(x, y, kernel=kernel), expected, atol=1e-6)
        assert_allclose(cka_matrix([x], [y], kernel=kernel)[0, 0], expected, atol=1e-6)
        assert layer_gram(x, kernel).gram.dtype == np.float64


class TestEqualSamples:
    @pytest.mark.parametrize("kernel", [RBF(), Laplacian(), RBF(bandwidth=1.0)])
    def test_constant_features_have_a_constant_gram(self, xp, kernel):
        assert_allclose(to_numpy(kernel(xp.asarray(np.full((6, 3), 0.1)))), np.ones((6, 6)))

    @pytest.mark.parametrize("function", [cka, hsic])
    @pytest.mark.parametrize("kernel", [RBF(), Laplacian()])
    def test_a_median_of_zero_is_an_error_that_names_the_side(self, rng, function, kernel):
        x = rng.normal(size=(10, 3))
        mostly_equal = np.zeros((10, 3))
        mostly_equal[0] = 1.0
        with pytest.raises(ValueError, match=rf"median distance of `y` is 0.*{type(kernel).__name__}\(bandwidth=1.0\)"):
            function(x, mostly_equal, kernel=kernel)

    def test_a_constant_side_is_still_nan(self, rng):
        assert np.isnan(cka(rng.normal(size=(10, 3)), np.ones((10, 2)), kernel=RBF()))

    def test_gradients_stay_finite_at_extreme_scales(self):
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0)) * 1e20
        x.requires_grad_()
        cka(x, torch.eye(8)[:, :3] + x.detach(), kernel=RBF()).backward()
        assert torch.isfinite(x.grad).all()


class TestResolution:
    @pytest.mark.parametrize("ratio", [1e-3, 0.1, 1.0])
    def test_is_the_rounding_of_the_mean_over_the_spread(self, xp, rng, ratio):
        x = 1.0 + rng.normal(size=(400, 50)) * 1e-6
        assert_allclose(float(resolution(xp.asarray(x), ratio * 1e-6)), ratio, rtol=0.05)

    def test_equal_features_do_not_count(self, rng):
        x = rng.normal(size=(40, 5))
        x[:, 0] = 1e9
        assert resolution(x, 1e-7) < 1e-6

    def test_of_constant_features_is_zero(self, xp):
        assert float(resolution(xp.asarray(np.full((5, 2), 0.1)), 1e-7)) == 0.0


@pytest.mark.parametrize("function", [cka, hsic])
@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        (RBF, r"`kernel` is the class RBF. Pass an instance, such as cp.RBF\(\)."),
        ("laplacian", r"`kernel` is the text 'laplacian'. Pass an instance, such as cp.Laplacian\(\)."),
        (3, r"`kernel` is of type int. Pass an instance, such as cp.RBF\(\)."),
    ],
)
def test_a_kernel_that_is_no_instance(rng, function, kernel, message):
    x = rng.normal(size=(8, 2))
    with pytest.raises(TypeError, match=message):
        function(x, x, kernel=kernel)
