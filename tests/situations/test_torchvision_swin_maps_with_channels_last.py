"""Swin of torchvision: its maps are (n, h, w, c), so that a mean over positions must leave the last axis alone."""

import torch
import torchvision
from situation import check, check_notes

import cka_probe as cp


def swin():
    torch.manual_seed(0)
    return torchvision.models.SwinTransformer([4, 4], 16, [1, 1], [2, 2], [2, 2], num_classes=5)


def pictures(height, width):
    return [torch.randn(6, 3, height, width, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]


def test_every_layer_flattened():
    net, batches = swin(), pictures(32, 32)
    result = cp.compare(net, net, batches, progress=False)
    check(result, net, batches)
    check_notes(result, r"attn\.(qkv|proj).* left out: it did not run")


def test_the_mean_over_positions_of_square_and_of_wide_pictures():
    for height, width in ((32, 32), (32, 48)):
        net, batches = swin(), pictures(height, width)
        layers = ["features.0", "features.1", "features.3"]
        result = cp.compare(net, net, batches, layers=layers, pooling="mean", progress=False)
        check(result, net, batches, features=lambda _name, x, _batch: x.mean((1, 2)))
        check_notes(result)
