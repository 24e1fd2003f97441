"""HSIC: its definitions (a sum over 4-tuples, a trace), Gram and feature form, accuracy in float32, gradients."""

import array_api_strict
import numpy as np
import pytest
import reference
import torch
from libraries import to_numpy
from numpy.testing import assert_allclose

from cka_probe.estimators import (
    RBF,
    Cosine,
    Laplacian,
    Linear,
    Polynomial,
    hsic,
    hsic_from_grams,
)
from cka_probe.estimators.hsic import (
    CentredFeatures,
    CentredGram,
    flat_centred,
    gram_is_cheaper,
    inner,
    pairwise_inner,
)

BY_DEFINITION = {"unbiased": reference.hsic1_tuples, "biased": reference.hsic0}
ESTIMATORS = pytest.mark.parametrize("estimator", ["unbiased", "biased"])
KERNELS = pytest.mark.parametrize(
    "kernel", [Linear(), RBF(), Laplacian(fraction=0.5), Polynomial(), Cosine()], ids=lambda k: type(k).__name__
)
# Wide features take the Gram form, narrow ones the feature form, and mixed pairs the one that is cheaper for both.
WIDTHS = pytest.mark.parametrize(("p", "q"), [(2, 3), (40, 30), (1, 25), (1, 1)])


@ESTIMATORS
class TestDefinition:
    @WIDTHS
    def test_linear(self, xp, rng, estimator, p, q):
        x, y = rng.normal(size=(7, p)), rng.normal(size=(7, q))
        expected = BY_DEFINITION[estimator](reference.gram(x), reference.gram(y))
        assert_allclose(float(hsic(xp.asarray(x), xp.asarray(y), estimator=estimator)), expected, rtol=1e-10)

    @pytest.mark.parametrize("n", [4, 5, 8])
    def test_each_size(self, xp, rng, estimator, n):
        x, y = rng.normal(size=(n, 3)), rng.normal(size=(n, 2))
        expected = BY_DEFINITION[estimator](reference.gram(x), reference.gram(y))
        assert_allclose(float(hsic(xp.asarray(x), xp.asarray(y), estimator=estimator)), expected, rtol=1e-9)

    def test_two_kernels(self, xp, rng, estimator):
        x, y = rng.normal(size=(7, 3)), rng.normal(size=(7, 2))
        found = hsic(xp.asarray(x), xp.asarray(y), kernel=RBF(bandwidth=2.0), kernel_y=Linear(), estimator=estimator)
        expected = BY_DEFINITION[estimator](reference.gram(x, reference.rbf(2.0)), reference.gram(y))
        assert_allclose(float(found), expected, rtol=1e-10)

    def test_from_grams(self, xp, rng, estimator):
        K, L = (a + a.T for a in rng.normal(size=(2, 7, 7)))
        found = hsic_from_grams(xp.asarray(K), xp.asarray(L), estimator=estimator)
        assert_allclose(float(found), BY_DEFINITION[estimator](K, L), rtol=1e-10)

    def test_a_stack_equals_its_pairs_one_by_one(self, xp, rng, estimator):
        x, y = rng.normal(size=(2, 3, 8, 4)), rng.normal(size=(2, 3, 8, 2)) * rng.lognormal(size=(2, 3, 1, 1))
        found = to_numpy(hsic(xp.asarray(x), xp.asarray(y), estimator=estimator))
        assert found.shape == (2, 3)
        for i in np.ndindex(2, 3):
            one = hsic(xp.asarray(x[i]), xp.asarray(y[i]), estimator=estimator)
            assert_allclose(found[i], float(one), rtol=1e-12)

    def test_one_side_broadcasts_over_a_stack(self, xp, rng, estimator):
        x, y = rng.normal(size=(8, 4)), rng.normal(size=(3, 8, 2))
        found = to_numpy(hsic(xp.asarray(x), xp.asarray(y), estimator=estimator))
        assert_allclose(found, [float(hsic(x, one, estimator=estimator)) for one in y], rtol=1e-12)

    @KERNELS
    def test_gradient(self, rng, estimator, kernel):
        for n, p in ((5, 2), (5, 9)):
            x = torch.tensor(rng.normal(size=(n, p)), requires_grad=True)
            y = torch.tensor(rng.normal(size=(n, p)), requires_grad=True)
            assert torch.autograd.gradcheck(lambda x, y: hsic(x, y, kernel=kernel, estimator=estimator), (x, y))

    def test_float64_of_the_callers_library(self, xp, rng, estimator):
        x = xp.asarray(rng.normal(size=(6, 3)), dtype=xp.float32)
        value = hsic(x, x, estimator=estimator)
        assert type(value) in (type(x), np.float64)
        assert value.dtype == xp.float64
        assert value.shape == ()

    def test_stays_on_its_device(self, rng, estimator):
        device = array_api_strict.Device("device1")
        x = array_api_strict.asarray(rng.normal(size=(6, 3)), device=device)
        for kernel in (Linear(), RBF(), Laplacian(), Cosine(), Polynomial()):
            assert hsic(x, x * x, kernel=kernel, estimator=estimator).device == device


@ESTIMATORS
class TestRoutes:
    @WIDTHS
    def test_features_equal_grams(self, xp, rng, estimator, p, q):
        x, y = xp.asarray(rng.normal(size=(12, p)) + 3), xp.asarray(rng.normal(size=(12, q)) - 2)
        values = []
        grams = [CentredGram.of_features(side, Linear(), estimator) for side in (x, y)]
        features = [CentredFeatures.of(side, estimator) for side in (x, y)]
        for left, right in (grams, features):
            values.append([float(inner(a, b) * a.scale * b.scale) for a, b in ((left, right), (left, left))])
        assert_allclose(values[0], values[1], rtol=1e-10)

    def test_the_rule_takes_features_for_many_samples(self, estimator):
        assert gram_is_cheaper(32, 1000, 1000)
        assert not gram_is_cheaper(1000, 32, 32)


class TestAllPairs:
    @ESTIMATORS
    def test_products_of_rows(self, xp, rng, estimator):
        n = 70  # 4900 entries make two chunks of the product
        K = np.stack([reference.centred_linear_gram(rng.normal(size=(n, 3))) for _ in range(3)])
        rows = flat_centred(xp.asarray(K, dtype=xp.float32), estimator)
        norm = n * (n - 3) if estimator == "unbiased" else (n - 1) ** 2
        by_definition = reference.hsic1 if estimator == "unbiased" else reference.hsic0
        expected = [[norm * by_definition(a, b) for b in K] for a in K]
        found = pairwise_inner(rows, rows)
        assert found.dtype == xp.float64
        assert_allclose(to_numpy(found), expected, rtol=1e-5, atol=1e-3)

    def test_float32_products_are_added_up_in_float64(self, xp, rng):
        x = rng.normal(size=(3, 40_000)).astype(np.float32)
        found = to_numpy(pairwise_inner(xp.asarray(x), xp.asarray(x)))
        exact = x.astype(np.float64) @ x.T.astype(np.float64)
        assert np.abs(found - exact).max() < 2e-7 * exact.max()

    def test_empty(self, xp):
        with pytest.raises(ValueError, match=r"There are no entries to multiply: the Gram matrices are empty"):
            pairwise_inner(xp.zeros((2, 0)), xp.zeros((2, 0)))


SCALES = [1e-10, 1e-3, 1.0, 1e10]


@ESTIMATORS
class TestAccuracy:
    """float32 is within 1e-6 of a float64 reference for the same float32 features."""

    @pytest.mark.parametrize("mean", [0.0, 1.0, 1e3, 1e5])
    @pytest.mark.parametrize("scale", SCALES)
    @pytest.mark.parametrize("p", [5, 80])
    def test_means_and_scales(self, xp, rng, estimator, mean, scale, p):
        x = (scale * (rng.normal(size=(32, p)) + mean)).astype(np.float32)
        y = (scale * (rng.normal(size=(32, p)) + x / scale - mean)).astype(np.float32)
        by_definition = reference.hsic1 if estimator == "unbiased" else reference.hsic0
        K, L = reference.centred_linear_gram(x), reference.centred_linear_gram(y)
        found = float(hsic(xp.asarray(x), xp.asarray(y), estimator=estimator))
        tolerance = 1e-6 * np.sqrt(by_definition(K, K) * by_definition(L, L))
        assert abs(found - by_definition(K, L)) <= tolerance

    def test_means_of_single_columns(self, xp, rng, estimator):
        x = (rng.normal(size=(32, 6)) + np.array([0, 1e5, -1e5, 10, 0, 3e4])).astype(np.float32)
        by_definition = reference.hsic1 if estimator == "unbiased" else reference.hsic0
        K = reference.centred_linear_gram(x)
        assert_allclose(float(hsic(xp.asarray(x), xp.asarray(x), estimator=estimator)), by_definition(K, K), rtol=1e-6)

    def test_constant_features_have_no_dependence(self, xp, rng, estimator):
        y = xp.asarray(rng.normal(size=(9, 4)), dtype=xp.float32)
        for p in (1, 30):
            x = xp.asarray(np.full((9, p), 0.1), dtype=xp.float32)
            assert float(hsic(x, y, estimator=estimator)) == 0
            assert float(hsic(x, x, estimator=estimator)) == 0
