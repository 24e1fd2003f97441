"""Comparisons in several processes: each process runs its shard of the batches, and the statistics are added up."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch

from ..capture.recorder import LayerRecorder
from ..estimators.minibatch import MinibatchCKA

__all__ = ["Shard", "all_reduce"]


class Shard:
    """The batches of this process: number ``rank``, ``rank + world``, ``rank + 2 * world``, and so on.

    Unlike a DistributedSampler, it repeats no sample. Shards may differ in length, and a shard may be empty.

    Parameters
    ----------
    data : iterable of batches
        The same in every process.
    rank, world : int, optional
        Number of this process, and number of all processes; from torch.distributed when left out.

    Raises
    ------
    RuntimeError
        If torch.distributed is not initialised and ``rank`` or ``world`` is left out.
    ValueError
        If ``rank`` is not between 0 and ``world - 1``.

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


def all_reduce(statistics: MinibatchCKA, recorders: Sequence[LayerRecorder], device: torch.device) -> None:
    """Add up the statistics of all processes of torch.distributed, so that every process holds those of all data.

    A process without a batch takes part with zeros, and its recorders receive their layers from the others.

    Parameters
    ----------
    statistics : MinibatchCKA
        Changed in place.
    recorders : sequence of LayerRecorder
        Their ``names`` and ``left_out`` must be equal in all processes that had a batch.
    device : torch.device
        Where a process without a batch makes its zeros.

    Raises
    ------
    ValueError
        If the processes compared different layers, or no process had a batch.
    """
    import torch.distributed as dist

    mine = {
        "layers": [(r.name, r.names, r.left_out) for r in recorders],
        "shapes": {name: tuple(total.shape) for name, total in statistics.sums.items()},
        "samples": statistics.samples,
        "batches": statistics.batches,
    }
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, mine)
    full = [part for part in gathered if part["batches"]]
    if not full:
        raise ValueError("No process had a batch to compare.")
    if any(part["layers"] != full[0]["layers"] for part in full):
        raise ValueError("The processes compared different layers. Every process must run the same models.")
    for recorder, (_, names, left_out) in zip(recorders, full[0]["layers"], strict=True):
        recorder.names, recorder.left_out = names, left_out
    sums = {name: total.clone() for name, total in statistics.sums.items()} or {
        name: torch.zeros(shape, dtype=torch.float64, device=device) for name, shape in full[0]["shapes"].items()
    }
    for name in sorted(sums):
        dist.all_reduce(sums[name])
    statistics.sums = sums
    statistics.samples = sum(part["samples"] for part in gathered)
    statistics.batches = sum(part["batches"] for part in gathered)
