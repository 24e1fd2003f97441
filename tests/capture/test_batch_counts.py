"""How many samples a batch and a loader hold: by agreement of the parts, whatever the loader says of its length."""

import re

import numpy as np
import pytest
import torch
from activations import cloned, reference_cka
from numpy.testing import assert_allclose
from small_networks import image_batches, small_network
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import cka_probe as cp
from cka_probe.capture.batches import batch_size, certain_batch_size, expected_samples, likely_batch_size

# --- counting by agreement ----------------------------------------------------------------------------------------

X = torch.zeros(8, 4, 6, 6)


@pytest.mark.parametrize(
    "batch",
    [
        {"timestep": torch.zeros(1), "sample": X},
        {"timestep": torch.tensor(3.0), "sample": X},
        {
            "timestep": torch.zeros(1),
            "guidance": torch.zeros(1),
            "sample": X,
            "encoder_hidden_states": torch.zeros(8, 7),
        },
        {"position_ids": torch.zeros(1, 5).long(), "input_ids": torch.zeros(8, 5).long()},
        {"cache_position": torch.arange(5), "input_ids": torch.zeros(8, 5), "attention_mask": torch.zeros(8, 5)},
        {"edge_index": torch.zeros(2, 30).long(), "x": torch.zeros(8, 3)},
        {"edge_attr": torch.zeros(30, 4), "edge_index": torch.zeros(2, 30).long(), "x": torch.zeros(8, 3)},
        {"pixel_values": torch.zeros(4, 3, 6, 6), "input_ids": torch.zeros(8, 5), "attention_mask": torch.zeros(8, 5)},
        ((torch.zeros(1), X), torch.zeros(3)),
        ((torch.zeros(2, 30).long(), torch.zeros(8, 3)), torch.zeros(8)),
        (X, torch.zeros(40, 4)),
        {"x": X.numpy(), "t": np.zeros(1)},
        (None, X),
        nn.utils.rnn.pack_sequence([torch.zeros(n, 2) for n in (5, 5, 4, 3, 2, 2, 1, 1)]),
        (nn.utils.rnn.pack_sequence([torch.zeros(n, 2) for n in (5, 5, 4, 3, 2, 2, 1, 1)]), torch.zeros(8)),
    ],
)
def test_samples_are_counted_by_what_most_parts_agree_on(batch):
    assert batch_size(batch) == 8


def test_samples_on_another_axis():
    assert batch_size((torch.zeros(20, 8, 3), torch.zeros(8)), axis=1) == 8
    assert batch_size({"x": torch.zeros(20, 8, 3), "scale": torch.zeros(8)}, axis=1) == 8
    assert certain_batch_size([torch.zeros(20, 8, 3), torch.zeros(8)], axis=1) == 8


def test_a_count_for_a_forward_of_the_caller():
    assert likely_batch_size({"x": X, "scale": torch.tensor(2.0), "t": torch.zeros(1)}) == 8
    assert likely_batch_size({"x": X, "y": torch.zeros(3)}) is None
    assert likely_batch_size({"images": [torch.zeros(3, 6, 6)] * 5, "scale": torch.zeros(3)}) is None
    assert likely_batch_size((X.numpy(), ["a"] * 8)) == 8
    assert likely_batch_size({"t": torch.zeros(1)}) == 1
    packed = nn.utils.rnn.pack_sequence([torch.zeros(n, 2) for n in (3, 1)])
    assert certain_batch_size(packed) == certain_batch_size((packed, torch.zeros(2))) == 2


def test_a_network_with_a_time_step_before_the_samples():
    class Denoiser(nn.Module):
        def __init__(self):
            super().__init__()
            self.time, self.first, self.second = nn.Linear(1, 8), nn.Linear(5, 8), nn.Linear(8, 5)

        def forward(self, timestep, sample):
            return self.second(torch.tanh(self.first(sample) + self.time(timestep[:, None])))

    torch.manual_seed(0)
    x, y = Denoiser(), Denoiser()
    batches = [{"timestep": torch.rand(1), "sample": torch.randn(9, 5)} for _ in range(3)]
    result = cp.compare(x, y, batches, progress=False)
    assert result.rows == ("first", "second")
    assert [note for note in result.notes if "'time' was left out: its output has shape (1, 8)" in note]
    by_keyword = [
        [cloned(net, batch, lambda name, _: name in ("first", "second"), run=lambda m, b: m(**b)) for batch in batches]
        for net in (x, y)
    ]
    assert_allclose(result.values, reference_cka(*by_keyword), atol=1e-6)


# --- lengths of loaders that raise or lie ---------------------------------------------------------------------------


class OddLength:
    """A loader whose length is an error or wrong."""

    def __init__(self, length):
        self.length = length

    def __iter__(self):
        return iter(image_batches(3))

    def __len__(self):
        if isinstance(self.length, Exception):
            raise self.length
        return self.length


class StreamWithLength(IterableDataset):
    """A data set that is a stream, with such a length."""

    def __init__(self, length):
        self.length = length

    def __iter__(self):
        return iter(torch.randn(20, 4))

    __len__ = OddLength.__len__


LENGTHS = [NotImplementedError(), RuntimeError("unknown"), AttributeError("sampler"), 0, 1, 1000, -1]


@pytest.mark.parametrize("length", LENGTHS, ids=repr)
@pytest.mark.parametrize("scope", ["minibatch", "dataset"])
def test_the_length_of_a_loader_does_not_matter(length, scope, capsys):
    net = small_network(0)
    expected = cp.compare(net, net, image_batches(3), scope=scope, progress=False)
    assert_allclose(cp.compare(net, net, OddLength(length), scope=scope).values, expected.values, atol=1e-6)
    assert re.search("3batch|3/1", capsys.readouterr().err)
    features = cp.extract(net, OddLength(length))
    assert len(features["4"]) == 36


@pytest.mark.parametrize("length", LENGTHS, ids=repr)
@pytest.mark.parametrize("scope", ["minibatch", "dataset"])
def test_the_length_of_a_stream_does_not_matter(length, scope):
    net = nn.Linear(4, 3)
    result = cp.compare(net, net, DataLoader(StreamWithLength(length), batch_size=5), layers="", scope=scope)
    assert result.meta["samples"] == 20


def test_a_sampler_that_draws_a_part_of_the_data_set():
    data = TensorDataset(torch.zeros(100, 3))
    some = torch.utils.data.SubsetRandomSampler(range(10))
    assert expected_samples(DataLoader(data, batch_size=4, sampler=some)) == 10
    assert expected_samples(DataLoader(data, batch_size=4, sampler=some, drop_last=True)) == 8
    in_batches = torch.utils.data.BatchSampler(range(12), 6, drop_last=False)
    assert expected_samples(DataLoader(data, batch_sampler=in_batches), 6) == 12
    assert expected_samples(DataLoader(data, batch_size=None, sampler=in_batches), 6) == 12


def test_a_batch_sampler_and_workers():
    net = small_network(0)
    data = TensorDataset(torch.cat(image_batches(2)), torch.arange(24))
    sampler = torch.utils.data.BatchSampler(range(24), 12, drop_last=False)
    expected = cp.compare(net, net, image_batches(2), progress=False)
    for loader in (DataLoader(data, batch_size=None, sampler=sampler), DataLoader(data, batch_size=12, num_workers=1)):
        result = cp.compare(net, net, loader)
        assert_allclose(result.values, expected.values, atol=1e-6)
        assert not result.notes
