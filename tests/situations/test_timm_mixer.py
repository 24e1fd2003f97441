"""MLP-Mixer of timm: every second MLP runs on transposed tokens (n, c, t); nothing may be taken for a sample axis."""

import torch
from situation import check, check_notes, images, needs

import cka_probe as cp


def test_every_layer():
    timm = needs("timm", "timm")
    torch.manual_seed(0)
    net = timm.models.MlpMixer(num_classes=5, img_size=32, patch_size=8, num_blocks=2, embed_dim=16)
    torch.nn.init.normal_(net.head.weight)  # timm starts with zeros
    batches = [images(16, seed=0), images(16, seed=1)]  # as many samples as tokens and as channels
    result = cp.compare(net, net, batches, progress=False)
    assert len(result.rows) > 20
    check(result, net, batches)
    check_notes(result)
