"""Inception v3 wants 299 x 299 pixels, another network 32 x 32: ``data_y`` brings the same pictures in its size."""

import torch
import torchvision
from situation import check, check_notes, images
from torch import nn

import cka_probe as cp


def test_two_networks_with_images_of_different_sides():
    torch.manual_seed(0)
    inception = torchvision.models.Inception3(num_classes=5, aux_logits=False, transform_input=True, init_weights=False)
    small = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    large = [images(5, 80, seed=0)]
    other = [nn.functional.interpolate(x, size=32, mode="bilinear") for x in large]
    layers = ["Conv2d_1a_3x3", "Mixed_6a", "Mixed_7c", "fc"]
    result = cp.compare(inception, small, large, data_y=other, layers=layers, layers_y="leaves", progress=False)
    assert result.shape == (4, 4)
    check(result, inception, large, small, batches_y=other)
    check_notes(result)
