"""Wrappers around a network and around its parts: the same names, the same numbers, and everything put back."""

import threading

import pytest
import torch
from activations import cloned, reference_cka
from numpy.testing import assert_allclose
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.optim.swa_utils import AveragedModel

import cka_probe as cp
from cka_probe.capture.hooks import Probe
from cka_probe.capture.layers import layer_table, select_layers
from cka_probe.capture.wrappers import compiled_parts, eagerly, named_layers, unwrap


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.act = nn.Linear(6, 6), nn.Tanh()

    def forward(self, x):
        return x + self.act(self.linear(x))


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(Block(), Block(), nn.Linear(6, 3))


LEAVES = ["0.linear", "0.act", "1.linear", "1.act", "2"]


def data(n=20):
    return torch.randn(n, 6, generator=torch.Generator().manual_seed(3))


def expected():
    """Of the network alone, without any wrapper."""
    return reference_cka([cloned(network(), data())])


def compiled(module):
    return torch.compile(module, backend="eager")


# --- around the network -------------------------------------------------------------------------------------------


class Handing(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *args, **kwargs):
        """Hand everything on."""
        return self.module(*args, **kwargs)


class HandingOne(Handing):
    def forward(self, x):
        return self.module(x)


class Normalising(Handing):
    def forward(self, x):
        return self.module(2 * x)


class Choosing(Handing):
    def forward(self, x, y=None):
        return self.module(x)


@pytest.mark.parametrize(
    "wrap",
    [AveragedModel, Handing, HandingOne, nn.DataParallel, lambda m: AveragedModel(Handing(m)), compiled],
    ids=["AveragedModel", "own", "own-one", "DataParallel", "nested", "compile"],
)
def test_a_wrapper_changes_neither_names_nor_values(wrap):
    result = cp.compare(wrap(network()), network(), data(), progress=False)
    assert list(result.rows) == LEAVES
    assert_allclose(result.values, expected(), atol=1e-6)


@pytest.mark.parametrize("kind", [Normalising, Choosing])
def test_a_module_that_does_more_than_hand_on_is_no_wrapper(kind):
    net = kind(network())
    assert unwrap(net) is net


def test_a_wrapper_with_a_hook_of_the_user_is_not_looked_through():
    net = Handing(network())
    net.register_forward_pre_hook(lambda _module, inputs: (2 * inputs[0],))
    assert unwrap(net) is net


def test_a_wrapper_whose_forward_was_replaced_is_not_looked_through():
    net = Handing(network())
    net.forward = lambda x: net.module(2 * x)
    assert unwrap(net) is net


def test_ema_models_of_timm_are_looked_through():
    utils = pytest.importorskip("timm.utils")
    net = network()
    assert type(unwrap(utils.ModelEmaV3(net))) is nn.Sequential
    assert type(unwrap(utils.ModelEmaV2(net))) is nn.Sequential


def test_wrappers_of_libraries_that_are_not_installed_are_known_by_name():
    class DeepSpeedEngine(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module
            self.optimizer_state = nn.Linear(2, 2)

    net = network()
    assert unwrap(DeepSpeedEngine(net)) is not net, "a class of the user that has the name by chance"
    DeepSpeedEngine.__module__ = "deepspeed.runtime.engine"
    assert unwrap(DeepSpeedEngine(net)) is net


@pytest.mark.filterwarnings("ignore")  # torch's own, on FSDP without a GPU
def test_fsdp_is_called_itself_because_it_gathers_the_weights(tmp_path):
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_gloo_available()):
        pytest.skip("this torch has no gloo")
    from torch.distributed.fsdp import FullyShardedDataParallel

    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        net = network()
        inner = nn.Sequential(FullyShardedDataParallel(net[0], device_id=torch.device("cpu")), net[1], net[2])
        wrapped = FullyShardedDataParallel(inner, device_id=torch.device("cpu"))
        result = cp.compare(wrapped, network(), data(), progress=False)
    finally:
        distributed.destroy_process_group()
    assert list(result.rows) == LEAVES
    assert_allclose(result.values, expected(), atol=1e-6)


# --- around parts of the network ----------------------------------------------------------------------------------


def in_place(module):
    module.compile(backend="eager")
    return module


def forward_alone(module):
    module.forward = torch.compile(module.forward, backend="eager")
    return module


class Decorated(Block):
    @torch.compile(backend="eager")
    def forward(self, x):
        return x + self.act(self.linear(x))


def decorated(block):
    new = Decorated()
    new.load_state_dict(block.state_dict())
    return new


class Delegating(Block):
    """As a model that compiles its inner step."""

    def __init__(self):
        super().__init__()
        self.step = torch.compile(self._step, backend="eager")

    def _step(self, x):
        return x + self.act(self.linear(x))

    def forward(self, x):
        return self.step(x)


def delegating(block):
    new = Delegating()
    new.load_state_dict(block.state_dict())
    return new


COMPILED = {
    "compile": compiled,
    "in-place": in_place,
    "forward": forward_alone,
    "decorator": decorated,
    "step": delegating,
}


@pytest.mark.parametrize("way", COMPILED)
@pytest.mark.parametrize("ran_before", [False, True])
def test_layers_inside_a_compiled_block_are_recorded(way, ran_before):
    torch._dynamo.reset()
    net = network().eval()
    net[1] = COMPILED[way](net[1])
    if ran_before:  # its graph was made without hooks
        with torch.no_grad():
            net(data())
    result = cp.compare(net, net, data(), progress=False)
    assert list(result.rows) == LEAVES
    assert not result.notes
    assert_allclose(result.values, expected(), atol=1e-6)
    with Probe(net, "1.linear") as probe:
        net(data())
    assert_allclose(probe.features["1.linear"].detach(), cloned(network(), data())["1.linear"], atol=1e-6)


def test_a_compiled_network_that_ran_before_is_recorded():
    torch._dynamo.reset()
    for net in (compiled(network()), in_place(network())):
        net(data())
        assert list(cp.extract(net, data(), progress=False)) == LEAVES
        with Probe(net) as probe:
            net(data())
        assert list(probe.features) == LEAVES


@pytest.mark.parametrize("way", COMPILED)
def test_compiled_parts_are_compiled_again_afterwards(way):
    net = network()
    net[1] = COMPILED[way](net[1])
    before = dict(vars(net[1]))
    parts = compiled_parts(net)
    assert len(parts) == 1
    outer, inner = eagerly(parts), eagerly(compiled_parts(net))
    outer.__enter__()
    assert compiled_parts(net) == parts
    inner.__enter__()
    outer.__exit__(None, None, None)  # blocks that overlap without one inside the other
    assert vars(net[1]) != before
    inner.__exit__(None, None, None)
    assert vars(net[1]) == before


def test_compiled_parts_are_compiled_again_after_an_error():
    net = network()
    net[1] = compiled(net[1])
    before = dict(vars(net[1]))
    with pytest.raises(RuntimeError):
        cp.compare(net, net, torch.ones(8, 5), progress=False)
    assert vars(net[1]) == before


@pytest.mark.parametrize(
    "wrap", [compiled, checkpoint_wrapper, nn.DataParallel, AveragedModel], ids=["compile", "checkpoint", "dp", "swa"]
)
def test_names_hold_no_wrapper(wrap):
    net = network()
    net[1] = wrap(net[1])
    assert list(select_layers(net, "leaves").paths) == LEAVES
    assert list(select_layers(net, "blocks").paths) == ["0", "1"]
    assert list(select_layers(net, "1.*").paths) == ["1.linear", "1.act"]
    assert list(select_layers(net, Block).paths) == ["0", "1"]
    assert [row[0] for row in layer_table(net, lambda model: model(data()))][:2] == ["0.linear", "0.act"]
    result = cp.compare(net, network(), data(), progress=False)
    assert list(result.rows) == LEAVES
    assert_allclose(result.values, expected(), atol=1e-6)


@pytest.mark.parametrize("wrap", [compiled, checkpoint_wrapper, nn.DataParallel])
def test_a_path_of_named_modules_with_a_wrapper_in_it_still_selects_its_layer(wrap):
    net = network()
    net[1] = wrap(net[1])
    path = next(name for name, module in net.named_modules() if name.startswith("1.") and isinstance(module, nn.Tanh))
    assert path != "1.act"
    assert select_layers(net, path).paths == ("1.act",)


def test_a_shared_module_keeps_all_its_paths():
    net = network()
    net.again = net[0]
    assert {path for path, module in named_layers(net).items() if module is net[0]} == {"0", "again"}


def test_threads_that_run_one_compiled_network_leave_it_compiled():
    net = network()
    net[1] = compiled(net[1])
    before = dict(vars(net[1]))
    threads = [threading.Thread(target=lambda: cp.extract(net, data(), progress=False)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert vars(net[1]) == before
