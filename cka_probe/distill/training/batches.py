"""Training and test batches of a data set or a DataLoader, the same in a fresh and in a resumed run."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from ...capture.state import random_states, set_random_states
from .batch_parts import part_of, samples_in, split_batch
from .seeding import EpochOrder, Reseeded, mixed_seed, seed_everything

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = [
    "MINIMUM_BATCH",
    "Batch",
    "CycledBatches",
    "DatasetBatches",
    "LoaderBatches",
    "evaluation_loader",
    "training_batches",
]

# The unbiased HSIC needs four samples, and batch norm more than one.
MINIMUM_BATCH = 4
# Samples for the checks of shapes and classes before the run, and for diagnostics.
SAMPLE = 64


class Batch(NamedTuple):
    """One batch on the device: model inputs, targets or None, and the samples' indices in the data set, if known."""

    inputs: Any
    target: Any
    indices: Tensor | None

    def __len__(self) -> int:
        return samples_in(self.inputs, self.target)

    def split(self, parts: int) -> list[Batch]:
        """Microbatches of nearly equal size, each with at least two samples; so there may be fewer than `parts`."""
        parts = max(1, min(parts, len(self) // 2))
        bounds = [round(i * len(self) / parts) for i in range(parts + 1)]
        return [
            Batch(part_of(self.inputs, a, b), part_of(self.target, a, b), part_of(self.indices, a, b))
            for a, b in pairwise(bounds)
        ]


def training_batches(
    data: Dataset[Any] | DataLoader[Any],
    *,
    batch_size: int | None,
    seed: int,
    workers: int,
    accelerator: Accelerator,
    labelled: bool = True,
    max_steps: int | None = None,
) -> DatasetBatches | LoaderBatches | CycledBatches:
    """Training batches of a data set or of a ready DataLoader.

    Parameters
    ----------
    data : Dataset or DataLoader
        Pairs (input, label); a loader may also have dicts with "labels".
    batch_size : int, optional
        Samples for each step of the optimiser, over all processes, for a data set (64 if None).
    seed : int
        Decides order and augmentation.
    workers : int
        Loading processes, for a data set.
    accelerator : Accelerator
        Gives the device and the rank of this process.
    labelled : bool
        Whether the batches must have targets.
    max_steps : int, optional
        Read the data again and again for this number of steps, as one long epoch.

    Returns
    -------
    DatasetBatches, LoaderBatches or CycledBatches
        All have ``len()``, ``sample()`` and ``of_epoch(epoch, first=0)``.

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
        loaded = LoaderBatches(data, seed=seed, accelerator=accelerator, labelled=labelled)
        return loaded if max_steps is None else CycledBatches(loaded, max_steps, accelerator.process_index)
    if isinstance(data, IterableDataset) or not (hasattr(data, "__getitem__") and hasattr(data, "__len__")):
        raise TypeError(
            f"train must be a data set with length and indices, or a DataLoader, got {type(data).__name__}. "
            "Wrap an iterable data set in a DataLoader."
        )
    shuffled = DatasetBatches(
        data, batch_size=batch_size or 64, seed=seed, workers=workers, accelerator=accelerator, labelled=labelled
    )
    return shuffled if max_steps is None else CycledBatches(shuffled, max_steps, accelerator.process_index)


def evaluation_loader(
    data: Dataset[Any] | DataLoader[Any], *, batch_size: int | None, workers: int, accelerator: Accelerator
) -> DataLoader[Any]:
    """Loader over the test data in its own order, divided among the processes.

    Parameters
    ----------
    data : Dataset or DataLoader
        The test data.
    batch_size : int, optional
        For a data set; 64 if None.
    workers : int
        Loading processes, for a data set.
    accelerator : Accelerator
        Divides the batches among the processes.

    Returns
    -------
    DataLoader
        Prepared by the accelerator.
    """
    loader = data if isinstance(data, DataLoader) else DataLoader(data, batch_size or 64, num_workers=workers)
    return accelerator.prepare_data_loader(loader)


class DatasetBatches:
    """Shuffled batches of a data set. A last batch of fewer than four samples is joined to the one before it.

    Parameters
    ----------
    dataset : Dataset
        With ``len()`` and indices.
    batch_size : int
        Over all processes. Every process gets an equal share of each batch.
    seed, workers, accelerator
        As in `training_batches`.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        *,
        batch_size: int,
        seed: int,
        workers: int,
        accelerator: Accelerator,
        labelled: bool = True,
    ) -> None:
        world = accelerator.num_processes
        count = len(dataset)  # type: ignore[arg-type]
        if batch_size < MINIMUM_BATCH:
            raise ValueError(f"batch_size must be at least {MINIMUM_BATCH}, got {batch_size}.")
        if batch_size % world:
            raise ValueError(
                f"batch_size counts the samples of all processes and must be a multiple of their number: got "
                f"{batch_size} for {world} processes."
            )
        if count < MINIMUM_BATCH * world:
            raise ValueError(f"train has {count} samples; {MINIMUM_BATCH * world} are needed at least.")
        self.notes: tuple[str, ...] = ()
        self.dataset = dataset
        self.seed = seed
        self._labelled = labelled
        self.count = count
        self.batch_size = batch_size
        self._device = accelerator.device
        usable = count - count % world
        starts = list(range(0, usable, batch_size))
        if len(starts) > 1 and usable - starts[-1] < MINIMUM_BATCH * world:
            starts.pop()  # the last batch is too small: it is joined to the one before it
        bounds = list(zip(starts, [*starts[1:], usable], strict=True))
        self._order = EpochOrder(count, bounds, seed, accelerator.process_index, world)
        self._loader: DataLoader[Any] = DataLoader(
            Reseeded(dataset, seed),
            batch_sampler=self._order,
            num_workers=workers,
            persistent_workers=workers > 0,
            collate_fn=_collate,
            pin_memory=accelerator.device.type == "cuda",
            # A generator of its own: starting an epoch must not draw from the generator that dropout uses.
            generator=torch.Generator().manual_seed(seed),
        )
        if usable < count:
            self.notes = (f"{count - usable} samples of each epoch are left out: {count} over {world} processes.",)

    def __len__(self) -> int:
        return len(self._order)

    def sample(self) -> Batch:
        """At most 64 training samples, evenly spaced in the data set, because its classes often lie in order."""
        return self.read(range(0, self.count, -(-self.count // SAMPLE)))

    def read(self, indices: Sequence[int], epoch: int = 0) -> Batch:
        """Batch of the samples with these indices, augmented as in `epoch`."""
        batch, found = _collate(Reseeded(self.dataset, self.seed).__getitems__([(epoch, i) for i in indices]))
        return _placed(batch, found, self._device, self._labelled)

    def of_epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """Yield the batches of one epoch from batch number `first` on. A second call yields the same batches."""
        self._order.epoch, self._order.first = epoch, first
        for batch, indices in self._loader:
            yield _placed(batch, indices, self._device, self._labelled)


class LoaderBatches:
    """Batches of a ready DataLoader. Batches of fewer than four samples are left out, with a note.

    If the loader has a generator of its own, it is reseeded for each epoch, so that a resumed run sees the same order.
    """

    def __init__(self, loader: DataLoader[Any], *, seed: int, accelerator: Accelerator, labelled: bool = True) -> None:
        self.notes: tuple[str, ...] = ()
        self.seed = seed
        self._labelled = labelled
        self._sources = [loader, loader.sampler, loader.batch_sampler, getattr(loader.batch_sampler, "sampler", None)]
        self._loader = accelerator.prepare_data_loader(loader) if accelerator.num_processes > 1 else loader
        self._device = accelerator.device
        self._rank = accelerator.process_index

    def __len__(self) -> int:
        try:
            return len(self._loader)
        except TypeError as error:
            raise TypeError(
                "The train loader has no length, so an epoch has no end that is known: say `max_steps=`, the number of "
                "training steps."
            ) from error

    def sample(self) -> Batch:
        """First batch of the loader, for the checks of shapes and classes."""
        for batch in self._loader:
            return _placed(batch, None, self._device, self._labelled)
        raise ValueError("The train loader has no batches.")

    def of_epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """Yield the batches of one epoch from batch number `first` on."""
        for source in self._sources:
            if isinstance(generator := getattr(source, "generator", None), torch.Generator):
                generator.manual_seed(mixed_seed(self.seed, epoch))
            if callable(set_epoch := getattr(source, "set_epoch", None)):
                set_epoch(epoch)
        states = random_states()
        if first:
            # A loader without a generator of its own draws its order from the states at the start of the epoch.
            seed_everything(self.seed, epoch, self._rank)
        used = 0
        for raw in self._loader:
            batch = _placed(raw, None, self._device, self._labelled)
            if len(batch) >= MINIMUM_BATCH:
                used += 1
                if used > first:
                    yield batch
                elif used == first:
                    set_random_states(states)
            elif not self.notes:
                self.notes = (f"Batches of the train loader under {MINIMUM_BATCH} samples were left out.",)
                warnings.warn(self.notes[0] + " Use drop_last=True to silence this.", stacklevel=2)
        if not used:
            raise ValueError(
                f"Every batch of the train loader has under {MINIMUM_BATCH} samples: make its batch_size larger."
            )


class CycledBatches:
    """Batches of another object of this module, read again and again, as one epoch of a given number of steps.

    Each reading has its own order and augmentation, as an epoch has, and begins with random states from the seed.

    Parameters
    ----------
    batches : DatasetBatches or LoaderBatches
        The data.
    steps : int
        Length of the epoch.
    rank : int
        Rank of this process.
    """

    def __init__(self, batches: DatasetBatches | LoaderBatches, steps: int, rank: int = 0) -> None:
        self.batches = batches
        self._steps = steps
        self._rank = rank

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes of the batches inside."""
        return self.batches.notes

    def __len__(self) -> int:
        return self._steps

    def sample(self) -> Batch:
        """Samples for the checks before the run."""
        return self.batches.sample()

    def of_epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """Yield the batches from number `first` on."""
        states = random_states()
        done, reading = 0, epoch
        while done < self._steps:
            before = done
            seed_everything(self.batches.seed, reading, self._rank)
            for batch in self.batches.of_epoch(reading):
                if done == self._steps:
                    return
                done += 1
                if done == first:
                    set_random_states(states)
                if done > first:
                    yield batch
            if done == before:
                raise ValueError("The train loader gave no batch when it was read again: it can be read only once.")
            reading += 1


def _placed(batch: Any, indices: Tensor | None, device: torch.device, labelled: bool = True) -> Batch:
    from accelerate.utils import send_to_device

    inputs, target = send_to_device(split_batch(batch, labelled), device, non_blocking=True)
    return Batch(inputs, target, indices)


def _collate(samples: list[tuple[Any, int]]) -> tuple[Any, Tensor]:
    items, indices = zip(*samples, strict=True)
    return default_collate(list(items)), torch.tensor(indices)
