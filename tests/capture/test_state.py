"""Modes, devices, buffers, gradients, random generators and precision are restored, also after exceptions."""

import io
import random

import numpy as np
import pytest
import torch
from small_networks import image_batches, small_network
from torch import nn

import cka_probe as cp
from cka_probe.capture.recorder import LayerRecorder
from cka_probe.capture.state import (
    borrowed,
    buffers_restored,
    device_of,
    frozen,
    full_precision,
    modes_restored,
    moved,
    random_states,
    random_states_restored,
    reduces_products,
    set_random_states,
)
from cka_probe.capture.streaming import Pass

CPU = torch.device("cpu")
ERRORS = pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, None])


def run(borrowing, inside, error=None):
    """Call `inside` within the context manager `borrowing`, then raise `error` there."""
    try:
        with borrowing:
            inside()
            if error:
                raise error
    except (ValueError, KeyboardInterrupt):
        assert error


# --- borrowed -----------------------------------------------------------------------------------------------------


def test_models_are_in_eval_mode_without_gradients_inside_and_as_before_afterwards():
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


@ERRORS
def test_all_is_as_before_after_an_exception_too(error):
    net, device = Wandering(), torch.device("meta")
    seed_all(5)
    expected = draw()
    seed_all(5)
    run(borrowed([net], device), draw, error)
    assert draw() == expected
    assert net.training
    assert net.visited == [device, CPU]
    assert torch.is_grad_enabled()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU to move a model to")
def test_a_model_goes_to_the_device_and_back():
    net = nn.Linear(2, 2)
    with borrowed([net], "cuda"):
        assert device_of(net).type == "cuda"
    assert device_of(net) == CPU


def test_an_unknown_device_leaves_the_model_as_it_was():
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
    compiled(batches[0])  # it is compiled before the hooks are there
    plain = cp.compare(net, net, batches, progress=False)
    assert np.array_equal(cp.compare(compiled, compiled, batches, progress=False).values, plain.values)


# --- modes, gradients, buffers, devices ---------------------------------------------------------------------------


@ERRORS
def test_modes_are_restored(error):
    net, other = nn.Sequential(nn.Dropout(), nn.Linear(2, 2)), nn.ReLU().eval()
    net[1].eval()

    def change():
        net.eval()
        other.train()
        net[0].train()

    run(modes_restored(net, None, other), change, error)
    assert [net.training, net[0].training, net[1].training, other.training] == [True, True, False, False]


@ERRORS
def test_a_frozen_model_requires_no_gradient_inside(error):
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    net[0].weight.requires_grad_(False)
    net[1].eval()

    def check():
        assert not any(p.requires_grad for p in net.parameters())
        assert not any(m.training for m in net.modules())

    run(frozen(net), check, error)
    assert [p.requires_grad for p in net.parameters()] == [False, True, True, True]
    assert [m.training for m in net.modules()] == [True, True, False]


def test_frozen_accepts_none():
    with frozen(None):
        pass


@ERRORS
def test_buffers_are_restored(error):
    norm = nn.BatchNorm1d(3)
    before = [buffer.clone() for buffer in norm.buffers()]
    run(buffers_restored(norm), lambda: norm(torch.randn(8, 3)), error)
    assert all(torch.equal(buffer, value) for buffer, value in zip(norm.buffers(), before, strict=True))
    assert norm.num_batches_tracked == 0


def test_restored_buffers_do_not_break_a_backward_that_waits():
    """A backward refuses tensors that changed since the forward; buffers that are as they were have not changed."""
    net = nn.Linear(3, 3)
    net.register_buffer("scale", torch.ones(3))
    x = torch.randn(2, 3, requires_grad=True)
    loss = (x * net.scale).sum()
    with buffers_restored(net):
        net(x)
    loss.backward()
    assert torch.equal(x.grad, torch.ones(2, 3))


class Wandering(nn.Linear):
    """Notes where it is sent and stays on the CPU; there may be no other device here."""

    def __init__(self, *, breaks=False):
        super().__init__(2, 2)
        self.visited, self.breaks = [], breaks

    def to(self, device):
        self.visited.append(device)
        if self.breaks and device != CPU:
            raise ValueError("out of memory")
        return self


@ERRORS
def test_models_are_moved_and_moved_back(error):
    nets = [Wandering(), Wandering()]
    run(moved(nets, "elsewhere"), lambda: None, error)
    assert [net.visited for net in nets] == [["elsewhere", CPU]] * 2


def test_all_models_are_moved_back_if_one_cannot_be_moved():
    nets = [Wandering(), Wandering(breaks=True), Wandering()]
    with pytest.raises(ValueError, match="out of memory"), moved(nets, "elsewhere"):
        pass
    assert [net.visited[-1] for net in nets] == [CPU] * 3


def test_without_a_device_no_model_is_moved():
    net = Wandering()
    with moved([net], None):
        pass
    assert net.visited == []


# --- random generators --------------------------------------------------------------------------------------------


def draw():
    return random.random(), float(np.random.rand()), float(torch.rand(1))  # noqa: NPY002 - the global generator


def seed_all(seed):
    for set_seed in (random.seed, np.random.seed, torch.manual_seed):
        set_seed(seed)


@pytest.mark.parametrize("borrowing", [lambda: borrowed([nn.ReLU()]), random_states_restored])
@ERRORS
def test_the_random_generators_continue_as_if_nothing_was_drawn(borrowing, error):
    seed_all(5)
    expected = [draw(), draw()]
    seed_all(5)
    found = [draw()]
    run(borrowing(), draw, error)
    assert [*found, draw()] == expected


def test_random_states_survive_a_checkpoint():
    np.random.randn()  # noqa: NPY002 - the second normal number is now part of the state
    file = io.BytesIO()
    torch.save(random_states(), file)
    expected = [draw(), np.random.randn()]  # noqa: NPY002
    file.seek(0)
    set_random_states(torch.load(file, weights_only=True))
    assert [draw(), np.random.randn()] == expected  # noqa: NPY002


def test_random_states_have_the_form_that_checkpoints_hold():
    states = random_states(devices=False)
    name, keys, position, has_normal, normal = states["numpy"]
    old = np.random.get_state(legacy=True)  # noqa: NPY002
    assert (name, position, has_normal, normal) == (old[0], *old[2:])
    assert keys.dtype == torch.int64
    assert np.array_equal(keys.numpy(), old[1])
    assert list(states) == ["torch", "numpy", "python"]


def test_another_generator_of_numpy_is_restored():
    before = np.random.get_bit_generator()
    try:
        np.random.set_bit_generator(np.random.PCG64(3))
        with random_states_restored():
            inside = np.random.rand()  # noqa: NPY002
        assert np.random.rand() == inside  # noqa: NPY002
    finally:
        np.random.set_bit_generator(before)


class Cuda:
    """Stands in for torch.cuda: counts what is asked of it."""

    def __init__(self, monkeypatch, *, initialised):
        self.initialised, self.calls = initialised, []
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: self.initialised)
        monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: self.calls.append("get") or ["state"])
        monkeypatch.setattr(torch.cuda, "set_rng_state_all", lambda states: self.calls.append(("set", states)))
        monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: self.calls.append(("seed", seed)))


def test_the_generators_of_gpus_are_restored(monkeypatch):
    cuda = Cuda(monkeypatch, initialised=True)
    with random_states_restored():
        assert cuda.calls == ["get"]
    assert cuda.calls == ["get", ("set", ["state"])]
    with random_states_restored(devices=False):
        pass
    assert len(cuda.calls) == 2


def test_cuda_is_not_initialised_by_asking_for_states(monkeypatch):
    cuda = Cuda(monkeypatch, initialised=False)
    with random_states_restored():
        pass
    assert cuda.calls == []


def test_generators_of_gpus_that_appear_inside_start_from_the_seed_of_before(monkeypatch):
    cuda = Cuda(monkeypatch, initialised=False)
    torch.manual_seed(11)
    cuda.calls.clear()
    with random_states_restored():
        cuda.initialised = True
        torch.random.default_generator.manual_seed(12)
    assert cuda.calls == [("seed", 11)]


# --- precision ----------------------------------------------------------------------------------------------------


@pytest.fixture
def low_precision():
    """The setting of users who want speed: TF32 on NVIDIA GPUs, bfloat16 on CPUs that have it."""
    torch.set_float32_matmul_precision("medium")
    yield
    torch.set_float32_matmul_precision("highest")


def test_products_are_in_full_precision_inside_and_the_setting_is_restored(low_precision):
    assert reduces_products(CPU)
    with full_precision(CPU):
        assert not reduces_products(CPU)
        assert torch.backends.cuda.matmul.fp32_precision == "tf32", "the setting of other devices does not change"
    assert torch.get_float32_matmul_precision() == "medium"


def test_the_setting_is_restored_after_an_exception(low_precision):
    with pytest.raises(ValueError, match="inside"), full_precision(CPU):
        raise ValueError("inside")
    assert torch.get_float32_matmul_precision() == "medium"


def test_gram_matrices_and_their_products_are_in_full_precision_and_the_forward_is_not(low_precision):
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


def test_autocast_around_compare_applies_to_the_network_only():
    net, batches = small_network(0), image_batches()
    inside = cp.compare(net, net, batches, autocast=torch.bfloat16, progress=False)
    with torch.autocast("cpu", torch.bfloat16):
        around = cp.compare(net, net, batches, progress=False)
        assert torch.is_autocast_enabled("cpu")
    assert np.array_equal(inside.values, around.values)
