"""The probe: features of every call, hooks that are always removed, modules that run several times or are shared."""

import pytest
import torch
from activations import cloned, reference_cka
from numpy.testing import assert_allclose
from small_networks import image_batches, small_network
from torch import nn

import cka_probe as cp
from cka_probe.capture.hooks import Probe
from cka_probe.capture.trees import samples_first


def hooks_of(net):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules())


# --- Probe --------------------------------------------------------------------------------------------------------


def test_later_operations_in_place_do_not_change_features():
    net, (batch,) = small_network(0), image_batches(count=1)
    with Probe(net) as probe:
        net(batch)
    for name, x in cloned(net, batch).items():
        assert_allclose(probe.features[name].detach(), x, atol=1e-6)
    assert (probe.features["1"] < 0).any(), "the ReLU after the batch norm works in place"


def test_features_are_those_of_the_latest_forward():
    net = nn.Linear(3, 2)
    with Probe(net, "") as probe:
        net(torch.ones(4, 3))
        net(torch.ones(6, 3))
    assert {name: tuple(x.shape) for name, x in probe.features.items()} == {"model": (6, 2)}


def test_without_pooling_activations_keep_their_shape():
    net, (batch,) = small_network(0), image_batches(count=1)
    with Probe(net, "0", None) as probe:
        net(batch)
    assert probe.features["0"].shape == (12, 6, 4, 4)


def test_features_carry_gradients_in_grad_mode():
    net = small_network(0)
    with Probe(net, "0") as probe:
        net(image_batches(count=1)[0])
    probe.features["0"].sum().backward()
    assert net[0].weight.grad is not None


def test_hooks_exist_only_inside_the_block():
    net = small_network(0)
    probe = Probe(net)
    assert hooks_of(net) == 0
    with probe:
        assert hooks_of(net) == 7
    assert hooks_of(net) == 0


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_no_hook_is_left_after_an_exception(error):
    net = small_network(0)
    with pytest.raises(error), Probe(net):
        raise error
    assert hooks_of(net) == 0


def test_other_hooks_stay():
    net, calls = small_network(0), []
    net[0].register_forward_hook(lambda *_: calls.append(1))
    with Probe(net):
        net(image_batches(count=1)[0])
    net(image_batches(count=1)[0])
    assert len(calls) == 2


def test_an_active_probe_cannot_be_entered_again():
    net = small_network(0)
    with Probe(net) as probe:
        with pytest.raises(
            RuntimeError, match=r"This Probe is already active: a second `with` would run every hook twice"
        ):
            probe.__enter__()
        assert hooks_of(net) == 7


def test_a_probe_can_be_used_again():
    net = small_network(0)
    probe = Probe(net)
    for _ in range(2):
        with probe:
            net(image_batches(count=1)[0])
        assert len(probe.features) == 5
    assert hooks_of(net) == 0


def test_an_unknown_layer_or_pooling_is_an_error_before_the_forward():
    with pytest.raises(ValueError, match="Sequential has no layer '9'"):
        Probe(small_network(0), "9")
    with pytest.raises(ValueError, match="`pooling` must be a function or one of"):
        Probe(small_network(0), pooling="max")


def test_the_error_for_a_pooling_that_does_not_fit_names_the_layer():
    net = small_network(0)
    with (
        pytest.raises(cp.CaptureError, match=r"Layer '0' of Sequential: pooling 'cls' is for tokens"),
        Probe(net, pooling="cls"),
    ):
        net(image_batches(count=1)[0])
    assert hooks_of(net) == 0


def test_an_output_without_a_tensor_is_an_error():
    class Text(nn.Module):
        def forward(self, x):
            return "text"

    net = nn.Sequential(Text())
    with (
        pytest.raises(
            cp.CaptureError, match=r"Layer '0' of Sequential returned str, which holds no tensor\. Leave the layer"
        ),
        Probe(net),
    ):
        net(torch.ones(2, 2))


def test_layers_that_did_not_run_are_silent():
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x):
            return self.used(x)

    net = Half()
    with Probe(net) as probe:
        net(torch.ones(2, 2))
    assert probe.silent == ["unused"]


# --- recurrent layers and attention -------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_first", [True, False])
def test_recurrent_layers_have_samples_first(batch_first):
    torch.manual_seed(0)
    net = nn.LSTM(5, 4, num_layers=2, batch_first=batch_first)
    x = torch.randn(6, 9, 5)
    with Probe(net, "") as probe:
        out, _ = net(x if batch_first else x.transpose(0, 1))
    out = out if batch_first else out.transpose(0, 1)
    assert torch.equal(probe.features["model"], out.reshape(6, 36))
    assert torch.equal(samples_first(net, out if batch_first else out.transpose(0, 1)), out)


class Sequence(nn.Module):
    """A recurrent layer and attention with time or samples on axis 0; the data have samples on axis 0."""

    def __init__(self, *, batch_first):
        super().__init__()
        torch.manual_seed(0)
        self.batch_first = batch_first
        self.rnn = nn.GRU(4, 6, batch_first=batch_first)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=batch_first)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        x = x if self.batch_first else x.transpose(0, 1)
        x, _ = self.rnn(x)
        x, _ = self.attention(x, x, x)
        x = x if self.batch_first else x.transpose(0, 1)
        return self.head(x[:, -1])


def test_recurrent_layers_and_attention_in_a_comparison():
    x = [torch.randn(8, 5, 4, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    first, last = Sequence(batch_first=True), Sequence(batch_first=False)
    result = cp.compare(first, last, x, progress=False)
    assert result.rows == result.columns == ("rnn", "attention", "head")
    chosen = ["rnn", "attention", "head"]
    oracle = [cloned(first, b, lambda name, _m: name in chosen) for b in x]
    assert_allclose(result.values, reference_cka(oracle), atol=1e-6)


def test_transformer_layers_of_torch_run_their_parts():
    """In eval mode torch has a fused path that calls no part. With hooks, the parts must be called."""
    torch.manual_seed(0)
    net = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2, enable_nested_tensor=False)
    batch = torch.randn(9, 4, 8)
    result = cp.compare(net, net, batch, progress=False)
    assert {"layers.0.self_attn", "layers.0.linear1", "layers.1.norm2"} <= set(result.rows)
    assert not result.notes
    chosen = set(result.rows)
    assert_allclose(result.values, reference_cka([cloned(net, batch, lambda n, _m: n in chosen)]), atol=1e-6)


# --- modules that run several times or are shared -----------------------------------------------------------------


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(4, 4)
        self.relu = nn.ReLU(inplace=True)
        self.alias = self.linear

    def forward(self, x):
        return self.alias(self.relu(self.linear(x)))


def test_a_module_that_runs_twice_is_two_layers():
    net, batch = Twice(), torch.randn(10, 4)
    with Probe(net) as probe:
        net(batch)
    assert list(probe.features) == ["linear", "relu", "linear#2"]
    oracle = cloned(net, batch)
    assert_allclose(cp.compare(net, net, batch, progress=False).values, reference_cka([oracle]), atol=1e-6)


def test_a_shared_module_has_one_hook_and_the_name_that_was_asked_for():
    net, batch = Twice(), torch.randn(10, 4)
    for layers, names in [("alias", ["alias", "alias#2"]), (["linear", "alias"], ["linear", "linear#2"])]:
        assert list(cp.compare(net, net, batch, layers=layers, progress=False).rows) == names


def test_two_models_that_share_modules():
    shared = nn.Linear(4, 4)
    first, second = nn.Sequential(shared, nn.Tanh()), nn.Sequential(nn.Sigmoid(), shared)
    batch = torch.randn(10, 4)
    result = cp.compare(first, second, batch, progress=False)
    assert_allclose(result.values, reference_cka([cloned(first, batch)], [cloned(second, batch)]), atol=1e-6)
    assert hooks_of(first) == hooks_of(second) == 0
