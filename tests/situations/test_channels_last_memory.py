"""``channels_last`` memory, as fast training loops use it: the numbers are the same, in another order in memory."""

import copy

import torch
import torchvision
from situation import check, check_notes, images

import cka_probe as cp


def test_the_order_in_memory_changes_nothing():
    torch.manual_seed(0)
    net = torchvision.models.resnet18(num_classes=5)
    fast = copy.deepcopy(net).to(memory_format=torch.channels_last)
    batches = [images(6, 32, seed=seed) for seed in (0, 1)]
    reordered = [batch.to(memory_format=torch.channels_last) for batch in batches]
    layers = ["conv1", "bn1", "layer?.1.relu", "layer?.1", "fc"]
    result = cp.compare(net, fast, batches, data_y=reordered, layers=layers, progress=False)
    check(result, net, batches, fast, batches_y=reordered)
    assert abs(result.values.diagonal() - 1).max() < 1e-5
    check_notes(result)
