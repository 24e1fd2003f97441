"""A forward that changes the network itself gets a note that names the part; its buffers are as before afterwards."""

from functools import partial

import numpy as np
import pytest
import torch
import torchvision
from activations import cloned, reference_cka
from torch import nn

import cka_probe as cp

compared = partial(cp.compare, progress=False)


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(6, 6)

    def forward(self, x):
        return self.lin(x)


class Counter(Base):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return torch.tanh(self.lin(x) * self.calls)


class Warmup(Base):
    def __init__(self):
        super().__init__()
        self.temperature = 1.0

    def forward(self, x):
        self.temperature *= 0.9
        return torch.tanh(self.lin(x) / self.temperature)


class RunningMean(Base):
    """It goes on estimating in eval mode."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(6))

    def forward(self, x):
        self.mean.mul_(0.9).add_(0.1 * x.mean(0))
        return torch.tanh(self.lin(x - self.mean))


class RunningMeanUncounted(RunningMean):
    """Torch does not count changes through .data."""

    def forward(self, x):
        self.mean.data.mul_(0.9).add_(0.1 * x.mean(0))
        return torch.tanh(self.lin(x - self.mean))


class RunningMeanReplaced(RunningMean):
    def forward(self, x):
        self.mean = 0.9 * self.mean + 0.1 * x.mean(0)
        return torch.tanh(self.lin(x - self.mean))


class KeyCache(Base):
    """A cache of keys that grows with every batch."""

    def __init__(self):
        super().__init__()
        self.keys = None

    def forward(self, x):
        self.keys = x if self.keys is None else torch.cat([self.keys, x])
        return torch.tanh(self.lin(x + self.keys.mean(0)))


class FixedCache(Base):
    """As in llama's reference code: written in place, with a position."""

    def __init__(self):
        super().__init__()
        self.cache, self.position = torch.zeros(64, 6), 0

    def forward(self, x):
        self.cache[self.position % 64] = x.mean(0)
        self.position += 1
        return torch.tanh(self.lin(x + self.cache.sum(0)))


class Recurrent(Base):
    def __init__(self):
        super().__init__()
        self.hidden = None

    def forward(self, x):
        self.hidden = torch.tanh(self.lin(x) + (0 if self.hidden is None else self.hidden.mean(0)))
        return self.hidden


class MemoryBank(Base):
    def __init__(self):
        super().__init__()
        self.bank = []

    def forward(self, x):
        self.bank.append(x.mean(0))
        return torch.tanh(self.lin(x + torch.stack(self.bank).mean(0)))


class OwnWeight(Base):
    def forward(self, x):
        self.lin.weight.mul_(0.9)
        return torch.tanh(self.lin(x))


STATEFUL = {
    Counter: "attribute '0.calls'",
    Warmup: "attribute '0.temperature'",
    RunningMean: "buffer '0.mean'",
    RunningMeanUncounted: "buffer '0.mean'",
    RunningMeanReplaced: "buffer '0.mean'",
    KeyCache: "attribute '0.keys'",
    FixedCache: "attribute '0.cache'",
    Recurrent: "attribute '0.hidden'",
    MemoryBank: "attribute '0.bank'",
    OwnWeight: "weight '0.lin.weight'",
}


def batches(count=3):
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(16, 6, generator=generator) * (i + 1) for i in range(count)]


def network(kind):
    torch.manual_seed(0)
    return nn.Sequential(kind(), nn.Linear(6, 4))


def state_notes(notes):
    return [note for note in notes if "its forward changes" in note]


@pytest.mark.parametrize("kind", STATEFUL, ids=lambda kind: kind.__name__)
def test_state_of_a_forward_is_named_and_the_values_are_those_of_the_batches_in_their_order(kind):
    net = network(kind)
    before = {name: (id(buffer), buffer.clone()) for name, buffer in net.named_buffers()}
    result = compared(net, net, batches())
    [note] = state_notes(result.notes)
    assert note.startswith("model_x (Sequential): its forward changes the ")
    assert STATEFUL[kind] in note
    assert "depend on the order of the batches" in note
    assert {name: id(buffer) for name, buffer in net.named_buffers()} == {n: i for n, (i, _) in before.items()}
    assert all(torch.equal(buffer, before[name][1]) for name, buffer in net.named_buffers())
    fresh = network(kind).eval()  # the look for state must not have changed the state itself
    oracle = [cloned(fresh, batch) for batch in batches()]
    np.testing.assert_allclose(result.values, reference_cka(oracle), atol=1e-6)


@pytest.mark.parametrize("kind", [Counter, MemoryBank])
def test_the_look_for_state_leaves_the_counts_of_the_batches_that_ran(kind):
    net = network(kind)
    compared(net, net, batches(5))
    assert (net[0].calls if kind is Counter else len(net[0].bank)) == 5


def test_other_passes_have_the_note_too():
    data = batches()
    assert state_notes(cp.extract(network(RunningMean), data, progress=False).notes)
    assert state_notes(cp.signature(network(RunningMean), data, progress=False).notes)
    assert state_notes(compared(network(RunningMean), network(Base), data, scope="dataset").notes)
    many = cp.compare_many({"a": network(RunningMean), "b": network(Counter)}, data, progress=False)
    assert [note.partition(":")[0] for note in state_notes(many.notes)] == ["a", "b"]


def test_buffers_are_as_before_after_an_error_and_after_ctrl_c():
    class Stops(nn.Module):
        def __init__(self, error):
            super().__init__()
            self.error, self.left = error, 3

        def forward(self, x):
            self.left -= 1
            if not self.left:
                raise self.error
            return x

    for error in (ValueError("broken"), KeyboardInterrupt()):
        net = nn.Sequential(RunningMean(), Stops(error))
        if isinstance(error, ValueError):
            with pytest.raises(ValueError, match="broken"):
                compared(net, net, batches(6))
        else:
            assert compared(net, net, batches(6)).meta["partial"]
        assert torch.equal(net[0].mean, torch.zeros(6))


def test_a_state_in_inference_mode_is_seen():
    with torch.inference_mode():
        net = network(RunningMean)
        assert state_notes(compared(net, net, batches()).notes)
        assert torch.equal(net[0].mean, torch.zeros(6))


# --- healthy networks ---------------------------------------------------------------------------------------------


class Keeps(Base):
    """What a forward may leave in a network without reading it again."""

    def __init__(self):
        super().__init__()
        self.attention = self.shape = self.height = self.first = None
        self.mean, self.outputs, self.by_length = 0.0, [], {}

    def forward(self, x):
        self.attention, self.shape, self.height, self.mean = x * 2, x.shape, len(x), float(x.mean())
        self.first = self.first or "seen"
        self.outputs.append(x.shape)
        self.by_length[len(x)] = torch.ones(len(x))
        return self.lin(x)


class LazyCache(Base):
    """As rotary embeddings: a table that grows with the longest input, and a mask that is made once."""

    def __init__(self):
        super().__init__()
        self.length = 1
        self.register_buffer("table", torch.ones(1), persistent=False)
        self.register_buffer("mask", None)

    def forward(self, x):
        if len(x) > self.length:
            self.length, self.table = len(x), torch.linspace(1, 2, len(x))
        if self.mask is None:
            self.mask = torch.ones(6)
        return self.lin(x) * self.table[: len(x), None] * self.mask


@pytest.mark.parametrize("kind", [Base, Keeps, LazyCache])
def test_caches_sizes_and_outputs_that_a_network_keeps_are_no_state(kind):
    net = network(kind)
    data = [batch[:size] for batch, size in zip(batches(4), (8, 8, 16, 12), strict=True)]
    assert not state_notes(compared(net, net, data).notes)
    net(batches(1)[0])  # a cache and the number that gives its length still belong together


def test_batch_norm_dropout_and_zoo_networks_have_no_note():
    torch.manual_seed(0)
    data = [torch.randn(8, 3, 64, 64) for _ in range(2)]
    for net in (torchvision.models.resnet18(), torchvision.models.mobilenet_v3_small()):
        assert not state_notes(compared(net, net, data).notes)
    plain = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Dropout(), nn.utils.spectral_norm(nn.Linear(6, 6)))
    assert not state_notes(compared(plain, plain, batches()).notes)


def rotary(scaling):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=50,
        max_position_embeddings=8,
        rope_scaling=scaling,
    )
    lengths = (6, 16, 12)
    ones = torch.ones(8, 16, dtype=torch.long)
    data = [{"input_ids": torch.randint(0, 50, (8, n)), "attention_mask": ones[:, :n]} for n in lengths]
    return transformers.LlamaModel(config), data


def test_a_transformer_with_rotary_embeddings_has_no_note():
    net, data = rotary(None)
    assert not state_notes(compared(net, net, data, pooling="mean").notes)


def test_rotary_embeddings_that_adapt_to_the_longest_input_so_far_are_state():
    """With the "dynamic" type, a short input after a long one has other frequencies than before it."""
    net, data = rotary({"rope_type": "dynamic", "factor": 2.0})
    [note] = state_notes(compared(net, net, data, pooling="mean").notes)
    assert "buffer 'rotary_emb.inv_freq'" in note
