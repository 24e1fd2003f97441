"""Batches with time first: `sample_axis=1` gives the numbers of the same samples with samples first."""

import numpy as np
import pytest
import torch
from activations import reference_cka
from numpy.testing import assert_allclose
from torch import nn

import cka_probe as cp
from cka_probe.capture.extraction import extract


class TimeFirst(nn.Module):
    """Reads (t, n, d). The head reads the last step: its output (n, 6) has no time."""

    def __init__(self, width=6):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.rnn, self.head = nn.Linear(4, 4), nn.LSTM(4, 5), nn.Linear(5, width)

    def forward(self, x):
        return self.head(self.rnn(self.stem(x))[0][-1])


def batches(time, samples, count=3):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(time, samples, 4, generator=generator) for _ in range(count)]


def by_hand(net, data):
    """Features (n, d) of stem, rnn and head for each batch."""
    net = net.double()
    found = []
    with torch.no_grad():
        for x in data:
            stem = net.stem(x.double())
            rnn = net.rnn(stem)[0]
            found.append(
                {
                    "stem": stem.transpose(0, 1).flatten(1).numpy(),
                    "rnn": rnn.transpose(0, 1).flatten(1).numpy(),
                    "head": net.head(rnn[-1]).numpy(),
                }
            )
    net.float()
    return found


@pytest.mark.parametrize(("time", "samples"), [(5, 8), (8, 8), (8, 5), (6, 6)])
@pytest.mark.parametrize("scope", ["minibatch", "dataset"])
def test_time_may_be_shorter_than_the_batch_as_long_or_longer(time, samples, scope):
    """Also where time, samples and the width of the head are equal: a run on two samples shows which axis is which."""
    net, data = TimeFirst(), batches(time, samples)
    result = cp.compare(net, net, data, sample_axis=1, scope=scope, progress=False)
    assert result.rows == ("stem", "rnn", "head")
    assert result.meta["samples"] == 3 * samples
    features = by_hand(net, data)
    if scope == "dataset":
        features = [{row: np.concatenate([batch[row] for batch in features]) for row in features[0]}]
    assert_allclose(result.values, reference_cka(features), atol=2e-6)


def test_extract_signatures_and_several_models():
    net, data = TimeFirst(), batches(5, 8)
    expected = by_hand(net, data)
    found = extract(net, data, sample_axis=1, progress=False)
    for row in ("stem", "rnn", "head"):
        assert_allclose(found[row], np.concatenate([batch[row] for batch in expected]), atol=1e-6)
    signature = cp.signature(net, data, sample_axis=1, progress=False)
    assert signature.samples == (8, 8, 8)
    many = cp.compare_many({"a": net}, data, sample_axis=1, progress=False)
    assert_allclose(cp.compare_signatures(signature, signature).values, many.values, atol=1e-6)


def test_small_batches_are_joined_along_the_axis_of_the_samples():
    net, data = TimeFirst(), batches(5, 8)
    pieces = [part for x in data for part in (x[:, :6], x[:, 6:])]
    result = cp.compare(net, net, pieces, sample_axis=1, progress=False)
    assert_allclose(result.values, reference_cka(by_hand(net, data)), atol=2e-6)


def test_a_module_with_samples_first_contradicts_it():
    net = nn.Sequential(nn.LSTM(4, 5, batch_first=True))
    with pytest.raises(cp.CaptureError, match="has batch_first=True: it takes axis 0 of its input for the samples"):
        cp.compare(net, net, batches(5, 8), sample_axis=1, progress=False)


@pytest.mark.parametrize("value", [-1, 0.5, True, "time"])
def test_what_is_no_axis_is_an_error_before_the_first_batch(value):
    with pytest.raises(ValueError, match="`sample_axis` must be 0, 1 or another number of an axis, got"):
        cp.compare(TimeFirst(), TimeFirst(), iter([]), sample_axis=value, progress=False)
