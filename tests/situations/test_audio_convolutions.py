"""Convolutions over audio, (n, c, t): the mean over time must leave the channels alone, also after a ReLU."""

import torch
from situation import check, check_notes
from torch import nn

import cka_probe as cp


def waves(steps):
    return [torch.randn(8, 1, steps, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]


def network(seed):
    torch.manual_seed(seed)
    stem = nn.Sequential(nn.Conv1d(1, 6, 5, 2), nn.BatchNorm1d(6), nn.ReLU(inplace=True))
    return nn.Sequential(stem, nn.Conv1d(6, 4, 3), nn.GELU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 3))


def test_every_layer_flattened():
    x, y, batches = network(0), network(1), waves(64)
    result = cp.compare(x, y, batches, progress=False)
    check(result, x, batches, y)
    check_notes(result)


def test_the_mean_over_time():
    net, batches = network(0), waves(64)
    result = cp.compare(net, net, batches, layers=["leaves", "0"], pooling="mean", progress=False)
    check(result, net, batches, features=lambda _row, x, _batch: x.mean(2) if x.ndim == 3 else x)
    check_notes(result)
