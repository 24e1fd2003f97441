"""Segmenters of torchvision return an OrderedDict ("out", "aux"); the second head runs only where it exists."""

import torch
import torchvision
from situation import check, check_notes, images
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.segmentation.fcn import FCN, FCNHead

import cka_probe as cp


def segmenter(seed, with_aux):
    torch.manual_seed(seed)
    body = IntermediateLayerGetter(torchvision.models.resnet18(), {"layer1": "aux", "layer2": "out"})
    return FCN(body, FCNHead(128, 3), FCNHead(64, 3) if with_aux else None)


def test_the_whole_segmenter_by_its_class_scores():
    x, y = segmenter(0, with_aux=True), segmenter(1, with_aux=False)
    batches = [images(5, seed=0), images(5, seed=1)]
    layers = ["backbone.layer2", "classifier", ""]
    result = cp.compare(x, y, batches, layers=layers, progress=False)
    assert result.rows == result.columns == ("backbone.layer2", "classifier", "model")
    check(result, x, batches, y, pick=lambda _row, output: output["out"] if isinstance(output, dict) else output)
    check_notes(result)
