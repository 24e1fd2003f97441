"""A training loop that compares after every epoch goes on as if it had not: dropout, batch norm, shuffling."""

import copy

import torch
from situation import check
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import cka_probe as cp


def network():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(), nn.Dropout(0.3), nn.Linear(144, 3)
    )


def train(epochs, measure):
    torch.manual_seed(0)
    net = network()
    start = copy.deepcopy(net)
    net[0].eval()  # a user may freeze one part
    data = TensorDataset(torch.randn(24, 1, 8, 8), torch.arange(24) % 3)
    loader = DataLoader(data, 8, shuffle=True)
    optimizer = torch.optim.AdamW(net.parameters(), 1e-2)
    for _ in range(epochs):
        for x, y in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            optimizer.step()
        measure(start, net, DataLoader(data, 8), optimizer)
    return net


def test_the_weights_are_bit_identical_to_those_of_a_run_without_comparisons():
    results = []

    def compared(start, net, loader, _optimizer):
        gradients = [p.grad.clone() for p in net.parameters()]
        result = cp.compare(start, net, loader, progress=False)
        with torch.random.fork_rng():
            check(result, start, list(loader), net)
        results.append(result)
        assert all(torch.equal(p.grad, g) for p, g in zip(net.parameters(), gradients, strict=True))
        assert [net.training, net[0].training, net[1].training] == [True, False, True]
        assert not any(module._forward_hooks for module in net.modules())

    with_comparisons, without = train(3, compared), train(3, lambda *_: None)
    for (name, a), b in zip(with_comparisons.state_dict().items(), without.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert results[0].values[-1, -1] > results[-1].values[-1, -1], "the head moves away from where it started"
    assert not any(result.notes for result in results)
