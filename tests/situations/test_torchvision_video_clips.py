"""Video classifiers (R3D): clips (n, c, t, h, w), compared after the mean over time and space."""

import torch
import torchvision
from situation import check, check_notes

import cka_probe as cp


def test_blocks_by_their_mean_over_time_and_space():
    torch.manual_seed(0)
    net = torchvision.models.video.r3d_18()
    clips = [torch.randn(5, 3, 4, 16, 16, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    result = cp.compare(net, net, clips, layers="blocks", pooling="mean", progress=False)
    assert len(result.rows) == 8
    check(result, net, clips, features=lambda _name, x, _batch: x.mean((2, 3, 4)))
    check_notes(result)
