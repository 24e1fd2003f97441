"""Training and test batches whose order and augmentation depend on the seed and the epoch alone.

A data set gives the same batches with 0 or 4 workers, in a fresh run or a resumed one: the order of an epoch is drawn
from (seed, epoch), and the random generators are reseeded for each batch from (seed, epoch, first sample of the batch).
"""

from __future__ import annotations

import hashlib
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from ...capture.state import random_states_restored

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = [
    "MINIMUM_BATCH",
    "Batch",
    "DatasetBatches",
    "LoaderBatches",
    "evaluation_loader",
    "seed_everything",
    "training_batches",
]

# The unbiased HSIC needs four samples, and batch norm more than one.
MINIMUM_BATCH = 4
# Samples that the networks see before the run, when shapes and classes are checked, and that diagnostics use.
SAMPLE = 64


class Batch(NamedTuple):
    """One batch on the device: model inputs, class labels, and the samples' places in the data set where known."""

    inputs: Any
    target: Tensor
    indices: Tensor | None

    def __len__(self) -> int:
        return len(self.target)

    def split(self, parts: int) -> list[Batch]:
        """The batch cut into `parts` microbatches of nearly equal size, fewer where one would have under two."""
        parts = max(1, min(parts, len(self) // 2))
        bounds = [round(i * len(self) / parts) for i in range(parts + 1)]
        return [
            Batch(_slice(self.inputs, a, b), self.target[a:b], None if self.indices is None else self.indices[a:b])
            for a, b in pairwise(bounds)
        ]


def seed_everything(*numbers: int) -> None:
    """Seeds torch (all devices), numpy and Python from a few integers, well mixed.

    Parameters
    ----------
    *numbers : int
        Typically the seed, the epoch and the process rank.
    """
    value = _mix(*numbers)
    torch.manual_seed(value)
    np.random.seed(value % 2**32)  # noqa: NPY002 - augmentations of others draw from numpy's global state
    random.seed(value)


def training_batches(
    data: Dataset[Any] | DataLoader[Any],
    *,
    batch_size: int | None,
    seed: int,
    workers: int,
    accelerator: Accelerator,
) -> DatasetBatches | LoaderBatches:
    """The training batches of `data`, which is a data set or a ready DataLoader.

    Parameters
    ----------
    data : Dataset or DataLoader
        Gives (input, label) pairs; a loader may also give dicts with "labels".
    batch_size : int, optional
        Samples for each step of the optimiser over all processes, for a data set (64 when None).
    seed : int
        Decides order and augmentation.
    workers : int
        Loading processes, for a data set.
    accelerator : Accelerator
        Knows the device and this process's rank.

    Returns
    -------
    DatasetBatches or LoaderBatches
        Both have ``len()`` and ``of_epoch(epoch, first=0)``.

    Raises
    ------
    TypeError
        If `data` is neither, or an iterable data set.
    ValueError
        If there are too few samples, the batch is too small, or `batch_size` or `workers` is given with a DataLoader.
    """
    if isinstance(data, DataLoader):
        if batch_size is not None or workers:
            raise ValueError(
                "batch_size and workers belong to data sets; `train` is a DataLoader that has its own. Leave them out."
            )
        return LoaderBatches(data, seed=seed, accelerator=accelerator)
    if isinstance(data, IterableDataset) or not (hasattr(data, "__getitem__") and hasattr(data, "__len__")):
        raise TypeError(
            f"train must be a data set with length and indices, or a DataLoader, got {type(data).__name__}. "
            "Wrap an iterable data set in a DataLoader."
        )
    return DatasetBatches(data, batch_size=batch_size or 64, seed=seed, workers=workers, accelerator=accelerator)


def evaluation_loader(
    data: Dataset[Any] | DataLoader[Any], *, batch_size: int | None, workers: int, accelerator: Accelerator
) -> DataLoader[Any]:
    """A loader over the test data in its own order, shared out over the processes.

    Parameters
    ----------
    data : Dataset or DataLoader
        The test data.
    batch_size : int, optional
        For a data set; 64 when None.
    workers : int
        Loading processes, for a data set.
    accelerator : Accelerator
        Shares the batches out.

    Returns
    -------
    DataLoader
        Prepared by the accelerator.
    """
    loader = data if isinstance(data, DataLoader) else DataLoader(data, batch_size or 64, num_workers=workers)
    return accelerator.prepare_data_loader(loader)


class DatasetBatches:
    """Shuffled batches of a data set; ragged ends under four samples are joined to the batch before.

    Parameters
    ----------
    dataset : Dataset
        With ``len()`` and indices.
    batch_size : int
        Over all processes; each process gets its equal share of every batch.
    seed, workers, accelerator
        As in `training_batches`.
    """

    def __init__(
        self, dataset: Dataset[Any], *, batch_size: int, seed: int, workers: int, accelerator: Accelerator
    ) -> None:
        world = accelerator.num_processes
        count = len(dataset)  # type: ignore[arg-type]
        if batch_size < MINIMUM_BATCH:
            raise ValueError(f"batch_size must be at least {MINIMUM_BATCH}, got {batch_size}.")
        if batch_size % world:
            raise ValueError(
                f"batch_size is the batch over all processes and must be a multiple of their number: got {batch_size} "
                f"for {world} processes."
            )
        if count < MINIMUM_BATCH * world:
            raise ValueError(f"train has {count} samples; {MINIMUM_BATCH * world} are needed at least.")
        self.notes: tuple[str, ...] = ()
        self.dataset = dataset
        self.seed = seed
        self.count = count
        self.batch_size = batch_size
        self._device = accelerator.device
        self._order = _Order(count, batch_size, seed, accelerator.process_index, world)
        self._loader: DataLoader[Any] = DataLoader(
            _Reseeded(dataset, seed),
            batch_sampler=self._order,
            num_workers=workers,
            persistent_workers=workers > 0,
            collate_fn=_collate,
            pin_memory=accelerator.device.type == "cuda",
            # A generator of its own: starting an epoch must not draw from the generator that dropout uses.
            generator=torch.Generator().manual_seed(seed),
        )
        if count % world and self._order.dropped:
            self.notes = (f"{self._order.dropped} samples of each epoch are left out: {count} over {world} processes.",)

    def __len__(self) -> int:
        return len(self._order)

    def sample(self) -> Batch:
        """A few training samples from all over the data set, whose classes often lie in order."""
        return self.read(range(0, self.count, -(-self.count // SAMPLE)))

    def read(self, indices: Sequence[int], epoch: int = 0) -> Batch:
        """The samples with these indices, augmented as in `epoch`."""
        batch, found = _collate(_Reseeded(self.dataset, self.seed).__getitems__([(epoch, i) for i in indices]))
        return _placed(batch, found, self._device)

    def of_epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """The batches of one epoch from batch number `first` on, the same whenever they are asked for."""
        self._order.epoch, self._order.first = epoch, first
        for batch, indices in self._loader:
            yield _placed(batch, indices, self._device)


class LoaderBatches:
    """The batches of a ready DataLoader; those under four samples are left out, with a note.

    The loader's own generator, where it has one, is reseeded for each epoch, so that a resumed run sees the same order.
    """

    def __init__(self, loader: DataLoader[Any], *, seed: int, accelerator: Accelerator) -> None:
        self.notes: tuple[str, ...] = ()
        self.seed = seed
        self._sources = [loader, loader.sampler, loader.batch_sampler, getattr(loader.batch_sampler, "sampler", None)]
        self._loader = accelerator.prepare_data_loader(loader) if accelerator.num_processes > 1 else loader
        self._device = accelerator.device

    def __len__(self) -> int:
        try:
            return len(self._loader)
        except TypeError as error:
            raise TypeError("train must have a length: give a DataLoader over a data set that has one.") from error

    def sample(self) -> Batch:
        """The first batch of the loader, to learn shapes from."""
        for batch in self._loader:
            return _placed(batch, None, self._device)
        raise ValueError("The train loader gives no batches.")

    def of_epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """The batches of one epoch from batch number `first` on."""
        for source in self._sources:
            if isinstance(generator := getattr(source, "generator", None), torch.Generator):
                generator.manual_seed(_mix(self.seed, epoch))
            if callable(set_epoch := getattr(source, "set_epoch", None)):
                set_epoch(epoch)
        used = 0
        for raw in self._loader:
            batch = _placed(raw, None, self._device)
            if len(batch) >= MINIMUM_BATCH:
                used += 1
                if used > first:
                    yield batch
            elif not self.notes:
                self.notes = (f"Batches of the train loader under {MINIMUM_BATCH} samples were left out.",)
                warnings.warn(self.notes[0] + " Use drop_last=True to silence this.", stacklevel=2)
        if not used:
            raise ValueError(
                f"Every batch of the train loader has under {MINIMUM_BATCH} samples: make its batch_size larger."
            )


def split_batch(batch: Any) -> tuple[Any, Tensor]:
    """Model inputs and class labels of a collated batch: an (input, label) pair or a mapping with "labels".

    Raises
    ------
    TypeError
        If the batch has neither form.
    """
    if isinstance(batch, Mapping) and isinstance(batch.get("labels"), Tensor):
        return {key: value for key, value in batch.items() if key != "labels"}, batch["labels"]
    if isinstance(batch, Sequence) and len(batch) == 2 and isinstance(batch[1], Tensor):
        return batch[0], batch[1]
    raise TypeError(
        f'Batches must be (input, label) pairs or dicts with "labels", got a {type(batch).__name__}'
        f"{f' of {len(batch)}' if isinstance(batch, Sequence) else ''}."
    )


class _Order:
    """A batch sampler that gives lists of (epoch, index); the epoch travels with the index into the worker."""

    def __init__(self, count: int, batch_size: int, seed: int, rank: int, world: int) -> None:
        usable = count - count % world
        starts = list(range(0, usable, batch_size))
        if len(starts) > 1 and usable - starts[-1] < MINIMUM_BATCH * world:
            starts.pop()  # the ragged end is joined to the batch before it
        self.bounds = list(zip(starts, [*starts[1:], usable], strict=True))
        self.dropped = count - usable
        self.count, self.seed, self.rank, self.world = count, seed, rank, world
        self.epoch = 0
        self.first = 0

    def __len__(self) -> int:
        return len(self.bounds)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = torch.randperm(
            self.count, generator=torch.Generator().manual_seed(_mix(self.seed, self.epoch))
        ).tolist()
        for start, stop in self.bounds[self.first :]:
            yield [(self.epoch, index) for index in order[start:stop][self.rank :: self.world]]


class _Reseeded(Dataset[Any]):
    """The data set with the random generators set from (seed, epoch, first index) while a batch is read."""

    def __init__(self, dataset: Dataset[Any], seed: int) -> None:
        self.dataset = dataset
        self.seed = seed

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, key: tuple[int, int]) -> tuple[Any, int]:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: list[tuple[int, int]]) -> list[tuple[Any, int]]:
        with random_states_restored(devices=False):
            value = _mix(self.seed, *keys[0])
            # Not torch.manual_seed: in a worker that would queue work for a GPU which it must not touch.
            torch.default_generator.manual_seed(value)
            np.random.seed(value % 2**32)  # noqa: NPY002
            random.seed(value)
            return [(self.dataset[index], index) for _, index in keys]


def _placed(batch: Any, indices: Tensor | None, device: torch.device) -> Batch:
    from accelerate.utils import send_to_device

    inputs, target = send_to_device(split_batch(batch), device, non_blocking=True)
    return Batch(inputs, target, indices)


def _collate(samples: list[tuple[Any, int]]) -> tuple[Any, Tensor]:
    items, indices = zip(*samples, strict=True)
    return default_collate(list(items)), torch.tensor(indices)


def _mix(*numbers: int) -> int:
    """A 63-bit seed from integers; neighbouring inputs give unrelated seeds."""
    return int.from_bytes(hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest(), "big") >> 1


def _slice(inputs: Any, start: int, stop: int) -> Any:
    if isinstance(inputs, Mapping):
        return {key: _slice(value, start, stop) for key, value in inputs.items()}
    if isinstance(inputs, (tuple, list)):
        return [_slice(value, start, stop) for value in inputs]
    return inputs[start:stop] if isinstance(inputs, Tensor) else inputs
