"""``create_feature_extractor`` of torchvision: an FX graph whose output is a dict of layers, asked for by the user."""

import torch
import torchvision
from situation import check, check_notes, images
from torchvision.models.feature_extraction import create_feature_extractor

import cka_probe as cp


def test_a_graph_with_a_dict_output():
    torch.manual_seed(0)
    net = torchvision.models.resnet18()
    graph = create_feature_extractor(net, {"layer1.1.relu_1": "early", "layer2": "late"})
    batches = [images(5, seed=0), images(5, seed=1)]
    layers = ["conv1", "layer1.1.relu", "layer2.1.bn2", ""]
    result = cp.compare(graph, graph, batches, layers=layers, progress=False)
    check(result, graph, batches, pick=lambda _row, output: output["early"] if isinstance(output, dict) else output)
    check_notes(result)
