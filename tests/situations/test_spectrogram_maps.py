"""Spectrograms (n, 1, mel, time): a map can have as many channels as mel bands, by chance (the usual 64 and 64)."""

import torch
from situation import check, check_notes
from torch import nn

import cka_probe as cp


def test_the_mean_over_positions_when_channels_and_height_agree():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 4, 3))
    batches = [torch.randn(6, 1, 8, 20, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    result = cp.compare(net, net, batches, pooling="mean", progress=False)
    check(result, net, batches, features=lambda _row, x, _batch: x.mean((2, 3)))
    check_notes(result)
