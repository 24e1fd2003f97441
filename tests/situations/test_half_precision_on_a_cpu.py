"""Models cast to half precision (``model.bfloat16()``, ``.half()``): the statistics must not be in half precision."""

import pytest
import torch
from situation import check, check_notes, images
from torch import nn

import cka_probe as cp


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_features_in_half_precision_statistics_in_full(dtype):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(288, 5)
    ).to(dtype)
    batches = [images(9, 8, seed=seed).to(dtype) for seed in (0, 1)]
    result = cp.compare(net, net, batches, progress=False)
    check(result, net, batches)
    check_notes(result)


def test_a_model_against_itself_in_half_precision():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(288, 5))
    half = nn.Sequential(*net).bfloat16()
    full = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(288, 5))
    full.load_state_dict(half.state_dict())
    batches = [images(9, 8, seed=seed) for seed in (0, 1)]
    halves = [batch.bfloat16() for batch in batches]
    result = cp.compare(full, half, batches, data_y=halves, progress=False)
    check(result, full, batches, half, batches_y=halves)
    assert result.values.diagonal().min() > 0.999
    check_notes(result)
