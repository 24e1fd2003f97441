"""The p-values of compare() are those of the Pearson distribution with the first four moments of all permutations."""

from functools import partial

import numpy as np
import pytest
import reference
import torch
from numpy.testing import assert_allclose
from torch import nn

import cka_probe as cp
from cka_probe.comparison import null
from cka_probe.estimators import Linear, MomentCKA, cka_matrix_test
from cka_probe.estimators.pearson import pearson_sf
from cka_probe.estimators.permutation import permutation_p

compared = partial(cp.compare, progress=False)


def heavy(sizes, seed=0, width=3):
    """Inputs with a few far samples, whose null is far from normal."""
    rng = np.random.default_rng(seed)
    return [torch.from_numpy(rng.lognormal(size=(n, width))).float() for n in sizes]


def network(seed, width=3):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(width, 2), nn.Tanh())


def features(net, batch, layer):
    with torch.no_grad():
        return net[: layer + 1](batch).double().numpy()


def brute(batches_x, batches_y):
    """p-value with the first four moments over all permutations within each batch."""
    value = variance = third = fourth = 0.0
    for x, y in zip(batches_x, batches_y, strict=True):
        K, L = reference.centred_linear_gram(x), reference.centred_linear_gram(y)
        weight = len(x) * np.sqrt(reference.hsic1(K, K) * reference.hsic1(L, L))
        null = reference.null_distribution(K, L) * weight
        value += reference.cka_grams(K, L) * weight
        variance += np.mean(null**2)
        third += np.mean(null**3)
        fourth += np.mean(null**4) - 3 * np.mean(null**2) ** 2
    return pearson_sf(value / np.sqrt(variance), third / variance**1.5, fourth / variance**2)


@pytest.mark.parametrize("scale", [1e-10, 1.0, 1e10])
def test_minibatch_scope_has_the_moments_of_all_permutations(scale):
    batches = heavy((5, 6, 4))
    x, y = network(0), network(1)
    with torch.no_grad():
        y[0].weight *= scale
        y[0].bias *= scale
    found = compared(x, y, batches, layers=["0"])
    expected = brute(*[[features(net, batch, 0) for batch in batches] for net in (x, y)])
    assert_allclose(found.p_value[0, 0], expected, rtol=1e-3)


def test_minibatch_scope_in_one_batch_is_the_test_of_that_batch():
    [batch] = heavy((40,))
    x, y = network(0), network(1)
    found = compared(x, y, [batch])
    expected = cka_matrix_test([features(x, batch, i) for i in (0, 1)], [features(y, batch, i) for i in (0, 1)])
    assert_allclose(found.p_value, expected.p_value, rtol=1e-4)


def test_biased_cka_has_no_p_value():
    for scope in ("minibatch", "dataset"):
        assert compared(network(0), network(1), heavy((8, 8)), estimator="biased", scope=scope).p_value is None


@pytest.mark.parametrize("kernel", [None, cp.RBF(bandwidth=2.0)])
def test_dataset_scope_equals_the_test_of_all_samples(kernel):
    """40 samples: by moments for the linear kernel, by Gram matrices for the Gaussian."""
    batches = heavy((16, 16, 8))
    x, y = network(0), network(1)
    joined = torch.cat(batches)
    found = compared(x, y, batches, scope="dataset", kernel=kernel)
    expected = cka_matrix_test(
        [features(x, joined, i) for i in (0, 1)], [features(y, joined, i) for i in (0, 1)], kernel=kernel
    )
    assert_allclose(found.p_value, expected.p_value, rtol=1e-4)


def test_dataset_scope_by_blocks(monkeypatch):
    """Gram matrices that do not fit: the shape of all samples, or of some."""
    batches = heavy((100, 100))
    x, y = network(0), network(1)
    joined = torch.cat(batches)
    kernel = cp.RBF(bandwidth=2.0)
    expected = cka_matrix_test([features(x, joined, 1)], [features(y, joined, 1)], kernel=kernel)
    ask = partial(compared, x, y, batches, layers=["1"], scope="dataset", kernel=kernel)
    whole = ask(route="grams")
    blocks = ask(route="blocks")
    assert (whole.meta["route"], blocks.meta["route"]) == ("grams", "blocks")
    assert_allclose(blocks.p_value, whole.p_value, rtol=1e-4)
    assert_allclose(blocks.p_value, expected.p_value, rtol=1e-4)
    monkeypatch.setattr(null, "SOME", 120)
    shape = null.sampled_shape(
        [torch.from_numpy(features(x, joined, 1))], [torch.from_numpy(features(y, joined, 1))], kernel
    )
    assert_allclose(shape.skewness, expected.skewness, rtol=0.2)
    assert_allclose(shape.excess_kurtosis, expected.excess_kurtosis, rtol=0.4)


def test_shape_from_kept_samples_is_close_to_that_of_all():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3000, 6)) * [3, 2, 1, 1, 1, 1]
    y = rng.normal(size=(3000, 4)) * [4, 1, 1, 1]
    exact = cka_matrix_test([x], [y])
    for kept, tolerance in ((3000, 1e-8), (512, 0.1)):
        statistics = MomentCKA(error_samples=kept)
        for start in range(0, 3000, 500):
            statistics.update([x[start : start + 500]], [y[start : start + 500]])
        shape = statistics.null_shape()
        assert_allclose(shape.skewness[0, 0], exact.skewness[0, 0], rtol=tolerance)
        assert_allclose(shape.excess_kurtosis[0, 0], exact.excess_kurtosis[0, 0], rtol=2 * tolerance)
    assert abs(exact.skewness[0, 0]) > 1  # far from normal, however many the samples


def test_no_kept_samples_give_the_normal_distribution():
    statistics = MomentCKA(error_samples=0)
    statistics.update([np.random.default_rng(0).normal(size=(20, 3))])
    assert [part.tolist() for part in statistics.null_shape()] == [[[0.0]], [[0.0]]]


def test_a_layer_that_is_constant_over_the_sample_keeps_its_p_value():
    """One sample in 3000 differs: among those drawn for the shape it is missing or not, the p-value is a number."""
    x = torch.zeros(3000, 3)
    x[7] = 1.0
    noise = torch.randn(3000, 3, generator=torch.Generator().manual_seed(0))
    shape = null.sampled_shape([x], [noise], Linear())
    assert [part.shape for part in shape] == [(1, 1)] * 2
    p = permutation_p(torch.tensor([[0.01]]).double(), shape, 3000)
    assert 0 < float(p) < 1
