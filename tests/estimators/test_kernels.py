"""Kernels equal loops over pairs; the median over pairs i < j; kernels from their names and their repr."""

import dataclasses
import math

import numpy as np
import pytest
import reference
import torch
from libraries import to_numpy
from numpy.testing import assert_allclose, assert_array_equal

from cka_probe.estimators import (
    RBF,
    Cosine,
    Laplacian,
    Linear,
    Polynomial,
    center_features,
    kernel_from_name,
    median_distance,
    squared_distances,
)

CASES = [
    pytest.param(Linear(), reference.linear, id="linear"),
    pytest.param(RBF(bandwidth=1.3), reference.rbf(1.3), id="rbf"),
    pytest.param(RBF(bandwidth=2.0, fraction=0.5), reference.rbf(1.0), id="rbf-fraction"),
    pytest.param(Laplacian(bandwidth=0.7), reference.laplacian(0.7), id="laplacian"),
    pytest.param(Polynomial(), reference.polynomial(2, 1.0, 1 / 3), id="polynomial"),
    pytest.param(Polynomial(degree=3, offset=0.5, gamma=2.0), reference.polynomial(3, 0.5, 2.0), id="polynomial-3"),
    pytest.param(Cosine(), reference.cosine, id="cosine"),
]


@pytest.mark.parametrize(("kernel", "by_pairs"), CASES)
class TestGram:
    def test_equals_loops_over_pairs(self, xp, rng, kernel, by_pairs):
        x, y = rng.normal(size=(6, 3)), rng.normal(size=(4, 3))
        assert_allclose(to_numpy(kernel(xp.asarray(x))), reference.gram(x, by_pairs), rtol=1e-12)
        cross = kernel(xp.asarray(x), xp.asarray(y))
        assert_allclose(to_numpy(cross), reference.gram(x, by_pairs, y), rtol=1e-12)

    def test_a_stack_equals_its_matrices_one_by_one(self, xp, rng, kernel, by_pairs):
        x = xp.asarray(rng.normal(size=(2, 3, 5, 4)))
        stacked = to_numpy(kernel(x))
        assert stacked.shape == (2, 3, 5, 5)
        for i in range(2):
            for j in range(3):
                assert_allclose(stacked[i, j], to_numpy(kernel(x[i, j, ...])), rtol=1e-13, atol=1e-15)

    def test_stays_in_its_library_and_dtype(self, xp, rng, kernel, by_pairs):
        x = xp.asarray(rng.normal(size=(5, 3)), dtype=xp.float32)
        gram = kernel(x)
        assert type(gram) is type(x)
        assert gram.dtype == xp.float32

    def test_gradient(self, rng, kernel, by_pairs):
        x = torch.tensor(rng.normal(size=(4, 3)), requires_grad=True)
        y = torch.tensor(rng.normal(size=(3, 3)), requires_grad=True)
        assert torch.autograd.gradcheck(kernel, (x,))
        assert torch.autograd.gradcheck(kernel, (x, y))

    def test_its_print_reads_back(self, kernel, by_pairs):
        assert kernel_from_name(repr(kernel)) == kernel
        assert hash(kernel_from_name(repr(kernel))) == hash(kernel)


class TestMedianRule:
    @pytest.mark.parametrize("n", [2, 3, 4, 5, 6, 9])
    def test_is_the_median_over_different_pairs(self, xp, rng, n):
        x = rng.normal(size=(n, 2))
        assert_allclose(float(median_distance(xp.asarray(x))), reference.median_distance(x), rtol=1e-12)

    def test_is_not_the_median_of_the_whole_matrix(self, rng):
        x = rng.normal(size=(4, 2))
        with_diagonal = np.median([[reference.distance(u, v) for v in x] for u in x])
        assert abs(float(median_distance(x)) - with_diagonal) > 0.01

    def test_counts_coinciding_samples_as_pairs(self, xp):
        # Three pairs: 0, 1, 1.
        assert float(median_distance(xp.asarray([[0.0], [0.0], [1.0]]))) == 1.0
        # Six pairs: 0, 0, 0, 1, 1, 1.
        assert float(median_distance(xp.asarray([[0.0], [0.0], [0.0], [1.0]]))) == 0.5

    def test_pools_two_sets_of_samples(self, xp, rng):
        x, y = rng.normal(size=(3, 2)), rng.normal(size=(4, 2))
        pooled = median_distance(xp.asarray(x), xp.asarray(y))
        assert_allclose(float(pooled), reference.median_distance(np.concatenate([x, y])), rtol=1e-12)

    def test_stack(self, xp, rng):
        x = rng.normal(size=(3, 5, 2))
        assert_allclose(
            to_numpy(median_distance(xp.asarray(x))), [reference.median_distance(one) for one in x], rtol=1e-12
        )

    @pytest.mark.parametrize("kernel", [RBF(), RBF(fraction=0.4), Laplacian(), Laplacian(fraction=2.0)])
    def test_kernels_use_it(self, xp, rng, kernel):
        x = rng.normal(size=(2, 6, 3))
        by_pairs = reference.rbf if isinstance(kernel, RBF) else reference.laplacian
        expected = [reference.gram(one, by_pairs(kernel.fraction * reference.median_distance(one))) for one in x]
        assert_allclose(to_numpy(kernel(xp.asarray(x))), expected, rtol=1e-12)

    @pytest.mark.parametrize("kernel", [RBF(), Laplacian()])
    def test_gradient_flows_through_the_median(self, rng, kernel):
        x = torch.tensor(rng.normal(size=(5, 2)), requires_grad=True)
        assert torch.autograd.gradcheck(kernel, (x,))

    @pytest.mark.parametrize("kernel", [RBF(), Laplacian()])
    def test_is_undefined_when_most_pairs_coincide(self, xp, kernel):
        x = xp.asarray([[1.0], [1.0], [1.0], [1.0], [7.0]])
        assert np.isnan(to_numpy(kernel(x))).all()

    def test_fixed_measures_once(self, rng):
        x, more = rng.normal(size=(8, 3)), rng.normal(size=(5, 3))
        kernel = RBF(fraction=0.5).fixed(x)
        assert kernel.fraction == 1.0
        assert_allclose(kernel.bandwidth, 0.5 * reference.median_distance(x), rtol=1e-12)
        assert_allclose(kernel(more), reference.gram(more, reference.rbf(kernel.bandwidth)), rtol=1e-12)
        assert RBF(bandwidth=2.0, fraction=0.5).fixed(x) == RBF(bandwidth=1.0)

    def test_fixed_needs_a_median(self):
        with pytest.raises(ValueError, match=r"The median distance is 0: half of all pairs.*Pass a number"):
            RBF().fixed(np.ones((5, 2)))


class TestDistances:
    def test_far_from_the_origin_in_float32(self, xp, rng):
        x = (rng.normal(size=(20, 8)) + 1e4).astype(np.float32)
        expected = np.array([[reference.distance(u, v) ** 2 for v in x] for u in x])
        found = to_numpy(squared_distances(xp.asarray(x)))
        assert_allclose(found, expected, atol=2e-5)
        assert_array_equal(np.diag(found), 0)

    @pytest.mark.parametrize("n", [7, 10, 12])
    def test_constant_features_are_at_distance_zero(self, xp, n):
        x = xp.asarray(np.full((n, 5), 0.1), dtype=xp.float32)
        assert_array_equal(to_numpy(squared_distances(x)), 0)
        assert_array_equal(to_numpy(squared_distances(x, x)), 0)

    def test_never_negative(self, xp, rng):
        x = np.repeat(rng.normal(size=(4, 3)), 3, axis=0)
        assert to_numpy(squared_distances(xp.asarray(x), xp.asarray(x))).min() >= 0

    def test_gradient_of_coinciding_samples_is_finite(self):
        x = torch.ones((4, 2), dtype=torch.float64, requires_grad=True)
        Laplacian(bandwidth=1.0)(x).sum().backward()
        assert_array_equal(x.grad.numpy(), 0)


class TestCentring:
    def test_constant_columns_become_exactly_zero(self, xp):
        x = xp.asarray(np.full((7, 3), 0.1), dtype=xp.float32)
        assert_array_equal(to_numpy(center_features(x)), 0)

    def test_mean_far_above_the_spread(self, xp, rng):
        x = (rng.normal(size=(64, 4)) + 1e5).astype(np.float32)
        exact = x.astype(np.float64) - x.astype(np.float64).mean(axis=0)
        assert_allclose(to_numpy(center_features(xp.asarray(x))), exact, atol=2e-6)


class TestCosine:
    def test_a_zero_sample_is_similar_to_none(self, xp):
        gram = to_numpy(Cosine()(xp.asarray([[0.0, 0.0], [1.0, 1.0]])))
        assert_allclose(gram, [[0, 0], [0, 1]], atol=1e-15)

    @pytest.mark.parametrize("scale", [1e-30, 1e30])
    def test_extreme_scales_in_float32(self, xp, rng, scale):
        x = rng.normal(size=(5, 3))
        found = to_numpy(Cosine()(xp.asarray(x * scale, dtype=xp.float32)))
        assert_allclose(found, reference.gram(x, reference.cosine), atol=1e-6)


class TestNames:
    @pytest.mark.parametrize(
        ("text", "kernel"),
        [
            ("linear", Linear()),
            ("Linear()", Linear()),
            (" RBF ", RBF()),
            ("rbf(fraction=0.5)", RBF(fraction=0.5)),
            ("RBF(bandwidth='median', fraction=1.0)", RBF()),
            ("laplacian(bandwidth=3)", Laplacian(bandwidth=3)),
            ("polynomial(degree=3, gamma=None)", Polynomial(degree=3)),
            ("cosine", Cosine()),
        ],
    )
    def test_reads(self, text, kernel):
        assert kernel_from_name(text) == kernel

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("gauss", "No kernel is called 'gauss'. The kernels are linear, rbf, laplacian, polynomial, cosine"),
            ("rbf(0.5)", "arguments must be given by name"),
            ("rbf(width=1)", r"Cannot read the kernel 'rbf\(width=1\)'.*width.*Write it like RBF\(bandwidth='median'"),
            ("rbf(bandwidth=-1)", '`bandwidth` must be "median" or a positive number, got -1'),
            ("rbf(fraction=", "Cannot read the kernel"),
            ("rbf(bandwidth=open('x'))", "Cannot read the kernel"),
            ("linear)", "No kernel is called"),
            ("rbf(**{'fraction': 2})", "arguments must be given by name"),
        ],
    )
    def test_refuses(self, text, message):
        with pytest.raises(ValueError, match=message):
            kernel_from_name(text)

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: RBF(bandwidth=0), '`bandwidth` must be "median" or a positive number, got 0'),
            (lambda: RBF(bandwidth="mean"), "`bandwidth` must be .* got 'mean'"),
            (lambda: RBF(bandwidth=math.inf), "`bandwidth` must be .* got inf"),
            (lambda: Laplacian(bandwidth=math.nan), "`bandwidth` must be .* got nan"),
            (lambda: Laplacian(fraction=-1), "`fraction` must be a positive number, got -1"),
            (lambda: RBF(fraction=math.inf), "`fraction` must be a positive number, got inf"),
            (lambda: Polynomial(degree=0), "`degree` must be a whole number of at least 1, got 0"),
            (lambda: Polynomial(degree=1.5), "`degree` must be a whole number of at least 1, got 1.5"),
            (lambda: Polynomial(offset=-1), "`offset` must not be negative, got -1"),
            (lambda: Polynomial(offset=math.nan), "`offset` must not be negative, got nan"),
            (lambda: Polynomial(gamma=0), "`gamma` must be positive or None, got 0"),
        ],
    )
    def test_parameters_outside_their_range(self, make, message):
        with pytest.raises(ValueError, match=message):
            make()

    def test_kernels_do_not_change(self):
        with pytest.raises(dataclasses.FrozenInstanceError):
            RBF().bandwidth = 1.0
