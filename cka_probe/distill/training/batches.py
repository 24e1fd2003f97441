"""Training and test batches of a data set or a DataLoader, the same in a fresh and in a resumed run."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from .seeding import EpochOrder, Reseeded, mixed_seed

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = [
    "MINIMUM_BATCH",
    "Batch",
    "DatasetBatches",
    "LoaderBatches",
    "evaluation_loader",
    "split_batch",
    "training_batches",
]

# The unbiased HSIC needs four samples, and batch norm more than one.
MINIMUM_BATCH = 4
# Samples for the checks of shapes and classes before the run, and for diagnostics.
SAMPLE = 64


class Batch(NamedTuple):
    """One batch on the device: model inputs, class labels, and the samples' indices in the data set, if known."""

    inputs: Any
    target: Tensor
    indices: Tensor | None

    def __len__(self) -> int:
        return len(self.target)

    def split(self, parts: int) -> list[Batch]:
        """Microbatches of nearly equal size, each with at least two samples; so there may be fewer than `parts`."""
        parts = max(1, min(parts, len(self) // 2))
        bounds = [round(i * len(self) / parts) for i in range(parts + 1)]
        return [
            Batch(_slice(self.inputs, a, b), self.target[a:b], None if self.indices is None else self.indices[a:b])
            for a, b in pairwise(bounds)
        ]


def training_batches(
    data: Dataset[Any] | DataLoader[Any],
    *,
    batch_size: int | None,
    seed: int,
    workers: int,
    accelerator: Accelerator,
) -> DatasetBatches | LoaderBatches:
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
        self, dataset: Dataset[Any], *, batch_size: int, seed: int, workers: int, accelerator: Accelerator
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
        return _placed(batch, found, self._device)

    def of_epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """Yield the batches of one epoch from batch number `first` on. A second call yields the same batches."""
        self._order.epoch, self._order.first = epoch, first
        for batch, indices in self._loader:
            yield _placed(batch, indices, self._device)


class LoaderBatches:
    """Batches of a ready DataLoader. Batches of fewer than four samples are left out, with a note.

    If the loader has a generator of its own, it is reseeded for each epoch, so that a resumed run sees the same order.
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
            raise TypeError("train must have a length: pass a DataLoader over a data set that has one.") from error

    def sample(self) -> Batch:
        """First batch of the loader, for the checks of shapes and classes."""
        for batch in self._loader:
            return _placed(batch, None, self._device)
        raise ValueError("The train loader has no batches.")

    def of_epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """Yield the batches of one epoch from batch number `first` on."""
        for source in self._sources:
            if isinstance(generator := getattr(source, "generator", None), torch.Generator):
                generator.manual_seed(mixed_seed(self.seed, epoch))
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


def _placed(batch: Any, indices: Tensor | None, device: torch.device) -> Batch:
    from accelerate.utils import send_to_device

    inputs, target = send_to_device(split_batch(batch), device, non_blocking=True)
    return Batch(inputs, target, indices)


def _collate(samples: list[tuple[Any, int]]) -> tuple[Any, Tensor]:
    items, indices = zip(*samples, strict=True)
    return default_collate(list(items)), torch.tensor(indices)


def _slice(inputs: Any, start: int, stop: int) -> Any:
    if isinstance(inputs, Mapping):
        return {key: _slice(value, start, stop) for key, value in inputs.items()}
    if isinstance(inputs, (tuple, list)):
        return [_slice(value, start, stop) for value in inputs]
    return inputs[start:stop] if isinstance(inputs, Tensor) else inputs
