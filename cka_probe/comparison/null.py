"""The null distribution of CKA over a whole data set: its shape when not all Gram matrices fit into memory."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ..estimators.kernels import Kernel
from ..estimators.null_moments import SUMS, NullShape, null_shape, unit_sums
from .undefined import has_no_bandwidth

__all__ = ["SOME", "sampled_shape"]

SOME = 1024
"""Largest number of samples that the shape is computed from."""


def sampled_shape(xs: Sequence[torch.Tensor], ys: Sequence[torch.Tensor] | None, kernel: Kernel) -> NullShape:
    """Shape of unbiased CKA over permutations of the samples, from at most ``SOME`` samples drawn at random.

    Parameters
    ----------
    xs, ys : sequence of tensors (n, d)
        Features of the layers of the rows and columns; ``ys`` is None if they are the same.
    kernel : Kernel
        The kernel of CKA.

    Returns
    -------
    NullShape
        Tensors (rows, columns) of float64. Exact for at most ``SOME`` samples; NaN for a layer that is constant over
        those drawn, or has no bandwidth.
    """
    n = len(xs[0])
    some = torch.randperm(n, generator=torch.Generator().manual_seed(0))[:SOME]

    def sums(x: torch.Tensor) -> torch.Tensor:
        part = x[some.to(x.device)]
        if has_no_bandwidth(part, kernel):
            return torch.full((1, SUMS), math.nan, dtype=torch.float64, device=x.device)
        return unit_sums([part], kernel, n)

    sides = [torch.cat([sums(x) for x in side]) for side in ((xs,) if ys is None else (xs, ys))]
    return null_shape(sides[0], sides[-1], n)
