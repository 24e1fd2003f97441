"""Optical flow (RAFT): two images are the input, both pass the encoder as one batch of 2 n; an update runs again."""

import torch
import torchvision
from situation import check, check_notes, images

import cka_probe as cp


def test_the_updates_are_layers_of_their_own_and_the_doubled_batch_is_left_out():
    torch.manual_seed(0)
    net = torchvision.models.optical_flow.raft_small()
    batches = [((images(4, 128, seed=1), images(4, 128, seed=2)), torch.zeros(4, 2, 128, 128))]
    layers = ["update_block.recurrent_block#2", "update_block.flow_head#12", "*_encoder.conv"]
    result = cp.compare(net, net, batches, layers=layers, progress=False)
    rows = {"update_block.recurrent_block#2", "update_block.flow_head#12", "context_encoder.conv"}
    assert set(result.rows) == rows
    check(result, net, batches)
    check_notes(result, r"'feature_encoder\.conv' was left out: .*\(8, 128, 16, 16\)")
