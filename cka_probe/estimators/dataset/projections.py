"""Random projections of wide features: signs for the linear kernel, cosines and sines for the RBF kernel.

A projection depends only on its seed and shape, so every process and every array library makes the same one.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import numpy as np
from array_api_compat import array_namespace

from ..validation import Array

__all__ = ["COLUMNS", "Frequencies", "Signs"]

COLUMNS = 4096
"""Features per product: few, so that float32 rounding errors and the float32 copy of the signs stay small."""


class _Projection:
    """Product of features (n, width) with a fixed random matrix (width, size), accurate even for a large mean."""

    def __init__(self, x: Array, matrix: np.ndarray, divisor: float, shift: Array | None) -> None:
        xp = array_namespace(x)
        self.matrix = xp.asarray(matrix, device=x.device)
        self.divisor = divisor
        # The shift makes float32 products accurate; its own product is added back in float64. Subtracting the first
        # sample before the mean is exact if all samples are equal.
        self.shift = x[0, :] + xp.mean(x - x[:1, :], axis=0) if shift is None else shift
        self.offset = self._times(xp, xp.astype(self.shift, xp.float64)[None, :])

    def _times(self, xp: ModuleType, z: Array) -> Array:
        """Product (n, size) of z (n, width), multiplied in the dtype of z and added up in float64."""
        total = xp.zeros((z.shape[0], self.matrix.shape[1]), dtype=xp.float64, device=z.device)
        for start in range(0, z.shape[1], COLUMNS):
            stop = min(start + COLUMNS, z.shape[1])
            piece = z[:, start:stop] / self.divisor
            total += piece @ xp.astype(self.matrix[start:stop, :], z.dtype)
        return total

    def project(self, x: Array) -> Array:
        """Projections (n, size) of x (n, width), in float64."""
        xp = array_namespace(x)
        return self._times(xp, x - xp.astype(self.shift, x.dtype)) + self.offset


class Signs(_Projection):
    """Sums of the features with random signs. Their mean product over projections estimates the linear kernel.

    Each projection is a unit of one column.

    Parameters
    ----------
    x : array (n, width)
        First batch, for the library, the device and the shift.
    size : int
        Number of projections.
    seed : sequence of int
        Seed of the signs.
    shift : array (width,), optional
        That of an earlier run; from ``x`` when left out.

    References
    ----------
    Achlioptas, Database-friendly random projections, JCSS 2003.
    """

    def __init__(self, x: Array, size: int, seed: Sequence[int], shift: Array | None = None) -> None:
        count = x.shape[1] * size
        # The raw bits of a bit generator are the same in every version of numpy.
        raw = np.random.PCG64(list(seed)).random_raw(-(-count // 64)).astype("<u8")
        bits = np.unpackbits(raw.view(np.uint8), count=count)
        super().__init__(x, (2 * bits.astype(np.int8) - 1).reshape(-1, size), 1.0, shift)

    def __call__(self, x: Array) -> Array:
        """Projections (n, size) of x (n, width), in float64."""
        return self.project(x)


class Frequencies(_Projection):
    """Cosine and sine of random projections. The mean of cos cos + sin sin over frequencies estimates the RBF kernel.

    Each frequency is a unit of two columns.

    Parameters
    ----------
    x : array (n, width)
        First batch, for the library, the device and the shift.
    size : int
        Number of frequencies.
    seed : sequence of int
        Seed of the frequencies.
    bandwidth : float
        Bandwidth of the kernel. NaN makes all features NaN.
    shift : array (width,), optional
        That of an earlier run; from ``x`` when left out.

    References
    ----------
    Rahimi and Recht, Random Features for Large-Scale Kernel Machines, NIPS 2007.
    """

    def __init__(self, x: Array, size: int, seed: Sequence[int], bandwidth: float, shift: Array | None = None) -> None:
        normal = np.random.Generator(np.random.PCG64(list(seed))).standard_normal((x.shape[1], size), dtype=np.float32)
        super().__init__(x, normal, bandwidth, shift)

    def __call__(self, x: Array) -> Array:
        """Features (n, 2 * size) in float64: cosine and sine side by side for each frequency."""
        xp = array_namespace(x)
        phase = self.project(x)
        return xp.reshape(xp.stack([xp.cos(phase), xp.sin(phase)], axis=2), (x.shape[0], -1))
