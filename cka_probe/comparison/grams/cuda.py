"""Gram matrices on an NVIDIA GPU: of half-precision features, in TF32, and by CuPy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, cast

import torch

from ...capture.buffers import as_cupy, require_cupy
from ...capture.state import matmul_settings
from ...estimators.kernels import Kernel

__all__ = [
    "accumulates_in_float32",
    "by_cupy",
    "half_gram",
    "on_torchs_stream",
    "tf32_products",
]


@contextmanager
def tf32_products(device: torch.device) -> Iterator[None]:
    """Multiply float32 in TF32 inside the block, and restore the caller's setting afterwards."""
    matmul, name, value = matmul_settings(device), "fp32_precision", cast(Any, "tf32")
    if matmul is None:  # before torch 2.9
        matmul, name, value = torch.backends.cuda.matmul, "allow_tf32", True
    before = getattr(matmul, name)
    try:
        setattr(matmul, name, value)
        yield
    finally:
        setattr(matmul, name, before)


@cache
def accumulates_in_float32(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this version of torch can multiply half-precision matrices with a float32 result on this device."""
    x = torch.ones((16, 16), dtype=dtype, device=device)
    try:
        return torch.mm(x, x, out_dtype=torch.float32).dtype == torch.float32
    except (TypeError, RuntimeError):  # NotImplementedError is a RuntimeError
        return False


def half_gram(features: torch.Tensor) -> torch.Tensor:
    """The linear Gram matrix (n, n) in float32 of features (n, p) in half precision.

    Products of two half-precision numbers are exact in float32, and they are added up in float32. If torch cannot do
    so (on the CPU, in older versions), the features are cast first.

    Examples
    --------
    >>> half_gram(torch.tensor([[1.0, 2.0]], dtype=torch.bfloat16))
    tensor([[5.]])
    """
    if accumulates_in_float32(features.device, features.dtype):
        return torch.mm(features, features.T, out_dtype=torch.float32)
    features = features.float()
    return features @ features.T


@contextmanager
def on_torchs_stream(device: torch.device) -> Iterator[Any]:
    """Yield CuPy, set to torch's current stream of ``device``, so that the work of both runs in order."""
    cupy = require_cupy()
    stream = torch.cuda.current_stream(device)
    # CuPy 14 renamed ExternalStream and warns about the old name.
    wrap = getattr(cupy.cuda.Stream, "from_external", None)
    own = cupy.cuda.ExternalStream(stream.cuda_stream) if wrap is None else wrap(_Handle(stream.cuda_stream))
    with cupy.cuda.Device(stream.device.index), own:
        yield cupy


class _Handle:
    """A stream in the form of the CUDA stream protocol, which torch's own streams have only since version 2.9."""

    def __init__(self, pointer: int) -> None:
        self.pointer = pointer

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.pointer


def by_cupy(kernel: Kernel, features: torch.Tensor) -> torch.Tensor:
    """The Gram matrix (n, n) of features (n, p) on a GPU, computed by CuPy without copying between torch and CuPy.

    Raises
    ------
    ModuleNotFoundError, RuntimeError
        If CuPy or a GPU is missing.
    ValueError
        If the features are not on a GPU.
    """
    with on_torchs_stream(features.device):
        return torch.from_dlpack(kernel(as_cupy(features.contiguous())))
