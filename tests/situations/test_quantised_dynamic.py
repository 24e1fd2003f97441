"""Dynamic int8 (``quantize_dynamic``): how much does a network change when its linear layers are quantised?"""

import warnings

import pytest
import torch
from situation import check, check_notes
from torch import nn

import cka_probe as cp


def quantised(net):
    quantization = pytest.importorskip("torch.ao.quantization", reason="this torch has no torch.ao.quantization")
    if "none" in torch.backends.quantized.supported_engines[-1:]:
        pytest.skip("this machine has no engine for int8")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch points to torchao
        return quantization.quantize_dynamic(net, {nn.Linear}, torch.qint8)


def test_a_network_against_its_quantised_copy():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    small = quantised(net)
    batches = [torch.randn(9, 12, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    result = cp.compare(net, small, batches, progress=False)
    assert result.rows == result.columns
    assert result.values.diagonal().min() > 0.99
    check(result, net, batches, small)
    check_notes(result)
