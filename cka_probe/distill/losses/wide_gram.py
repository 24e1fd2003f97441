"""The centred Gram matrix of wide features, without a centred copy of them.

The estimators centre and scale whole activations. In a training step that costs more time and memory than the products
themselves. Here some columns are centred at a time, in a buffer that stays in the cache.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["centred_wide_gram"]

# Entries that a CPU centres at a time. A GPU centres all at once.
CHUNK = 2**18


def centred_wide_gram(x: Tensor) -> Tensor:
    """H X X' H, with H = I - 11'/n.

    Parameters
    ----------
    x : Tensor (n, d)
        Features, centred or not.

    Returns
    -------
    Tensor (n, n)
        Exactly zero for constant features.

    Examples
    --------
    >>> import torch
    >>> centred_wide_gram(torch.tensor([[1.0, 5.0], [3.0, 5.0]])).tolist()
    [[1.0, -1.0], [-1.0, 1.0]]
    """
    return _plain(x) if torch.compiler.is_compiling() else _CentredWideGram.apply(x)


class _CentredWideGram(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        gram = x.new_zeros(len(x), len(x))
        memory = _buffer(x)
        for columns in x.split(_step(x), dim=1):
            # The first sample is subtracted before the mean: a constant column becomes exactly zero, and a large mean
            # costs no digits.
            z = torch.sub(columns, columns[:1], out=memory[: columns.numel()].view_as(columns))
            z -= z.mean(0)
            gram.addmm_(z, z.mT)
        return gram

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], _output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        both = gradients[0] + gradients[0].mT
        both = both - both.mean(0)
        both = both - both.mean(1, keepdim=True)
        if torch.is_grad_enabled():  # second derivatives are wanted
            return both @ (x - x[:1].detach())
        result, memory = torch.empty_like(x, memory_format=torch.contiguous_format), _buffer(x)
        for columns, target in zip(x.split(_step(x), dim=1), result.split(_step(x), dim=1), strict=True):
            # The n x n factor is centred, because it is the small one.
            torch.mm(both, torch.sub(columns, columns[:1], out=memory[: columns.numel()].view_as(columns)), out=target)
        return result

    @staticmethod
    def vmap(_info: Any, in_dims: tuple[int | None, ...], x: Tensor) -> tuple[Tensor, int]:
        return _plain(x.movedim(in_dims[0] or 0, 0)), 0


def _plain(x: Tensor) -> Tensor:
    """The same of features (..., n, d) with a centred copy, in operations that compilers fuse."""
    z = x - x[..., :1, :].detach()
    z = z - z.mean(-2, keepdim=True)
    return z @ z.mT


def _buffer(x: Tensor) -> Tensor:
    """Memory for one part of the columns. Taking it again for every part costs more than the products (page faults)."""
    return x.new_empty(len(x) * min(_step(x), x.shape[1]))


def _step(x: Tensor) -> int:
    return max(1, CHUNK // len(x)) if x.device.type == "cpu" else max(1, x.shape[1])
