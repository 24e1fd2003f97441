"""Detectors over named and small backbones."""

import pytest
import torch
from small_detectors import network
from torch import nn

from cka_probe.distill.dense.data import CocoBoxes, collate_lists
from cka_probe.distill.dense.networks import DETECTORS, SmallResNet, detector, small_pyramid


@pytest.fixture(scope="module")
def train(scenes):
    return CocoBoxes(scenes.train_images, scenes.train_annotations)


@pytest.mark.parametrize("architecture", DETECTORS)
def test_every_architecture_trains_and_detects(architecture, train):
    model = network(architecture)
    images, targets = collate_lists([train[0], train[1]])
    targets[1] = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    losses = model(images, targets)
    sum(losses.values()).backward()
    assert all(bool(torch.isfinite(value)) for value in losses.values())
    found = model.eval()(images)
    assert set(found[0]) == {"boxes", "labels", "scores"}


def test_named_backbones_have_torchvisions_anchors():
    ours = detector("retinanet", "resnet18", 91)
    assert ours.anchor_generator.sizes[0] == (32, 40, 50)
    assert len(ours.anchor_generator.sizes) == 5
    assert detector("fcos", "resnet18", 91).anchor_generator.sizes == ((8,), (16,), (32,), (64,), (128,))
    rpn = detector("faster_rcnn", "resnet18", 91).rpn
    assert rpn.anchor_generator.sizes == ((32,), (64,), (128,), (256,), (512,))


class NoChannels(nn.Module):
    def forward(self, x):
        return {"0": x}


class NoDict(nn.Module):
    out_channels = 3

    def forward(self, x):
        return x


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("yolo", small_pyramid(8), 11), "`architecture` must be one of faster_rcnn, retinanet, fcos"),
        (("fcos", small_pyramid(8), 1), "`classes` counts the background"),
        (("fcos", NoChannels(), 11), "NoChannels must have `out_channels`"),
        (("fcos", NoDict(), 11), "NoDict must return a dict of maps, but it returned Tensor"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        detector(*arguments)


def test_small_resnets_have_the_strides_of_resnets():
    assert SmallResNet(8, 2)(torch.zeros(1, 3, 96, 64)).shape == (1, 64, 3, 2)
