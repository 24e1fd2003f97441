"""Linear Gram matrices of wide layers on an NVIDIA GPU's tensor cores, with the accuracy of float32 (Triton).

A float32 product of 256 samples with 800,000 features is bound by arithmetic: it takes ten times as long as reading the
features. Here each number is split into parts that tensor cores multiply exactly, a vector near the mean is subtracted
on the way, and only one triangle is computed.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import torch

try:
    import triton
    import triton.language as tl
except ImportError:  # builds of torch without CUDA do not bring it
    triton = None  # type: ignore[assignment,unused-ignore]

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["LEAST_WORK", "pays", "tensor_core_gram"]

LEAST_WORK = 2**32
"""Smallest n * n * p for which two launches cost less than the product of torch (H200: 0.25 beside 0.53 ms here)."""

TF32, TF32X3, BFLOAT16X3 = 0, 1, 2
"""Ways to multiply: rounded to 11 bits; split into two parts of 11 bits; split into two parts of 8 bits."""

COLUMNS = 64
"""Columns of a tile that are multiplied at a time."""


def _jit(function: Callable[..., None]) -> Any:
    return function if triton is None else triton.jit(function)


@_jit
def _gram_tiles(
    x, shift, partial, n, p, stride, per_split, rows: tl.constexpr, columns: tl.constexpr, way: tl.constexpr
):
    """Tile (i, j), j <= i, of the Gram matrix of ``x`` minus ``shift``, over one range of columns."""
    pair = tl.program_id(0)
    split = tl.program_id(1)
    i = 0
    while (i + 1) * (i + 2) // 2 <= pair:
        i += 1
    j = pair - i * (i + 1) // 2
    place = tl.arange(0, rows)
    left_rows = i * rows + place
    right_rows = j * rows + place
    left = x + left_rows.to(tl.int64)[:, None] * stride
    right = x + right_rows.to(tl.int64)[:, None] * stride
    start = split * per_split
    end = tl.minimum(start + per_split, p)
    total = tl.zeros((rows, rows), dtype=tl.float32)
    for k in range(start, end, columns):
        column = k + tl.arange(0, columns)
        inside = column < end
        c = tl.load(shift + column, mask=inside, other=0.0)[None, :]
        a = tl.load(left + column[None, :], mask=(left_rows < n)[:, None] & inside[None, :], other=0.0)
        b = tl.load(right + column[None, :], mask=(right_rows < n)[:, None] & inside[None, :], other=0.0)
        a = a.to(tl.float32) - c
        b = b.to(tl.float32) - c
        if way == 2:
            a_high = a.to(tl.bfloat16)
            a_low = (a - a_high.to(tl.float32)).to(tl.bfloat16)
            b_high = b.to(tl.bfloat16)
            b_low = (b - b_high.to(tl.float32)).to(tl.bfloat16)
            total = tl.dot(a_high, tl.trans(b_low), total)
            total = tl.dot(a_low, tl.trans(b_high), total)
            total = tl.dot(a_high, tl.trans(b_high), total)
        elif way == 1:
            total = tl.dot(a, tl.trans(b), total, input_precision="tf32x3")
        else:
            total = tl.dot(a, tl.trans(b), total, input_precision="tf32")
    tile = partial + (split.to(tl.int64) * tl.num_programs(0) + pair) * rows * rows
    tl.store(tile + place[:, None] * rows + place[None, :], total)


@_jit
def _add_splits(partial, out, n, splits, rows: tl.constexpr, few: tl.constexpr):
    """Sum of the tiles of all ranges of columns, written to both triangles of ``out``."""
    pair = tl.program_id(0)
    i = 0
    while (i + 1) * (i + 2) // 2 <= pair:
        i += 1
    j = pair - i * (i + 1) // 2
    r = tl.program_id(1) * few + tl.arange(0, few)[:, None]
    c = tl.arange(0, rows)[None, :]
    # In a tile on the diagonal the lower half counts for both halves, so that the result is exactly symmetric.
    place = tl.where(i == j, tl.maximum(r, c) * rows + tl.minimum(r, c), r * rows + c)
    total = tl.zeros((few, rows), dtype=tl.float32)
    for split in range(splits):
        total += tl.load(partial + (split * tl.num_programs(0) + pair).to(tl.int64) * rows * rows + place)
    row = i * rows + r
    column = j * rows + c
    inside = (row < n) & (column < n)
    tl.store(out + row * n + column, total, mask=inside)
    tl.store(out + column * n + row, total, mask=inside & (i != j))


def tensor_core_gram(features: torch.Tensor, *, tf32: bool = False) -> torch.Tensor:
    """The Gram matrix (n, n) in float32 of features (n, p) minus a vector near their mean, on an NVIDIA GPU.

    float32 is multiplied in three TF32 products (error 3e-7 of the centred Gram matrix, as torch's float32), half
    precision in three bfloat16 products (error below 2e-4; its features are rounded to 4e-3 themselves). Any vector may
    be subtracted, because centring removes it; the mean of a sixteenth of the samples costs a sixteenth of a pass.

    Parameters
    ----------
    features : tensor (n, p)
        float32, float16 or bfloat16; n >= 16, neighbours in a row are neighbours in memory.
    tf32 : bool
        Use one TF32 product: faster, with errors of about 1e-3.
    """
    n, p = features.shape
    way = TF32 if tf32 else TF32X3 if features.dtype == torch.float32 else BFLOAT16X3
    rows, warps = (64, 4) if way != BFLOAT16X3 or n <= 64 else (128, 8)
    shift = features[: n // 16].mean(0, dtype=torch.float32)
    tiles = -(-n // rows)
    pairs = tiles * (tiles + 1) // 2
    blocks = _multiprocessors(features.device) * (2 if rows == 64 else 1)
    splits = max(1, min(blocks // pairs, -(-p // (4 * COLUMNS))))
    per_split = -(-p // (splits * COLUMNS)) * COLUMNS
    splits = -(-p // per_split)
    partial = torch.empty((splits, pairs, rows, rows), dtype=torch.float32, device=features.device)
    out = torch.empty((n, n), dtype=torch.float32, device=features.device)
    options = {"rows": rows, "num_warps": warps}
    with torch.cuda.device(features.device):
        _gram_tiles[(pairs, splits)](
            features, shift, partial, n, p, features.stride(0), per_split,
            columns=COLUMNS, way=way, num_stages=3, **options,
        )  # fmt: skip
        _add_splits[(pairs, rows // 32)](partial, out, n, splits, few=32, **options)
    return out


def pays(features: torch.Tensor) -> bool:
    """Whether ``tensor_core_gram`` can be used on these features, and takes less time than the product of torch.

    Its first call on a device compiles the kernels and tests them, so it waits for the GPU.
    """
    n, p = features.shape
    return (
        n * n * p >= LEAST_WORK
        and n >= 16
        and features.is_cuda
        and features.dtype in (torch.float32, torch.float16, torch.bfloat16)
        and features.stride(1) == 1
        and _works(features.device, features.dtype)
    )


@cache
def _works(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernels can be compiled for this device (tensor cores, a C compiler) and give the right result."""
    if triton is None or torch.cuda.get_device_capability(device) < (8, 0):
        return False
    x = torch.arange(40 * 300, device=device, dtype=torch.float64).sin().reshape(40, 300)
    x = (x + 1).to(dtype)
    try:
        found = tensor_core_gram(x)
    except Exception:  # of the compiler or the driver; torch computes the product instead
        return False
    shifted = x.double() - x[:2].mean(0, dtype=torch.float32)
    expected = shifted @ shifted.T
    return bool((found - expected).abs().max() < (1e-5 if dtype == torch.float32 else 1e-3) * expected.max())


@cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count
