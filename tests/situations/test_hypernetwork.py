"""Hypernetworks: one network makes the weights of another from a code, so that its own outputs hold no samples."""

import torch
from situation import check, check_notes
from torch import nn

import cka_probe as cp


class Hyper(nn.Module):
    """A row of codes for each output; the maker turns it into the weights of a linear layer."""

    def __init__(self, outputs):
        super().__init__()
        self.codes = nn.Parameter(torch.randn(outputs, 3))
        self.maker, self.act, self.head = nn.Linear(3, 5), nn.Tanh(), nn.Linear(outputs, 2)

    def forward(self, x):
        return self.head(self.act(nn.functional.linear(x, self.maker(self.codes))))


def compare(outputs):
    torch.manual_seed(0)
    net = Hyper(outputs)
    batches = [torch.randn(12, 5, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    result = cp.compare(net, net, batches, progress=False)
    check(result, net, batches)
    return result


def test_the_maker_of_the_weights_is_left_out():
    result = compare(outputs=7)
    assert result.rows == ("act", "head")
    check_notes(result, r"'maker'.* left out")


def test_also_where_it_makes_as_many_rows_as_the_batch_has_samples():
    result = compare(outputs=12)
    assert result.rows == ("act", "head")
    check_notes(result, r"'maker'.* left out: .*by chance")


def test_also_in_a_single_batch():
    torch.manual_seed(0)
    net, batch = Hyper(12), torch.randn(12, 5, generator=torch.Generator().manual_seed(0))
    result = cp.compare(net, net, batch, progress=False)
    assert result.rows == ("act", "head")
    check(result, net, [batch])
    check_notes(result, r"'maker' was left out: .*by chance")
