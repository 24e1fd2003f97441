"""The global batch of a data-parallel run, with its true gradient.

Losses that relate samples to one another (CKA, SP, RKD, DIST, CC) are not means over samples: the mean of the losses of
each process's share is another loss, with another gradient (cosine 0.73: MATH 8). So the shares are gathered first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

if dist.is_available():
    # DDP loads it too, but after there is a process group: its functions then hold the group in their defaults, and
    # gloo's threads outlive destroy_process_group, which may abort the process at its end (as of torch 2.15).
    import torch.distributed.nn

__all__ = ["batch_sizes", "gather_batch", "sum_over_processes", "world_size"]


def world_size() -> int:
    """The number of processes that train together; 1 outside torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def batch_sizes(*tensors: Tensor) -> list[int]:
    """The number of samples of every process, in rank order, after a check that their tensors fit together.

    Parameters
    ----------
    *tensors : Tensor (B, ...)
        What will be gathered, all of one B in a process.

    Returns
    -------
    list of int
        One entry a process; ``[B]`` outside torch.distributed.

    Raises
    ------
    ValueError
        In every process, if the tensors differ between processes in more than B: images padded to another size, say.
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
    """The samples of all processes in rank order; gradients flow back to the process that each sample came from.

    Every process must call it the same number of times in the same order. Each computes the same loss of the gathered
    batch; the backward pass adds up what all of them ask for, so that the mean over processes that
    DistributedDataParallel takes of the parameter gradients is the gradient of that one loss. (A detached gather that
    keeps only the own share yields 1 / world size of it.)

    Parameters
    ----------
    x : Tensor (B, ...)
        This process's samples; the other axes must agree between processes, B may differ.
    sizes : sequence of int, optional
        What ``batch_sizes`` gave, where it has been asked already.

    Returns
    -------
    Tensor (sum of all B, ...)
        ``x`` itself outside torch.distributed, and with one process.

    Raises
    ------
    ValueError
        As ``batch_sizes``.

    References
    ----------
    MATH 8.

    Examples
    --------
    >>> import torch
    >>> gather_batch(torch.zeros(4, 2)).shape
    torch.Size([4, 2])
    """
    if world_size() == 1:
        return x
    return _Gather.apply(x, list(batch_sizes(x) if sizes is None else sizes))


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, sizes: list[int]) -> Tensor:
        ctx.sizes = sizes
        # all_gather wants equal shapes; shares differ by a sample when the batch does not divide evenly.
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
    """The sum of ``x`` over all processes; gradients flow back as from ``gather_batch``.

    For statistics that are sums over samples (Gram matrices over patches, moments of channels) this is cheaper than to
    gather the samples.

    Parameters
    ----------
    x : Tensor
        Of one shape in all processes.

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
