"""Order and random numbers of training samples depend on the seed and the epoch alone."""

import random

import numpy as np
import torch
from torch.utils.data import Dataset

from cka_probe.distill.training.seeding import EpochOrder, Reseeded, mixed_seed, seed_everything


class Draws(Dataset):
    """Items are draws of the three generators."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return index, torch.rand(()).item(), np.random.rand(), random.random()  # noqa: NPY002


def order(epoch, first=0, seed=0, rank=0, world=1):
    batches = EpochOrder(8, [(0, 4), (4, 8)], seed, rank, world)
    batches.epoch, batches.first = epoch, first
    return list(batches)


def test_an_epoch_has_one_order_and_may_start_at_any_batch():
    assert order(0) == order(0)
    assert order(0)[1:] == order(0, first=1)
    assert sorted(index for batch in order(0) for _, index in batch) == list(range(8))
    assert {epoch for batch in order(3) for epoch, _ in batch} == {3}
    indices = [[index for batch in order(*pair) for _, index in batch] for pair in ((0,), (1,), (0, 0, 1))]
    assert indices[0] != indices[1]
    assert indices[0] != indices[2]


def test_processes_share_each_batch():
    whole, parts = order(2), [order(2, rank=rank, world=2) for rank in range(2)]
    for number, batch in enumerate(whole):
        assert sorted(batch) == sorted(parts[0][number] + parts[1][number])


def test_samples_do_not_depend_on_the_generators_and_do_not_change_them():
    data = Reseeded(Draws(), seed=5)
    seed_everything(1)
    state = torch.get_rng_state()
    first = data.__getitems__([(0, 2), (0, 3)])
    assert torch.equal(torch.get_rng_state(), state)
    seed_everything(2)
    assert data.__getitems__([(0, 2), (0, 3)]) == first
    assert data[0, 2] == first[0]
    assert data[1, 2] != first[0]
    assert Reseeded(Draws(), seed=6)[0, 2] != first[0]


def test_seeds_fit_into_63_bits_and_depend_on_the_order_of_the_numbers():
    seeds = {mixed_seed(*numbers) for numbers in ((0, 1), (1, 0), (0,), (1,), (0, 0, 1))}
    assert len(seeds) == 5
    assert all(0 <= seed < 2**63 for seed in seeds)
