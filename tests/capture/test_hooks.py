"""The probe: what it sees, of which call, and that nothing of it is left behind. And the recorder on top of it."""

import numpy as np
import pytest
import torch
from activations import cloned, reference_cka
from numpy.testing import assert_allclose
from small_networks import image_batches, small_network
from torch import nn

import cka_probe as cp
from cka_probe.capture.hooks import Probe
from cka_probe.capture.recorder import LayerRecorder
from cka_probe.capture.trees import first_tensor, samples_first


def hooks_of(net):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules())


# --- Probe --------------------------------------------------------------------------------------------------------


def test_features_are_those_of_the_moment_and_not_of_what_follows_in_place():
    net, (batch,) = small_network(0), image_batches(count=1)
    with Probe(net) as probe:
        net(batch)
    for name, x in cloned(net, batch).items():
        assert_allclose(probe.features[name].detach(), x, atol=1e-6)
    assert (probe.features["1"] < 0).any(), "the ReLU behind the batch norm works in place"


def test_features_are_of_the_latest_forward():
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


def test_gradients_flow_if_the_caller_wants_them():
    net = small_network(0)
    with Probe(net, "0") as probe:
        net(image_batches(count=1)[0])
    probe.features["0"].sum().backward()
    assert net[0].weight.grad is not None


def test_hooks_live_inside_the_block_only():
    net = small_network(0)
    probe = Probe(net)
    assert hooks_of(net) == 0
    with probe:
        assert hooks_of(net) == 6
    assert hooks_of(net) == 0


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_no_hook_is_left_after_an_exception(error):
    net = small_network(0)
    with pytest.raises(error), Probe(net):
        raise error
    assert hooks_of(net) == 0


def test_hooks_of_others_stay():
    net, calls = small_network(0), []
    net[0].register_forward_hook(lambda *_: calls.append(1))
    with Probe(net):
        net(image_batches(count=1)[0])
    net(image_batches(count=1)[0])
    assert len(calls) == 2


def test_a_probe_that_is_active_cannot_be_entered_again():
    net = small_network(0)
    with Probe(net) as probe:
        with pytest.raises(
            RuntimeError, match=r"This Probe is already active: a second `with` would run every hook twice"
        ):
            probe.__enter__()
        assert hooks_of(net) == 6


def test_a_probe_can_be_used_again():
    net = small_network(0)
    probe = Probe(net)
    for _ in range(2):
        with probe:
            net(image_batches(count=1)[0])
        assert len(probe.features) == 5
    assert hooks_of(net) == 0


def test_an_unknown_layer_or_pooling_is_told_at_once():
    with pytest.raises(ValueError, match="Sequential has no layer '9'"):
        Probe(small_network(0), "9")
    with pytest.raises(ValueError, match="`pooling` must be a function or one of"):
        Probe(small_network(0), pooling="max")


def test_a_pooling_that_does_not_suit_names_the_layer():
    net = small_network(0)
    with (
        pytest.raises(cp.CaptureError, match=r"Layer '0' of Sequential: pooling 'cls' is for tokens"),
        Probe(net, pooling="cls"),
    ):
        net(image_batches(count=1)[0])
    assert hooks_of(net) == 0


def test_an_output_without_a_tensor():
    class Text(nn.Module):
        def forward(self, x):
            return "text"

    net = nn.Sequential(Text())
    with (
        pytest.raises(cp.CaptureError, match=r"Layer '0' of Sequential returned str, which holds no tensor\. Leave the layer"),
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


# --- outputs of every kind ----------------------------------------------------------------------------------------


def test_the_tensor_that_stands_for_an_output():
    x, y = torch.ones(2), torch.zeros(2)
    assert first_tensor(x) is x
    assert first_tensor((None, [x, y])) is x
    assert first_tensor({"past": y, "last_hidden_state": x}) is x
    assert first_tensor({"loss": y, "logits": x}) is x
    assert first_tensor({"a": None, "b": x}) is x
    assert first_tensor([]) is None
    assert first_tensor("text") is None


def test_the_output_of_a_hugging_face_model_is_its_last_hidden_state():
    outputs = pytest.importorskip("transformers.modeling_outputs")
    x = torch.ones(2, 3, 4)
    assert first_tensor(outputs.BaseModelOutput(last_hidden_state=x, hidden_states=(x * 2,))) is x
    assert first_tensor(outputs.CausalLMOutput(loss=torch.tensor(1.0), logits=x)) is x


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
    """A recurrent layer and attention, time first or samples first, on data with samples first."""

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
    """In eval mode they have a fused path in which no part is called; hooks must see the parts all the same."""
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


def test_a_shared_module_runs_its_hook_once_and_is_known_by_the_name_that_was_asked_for():
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


def test_the_same_output_handed_on_is_measured_once_and_named_twice():
    """Dropout in eval mode and Identity return their input: the same numbers, without the work."""
    measured = []

    def keep(name, features):
        measured.append(name)
        return features.clone()

    class Inplace(nn.Module):
        def forward(self, x):
            return x.mul_(2.0)

    net = nn.Sequential(nn.Linear(3, 3), nn.Dropout(), nn.Identity(), Inplace(), nn.Identity())
    recorder = LayerRecorder(net.eval(), "model", "leaves", "auto", keep)
    with torch.no_grad(), recorder.probe:
        kept, _ = recorder.run(torch.ones(5, 3), 0, 5)
    assert recorder.names == ["0", "1", "2", "3", "4"]
    assert measured == ["0", "3"]
    assert torch.equal(kept[0], kept[2])
    assert torch.equal(kept[3], 2 * kept[0])


def test_inference_mode_has_no_versions_and_is_measured_each_time():
    net = nn.Sequential(nn.Linear(3, 3), nn.ReLU(inplace=True), nn.Identity())
    batch = torch.randn(8, 3)
    with torch.inference_mode():
        inside = cp.compare(net, net, batch, progress=False)
    assert_allclose(inside.values, cp.compare(net, net, batch, progress=False).values, atol=1e-7)


# --- wrappers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrap",
    [
        nn.DataParallel,
        lambda net: torch.compile(net, backend="eager"),
        lambda net: torch.compile(nn.DataParallel(net), backend="eager"),
    ],
    ids=["DataParallel", "compile", "both"],
)
def test_wrapped_models_give_the_same_answer_under_the_same_names(wrap):
    net, batches = small_network(0), image_batches()
    plain = cp.compare(net, net, batches, progress=False)
    wrapped = cp.compare(wrap(net), net, batches, progress=False)
    assert wrapped.rows == plain.rows
    assert np.array_equal(wrapped.values, plain.values)
    assert wrapped.meta["model_x"] == "Sequential"


@pytest.mark.parametrize("part", [False, True])
def test_a_model_compiled_in_place(part):
    net, batches = small_network(0), image_batches()
    plain = cp.compare(net, net, batches, progress=False)
    for module in [net[0], net[4]] if part else [net]:
        module.compile(backend="eager")
    with torch.no_grad():
        net(batches[0])
    assert np.array_equal(cp.compare(net, net, batches, progress=False).values, plain.values)


# --- what the recorder refuses ------------------------------------------------------------------------------------


class Parts(nn.Module):
    """Shows each part the same input."""

    def __init__(self, *parts):
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x):
        return [part(x) for part in self.parts]


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


UNFIT = [
    (lambda x: x.round().to(torch.uint8), r"its output is of dtype torch\.uint8"),
    (lambda x: x.argmax(1), r"its output is of dtype torch\.int64"),
    (lambda x: x > 0, r"its output is of dtype torch\.bool"),
    (lambda x: x.to(torch.complex64), r"its output is of dtype torch\.complex64"),
    (lambda x: x.sum(), r"its output is a single number"),
    (lambda x: x[:, :0], r"its output is empty, of shape \(10, 0\)"),
    (lambda x: x.T, r"its output has shape \(4, 10\), so axis 0 does not hold the 10 samples of the batch"),
]


@pytest.mark.parametrize(("function", "reason"), UNFIT)
def test_outputs_that_cannot_be_compared(function, reason):
    net = Parts(nn.Identity(), Function(function))
    batch = torch.rand(10, 4, generator=torch.Generator().manual_seed(0))
    result = cp.compare(net, net, batch, progress=False)
    assert result.rows == ("parts.0",)
    (note,) = result.notes
    with pytest.raises(AssertionError, match="^" + r"model_x \(Parts\): 'parts\.1' was left out: " + reason + "$"):
        raise AssertionError(note)
    with pytest.raises(
        cp.CaptureError, match=r"Layer 'parts\.1' of model_x \(Parts\) cannot be compared: " + reason + r"\."
    ):
        cp.compare(net, net, batch, layers=["parts.0", "parts.1"], progress=False)


def test_many_layers_with_one_reason_share_a_note():
    net = Parts(nn.Identity(), *(Function(lambda x: x > 0) for _ in range(9)))
    (note,) = cp.compare(net, net, torch.randn(10, 4), progress=False).notes
    assert note == (
        "model_x (Parts): 'parts.1', 'parts.2', 'parts.3', 'parts.4', 'parts.5', 'parts.6' and 3 more were left out: "
        "its output is of dtype torch.bool"
    )


def test_nothing_that_can_be_compared():
    net = Parts(Function(lambda x: x > 0))
    with pytest.raises(
        cp.CaptureError, match=r"No selected layer of model_x \(Parts\) can be compared\. 'parts\.0': its output is of"
    ):
        cp.compare(net, net, torch.randn(10, 4), progress=False)


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return nn.functional.linear(self.used(x), self.unused.weight)


def test_a_layer_that_does_not_run_is_left_out_or_an_error_when_it_was_named():
    net, batch = Unused(), torch.randn(10, 4)
    result = cp.compare(net, net, batch, progress=False)
    assert result.rows == ("used",)
    assert result.notes == ("model_x (Unused): 'unused' was left out: it did not run in the forward pass",)
    with pytest.raises(
        cp.CaptureError,
        match=r"Layer 'unused' of model_x \(Unused\) was selected by name but did not run .* choose the module around",
    ):
        cp.compare(net, net, batch, layers=["used", "unused"], progress=False)


class Changing(nn.Module):
    """Runs another layer from the second batch on."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.calls = nn.Linear(4, 4), nn.Linear(4, 4), 0

    def forward(self, x):
        self.calls += 1
        return self.b(self.a(x)) if self.calls == 1 else self.a(x)


def test_layers_that_run_in_some_batches_only():
    net = Changing()
    with pytest.raises(
        cp.CaptureError, match=r"model_x \(Changing\) did not run the same layers in batch 1 as before: 'b' ran only"
    ):
        cp.compare(net, net, [torch.randn(10, 4)] * 2, progress=False)


def test_a_layer_that_gives_another_shape_later():
    net = Parts(nn.Identity(), Function(lambda x: x if len(x) == 10 else x.T))
    with pytest.raises(
        cp.CaptureError, match=r"Layer 'parts\.1' of .* cannot be compared: its output has shape \(4, 8\)"
    ):
        cp.compare(net, net, [torch.randn(10, 4), torch.randn(8, 4)], progress=False)


def test_models_that_see_different_numbers_of_positions():
    first, second = nn.Sequential(nn.Conv2d(3, 4, 3)), nn.Sequential(nn.Conv2d(3, 4, 1))
    with pytest.raises(
        ValueError,
        match=r"Batch 0 gives 96 rows of features in model_x \(Sequential\) and 216 in model_y .* the same positions",
    ):
        cp.compare(first, second, torch.randn(6, 3, 6, 6), pooling="spatial", progress=False)
