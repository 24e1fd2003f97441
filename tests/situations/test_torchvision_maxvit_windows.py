"""MaxViT of torchvision: in one block convolutions (n, c, h, w), windows (n, w, t, c) and stochastic depth."""

import torch
import torchvision
from situation import check, check_notes, images

import cka_probe as cp


def test_every_layer():
    torch.manual_seed(0)
    net = torchvision.models.MaxVit(
        (32, 32), 8, 4, [8, 16], [1, 1], head_dim=8, stochastic_depth_prob=0.2, num_classes=5
    )
    batches = [images(6, seed=0), images(6, seed=1)]
    result = cp.compare(net, net, batches, progress=False)
    assert len(result.rows) > 60
    check(result, net, batches)
    check_notes(result, r"constant over the samples .*scale_activation")  # it is 0.5 until it has learnt something
