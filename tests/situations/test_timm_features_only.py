"""``features_only=True`` of timm: the backbone of a detector or segmenter returns a list of maps, one for a scale."""

import torch
from situation import check, check_notes, images, needs

import cka_probe as cp


def test_a_list_of_maps_as_output():
    timm = needs("timm", "timm")
    torch.manual_seed(0)
    net = timm.create_model("resnet10t", features_only=True, out_indices=(1, 2))
    batches = [images(5, 64, seed=0), images(5, 64, seed=1)]
    result = cp.compare(net, net, batches, layers=["layer1.0", "layer2.**", ""], progress=False)
    assert "layer2.0.act2" in result.rows
    assert result.rows[-1] == "model"
    check(result, net, batches, pick=lambda _row, output: output[0] if isinstance(output, list) else output)
    check_notes(result, r"layer2\.0\.bn2.* constant")  # timm starts with zeros
