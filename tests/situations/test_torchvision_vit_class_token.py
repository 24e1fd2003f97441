"""Vision transformers of torchvision: attention uses a projection without calling it; the class token is compared."""

import torch
import torchvision
from situation import check, check_notes, images

import cka_probe as cp


def vit(depth):
    torch.manual_seed(depth)
    net = torchvision.models.VisionTransformer(32, 8, depth, 2, 16, 32, num_classes=5)
    torch.nn.init.normal_(net.heads.head.weight)  # torchvision starts with zeros
    return net


def test_every_layer():
    net, batches = vit(2), [images(7, seed=0), images(7, seed=1)]
    result = cp.compare(net, net, batches, progress=False)
    assert "encoder.layers.encoder_layer_1.self_attention" in result.rows
    check(result, net, batches)
    check_notes(result)


def test_the_class_token_of_networks_of_different_depth():
    x, y, batches = vit(2), vit(3), [images(7, seed=0), images(7, seed=1)]
    result = cp.compare(x, y, batches, layers="blocks", pooling="cls", progress=False)
    assert result.shape == (2, 3)
    check(result, x, batches, y, features=lambda _name, tokens, _batch: tokens[:, 0])
    check_notes(result)
