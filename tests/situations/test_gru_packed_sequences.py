"""A GRU over sentences of different lengths: packed inside the network, or a PackedSequence in the batch itself."""

import torch
from situation import check, check_notes
from texts import masks, token_ids
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import cka_probe as cp


class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.rnn, self.head = nn.Embedding(90, 6), nn.GRU(6, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, ids, lengths):
        packed = pack_padded_sequence(self.embed(ids), lengths, batch_first=True, enforce_sorted=False)
        _, state = self.rnn(packed)
        return self.head(state[-1])


class OnPacked(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.GRU(6, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, packed):
        return self.head(self.rnn(packed)[1][-1])


def lengths_of(seed):
    return masks(7, 9, seed).sum(1)


def padded(_row, output):
    """Outputs of a packed GRU as (n, t, d), with 0 where there is no token."""
    outputs = output[0] if isinstance(output, tuple) and not hasattr(output, "batch_sizes") else output
    return outputs if isinstance(outputs, torch.Tensor) else pad_packed_sequence(outputs, batch_first=True)[0]


def mean(row, output, batch):
    lengths = pad_packed_sequence(batch[0])[1] if hasattr(batch[0], "batch_sizes") else batch[0][1]
    if row != "rnn":
        return output.flatten(1)
    return torch.stack([sample[:length].mean(0) for sample, length in zip(output, lengths.tolist(), strict=True)])


def test_a_gru_that_packs_its_input_itself():
    torch.manual_seed(0)
    net = Reader()
    batches = [((token_ids(7, 9, seed), lengths_of(seed)), torch.zeros(7)) for seed in range(2)]
    result = cp.compare(net, net, batches, progress=False)
    assert result.meta["samples"] == 14
    rest = [row for row in result.rows if row != "rnn"]
    assert rest == ["embed", "head"]
    if "rnn" in result.rows:
        check(result, net, batches, pick=padded, features=mean)
    else:
        check_notes(result, r"rnn.*(pack|Pack)")
        check(result, net, batches)


def test_a_batch_that_is_a_packed_sequence():
    torch.manual_seed(0)
    net = OnPacked()
    batches = [
        (pack_padded_sequence(torch.randn(7, 9, 6), lengths_of(seed), batch_first=True, enforce_sorted=False),)
        for seed in range(2)
    ]
    result = cp.compare(net, net, batches, progress=False)
    assert result.meta["samples"] == 14
    assert "head" in result.rows
    check(result, net, batches, pick=padded, features=mean)
