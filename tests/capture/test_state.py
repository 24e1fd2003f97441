"""What a comparison borrows is given back, whatever happens."""

import random

import numpy as np
import pytest
import torch
from small_networks import image_batches, small_network
from torch import nn

import cka_probe as cp
from cka_probe.capture.recorder import LayerRecorder
from cka_probe.capture.state import borrowed, device_of, full_precision, reduces_products
from cka_probe.capture.streaming import Pass

CPU = torch.device("cpu")


def test_models_are_in_eval_mode_without_gradients_inside_and_as_before_outside():
    net = nn.Sequential(nn.Dropout(), nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3)))
    net[1][0].eval()
    before = [m.training for m in net.modules()]
    with borrowed([net]):
        assert not any(m.training for m in net.modules())
        assert not torch.is_grad_enabled()
    assert [m.training for m in net.modules()] == before == [True, True, True, False, True]
    assert torch.is_grad_enabled()


def test_grad_mode_of_a_caller_without_gradients_stays_off():
    with torch.no_grad():
        with borrowed([nn.Linear(2, 2)]):
            pass
        assert not torch.is_grad_enabled()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, None])
def test_the_random_number_generators_go_on_as_if_nothing_had_been(error):
    def draw():
        return random.random(), float(np.random.rand()), float(torch.rand(1))  # noqa: NPY002 - the global generator

    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(5)
    expected = [draw(), draw()]
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(5)
    found = [draw()]
    try:
        with borrowed([nn.ReLU()]):
            draw()
            if error:
                raise error
    except (ValueError, KeyboardInterrupt):
        pass
    assert [*found, draw()] == expected


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU to move a model to")
def test_a_model_goes_to_the_device_and_home_again():
    net = nn.Linear(2, 2)
    with borrowed([net], "cuda"):
        assert device_of(net).type == "cuda"
    assert device_of(net) == CPU


def test_a_device_that_is_not_there_leaves_the_model_as_it_was():
    net = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(RuntimeError), borrowed([net], "no-such-device"):
        pass
    assert net.training
    assert net[0].training
    assert device_of(net) == CPU


def test_the_device_of_a_model_without_parameters_is_the_cpu():
    assert device_of(nn.ReLU()) == CPU
    assert device_of(nn.BatchNorm1d(2, affine=False)) == CPU


def test_a_compiled_model_runs_eagerly_inside_so_that_its_hooks_run():
    net = small_network(0)
    compiled = torch.compile(net, backend="eager")
    batches = image_batches()
    compiled(batches[0])  # compiled before anyone put hooks in
    plain = cp.compare(net, net, batches, progress=False)
    assert np.array_equal(cp.compare(compiled, compiled, batches, progress=False).values, plain.values)


# --- precision ----------------------------------------------------------------------------------------------------


@pytest.fixture
def low_precision():
    """As a user who wants speed: TF32 on NVIDIA GPUs, bfloat16 products on CPUs that can."""
    torch.set_float32_matmul_precision("medium")
    yield
    torch.set_float32_matmul_precision("highest")


def test_products_are_full_inside_and_the_setting_is_back_outside(low_precision):
    assert reduces_products(CPU)
    with full_precision(CPU):
        assert not reduces_products(CPU)
        assert torch.backends.cuda.matmul.fp32_precision == "tf32", "only the device that is used is touched"
    assert torch.get_float32_matmul_precision() == "medium"


def test_the_setting_is_back_after_an_exception(low_precision):
    with pytest.raises(ValueError, match="inside"), full_precision(CPU):
        raise ValueError("inside")
    assert torch.get_float32_matmul_precision() == "medium"


def test_gram_matrices_and_their_products_are_taken_in_full_precision_and_the_forward_is_not(low_precision):
    seen = {}

    class Forward(nn.Module):
        def forward(self, x):
            seen["forward"] = reduces_products(CPU)
            return x

    def keep(_name, _features):
        seen["keep"] = reduces_products(CPU)

    def consume(*_):
        seen["consume"] = reduces_products(CPU)

    recorder = LayerRecorder(nn.Sequential(Forward()), "model", "leaves", "flatten", keep)
    Pass([recorder], 4, progress=False).run(torch.ones(5, 2), consume)
    assert seen == {"forward": True, "keep": False, "consume": False}


def test_autocast_around_compare_is_for_the_network_only():
    net, batches = small_network(0), image_batches()
    inside = cp.compare(net, net, batches, autocast=torch.bfloat16, progress=False)
    with torch.autocast("cpu", torch.bfloat16):
        around = cp.compare(net, net, batches, progress=False)
        assert torch.is_autocast_enabled("cpu")
    assert np.array_equal(inside.values, around.values)
