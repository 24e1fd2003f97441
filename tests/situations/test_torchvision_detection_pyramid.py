"""Backbones of detectors: the feature pyramid of torchvision returns an OrderedDict of maps, one for each level."""

import torch
import torchvision
from situation import check, check_notes, images
from torchvision.models.detection.backbone_utils import BackboneWithFPN

import cka_probe as cp


def test_a_layer_that_returns_a_dict_of_maps():
    torch.manual_seed(0)
    body = torchvision.models.resnet18()
    net = BackboneWithFPN(body, {"layer1": "0", "layer2": "1"}, [64, 128], 16)
    batches = [images(5, seed=0), images(5, seed=1)]
    result = cp.compare(net, net, batches, layers=["body.layer2", "fpn.layer_blocks.*.0", "fpn", ""], progress=False)
    assert result.rows == ("body.layer2", "fpn.layer_blocks.1.0", "fpn.layer_blocks.0.0", "fpn", "model")
    check(result, net, batches, pick=lambda _row, out: out["0"] if isinstance(out, dict) else out)
    check_notes(result)
