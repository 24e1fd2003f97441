"""Training batches of pictures whose order and augmentation depend on the seed and the epoch alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from ...capture.trees import move
from ..training.seeding import EpochOrder, Reseeded
from ..training.seen_data import SeenData
from .data import collate_lists
from .settings import DenseSettings

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["PictureBatches", "WatchedPictures"]


class PictureBatches:
    """Shuffled batches of pictures on the device. A last batch that is not full is left out, unless it is the only one.

    Parameters
    ----------
    data : Dataset
        With ``len()`` and indices.
    collate : callable, optional
        Joins items into a batch; torch's default if None.
    settings : DenseSettings
        ``batch_size`` counts the pictures of each process.
    accelerator : Accelerator
        Gives the device and the rank of this process.

    Raises
    ------
    ValueError
        If there are fewer pictures than processes.
    """

    def __init__(
        self,
        data: Dataset[Any],
        collate: Callable[[list[Any]], Any] | None,
        settings: DenseSettings,
        accelerator: Accelerator,
    ) -> None:
        world = accelerator.num_processes
        self.count: int = len(data)  # type: ignore[arg-type]
        if self.count < world:
            raise ValueError(f"`train` has {self.count} pictures, but each of the {world} processes needs one.")
        size = min(settings.batch_size * world, self.count - self.count % world)
        bounds = [(start, start + size) for start in range(0, self.count - size + 1, size)]
        self._order = EpochOrder(self.count, bounds, settings.seed, accelerator.process_index, world)
        self._reseeded = Reseeded(data, settings.seed)
        self._collate = partial(_without_indices, collate or default_collate)
        self._device = accelerator.device
        self._loader: DataLoader[Any] = DataLoader(
            self._reseeded,
            batch_sampler=self._order,
            num_workers=settings.workers,
            persistent_workers=settings.workers > 0,
            collate_fn=self._collate,
            pin_memory=accelerator.device.type == "cuda",
            # A generator of its own: starting an epoch must not draw from the generator that dropout uses.
            generator=torch.Generator().manual_seed(settings.seed),
        )

    def __len__(self) -> int:
        return len(self._order)

    def sample(self) -> Any:
        """First batch of the first epoch."""
        self._order.epoch, self._order.first = 0, 0
        return move(self._collate(self._reseeded.__getitems__(next(iter(self._order)))), self._device)

    def of_epoch(self, epoch: int, first: int = 0) -> Iterator[Any]:
        """Yield the batches of one epoch from batch number `first` on. A second call yields the same batches."""
        self._order.epoch, self._order.first = epoch, first
        for batch in self._loader:
            yield move(batch, self._device)


class WatchedPictures(Dataset[Any]):
    """Data set whose items are added to a digest as they are read."""

    def __init__(self, data: Dataset[Any], seen: SeenData) -> None:
        self._data, self._seen = data, seen

    def __len__(self) -> int:
        return len(self._data)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Any:
        item = self._data[index]
        self._seen.add(collate_lists([item]))
        return item


def _without_indices(collate: Callable[[list[Any]], Any], samples: list[tuple[Any, int]]) -> Any:
    return collate([item for item, _ in samples])
