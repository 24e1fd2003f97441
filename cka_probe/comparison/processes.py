"""Comparisons in several processes: each process runs its shard of the batches, and the statistics are added up."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Sized
from itertools import islice
from typing import Any, cast

import torch

from ..capture.recorder import LayerRecorder
from ..estimators.minibatch import MinibatchCKA
from .places import selected_sums

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

    def __len__(self) -> int:
        return len(range(self.rank, len(cast(Sized, self.data)), self.world))  # TypeError if it has none


def all_reduce(statistics: MinibatchCKA, recorders: Sequence[LayerRecorder], device: torch.device) -> None:
    """Add up the statistics of all processes of torch.distributed, so that every process holds those of all data.

    A process without a batch takes part with zeros, and its recorders receive their layers from the others.

    Parameters
    ----------
    statistics : MinibatchCKA
        Changed in place.
    recorders : sequence of LayerRecorder
        They must have the same layers in all processes that had a batch. A layer that one process left out is left out
        in all.
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
    own = [list(recorder.names) for recorder in recorders]
    for place, recorder in enumerate(recorders):
        _agree(recorder, [part["layers"][place] for part in full])
    kept = [[names.index(name) for name in r.names if name in names] for r, names in zip(recorders, own, strict=True)]
    if statistics.sums:
        rows, columns = _places(statistics.sums["cross"].shape[0], own, kept)
        sums = selected_sums(statistics.sums, rows, columns)
    else:
        names = [names for _, names, _ in full[0]["layers"]]
        every = [list(range(len(r.names))) for r in recorders]
        rows, columns = _places(full[0]["shapes"]["cross"][0], names, every)
        counts = (len(rows), len(columns))
        sums = {
            name: torch.zeros(
                [count if whole > 1 else whole for count, whole in zip(counts, shape[:2], strict=True)]
                + list(shape[2:]),
                dtype=torch.float64,
                device=device,
            )
            for name, shape in full[0]["shapes"].items()
        }
    for name in sorted(sums):
        dist.all_reduce(sums[name])
    statistics.sums = sums
    statistics.samples = sum(part["samples"] for part in gathered)
    statistics.batches = sum(part["batches"] for part in gathered)


def _agree(recorder: LayerRecorder, parts: Sequence[tuple[str, list[str], dict[str, str]]]) -> None:
    """Give a recorder the layers that all processes compared, and the reasons of all others.

    Each part holds name, layers and left out layers of the model in one process.
    """
    known = [(name, {layer.partition("#")[0] for layer in (*names, *left_out)}) for name, names, left_out in parts]
    common = [layer for layer in parts[0][1] if all(layer in names for _, names, _ in parts)]
    if any(one != known[0] for one in known) or not common:
        raise ValueError("The processes compared different layers. Every process must run the same models.")
    left_out: dict[str, str] = {}
    for _, names, reasons in parts:
        left_out = {**reasons, **left_out}
        for layer in names:
            if layer not in common:
                left_out.setdefault(layer, "it ran in some batches only")
    recorder.names, recorder.left_out = common, left_out


def _places(
    rows: int, names: Sequence[Sequence[str]], kept: Sequence[Sequence[int]]
) -> tuple[Sequence[int], Sequence[int]]:
    """Rows and columns of the kept places of each side, in statistics with that many rows."""
    if len(names) == 2 and rows != len(names[0]) + len(names[1]):
        return kept[0], kept[1]
    starts = [sum(map(len, names[:side])) for side in range(len(names))]
    every = [start + place for start, side in zip(starts, kept, strict=True) for place in side]
    return every, every
