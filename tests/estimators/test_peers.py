"""Agreement with a peer where it is right: ckatorch 1.0.3, float64.

It is not among the requirements: `pip install ckatorch`, or put it on PYTHONPATH, and these tests run. Its unbiased
mode and its `cka_batch` (the ratio of summed HSIC_1, equal batches) are those of Nguyen et al. Its RBF bandwidth is not
the median over pairs: it takes the median of all n x n squared distances, the n zeros of the diagonal included.
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
    """Raw float32 features are cast to float64 there, which does not help when the mean is 1e8 times the spread."""
    x, y = (torch.tensor(rng.normal(size=(24, 6)) + 1e8) for _ in range(2))
    exact = float(cka(x - 1e8, y - 1e8))
    assert abs(float(cka(x, y)) - exact) < 1e-6
    assert not np.isclose(float(ckatorch.cka_base(x, y, unbiased=True)), exact, atol=1e-2)
