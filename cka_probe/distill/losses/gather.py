"""Gather the batch of all processes of a data-parallel run, with the gradient of the whole batch.

Losses that relate samples to one another (CKA, SP, RKD, DIST, CC) are not means over samples. The mean of the losses
that the processes take of their own samples is another loss, with another gradient (cosine 0.73: docs/theory.md,
section 8). So the samples are gathered first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

if dist.is_available():
    # DDP loads this module too, but when a process group exists: the defaults of its functions then hold the group, and
    # gloo's threads outlive destroy_process_group, which may abort the process at its end (as of torch 2.15).
    import torch.distributed.nn

__all__ = ["batch_sizes", "gather_batch", "gathered", "sum_over_processes", "world_size"]


def world_size() -> int:
    """Number of processes that train together; 1 outside torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def batch_sizes(*tensors: Tensor) -> list[int]:
    """Number of samples of each process, in rank order; check that the tensors fit together.

    Parameters
    ----------
    *tensors : Tensor (B, ...)
        Tensors to gather. Within a process all have the same B.

    Returns
    -------
    list of int
        One entry for each process; ``[B]`` outside torch.distributed.

    Raises
    ------
    ValueError
        In every process, if the tensors differ between processes in another axis than the first, for example because
        images were padded to different sizes.
    """
    if world_size() == 1:
        return [len(tensors[0])]
    shapes = torch.tensor([size for tensor in tensors for size in tensor.shape], device=tensors[0].device)
    table = torch.zeros(world_size(), len(shapes), dtype=shapes.dtype, device=shapes.device)
    table[dist.get_rank()] = shapes
    dist.all_reduce(table)
    rows = table.tolist()
    start = 0
    for index, tensor in enumerate(tensors):
        seen = [tuple(row[start + 1 : start + tensor.ndim]) for row in rows]
        if len(set(seen)) > 1:
            raise ValueError(
                f"The processes cannot gather tensor {index}: without the batch axis its shapes are {seen}. Bring the "
                "inputs to one size, or set gather=False in the loss."
            )
        start += tensor.ndim
    return [row[0] for row in rows]


def gather_batch(x: Tensor, sizes: Sequence[int] | None = None) -> Tensor:
    """The samples of all processes in rank order; gradients flow back to the process of each sample.

    Every process must call this the same number of times in the same order. All processes compute the same loss of the
    gathered batch. The backward pass sums their gradients, so that the mean over processes that DistributedDataParallel
    takes is the gradient of this loss. (A detached gather would scale the gradient by 1 / world_size.)

    Parameters
    ----------
    x : Tensor (B, ...)
        Samples of this process. B may differ between processes, the other axes may not.
    sizes : sequence of int, optional
        Result of ``batch_sizes``, if it is known already.

    Returns
    -------
    Tensor (sum of all B, ...)
        ``x`` itself outside torch.distributed, and with one process.

    Raises
    ------
    ValueError
        As in ``batch_sizes``.

    References
    ----------
    docs/theory.md, section 8.

    Examples
    --------
    >>> import torch
    >>> gather_batch(torch.zeros(4, 2)).shape
    torch.Size([4, 2])
    """
    if world_size() == 1:
        return x
    return _Gather.apply(x, list(batch_sizes(x) if sizes is None else sizes))


def gathered(pairs: Sequence[tuple[Tensor, Tensor]], gather: bool) -> list[tuple[Tensor, Tensor]]:
    """Gather the pairs over all processes under torch.distributed, if ``gather`` is true.

    Parameters
    ----------
    pairs : sequence of tuple of Tensor (B, ...)
        All with the same B.
    gather : bool
        If false, the pairs are returned unchanged.

    Returns
    -------
    list of tuple of Tensor
        Pairs over the whole batch. Gradients flow back to the process of each sample.
    """
    if not gather or not pairs:
        return list(pairs)
    sizes = batch_sizes(*(tensor for pair in pairs for tensor in pair))
    return [(gather_batch(x, sizes), gather_batch(y, sizes)) for x, y in pairs]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, sizes: list[int]) -> Tensor:
        ctx.sizes = sizes
        # all_gather needs equal shapes, but B differs by one if the batch does not divide evenly.
        padded = x.new_zeros(max(sizes), *x.shape[1:])
        padded[: len(x)] = x
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        total = _total(gradients[0])
        rank = dist.get_rank()
        start = sum(ctx.sizes[:rank])
        return total[start : start + ctx.sizes[rank]], None


def sum_over_processes(x: Tensor) -> Tensor:
    """The sum of ``x`` over all processes; gradients flow back as in ``gather_batch``.

    This is cheaper than gathering the samples if a statistic is a sum over samples (moments of channels).

    Parameters
    ----------
    x : Tensor
        With the same shape in all processes.

    Returns
    -------
    Tensor
        ``x`` itself outside torch.distributed, and with one process.
    """
    return x if world_size() == 1 else _Sum.apply(x)


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, x: Tensor) -> Tensor:
        return _total(x)

    @staticmethod
    def backward(_ctx: Any, *gradients: Tensor) -> Tensor:
        return _total(gradients[0])


def _total(x: Tensor) -> Tensor:
    total = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total
