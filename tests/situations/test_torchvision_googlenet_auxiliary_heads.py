"""GoogLeNet of torchvision has two auxiliary classifiers that run in training only, and a named tuple as output."""

import torch
import torchvision
from situation import check, check_notes, images

import cka_probe as cp


def test_the_auxiliary_heads_are_left_out_with_a_note_and_the_model_stays_in_training():
    torch.manual_seed(0)
    net = torchvision.models.GoogLeNet(num_classes=5, init_weights=False)
    batches = [(images(6, seed=seed), torch.zeros(6)) for seed in (0, 1)]
    result = cp.compare(net, net, batches, layers="blocks", progress=False)
    assert "inception5b" in result.rows
    check(result, net, batches)
    check_notes(result, r"'aux1', 'aux2' were left out: .* did not run")
    assert net.training
