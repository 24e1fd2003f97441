"""Quantisation-aware training: fake quantisers watch their inputs in eval mode too, a state that a forward changes."""

import copy
import warnings

import pytest
import torch
from numpy.testing import assert_allclose
from situation import activations, check_notes, images, values_of
from torch import nn

import cka_probe as cp


def prepared():
    quantization = pytest.importorskip("torch.ao.quantization", reason="this torch has no torch.ao.quantization")
    torch.manual_seed(0)
    net = nn.Sequential(quantization.QuantStub(), nn.Conv2d(3, 4, 3), nn.ReLU(), quantization.DeQuantStub()).train()
    net.qconfig = quantization.get_default_qat_qconfig(torch.backends.quantized.engine)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch points to torchao
        return quantization.prepare_qat(net)


def test_a_note_names_the_ranges_and_they_are_as_before_afterwards():
    net, batches = prepared(), [images(6, 12, seed=seed) for seed in (0, 1, 2)]
    net(batches[0])
    before = copy.deepcopy(net.state_dict())
    reference = values_of(activations(net, batches, ["1", "2"]))
    result = cp.compare(net, net, batches, layers=["1", "2"], progress=False)
    assert_allclose(result.values, reference, atol=1e-6)
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    check_notes(result, r"its forward changes .*activation_post_process\.")
