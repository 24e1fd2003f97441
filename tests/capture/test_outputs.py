"""What layers return: containers; packed, nested, sparse and quantised tensors; time first; things without numbers."""

from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from activations import reference_cka
from numpy.testing import assert_allclose
from small_networks import Branches
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import cka_probe as cp
from cka_probe.capture.outputs import candidates


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def both(result, batches, features):
    """Compare a result of two layers with the features (n, d) that ``features`` gives for each batch."""
    expected = [{str(i): x.double().flatten(1).numpy() for i, x in enumerate(features(batch))} for batch in batches]
    assert_allclose(result.values, reference_cka(expected), atol=1e-6)


@dataclass
class Outputs:
    loss: Any = None
    choice: Any = None
    hidden: Any = None


Pair = namedtuple("Pair", "first second")

READABLE = {
    "a dataclass": lambda x: Outputs(x.sum(), x.argmax(1), x**2),
    "a dict": lambda x: {"loss": x.sum(), "ids": x.argmax(1), "features": x**2},
    "a named tuple": lambda x: Pair(x.argmax(1), x**2),
    "the last hidden state": lambda x: {"cache": x, "last_hidden_state": x**2},
    "logits before others": lambda x: {"states": [x], "logits": x**2},
    "a tensor whose axis 0 is not that of the samples": lambda x: (x.T, x**2),
    "nested containers": lambda x: [None, ("text", {"a": 1, "b": x**2})],
    "sparse": lambda x: (x**2).to_sparse(),
    "compressed sparse": lambda x: (x**2).to_sparse_csr(),
    "sparse in a tuple": lambda x: (None, (x**2).to_sparse()),
}


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state:UserWarning")
@pytest.mark.parametrize("kind", READABLE)
def test_the_tensor_that_stands_for_an_output(kind):
    net = Branches(nn.Identity(), Function(READABLE[kind]))
    batches = [numbers(7, 4, seed=seed) for seed in range(3)]
    result = cp.compare(net, net, batches, progress=False)
    assert result.rows == ("parts.0", "parts.1")
    both(result, batches, lambda x: (x, x**2))
    assert not result.notes


def test_an_output_is_read_from_the_same_place_in_every_batch():
    """The first tensor fits the second batch by chance."""
    net = Branches(nn.Identity(), Function(lambda x: (x.new_ones(7, 4) * x.mean(), x**2)))
    batches = [numbers(9, 4, seed=1), numbers(7, 4, seed=2)]
    result = cp.compare(net, net, batches, progress=False)
    both(result, batches, lambda x: (x, x**2))


def test_candidates_come_in_order_and_each_once():
    x, y, z = torch.zeros(1), torch.zeros(2), torch.zeros(3)
    assert [len(c) for c in candidates({"a": x, "logits": y, "last_hidden_state": z})] == [3, 2, 1]
    assert [len(c) for c in candidates(Outputs(None, x, [y]))] == [1, 2]
    assert list(candidates("text")) == list(candidates(None)) == []
    packed = pack_padded_sequence(torch.zeros(2, 3, 1), torch.tensor([3, 2]), batch_first=True)
    assert isinstance(next(candidates((packed, x))), PackedSequence)


# --- left out -----------------------------------------------------------------------------------------------------

UNREADABLE = {
    "nothing": (lambda _x: None, "it returned None"),
    "a text": (lambda _x: "text", "it returned str, which holds no tensor"),
    "a distribution": (lambda x: torch.distributions.Normal(x, 1.0), "it returned Normal, which holds no tensor"),
    "an empty list": (lambda _x: [], "it returned list, which holds no tensor"),
    "a loss": (lambda x: x.mean(), "its output is a single number"),
    "a dict of integers": (lambda x: {"ids": x.argmax(1)}, r"its output is of dtype torch\.int64"),
    "truth values": (lambda x: x > 0, r"its output is of dtype torch\.bool"),
    "complex numbers": (lambda x: torch.fft.fft(x), r"its output is of dtype torch\.complex64"),
    "meta": (lambda x: x.to("meta"), "its output is on the meta device, without numbers"),
    "a mask": (
        lambda x: x.masked_fill(torch.eye(len(x), 4, dtype=torch.bool), -torch.inf),
        "its output holds -inf, as that of a mask does",
    ),
    "an expert without samples": (lambda x: x[:0], r"its output is empty, of shape \(0, 4\)"),
}


@pytest.mark.parametrize("kind", UNREADABLE)
@pytest.mark.parametrize("scope", ["minibatch", "dataset"])
def test_one_odd_leaf_does_not_end_a_run_unless_it_was_named(kind, scope):
    function, reason = UNREADABLE[kind]
    net = Branches(nn.Identity(), Function(function), nn.Tanh())
    batches = [numbers(7, 4, seed=seed) for seed in range(3)]
    result = cp.compare(net, net, batches, scope=scope, progress=False)
    assert result.rows == ("parts.0", "parts.2")
    if scope == "minibatch":
        both(result, batches, lambda x: (x, x.tanh()))
    with pytest.raises(AssertionError, match=rf"'parts\.1' was left out: {reason}"):
        raise AssertionError(" ".join(result.notes))
    with pytest.raises(
        cp.CaptureError, match=rf"Layer 'parts\.1' of model_x \(Branches\) cannot be compared: {reason}"
    ):
        cp.compare(net, net, batches, layers=["parts.0", "parts.1"], scope=scope, progress=False)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_by_mistake_is_an_error(value):
    class Broken(nn.Linear):
        def forward(self, x):
            return super().forward(x).masked_fill(x > 1, value)

    net = nn.Sequential(Broken(4, 4))
    with pytest.raises(cp.CaptureError, match=r"Layer '0' of model_x .* gave NaN or infinity in batch 0"):
        cp.compare(net, net, numbers(9, 4), progress=False)


def test_a_pooling_that_does_not_fit_one_leaf_leaves_it_out():
    net = nn.Sequential(nn.Conv2d(3, 5, 1), nn.Flatten(2), nn.Linear(9, 2))
    batches = [numbers(7, 3, 3, 3, seed=seed) for seed in range(2)]
    result = cp.compare(net, net, batches, pooling="cls", progress=False)
    assert "0" not in result.rows
    assert any("'0' was left out: pooling 'cls' is for tokens" in note for note in result.notes)
    with pytest.raises(cp.CaptureError, match=r"Layer '0' .* cannot be compared: pooling 'cls' is for tokens"):
        cp.compare(net, net, batches, layers=["0"], pooling="cls", progress=False)


# --- sequences of different lengths -------------------------------------------------------------------------------

LENGTHS = [5, 2, 4, 1, 3, 5, 2]
"""Not sorted, so that a PackedSequence changes the order of the samples."""


def token_mean(x, lengths=LENGTHS):
    return torch.stack([sample[:length].mean(0) for sample, length in zip(x, lengths, strict=True)])


class Packs(nn.Module):
    def __init__(self, batch_first):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.rnn = nn.Linear(4, 4), nn.LSTM(4, 6, batch_first=batch_first)

    def forward(self, x):
        return self.rnn(pack_padded_sequence(self.stem(x), LENGTHS, batch_first=True, enforce_sorted=False))


@pytest.mark.parametrize("batch_first", [False, True])
def test_a_packed_sequence_is_the_mean_over_the_steps_of_each_sample_in_the_order_of_the_batch(batch_first):
    net = Packs(batch_first)
    batches = [numbers(7, 5, 4, seed=seed) for seed in range(2)]
    result = cp.compare(net, net, batches, progress=False)
    assert result.rows == ("stem", "rnn")

    def features(x):
        with torch.no_grad():
            steps = net.stem(x)
            alone = [
                net.rnn(one[None, :t].transpose(0, 1 - batch_first))[0].reshape(t, 6)
                for one, t in zip(steps, LENGTHS, strict=True)
            ]
        return steps, torch.stack([one.mean(0) for one in alone])

    both(result, batches, features)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
@pytest.mark.parametrize("tokens_last", [False, True])
def test_a_nested_tensor_is_the_mean_over_the_tokens_of_each_sample(layout, tokens_last):
    if layout is torch.jagged and tokens_last:
        pytest.skip("the ragged axis of a new jagged tensor is the first of each sample")

    def nested(x):
        samples = [sample[:length] for sample, length in zip(x, LENGTHS, strict=True)]
        return torch.nested.nested_tensor([s.T if tokens_last else s for s in samples], layout=layout)

    net = Branches(nn.Flatten(), Function(nested))
    batches = [numbers(7, 5, 4, seed=seed) for seed in range(2)]
    result = cp.compare(net, net, batches, progress=False)
    both(result, batches, lambda x: (x, token_mean(x)))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_nested_images_of_different_sizes_are_left_out():
    net = Branches(nn.Identity(), Function(lambda x: torch.nested.nested_tensor([x[0, :2, :3], x[1, :1, :4], *x[2:]])))
    batch = numbers(7, 5, 4)
    result = cp.compare(net, net, batch, progress=False)
    assert result.rows == ("parts.0",)
    assert "samples differ on more than one axis" in result.notes[0]


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_the_encoder_of_torch_with_padding_has_the_values_of_its_slow_path():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
    net = nn.TransformerEncoder(layer, 2)
    padding = torch.arange(5)[None] >= torch.tensor(LENGTHS)[:, None]
    batches = [numbers(7, 5, 4, seed=seed) for seed in range(2)]
    result = cp.compare(
        net,
        net,
        batches,
        layers=["layers.0", "layers.1.linear1"],
        forward=lambda model, x: model(x, src_key_padding_mask=padding),
        progress=False,
    )
    slow = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    slow.load_state_dict(net.state_dict())
    slow.double().train()  # without dropout, train mode only turns the fast path off

    def features(x):
        found = []
        handles = [
            module.register_forward_hook(lambda _m, _i, out: found.append(token_mean(out.detach())))
            for module in (slow.layers[0], slow.layers[1].linear1)
        ]
        slow(x.double(), src_key_padding_mask=padding)
        for handle in handles:
            handle.remove()
        return found

    both(result, batches, features)


# --- quantised ----------------------------------------------------------------------------------------------------


def quantised(x):
    return torch.quantize_per_tensor(x, 0.05, 10, torch.quint8)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
@pytest.mark.parametrize("pooling", ["auto", lambda x: x.flatten(1)])
def test_quantised_tensors_are_compared_by_the_numbers_they_stand_for(pooling):
    net = Branches(nn.Identity(), Function(quantised))
    batches = [numbers(7, 4, seed=seed) for seed in range(2)]
    result = cp.compare(net, net, batches, pooling=pooling, progress=False)
    both(result, batches, lambda x: (x, quantised(x).dequantize()))


def test_a_pooling_function_may_turn_any_dtype_into_features():
    net = Branches(nn.Identity(), Function(torch.fft.rfft), Function(lambda x: x > 0))
    batches = [numbers(7, 4, seed=seed) for seed in range(2)]

    def size(x):
        return x.abs().flatten(1) if x.is_complex() else x.flatten(1)

    result = cp.compare(net, net, batches, pooling=size, progress=False)
    assert result.rows == ("parts.0", "parts.1")
    both(result, batches, lambda x: (x, torch.fft.rfft(x).abs()))
    assert "'parts.2' was left out: its output is of dtype torch.bool" in result.notes[0]


# --- time first ---------------------------------------------------------------------------------------------------


class TimeInside(nn.Module):
    """Samples first outside, time first inside, as in many translations of torch's tutorial."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Linear(4, 4)
        self.layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0)
        self.rnn = nn.GRU(4, 3)

    def forward(self, x):
        return self.rnn(self.layer(self.stem(x).transpose(0, 1)))[0].transpose(0, 1)


@pytest.mark.parametrize("tokens", [5, 7])
def test_modules_that_put_time_first_are_turned_also_if_time_is_as_long_as_the_batch(tokens):
    net = TimeInside()
    batches = [numbers(7, tokens, 4, seed=seed) for seed in range(2)]
    result = cp.compare(net, net, batches, layers=["layer.linear1", "rnn"], progress=False)
    copy = TimeInside().double().eval()

    def features(x):
        found = []
        handles = [
            module.register_forward_hook(
                lambda _m, _i, out: found.append((out[0] if isinstance(out, tuple) else out).detach().transpose(0, 1))
            )
            for module in (copy.layer.linear1, copy.rnn)
        ]
        copy(x.double())
        for handle in handles:
            handle.remove()
        return found

    both(result, batches, features)


@pytest.mark.parametrize("layer", [nn.LSTM(4, 3), nn.TransformerEncoderLayer(4, 2, 6)], ids=["LSTM", "Transformer"])
@pytest.mark.parametrize("tokens", [5, 7])
def test_a_layer_that_takes_time_for_the_samples_is_an_error(layer, tokens):
    """The batch is (n, t, d), but the module reads (t, n, d): samples would depend on each other."""
    net = nn.Sequential(nn.Linear(4, 4), layer)
    with pytest.raises(cp.CaptureError, match=r"has batch_first=False: it takes axis 1 .* give the module batch_first"):
        cp.compare(net, net, [numbers(7, tokens, 4)], progress=False)


def test_a_sequence_without_samples_is_left_out():
    net = Branches(nn.Linear(4, 4), nn.LSTM(4, 3, batch_first=True))
    result = cp.compare(net, net, numbers(7, 4), progress=False)
    assert result.rows == ("parts.0",)
    assert "'parts.1' was left out: LSTM was given a single sequence without an axis of samples" in result.notes[0]


# --- numbers that agree by chance ---------------------------------------------------------------------------------


class Positions(nn.Module):
    def __init__(self, table):
        super().__init__()
        torch.manual_seed(0)
        self.tokens, self.head = nn.Linear(4, 6), nn.Linear(6, 2)
        self.table = table

    def forward(self, x):
        return self.head(self.tokens(x) + self.table(torch.arange(x.shape[1])))


@pytest.mark.parametrize("count", [1, 2])
def test_a_position_embedding_is_no_row_even_in_a_single_batch(count):
    net = Positions(nn.Embedding(7, 6))
    batches = [numbers(7, 7, 4, seed=seed) for seed in range(count)]
    result = cp.compare(net, net, batches, progress=False)
    assert result.rows == ("tokens", "head")
    assert "'table' was left out: " in result.notes[0]
    with pytest.raises(cp.CaptureError, match=r"Layer 'table' .* cannot be compared"):
        cp.compare(net, net, batches, layers=["tokens", "table"], progress=False)
    assert np.isfinite(result.values).all()


class Turned(nn.Module):
    """Layers of plain modules on (t, n, d), as in fairseq."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.inner, self.head = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 2)

    def forward(self, x):
        steps = self.stem(x).transpose(0, 1)
        return self.head(self.inner(steps.cumsum(0)).mean(0))


@pytest.mark.parametrize("time", [6, 7])
@pytest.mark.parametrize("count", [1, 3])
def test_plain_layers_on_time_first_hold_no_samples_also_if_time_is_as_long_as_the_batch(time, count):
    net, batches = Turned(), [numbers(7, time, 4, seed=seed) for seed in range(count)]
    result = cp.compare(net, net, batches, progress=False)
    assert result.rows == ("stem", "head")
    assert "'inner' was left out: " in result.notes[0]
    alone = cp.compare(net, net, batches, layers=["stem", "head"], progress=False)
    assert_allclose(result.values, alone.values, atol=1e-12)
    with pytest.raises(cp.CaptureError, match=r"Layer 'inner' .* cannot be compared"):
        cp.compare(net, net, batches, layers=["inner"], progress=False)


@pytest.mark.parametrize("shape", [(6, 6, 5, 5), (6, 3, 6, 6)])
def test_channels_or_sides_as_many_as_samples_have_no_note(shape):
    net = nn.Sequential(nn.Conv2d(shape[1], 6, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.LazyLinear(6))
    net(torch.zeros(shape))
    batches = [numbers(*shape, seed=seed) for seed in range(2)]
    result = cp.compare(net, net, batches, progress=False)
    assert result.rows == ("0", "1", "2", "3", "4")
    assert not result.notes
