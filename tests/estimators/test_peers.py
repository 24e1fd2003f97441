"""Agreement in float64 with another package, ckatorch 1.0.3, where it is right.

ckatorch is not among the requirements. These tests run after `pip install ckatorch`, or with it on PYTHONPATH. Its
unbiased mode and its `cka_batch` (the ratio of summed HSIC_1, equal batches) follow Nguyen et al. Its RBF bandwidth is
not the median over pairs of samples: it is the median of all n x n squared distances, with the n zeros of the diagonal.
"""

import numpy as np
import pytest
import torch

from cka_probe.estimators import RBF, MinibatchCKA, cka

ckatorch = pytest.importorskip("ckatorch", reason="the peer ckatorch is not installed (pip install ckatorch)")


@pytest.fixture
def pair(rng):
    x = torch.tensor(rng.normal(size=(24, 6)))
    return x, x @ torch.tensor(rng.normal(size=(6, 40))) + torch.tensor(rng.normal(size=(24, 40)))


@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
def test_linear(pair, estimator):
    peer = ckatorch.cka_base(*pair, unbiased=estimator == "unbiased")
    assert abs(float(cka(*pair, estimator=estimator) - peer)) < 1e-12


@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
@pytest.mark.parametrize("fraction", [0.4, 1.0])
def test_rbf_at_its_bandwidths(pair, estimator, fraction):
    kernels = [RBF(fraction * float(torch.median(torch.cdist(z, z) ** 2)) ** 0.5) for z in pair]
    peer = ckatorch.cka_base(*pair, kernel="rbf", threshold=fraction, unbiased=estimator == "unbiased")
    assert abs(float(cka(*pair, kernel=kernels[0], kernel_y=kernels[1], estimator=estimator) - peer)) < 1e-12
    assert kernels[0].bandwidth < 0.99 * RBF(fraction=fraction).fixed(pair[0]).bandwidth


def test_minibatches(rng):
    x = torch.tensor(rng.normal(size=(5, 16, 6)))
    y = x**3 + torch.tensor(rng.normal(size=(5, 16, 6)))
    statistics = MinibatchCKA()
    for one, other in zip(x, y, strict=True):
        statistics.update([one], [other])
    assert abs(float(statistics.compute()[0, 0] - ckatorch.cka_batch(x, y))) < 1e-12


def test_where_it_is_not_right(rng):
    """ckatorch is wrong, even in float64, if the mean of the features is 1e8 times their spread."""
    x, y = (torch.tensor(rng.normal(size=(24, 6)) + 1e8) for _ in range(2))
    exact = float(cka(x - 1e8, y - 1e8))
    assert abs(float(cka(x, y)) - exact) < 1e-6
    assert not np.isclose(float(ckatorch.cka_base(x, y, unbiased=True)), exact, atol=1e-2)
