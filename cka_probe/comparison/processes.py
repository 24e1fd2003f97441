"""Several processes: each its own part of the batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any


class Shard:
    """The part of the batches that belongs to this process: every ``world``-th, starting with its rank.

    Unlike a DistributedSampler it repeats no sample to even out the parts; parts may differ in length, or be empty.

    Parameters
    ----------
    data : iterable of batches
        The same in every process.
    rank, world : int, optional
        Taken from torch.distributed when left out.

    Raises
    ------
    RuntimeError
        If torch.distributed is not initialised and no rank is given.

    Examples
    --------
    >>> list(Shard(["a", "b", "c"], rank=1, world=2))
    ['b']
    """

    def __init__(self, data: Iterable[Any], *, rank: int | None = None, world: int | None = None) -> None:
        if rank is None or world is None:
            import torch.distributed as dist

            if not (dist.is_available() and dist.is_initialized()):
                raise RuntimeError(
                    "Shard needs torch.distributed: start with torchrun and call init_process_group, or pass rank= and "
                    "world=."
                )
            rank, world = dist.get_rank(), dist.get_world_size()
        if not 0 <= rank < world:
            raise ValueError(f"`rank` must be between 0 and world - 1, got {rank} of {world}.")
        self.data = data
        self.rank = rank
        self.world = world

    def __iter__(self) -> Iterator[Any]:
        return islice(iter(self.data), self.rank, None, self.world)
