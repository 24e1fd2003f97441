"""``torch.func.functional_call``: other weights (EMA, a task vector, one of an ensemble) in the same module."""

import copy

import torch
from numpy.testing import assert_allclose
from situation import activations, check_notes, images, values_of
from torch import nn
from torch.func import functional_call

import cka_probe as cp


def network(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(144, 5))


def test_the_weights_of_the_call_count():
    net, other, batches = network(0), network(1), [images(7, 8, seed=seed) for seed in (0, 1)]
    weights = {name: value.clone() for name, value in other.state_dict().items()}

    def run(model, batch):
        return functional_call(model, weights, (batch,))

    before = copy.deepcopy(net.state_dict())
    result = cp.compare(net, net, batches, forward=run, progress=False)
    assert_allclose(result.values, values_of(activations(other, batches, result.rows)), atol=1e-6)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    check_notes(result)
