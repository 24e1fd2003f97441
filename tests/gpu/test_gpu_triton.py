"""Gram matrices on tensor cores against float64, at sizes and of kinds that no benchmark has."""

import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn

import cka_probe as cp
from cka_probe.comparison.grams.triton_gram import LEAST_WORK, pays, tensor_core_gram
from cka_probe.estimators.centring import u_center_gram


@pytest.fixture(autouse=True)
def _tensor_cores():
    pytest.importorskip("triton", reason="needs Triton, which torch for CUDA on Linux brings")
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("needs a GPU with TF32 (compute capability 8.0)")


def centred(gram):
    return u_center_gram(gram.double())


def error(features, found):
    """Relative error of the U-centred Gram matrix against float64 of the same features."""
    wide = features.double()
    wide = wide - wide.mean(0)
    expected = centred(wide @ wide.T)
    return float((centred(found) - expected).norm() / expected.norm())


SHAPES = [(16, 1), (17, 33), (64, 5000), (65, 64), (100, 999), (256, 70_000), (300, 5001), (1024, 300)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("mean", [0.0, 30.0])
def test_float32(shape, mean):
    generator = torch.Generator("cuda").manual_seed(0)
    x = torch.randn(shape, device="cuda", generator=generator) + mean
    found = tensor_core_gram(x)
    assert torch.equal(found, found.T)
    assert error(x, found) < 3e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES[2:], ids=str)
def test_half_precision(shape, dtype):
    x = (torch.randn(shape, device="cuda") + 3).to(dtype)
    found = tensor_core_gram(x)
    assert torch.equal(found, found.T)
    assert error(x, found) < 1e-4


def test_rows_of_a_wider_array():
    wide = torch.randn(64, 3000, device="cuda")
    assert error(wide[:, 7:2000], tensor_core_gram(wide[:, 7:2000])) < 3e-6


def test_nan_and_infinity_are_not_lost():
    for bad in (torch.nan, torch.inf):
        x = torch.randn(64, 500, device="cuda")
        x[40, 77] = bad
        assert not tensor_core_gram(x)[40].isfinite().any()


def test_tf32_is_near():
    x = torch.randn(128, 20_000, device="cuda")
    assert 1e-6 < error(x, tensor_core_gram(x, tf32=True)) < 1e-2


def test_large_products_pay_and_others_do_not():
    n = 256
    width = LEAST_WORK // n**2
    assert pays(torch.empty(n, width, device="cuda"))
    assert pays(torch.empty(n, width, device="cuda", dtype=torch.bfloat16))
    assert not pays(torch.empty(n, width - 1, device="cuda"))
    assert not pays(torch.empty(n, width, device="cuda", dtype=torch.float64))
    assert not pays(torch.empty(width, n, device="cuda").T)


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_compare_of_wide_layers(autocast):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1)).cuda()
    data = [torch.randn(256, 3, 32, 32, device="cuda") for _ in range(3)]
    assert pays(torch.empty(256, 64 * 32 * 32, device="cuda"))
    found = cp.compare(model, model, data, autocast=autocast, progress=False)
    total = 0.0
    for batch in data:
        with torch.no_grad(), torch.autocast("cuda", autocast, enabled=autocast is not None):
            maps = [model[: i + 1](batch).flatten(1).double() for i in range(3)]
        maps = [x - x.mean(0) for x in maps]
        rows = torch.stack([centred(x @ x.T) for x in maps]).flatten(1)
        total = total + rows @ rows.T
    own = total.diagonal().sqrt()
    assert_allclose(found.values, (total / own[:, None] / own).cpu().numpy(), atol=1e-6 if autocast is None else 1e-5)
