"""The features of the first sample, or the mean of the first minibatch, are subtracted where that is as accurate."""

import numpy as np
import pytest
import torch
from activations import cloned, reference_cka
from torch import nn

import cka_probe as cp
from cka_probe.comparison.grams.keeper import GramKeeper
from cka_probe.estimators.gram_accuracy import MEAN_LIMIT, mean_over_spread


class Shifted(nn.Module):
    """``width`` features of rank ``rank`` on a mean of its own for each feature; the input may hold an outlier."""

    def __init__(self, width, rank, mean):
        super().__init__()
        torch.manual_seed(0)
        self.register_buffer("map", torch.randn(rank, width))
        self.register_buffer("mean", mean * torch.randn(width))
        self.rank = rank

    def forward(self, x):
        return x[:, : self.rank] @ self.map + self.mean


def batches(change=None):
    generator = torch.Generator().manual_seed(1)
    data = [torch.randn(64, 64, generator=generator) for _ in range(5)]
    if change is not None:
        change(data)
    return data


def outlier(data):
    data[2][0] *= 1e4


def constant(data):
    data[3][:] = data[3][:1].clone()


def equal_to_the_first(data):
    data[2][:40] = data[2][:1].clone()


@pytest.mark.parametrize(
    ("change", "mean"),
    [(None, 1.0), (None, 1e5), (outlier, 30.0), (constant, 30.0), (equal_to_the_first, 1.0), (equal_to_the_first, 1e3)],
)
@pytest.mark.parametrize("rank", [2, 64])
def test_values_agree_with_float64_whatever_is_subtracted(change, mean, rank):
    x, y = Shifted(300, rank, mean), nn.Sequential(nn.Linear(64, 20), nn.ReLU())
    data = batches(change)
    result = cp.compare(x, y, data, layers="", layers_y=["0", "1"], progress=False)
    expected = reference_cka([cloned(x, batch) for batch in data], [cloned(y, batch) for batch in data])
    np.testing.assert_allclose(result.values, expected, atol=1e-6)


def test_a_layer_of_low_rank_is_shifted_by_a_sample_and_one_of_high_rank_by_its_mean():
    keeper = GramKeeper()
    keeper.reviewed = True
    for name, rank in (("low", 2), ("high", 64)):
        net = Shifted(300, rank, 30.0)
        features = net(batches()[0])
        keeper(name, features if rank == 2 else features[:16])
    assert keeper._repeats._by_first == {"low"}


class Stepping(nn.Module):
    """568 features of full rank whose mean jumps in the third minibatch by ``step`` spreads."""

    def __init__(self, step):
        super().__init__()
        self.step = step

    def forward(self, x):
        return x[:, :568] + 30.0 + self.step * float(x[0, 568:].sum() > 1e3)


@pytest.mark.parametrize(("step", "runs"), [(0.0, 1), (0.3, 1), (100.0, 2)])
def test_the_mean_of_the_first_minibatch_serves_until_a_later_one_lies_elsewhere(step, runs):
    x = Stepping(step)
    ran, keepers = [], []
    x.register_forward_hook(lambda _module, inputs, _output: ran.append(float(inputs[0].sum())))
    data = list(torch.randn(5, 64, 600, generator=torch.Generator().manual_seed(1)))
    data[2][:, 568:] += 100.0
    with pytest.MonkeyPatch.context() as patch:
        made = GramKeeper.__init__
        patch.setattr(GramKeeper, "__init__", lambda self, *args, **kw: keepers.append(self) or made(self, *args, **kw))
        y = nn.Linear(600, 5)
        result = cp.compare(x, y, data, layers="", progress=False)
    assert [ran.count(float(batch.sum())) for batch in data[1:]] == [1, runs, 1, 1]
    assert bool(keepers[0]._repeats._first_means) == (runs == 1)
    expected = reference_cka([cloned(x, batch) for batch in data], [cloned(y, batch) for batch in data])
    np.testing.assert_allclose(result.values, expected, atol=1e-6)


@pytest.mark.parametrize(("width", "runs"), [(300, 1), (5000, 2)])
def test_a_mean_that_is_almost_too_large_in_the_first_minibatch_costs_no_second_forward(width, runs):
    """The spread of later ones is smaller. A wider layer keeps no mean, and learns from the first that is beyond."""
    x, y = Shifted(width, 64, 8.0), nn.Linear(64, 5)
    data = [batch[:32] * scale for batch, scale in zip(batches(), (1.0, 0.9, 0.6, 0.6, 0.6), strict=True)]
    above = [float(mean_over_spread((f @ f.T)[None])) for f in map(x, data)]
    assert above[0] < 0.7 * MEAN_LIMIT < MEAN_LIMIT < above[2]
    ran = []
    x.register_forward_hook(lambda _module, inputs, _output: ran.append(float(inputs[0].sum())))
    result = cp.compare(x, y, data, layers="", progress=False)
    assert [ran.count(float(batch.sum())) for batch in data[1:]] == [1, runs, 1, 1]
    expected = reference_cka([cloned(x, batch) for batch in data], [cloned(y, batch) for batch in data])
    np.testing.assert_allclose(result.values, expected, atol=1e-6)


def far_first(data):
    data[2][0] *= 300


def far_other(data):
    data[2][5] *= 1e5


def all_equal(data):
    data[2][:] = data[2][:1].clone()


@pytest.mark.parametrize("change", [far_first, far_other, all_equal])
def test_a_batch_that_breaks_the_rule_runs_again(change):
    x = Shifted(300, 2, 30.0)
    ran = []
    x.register_forward_hook(lambda _module, inputs, _output: ran.append(float(inputs[0].sum())))
    data = batches(change)
    result = cp.compare(x, nn.Linear(64, 5), data, layers="", progress=False)
    assert [ran.count(float(batch.sum())) for batch in data[1:]] == [1, 2, 1, 1]
    assert any("sample 5 of batch 2" in note for note in result.notes) == (change is far_other)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_agrees_with_its_own_features_in_float64(dtype):
    x, y = nn.Sequential(Shifted(300, 2, 5.0)).to(dtype), nn.Linear(64, 8).to(dtype)
    data = [batch.to(dtype) for batch in batches()]
    result = cp.compare(x, y, data, layers="0", layers_y="", progress=False)
    expected = reference_cka([cloned(x, batch) for batch in data], [cloned(y, batch) for batch in data])
    np.testing.assert_allclose(result.values, expected, atol=1e-6)


def test_a_spread_of_one_on_a_mean_of_ten_thousand_is_right():
    """1e4 plus or minus 1: the difference of two samples is exact, their mean is not."""
    sides = [torch.randn(64, 64, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    data = [1e4 + torch.where(x[:, :2] @ x[:2] > 0, 1.0, -1.0) for x in sides]
    x, y = nn.Identity(), nn.Linear(64, 8)
    expected = reference_cka([cloned(x, batch) for batch in data], [cloned(y, batch) for batch in data])
    result = cp.compare(x, y, data, layers="", layers_y="", progress=False)
    np.testing.assert_allclose(result.values, expected, atol=1e-6)
