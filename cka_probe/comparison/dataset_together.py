"""A comparison over a whole data set by several processes: one choice of the route, and the parts of all joined.

Sums are added up. Of Gram matrices each process computes those of some layers, for which the others send it the
features of their samples. The samples are in the order of one process whose batches were dealt out one by one.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from ..capture.trees import move
from ..estimators.dataset.blocks import BlockShare
from ..estimators.dataset.gram_stack import GramStack
from ..estimators.dataset.moment_layout import Layout
from ..estimators.dataset.moments import MomentCKA
from .feature_blocks import FeatureBlocks
from .together import Ended, Together, joined_notes

if TYPE_CHECKING:
    from ..estimators.dataset.sketch import SketchCKA
    from .dataset_pass import DatasetPass

__all__ = [
    "begin_sketch",
    "block_share",
    "dealt",
    "end_pass_together",
    "exchanged",
    "join_layers",
    "join_statistics",
    "owner",
]

T = TypeVar("T")

LAYERS = ("names", "rows", "owners", "units", "widths")


def join_layers(gathered: DatasetPass, mine: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Exchange what the first batch of each process has shown, and give a process without a batch the layers.

    Parameters
    ----------
    gathered : DatasetPass
        Of this process.
    mine : dict or None
        What the route is weighed by in this process; None without a batch.

    Returns
    -------
    list of dict
        That of each process with a batch.

    Raises
    ------
    ValueError
        In all processes, if they compare different layers, or none had a batch.
    """
    layers = {name: getattr(gathered, name) for name in LAYERS}
    told = {} if mine is None else {**mine, **layers, "coarse": gathered.coarse, "dtypes": gathered.dtypes}
    full = [one for one in gathered.together.meet(told) if one]
    if not full:
        raise ValueError("No process had a batch to compare.")
    if any(one[name] != full[0][name] for one in full for name in (*LAYERS, "dtypes")):
        raise ValueError(
            "The processes compared different layers, or layers of another width. Over a whole data set every process "
            "must run the same layers in its first batch: leave out those that run in some batches only, by exclude=."
        )
    for name in (*LAYERS, "coarse", "dtypes"):  # those of the first samples of all
        setattr(gathered, name, full[0][name])
    return full


def end_pass_together(gathered: DatasetPass, *, interrupted: bool, notes: Sequence[str], last: bool) -> Ended:
    """Meet after a pass: layers that one process left out are left out in all.

    Raises
    ------
    RuntimeError
        If another process has failed.
    """
    sides: Sequence[Any] = gathered.sides
    word = (interrupted, list(notes), [side.left_out for side in sides], gathered.sizes)
    words = gathered.together.meet(word, last=last)
    for place, side in enumerate(sides):
        side.names = side.names or list(gathered.names[place])
        for _, _, without, _ in words:
            side.left_out = {**without[place], **side.left_out}
    if gathered.passes_done == 0:
        gathered.sizes_of = [sizes for *_, sizes in words]
    return Ended(any(stopped for stopped, *_ in words), joined_notes([own for _, own, *_ in words]))


def dealt(parts: Sequence[Sequence[T]]) -> list[T]:
    """What the processes hold, one by one in turn.

    Examples
    --------
    >>> dealt([["a", "c"], ["b"]])
    ['a', 'b', 'c']
    """
    nothing = object()
    every: Any = zip_longest(*parts, fillvalue=nothing)
    return [one for turn in every for one in turn if one is not nothing]


def owner(gathered: DatasetPass, unit: int) -> int:
    """The process that computes the Gram matrix of a unit."""
    return gathered.units.index(unit) % gathered.together.world


def exchanged(gathered: DatasetPass, wanted: Sequence[int | None], columns: dict[int, int]) -> FeatureBlocks | None:
    """Features of all samples of the unit that this process wants, while the others get those that they want.

    Parameters
    ----------
    gathered : DatasetPass
        Its blocks of these units are let go.
    wanted : sequence of int or None
        One unit for each process.
    columns : dict of int to int
        Number of columns of each unit in this pass.
    """
    import torch.distributed as dist

    rank, sizes = gathered.together.rank, gathered.sizes_of
    own, work, received = wanted[rank], [], {}
    mine = {unit: gathered.blocks.pop(unit) for unit in wanted if unit is not None and unit in gathered.blocks}
    for peer, unit in enumerate(wanted):
        if peer == rank:
            continue
        if unit is not None and unit in mine:
            sent = FeatureBlocks(mine[unit], gathered.home).columns(0, columns[unit]).contiguous()
            work.append(dist.P2POp(dist.isend, sent, peer))
        if own is not None and sizes[peer]:
            dtype = gathered.dtypes[gathered.units.index(own)]
            received[peer] = torch.empty(sum(sizes[peer]), columns[own], dtype=dtype, device=gathered.home)
            work.append(dist.P2POp(dist.irecv, received[peer], peer))
    for one in dist.batch_isend_irecv(work) if work else ():
        one.wait()
    if own is None:
        return None
    parts: list[Any] = [
        mine.get(own, []) if peer == rank else received[peer].split(sizes[peer]) if peer in received else []
        for peer in range(len(wanted))
    ]
    return FeatureBlocks(dealt(parts), gathered.home)


def share_grams(gathered: DatasetPass) -> None:
    """Give all processes the Gram matrices of all."""
    import torch.distributed as dist

    stack = gathered.stack
    assert isinstance(stack, GramStack)
    told: list[Any] = [None] * gathered.together.world
    sums = {unit: found.tolist() for unit, found in stack.null_sums.items()}
    rows = {unit: (row.shape[0], row.dtype) for unit, row in stack.rows.items()}
    dist.all_gather_object(told, (rows, sums, stack.reasons))
    for rank, (theirs, their_sums, reasons) in enumerate(told):
        for unit, (size, dtype) in theirs.items():
            row = stack.rows.get(unit)
            row = torch.empty(size, dtype=dtype, device=gathered.home) if row is None else row.contiguous()
            dist.broadcast(row, src=rank)
            stack.rows[unit] = row
        stack.reasons |= reasons
        for unit, found in their_sums.items():
            stack.null_sums[unit] = torch.tensor(found, dtype=torch.float64, device=gathered.home)


def begin_sketch(gathered: DatasetPass, features: Sequence[torch.Tensor] | None) -> None:
    """Give all processes the projections that the first of them with a batch makes by it.

    Parameters
    ----------
    gathered : DatasetPass
        Its sketch is empty.
    features : sequence of tensor, or None
        Of the first batch of this process; None without one.
    """
    import torch.distributed as dist

    if gathered.projections is None:
        full = gathered.together.meet(features is not None)
        told: list[Any] = [None]
        if features is not None and full.index(True) == gathered.together.rank:
            split = gathered.split
            gathered.statistics.begin(features[:split], None if split is None else features[split:])
            told = [(move(gathered.statistics.state_dict(live=True), torch.device("cpu")), gathered.flat)]
        dist.broadcast_object_list(told, src=full.index(True))
        gathered.projections = told[0]
    state, gathered.flat = gathered.projections
    gathered.statistics.load_state_dict(move(state, gathered.home), live=True)


def block_share(gathered: DatasetPass) -> BlockShare | None:
    """The blocks of this process, of several."""
    if not gathered.together:
        return None

    def add_up(total: torch.Tensor) -> torch.Tensor:
        import torch.distributed as dist

        total = total.clone()
        dist.all_reduce(total)
        return total

    return BlockShare(gathered.together.rank, gathered.together.world, add_up)


def share_features(gathered: DatasetPass, units: Sequence[int]) -> None:
    """Give all processes the features of all samples, one unit at a time."""
    import torch.distributed as dist

    for unit in units:
        place, mine = gathered.units.index(unit), gathered.blocks.pop(unit, [])
        parts: list[Any] = []
        for rank, sizes in enumerate(gathered.sizes_of):
            shape = sum(sizes), gathered.widths[place]
            if not shape[0]:
                continue
            if rank == gathered.together.rank:
                part = FeatureBlocks(mine, gathered.home).columns(0, shape[1]).contiguous()
            else:
                part = torch.empty(shape, dtype=gathered.dtypes[place], device=gathered.home)
            dist.broadcast(part, src=rank)
            parts.append(part.split(list(sizes)))
        gathered.blocks[unit] = [torch.cat(dealt(parts))]


def join_statistics(gathered: DatasetPass, without: Collection[int]) -> None:
    """After the last pass: give all processes the sums, Gram matrices or features over all samples.

    Units in ``without`` were left out after the first batch.
    """
    assert gathered.route is not None
    if gathered.statistics is not None:
        add_up(gathered.statistics, gathered.together, gathered.sizes_of, gathered.home)
    elif gathered.route.name in ("blocks", "features"):
        share_features(gathered, [unit for unit in gathered.units if unit not in without])
    else:
        share_grams(gathered)
    gathered.sizes = dealt(gathered.sizes_of)


def add_up(
    statistics: MomentCKA | SketchCKA, together: Together, sizes: Sequence[Sequence[int]], home: torch.device
) -> None:
    """Give all processes the sums over the samples of all, and the samples that one process would have kept."""
    import torch.distributed as dist

    sums = statistics.sums
    told: list[Any] = [None] * together.world
    word = None
    if sums is not None and sums.samples:
        sums.flush()
        kept = (sums.keys, *(((), None) if sums.rows is None else (tuple(sums.rows.shape), sums.rows.dtype)))
        word = (sums.layout.widths, sums.layout.split, sums.samples, statistics.batches, kept, sums.farthest.tolist())
    dist.all_gather_object(told, word)
    first = next(rank for rank, one in enumerate(told) if one is not None)
    widths, split, *_ = told[first]
    if sums is None:
        assert isinstance(statistics, MomentCKA)
        sums = statistics.sums = statistics.empty_sums(Layout(widths, split))
    shift = torch.empty(sums.layout.columns, dtype=torch.float64, device=home)
    scale = torch.empty(len(widths), dtype=torch.float64, device=home)
    if together.rank == first:
        shift.copy_(sums.shift)
        scale.copy_(sums.scale)
    dist.broadcast(shift, src=first)
    dist.broadcast(scale, src=first)
    sums.rebase(shift, scale)
    for total in (sums.ww, sums.wu, *sums.strips):
        dist.all_reduce(total)
    if sums.units is not None:
        size = 2 + sums.units.size
        if sums.units.products is None:
            count = sums.layout.columns // sums.units.size
            sums.units.products = torch.zeros(count, size, size, dtype=torch.float64, device=home)
        sums.units.products = sums.units.products.contiguous()
        dist.all_reduce(sums.units.products)
    own = torch.zeros_like(scale) if sums.largest is None else sums.largest
    largest = [torch.empty_like(own) for _ in told]
    dist.all_gather(largest, own.contiguous())
    places = dealt([[(rank, i) for i in range(len(own_sizes))] for rank, own_sizes in enumerate(sizes)])
    starts, before = {}, 0
    for rank, batch in places:
        starts[rank, batch] = before
        before += sizes[rank][batch]
    farthest = torch.zeros(len(told), len(widths), dtype=torch.int64, device=home)
    for rank, one in enumerate(told):
        if one is not None:
            found = [_of_all(place, sizes[rank], rank, starts) for place in one[5]]
            farthest[rank] = torch.tensor(found, device=home)
    sums.largest, chosen = torch.stack(largest).max(0)
    sums.farthest = farthest.gather(0, chosen[None])[0]
    rows, keys, mine = [], [], sums.rows
    for rank, one in enumerate(told):
        if one is not None and len(one[4][0]):
            taken, shape, dtype = one[4]
            part = mine.contiguous() if rank == together.rank else torch.empty(shape, dtype=dtype, device=home)
            dist.broadcast(part, src=rank)
            rows.append(part)
            keys.append(taken)
    sums.keep_some(rows, keys)
    sums.samples = sum(one[2] for one in told if one is not None)
    statistics.batches = sum(one[3] for one in told if one is not None)


def _of_all(place: int, sizes: Sequence[int], rank: int, starts: dict[tuple[int, int], int]) -> int:
    """Index among all samples of a sample of one process."""
    for batch, size in enumerate(sizes):
        if place < size:
            return starts[rank, batch] + place
        place -= size
    raise IndexError(place)
