"""DenseNets of torchvision: the forward itself, not a module, applies ReLU in place to the last batch norm's output."""

import torch
import torchvision
from situation import check, check_notes, images

import cka_probe as cp


def test_the_last_batch_norm_is_compared_before_the_relu_in_place():
    torch.manual_seed(0)
    net = torchvision.models.DenseNet(growth_rate=4, block_config=(2, 2), num_init_features=8, bn_size=2)
    batches = [images(6, seed=0), images(7, seed=1)]
    result = cp.compare(net, net, batches, progress=False)
    assert {"features.norm5", "features.denseblock1.denselayer1.relu1"} <= set(result.rows)
    check(result, net, batches)
    check_notes(result)
