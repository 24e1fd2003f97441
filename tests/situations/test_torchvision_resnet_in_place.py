"""ResNets of torchvision: a ReLU writes into the output of the batch norm before it, and runs twice in its block."""

import torch
import torchvision
from situation import check, check_notes, images

import cka_probe as cp


def test_every_layer_of_two_resnets():
    torch.manual_seed(0)
    x, y = torchvision.models.resnet18(), torchvision.models.resnet18(num_classes=10)
    batches = [images(6, seed=0), images(5, seed=1)]
    result = cp.compare(x, y, batches, progress=False)
    assert "layer1.0.relu#2" in result.rows
    assert len(result.rows) == 60
    check(result, x, batches, y)
    check_notes(result)
