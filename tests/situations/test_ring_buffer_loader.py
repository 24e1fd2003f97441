"""Loaders with one buffer (DALI, FFCV, memory-mapped readers): the next batch is written over the one before."""

import pytest
import torch
from situation import check, check_notes, images
from torch import nn

import cka_probe as cp


class RingBuffer:
    """Yields one tensor again and again; ``after`` the user has had it, it is refilled or zeroed."""

    def __init__(self, batches, after):
        self.batches, self.after = batches, after

    def __iter__(self):
        buffer = torch.empty_like(self.batches[0])
        for batch in self.batches:
            buffer.copy_(batch)
            yield buffer[: len(batch)]
            if self.after == "zeroed":
                buffer.zero_()


@pytest.mark.parametrize("after", ["refilled", "zeroed"])
@pytest.mark.parametrize("scope", ["minibatch", "dataset"])
def test_every_batch_is_read_as_it_was_yielded(scope, after):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 8), nn.Tanh(), nn.Linear(8, 3))
    batches = [images(7, 4, seed=seed) for seed in range(4)]
    result = cp.compare(net, net, RingBuffer(batches, after), scope=scope, progress=False)
    check(result, net, batches if scope == "minibatch" else [torch.cat(batches)])


def test_a_last_batch_that_is_too_small_joins_a_copy():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 8), nn.Tanh(), nn.Linear(8, 3))
    batches = [images(7, 4, seed=seed) for seed in range(2)]

    def loader():
        buffer = torch.empty_like(batches[0])
        for batch in [*batches, images(2, 4, seed=9)]:
            buffer[: len(batch)] = batch
            yield buffer[: len(batch)]

    result = cp.compare(net, net, loader(), progress=False)
    assert result.meta["samples"] == 16
    check(result, net, [batches[0], torch.cat([batches[1], images(2, 4, seed=9)])])
    check_notes(result)
