"""Layers in float32 whose spread is far below their mean: a Gram matrix in float64 at once, and the right value."""

import numpy as np
import pytest
import torch
from reference import minibatch_cka
from torch import nn

import cka_probe as cp
from cka_probe.comparison.grams import keeper as of_keeper
from cka_probe.comparison.grams.keeper import GramKeeper
from cka_probe.estimators.gram_accuracy import resolution

N, WIDTH = 16, 40_000


def net():
    """Its first layer hands on the input."""
    return nn.Sequential(nn.Dropout(), nn.LeakyReLU())


def near_constant(rng, mean, batches=3):
    base = mean * rng.uniform(1, 2, WIDTH)
    return [torch.tensor(base + rng.normal(size=(N, WIDTH)), dtype=torch.float32) for _ in range(batches)]


@pytest.mark.parametrize("mean", [30.0, 3e3, 3e5])
def test_the_value_is_that_of_the_definition(rng, mean):
    data = near_constant(rng, mean)
    other = [torch.tensor(rng.normal(size=(N, 30)), dtype=torch.float32) + x[:, :30] for x in data]
    found = cp.compare(net(), net(), data, data_y=other, progress=False)
    pairs = [(x.double().numpy(), y.double().numpy()) for x, y in zip(data, other, strict=True)]
    assert found.values == pytest.approx(np.full((2, 2), minibatch_cka(pairs)), abs=1e-6)


def test_later_minibatches_go_straight_to_float64(rng, monkeypatch):
    tried = []
    own = of_keeper.layer_gram
    monkeypatch.setattr(of_keeper, "layer_gram", lambda *args, **kw: tried.append(1) or own(*args, **kw))
    keeper = GramKeeper(cp.Linear())
    for x in near_constant(rng, 3e5):
        kept = keeper("a", x)
        centred = x.double() - x.double().mean(0)
        expected = centred @ centred.T
        middle = torch.eye(N).double() - 1 / N
        assert torch.allclose(middle @ kept.gram @ middle, expected, rtol=1e-9, atol=1e-9 * float(expected.max()))
    assert len(tried) == 1


def test_a_far_sample_in_one_minibatch_does_not_make_the_later_ones_slow(rng):
    keeper = GramKeeper(cp.Linear())
    far, *usual = (torch.tensor(rng.normal(size=(64, 50)), dtype=torch.float32) for _ in range(3))
    far[7] *= 1e6
    assert keeper("a", far).gram.dtype == torch.float64
    assert [keeper("a", x).gram.dtype for x in usual] == [torch.float32, torch.float32]


def test_the_note_on_coarse_features_is_that_of_their_resolution(rng):
    data = near_constant(rng, 2e6)
    same = net()
    (note,) = cp.compare(same, same, data, layers=["0"], progress=False).notes
    worst = max(float(resolution(x, float(np.finfo(np.float32).eps))) for x in data)
    assert f"is up to {worst:.0%} of it" in note
