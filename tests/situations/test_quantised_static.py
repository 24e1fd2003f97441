"""Static int8: activations are quantised tensors, which have to be dequantised, by the pooling or by the library."""

import copy
import warnings

import pytest
import torch
from situation import check, check_notes, images
from torch import nn

import cka_probe as cp


def setting():
    quantization = pytest.importorskip("torch.ao.quantization", reason="this torch has no torch.ao.quantization")
    torch.manual_seed(0)
    net = nn.Sequential(
        quantization.QuantStub(), nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), quantization.DeQuantStub()
    ).eval()
    net.qconfig = quantization.get_default_qconfig(torch.backends.quantized.engine)
    batches = [images(6, 12, seed=seed) for seed in (0, 1)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch points to torchao, and says how it observes
        prepared = quantization.prepare(copy.deepcopy(net))
        with torch.no_grad():
            prepared(batches[0])
        return quantization.convert(prepared), batches


def dequantised(_row, output):
    return output.dequantize() if output.is_quantized else output


def test_pooling_as_a_function_dequantises():
    int8, batches = setting()
    result = cp.compare(
        int8,
        int8,
        batches,
        pooling=lambda x: dequantised("", x).flatten(1),
        layers=["1", "2", "3", "4"],
        progress=False,
    )
    assert result.rows == ("1", "2", "3", "4")
    check(result, int8, batches, pick=dequantised)
    check_notes(result)


def test_the_default_gives_values_or_says_what_it_left_out():
    int8, batches = setting()
    result = cp.compare(int8, int8, batches, progress=False)
    left = {"0", "1", "2", "3", "4"} - set(result.rows)
    check(result, int8, batches, pick=dequantised)
    assert all(any(repr(name) in note for note in result.notes) for name in left)
