"""An LSTM with time on axis 0, torch's default: a batch (t, n, d) says nothing of its samples, `sample_axis=1` does."""

import pytest
import torch
from situation import check, check_notes
from torch import nn

import cka_probe as cp
from cka_probe.capture.hooks import CaptureError


class Tagger(nn.Module):
    def __init__(self, batch_first):
        super().__init__()
        self.rnn, self.head = nn.LSTM(5, 8, num_layers=2, batch_first=batch_first), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.rnn(x)[0])


def samples_first(_row, output, _batch):
    return output.transpose(0, 1).flatten(1)


def test_time_first_with_the_axis_of_the_samples():
    torch.manual_seed(0)
    net, batches = Tagger(False), [torch.randn(6, 9, 5), torch.randn(6, 8, 5)]
    result = cp.compare(net, net, batches, sample_axis=1, progress=False)
    assert result.meta["samples"] == 17
    check(result, net, batches, features=samples_first)
    check_notes(result)


def test_time_first_without_it_is_an_error_and_no_number():
    torch.manual_seed(0)
    net = Tagger(False)
    with pytest.raises((ValueError, CaptureError), match="sample_axis"):
        cp.compare(net, net, [torch.randn(6, 9, 5)], progress=False)


def test_samples_first():
    torch.manual_seed(0)
    net, batches = Tagger(True), [torch.randn(9, 6, 5), torch.randn(8, 6, 5)]
    result = cp.compare(net, net, batches, progress=False)
    check(result, net, batches)
    check_notes(result)
