"""Gram matrices on an NVIDIA GPU: of half-precision features, in TF32, and by CuPy (syrk, fused RBF and U-centring)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, cast

import torch

from ...capture.buffers import as_cupy, require_cupy
from ...capture.state import matmul_settings
from ...estimators.kernels import RBF, Kernel

__all__ = [
    "KERNELS",
    "THREADS",
    "accumulates_in_float32",
    "by_cupy",
    "compiled",
    "fused_rbf",
    "fused_u_centre",
    "half_gram",
    "on_torchs_stream",
    "syrk_gram",
    "tf32_products",
]

THREADS = 256
"""Threads that share a row of a Gram matrix. ``KERNELS`` need a power of two, at most 256."""

KERNELS = r"""
extern "C" __global__ void row_sums(const float* gram, double* sums, float* largest, int n) {
    // One block per row: the sum and the largest magnitude of its entries off the diagonal.
    __shared__ double sum_of[256];
    __shared__ float largest_of[256];
    const long long row = blockIdx.x;
    const int diagonal = (int)(row % n);
    double sum = 0.0;
    float most = 0.0f;
    for (int j = threadIdx.x; j < n; j += blockDim.x) {
        if (j != diagonal) {
            const float value = gram[row * n + j];
            sum += value;
            most = fmaxf(most, fabsf(value));
        }
    }
    sum_of[threadIdx.x] = sum;
    largest_of[threadIdx.x] = most;
    __syncthreads();
    for (int half = blockDim.x / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) {
            sum_of[threadIdx.x] += sum_of[threadIdx.x + half];
            largest_of[threadIdx.x] = fmaxf(largest_of[threadIdx.x], largest_of[threadIdx.x + half]);
        }
        __syncthreads();
    }
    if (threadIdx.x == 0) {
        sums[row] = sum_of[0];
        largest[row] = largest_of[0];
    }
}

extern "C" __global__ void u_centre(const float* gram, const double* sums, const double* totals, float* out,
                                    float* spread, int n) {
    // One block per row: gram - r_i/(n-2) - r_j/(n-2) + s/((n-1)(n-2)) off the diagonal, 0 on it.
    __shared__ float largest_of[256];
    const long long row = blockIdx.x;
    const long long layer = row / n;
    const int i = (int)(row % n);
    const double total = totals[layer] / ((double)(n - 1) * (n - 2));
    const double own = sums[row] / (n - 2);
    float most = 0.0f;
    for (int j = threadIdx.x; j < n; j += blockDim.x) {
        float value = 0.0f;
        if (j != i) {
            value = (float)((double)gram[row * n + j] - own - sums[layer * n + j] / (n - 2) + total);
        }
        out[row * n + j] = value;
        most = fmaxf(most, fabsf(value));
    }
    largest_of[threadIdx.x] = most;
    __syncthreads();
    for (int half = blockDim.x / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) {
            largest_of[threadIdx.x] = fmaxf(largest_of[threadIdx.x], largest_of[threadIdx.x + half]);
        }
        __syncthreads();
    }
    if (threadIdx.x == 0) {
        spread[row] = largest_of[0];
    }
}

extern "C" __global__ void rbf_of_gram(const float* gram, float* out, double divisor, int n) {
    // One block per row: exp(-|x_i - x_j|^2 / divisor) from x x'; reads its lower triangle only.
    const long long i = blockIdx.x;
    const float own = gram[i * n + i];
    for (long long j = threadIdx.x; j < n; j += blockDim.x) {
        const float product = j < i ? gram[i * n + j] : gram[j * n + i];
        float squared = own + gram[j * n + j] - 2.0f * product;
        if (squared < 0.0f) {
            squared = 0.0f;  // the true value is a sum of squares, so this is rounding; NaN stays
        }
        out[i * n + j] = expf((float)(-squared / divisor));
    }
}
"""


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
    with cupy.cuda.Device(stream.device.index), cupy.cuda.ExternalStream(stream.cuda_stream):
        yield cupy


def syrk_gram(features: torch.Tensor) -> torch.Tensor:
    """The linear Gram matrix (n, n) of features (n, p) on a GPU: one triangle by cublas syrk, then mirrored.

    Raises
    ------
    ModuleNotFoundError, RuntimeError
        If CuPy or a GPU is missing.
    ValueError
        If the features are not on a GPU.
    """
    lower = _lower_gram(features).tril()
    return lower + lower.tril(-1).T


def _lower_gram(features: torch.Tensor) -> torch.Tensor:
    """The linear Gram matrix (n, n), in the lower triangle only; the upper triangle is uninitialised memory."""
    gram = torch.empty((features.shape[0],) * 2, dtype=features.dtype, device=features.device)
    with on_torchs_stream(features.device):
        from cupy import cublas

        cublas.syrk("N", as_cupy(features.contiguous()), out=as_cupy(gram), lower=True)
    return gram


def by_cupy(kernel: Kernel, features: torch.Tensor) -> torch.Tensor:
    """The Gram matrix (n, n) of features (n, p) on a GPU, computed by CuPy without copying between torch and CuPy.

    ``RBF`` with a fixed bandwidth and float32 features uses ``fused_rbf``. Any other kernel is called on a CuPy array.
    """
    if type(kernel) is RBF and kernel.bandwidth != "median" and features.dtype == torch.float32:
        return fused_rbf(features, kernel.fraction * kernel.bandwidth)
    with on_torchs_stream(features.device):
        return torch.from_dlpack(kernel(as_cupy(features.contiguous())))


def fused_rbf(features: torch.Tensor, width: float) -> torch.Tensor:
    """The Gram matrix (n, n) of ``RBF(width)`` of float32 features (n, p) on a GPU: syrk, then one kernel over n * n.

    The result equals that of ``RBF`` up to rounding; ``RBF`` reads features and distances several times. The diagonal
    is exactly 1.

    Raises
    ------
    ModuleNotFoundError, RuntimeError
        If CuPy or a GPU is missing.
    TypeError
        If the data are not float32.
    ValueError
        If the data are not on a GPU.
    """
    if features.dtype != torch.float32:
        raise TypeError(f"The kernel takes float32, got {features.dtype}. Use estimators.kernels.RBF.")
    # Centre first, as `squared_distances` does: a mean far above the spread would cancel digits. Subtracting the first
    # row makes a constant column exactly zero.
    centred = features - features[:1]
    centred -= centred.mean(0)
    gram = _lower_gram(centred)
    out = torch.empty_like(gram)
    n = len(gram)
    with on_torchs_stream(features.device):
        compiled("rbf_of_gram")((n,), (THREADS,), (as_cupy(gram), as_cupy(out), 2.0 * width * width, _int32(n)))
    return out


@cache
def compiled(name: str) -> Any:
    """Return the kernel ``name`` of ``KERNELS``, compiled by CuPy."""
    return require_cupy().RawKernel(KERNELS, name)


def fused_u_centre(grams: torch.Tensor) -> torch.Tensor:
    """U-centred Gram matrices (layers, n * n) of a float32 stack (layers, n, n) on a GPU, in two kernels.

    The result equals that of ``estimators.hsic.flat_centred`` up to rounding; sums are in float64. A layer whose
    centred entries are not above the rounding error of its Gram matrix becomes exactly zero.

    Raises
    ------
    ModuleNotFoundError, RuntimeError
        If CuPy or a GPU is missing.
    TypeError
        If the data are not float32.
    ValueError
        If the data are not on a GPU.
    """
    if grams.dtype != torch.float32:
        raise TypeError(f"The kernel centres float32, got {grams.dtype}. Use estimators.hsic.flat_centred.")
    layers, n, _ = grams.shape
    grams = grams.contiguous()
    sums = torch.empty((layers, n), dtype=torch.float64, device=grams.device)
    largest, spread = (torch.empty((layers, n), device=grams.device) for _ in range(2))
    centred = torch.empty_like(grams)
    with on_torchs_stream(grams.device):
        compiled("row_sums")((layers * n,), (THREADS,), tuple(map(as_cupy, (grams, sums, largest))) + (_int32(n),))
        totals = sums.sum(1)
        arrays = map(as_cupy, (grams, sums, totals, centred, spread))
        compiled("u_centre")((layers * n,), (THREADS,), (*arrays, _int32(n)))
    noise = (spread.amax(1) <= 16 * torch.finfo(torch.float32).eps * largest.amax(1)) & totals.isfinite()
    return centred.masked_fill_(noise[:, None, None], 0.0).reshape(layers, -1)


def _int32(number: int) -> Any:
    import numpy as np

    return np.int32(number)
