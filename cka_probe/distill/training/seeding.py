"""Order and augmentation of training samples that depend on the seed and the epoch alone.

The order of an epoch is drawn from (seed, epoch), and the random generators are reseeded for each batch from (seed,
epoch, first sample of the batch). So a data set gives the same batches with 0 or 4 workers, in a fresh run or a resumed
one.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from ...capture.state import random_states_restored

__all__ = ["EpochOrder", "Reseeded", "mixed_seed", "seed_everything"]


def seed_everything(*numbers: int) -> None:
    """Seed torch (all devices), numpy and Python from a few integers, well mixed.

    Parameters
    ----------
    *numbers : int
        Typically the seed, the epoch and the process rank.
    """
    value = mixed_seed(*numbers)
    torch.manual_seed(value)
    np.random.seed(value % 2**32)  # noqa: NPY002 - augmentations of others draw from numpy's global state
    random.seed(value)


def mixed_seed(*numbers: int) -> int:
    """A 63-bit seed from integers; neighbouring integers give unrelated seeds."""
    return int.from_bytes(hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest(), "big") >> 1


class EpochOrder:
    """Batch sampler that yields lists of (epoch, index). The epoch travels with the index into the loading process.

    Parameters
    ----------
    count : int
        Samples of the data set.
    bounds : sequence of (int, int)
        First and one past the last place of each batch in the shuffled order, over all processes.
    seed : int
        Decides the order, together with the epoch.
    rank, world : int
        This process takes every ``world``-th sample of a batch, from number ``rank`` on.

    Attributes
    ----------
    epoch, first : int
        The epoch that is iterated next, and the batch that it starts at.
    """

    def __init__(self, count: int, bounds: Sequence[tuple[int, int]], seed: int, rank: int, world: int) -> None:
        self.count, self.bounds, self.seed, self.rank, self.world = count, bounds, seed, rank, world
        self.epoch = 0
        self.first = 0

    def __len__(self) -> int:
        return len(self.bounds)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        generator = torch.Generator().manual_seed(mixed_seed(self.seed, self.epoch))
        order = torch.randperm(self.count, generator=generator).tolist()
        for start, stop in self.bounds[self.first :]:
            yield [(self.epoch, index) for index in order[start:stop][self.rank :: self.world]]


class Reseeded(Dataset[Any]):
    """Data set that sets the random generators from (seed, epoch, first index) while it reads a batch.

    Its keys are (epoch, index), its items (item, index).
    """

    def __init__(self, dataset: Dataset[Any], seed: int) -> None:
        self.dataset = dataset
        self.seed = seed

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, key: tuple[int, int]) -> tuple[Any, int]:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: list[tuple[int, int]]) -> list[tuple[Any, int]]:
        with random_states_restored(devices=False):
            value = mixed_seed(self.seed, *keys[0])
            # Not torch.manual_seed: in a loading process that would queue work for a GPU which it must not touch.
            torch.default_generator.manual_seed(value)
            np.random.seed(value % 2**32)  # noqa: NPY002
            random.seed(value)
            return [(self.dataset[index], index) for _, index in keys]
