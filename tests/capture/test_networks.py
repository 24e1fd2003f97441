"""What is passed as a network is checked first; offloaded networks run as they are."""

from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from activations import cloned, reference_cka
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import cka_probe as cp
from cka_probe.capture.networks import check_movable, check_network, check_weights, device_of

NET = nn.Sequential(nn.Linear(4, 4), nn.Tanh())


class Pipeline:
    def __init__(self):
        self.tokenizer, self.model = "words", NET


def build():
    return NET


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "is None"),
        ("resnet18", "is the text 'resnet18'"),
        (Path("weights.pt"), r"is the path 'weights\.pt'.*load_state_dict"),
        (OrderedDict(NET.state_dict()), "is a state dict: weights without the network"),
        ({"epoch": 3, "state_dict": NET.state_dict()}, "load_state_dict with the entry 'state_dict'"),
        ({"epoch": 3, "model": NET}, "entry 'model' is a network: pass that"),
        ({"a": NET, "b": NET}, "dict of networks.*compare_many"),
        ([NET, NET], "list with networks.*compare_many"),
        ([torch.ones(4, 4)], r"is a list.*compare\(model_x, model_y, data\)"),
        (torch.ones(4, 4), r"is data \(Tensor\).*compare\(model_x, model_y, data\)"),
        ({"input_ids": torch.ones(4, 4)}, r"dict of tensors.*compare\(model_x, model_y, data\)"),
        (np.ones((4, 4)), r"is data \(ndarray\)"),
        (DataLoader(TensorDataset(torch.ones(4, 4))), r"is data \(DataLoader\)"),
        (TensorDataset(torch.ones(4, 4)), r"is data \(TensorDataset\)"),
        (nn.Linear, r"is the class Linear.*Linear\(\.\.\.\)"),
        (Path, "is the class Path"),
        (build, "is the function build.*call it"),
        (Pipeline(), "is a Pipeline.*`model` is a network: pass that"),
        (NET.load_state_dict(NET.state_dict()), "is what load_state_dict returns"),
        (3, "is of the type int"),
    ],
)
def test_anything_but_a_network_gets_one_sentence_that_says_what_it_is(given, message):
    with pytest.raises(TypeError, match=f"`model_x` .*{message}"):
        cp.compare(given, NET, [torch.ones(8, 4)])
    with pytest.raises(TypeError, match="`model_y`"):
        cp.compare(NET, given, [torch.ones(8, 4)])
    with pytest.raises(TypeError, match=r"`models\['b'\]`"):
        cp.compare_many({"a": NET, "b": given}, [torch.ones(8, 4)])
    with pytest.raises(TypeError, match="`model`"):
        cp.signature(given, [torch.ones(8, 4)])
    with pytest.raises(TypeError, match="network"):
        cp.extract(given, [torch.ones(8, 4)])


def test_a_network_in_place_of_the_data():
    with pytest.raises(TypeError, match=r"is a network.*compare\(model_x, model_y, data\)"):
        cp.compare(NET, NET, NET)


def test_networks_pass():
    check_network(NET, "`model`")
    check_network(nn.DataParallel(NET), "`model`")


# --- weights elsewhere --------------------------------------------------------------------------------------------


def test_a_network_without_weights_is_refused_also_if_only_a_part_is():
    empty = nn.Linear(4, 4, device="meta")
    with pytest.raises(ValueError, match="meta device: it has shapes but no weights"):
        check_weights(empty, "model")
    with pytest.raises(ValueError, match=r"2 weights of model are on the meta device, '1\.weight' among them"):
        check_weights(nn.Sequential(nn.Linear(4, 4), empty), "model")
    check_weights(NET, "model")


@pytest.fixture
def offloaded(tmp_path):
    """Networks whose weights accelerate keeps elsewhere, each beside the same network as it is."""
    accelerate = pytest.importorskip("accelerate")

    def net():
        torch.manual_seed(0)
        parts = (nn.Linear(6, 6), nn.ReLU(inplace=True), nn.BatchNorm1d(6), nn.Linear(6, 3))
        return nn.Sequential(nn.Sequential(*parts[:2]), nn.Sequential(*parts[2:]))

    def to_disk(model):
        return accelerate.disk_offload(model, str(tmp_path / "disk"), execution_device=torch.device("cpu"))

    def to_both(model):
        return accelerate.dispatch_model(
            model, {"0": "cpu", "1": "disk"}, main_device="cpu", offload_dir=str(tmp_path / "both")
        )

    def to_cpu(model):
        return accelerate.cpu_offload(model, execution_device=torch.device("cpu"))

    return net, {"cpu": to_cpu, "disk": to_disk, "both": to_both}


@pytest.mark.parametrize("kind", ["cpu", "disk", "both"])
def test_an_offloaded_network_runs_and_stays_offloaded(offloaded, kind):
    net, ways = offloaded
    plain, model = net(), ways[kind](net())
    data = [torch.randn(16, 6, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    before = [(name, tensor.device, tensor.shape) for name, tensor in model.state_dict().items()]
    assert any(device.type == "meta" for _, device, _ in before)
    result = cp.compare(model, plain, data, progress=False)
    oracle = [cloned(plain, batch) for batch in data]
    np.testing.assert_allclose(result.values, reference_cka(oracle), atol=1e-6)
    assert not result.notes
    assert [(name, tensor.device, tensor.shape) for name, tensor in model.state_dict().items()] == before
    assert all(module.training for module in model.modules())
    assert device_of(model) == torch.device("cpu")
    features = cp.extract(model, data, progress=False)
    torch.testing.assert_close(features["1.1"], cp.extract(plain, data, progress=False)["1.1"])


def test_a_part_of_an_offloaded_network_runs_too(offloaded):
    net, ways = offloaded
    plain, model = net(), ways["cpu"](net())
    data = [torch.randn(16, 6)]
    values = cp.compare(model[1], plain[1], data, progress=False).values
    np.testing.assert_allclose(values, cp.compare(plain[1], plain[1], data, progress=False).values, atol=1e-6)


def test_an_offloaded_network_cannot_be_moved(offloaded):
    net, ways = offloaded
    model = ways["disk"](net())
    with pytest.raises(ValueError, match=r"`device`: Sequential is offloaded.*Leave `device` out"):
        cp.compare(model, net(), [torch.ones(8, 6)], device="cpu", progress=False)
    check_movable(net(), "cpu")
