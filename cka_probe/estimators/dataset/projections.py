"""Random projections of wide features: signs for the linear kernel, waves of random frequencies for the RBF kernel.

A projection depends on its seed and shape alone, so that every process and every library makes the same one.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import numpy as np
from array_api_compat import array_namespace

from ..validation import Array

COLUMNS = 4096
"""Features that are multiplied at a time: float32 rounding stays small, and so does the float32 copy of the signs."""


class _Projection:
    """Features (n, width) times a fixed random matrix (width, size), accurate whatever their mean."""

    def __init__(self, x: Array, matrix: np.ndarray, divisor: float) -> None:
        xp = array_namespace(x)
        self.matrix = xp.asarray(matrix, device=x.device)
        self.divisor = divisor
        # Any fixed shift will do, and it is added back in float64. By way of the first sample: exact if all are equal.
        self.shift = x[0, :] + xp.mean(x - x[:1, :], axis=0)
        self.offset = self._times(xp, xp.astype(self.shift, xp.float64)[None, :])

    def _times(self, xp: ModuleType, z: Array) -> Array:
        """Product (n, size) in float64 of z (n, width), whose pieces are multiplied in the dtype of z."""
        total = xp.zeros((z.shape[0], self.matrix.shape[1]), dtype=xp.float64, device=z.device)
        for start in range(0, z.shape[1], COLUMNS):
            stop = min(start + COLUMNS, z.shape[1])
            piece = z[:, start:stop] / self.divisor
            total += piece @ xp.astype(self.matrix[start:stop, :], z.dtype)
        return total

    def project(self, x: Array) -> Array:
        """Products (n, size) of float64."""
        xp = array_namespace(x)
        return self._times(xp, x - xp.astype(self.shift, x.dtype)) + self.offset


class Signs(_Projection):
    """Sums of the features with random signs: each is a unit of one column, and their kernel is linear on average.

    Parameters
    ----------
    x : array (n, width)
        A first batch, for the library, the device and a shift.
    size : int
        Number of projections.
    seed : sequence of int
        What the signs depend on.

    References
    ----------
    Achlioptas, Database-friendly random projections, JCSS 2003.
    """

    unit = 1

    def __init__(self, x: Array, size: int, seed: Sequence[int]) -> None:
        count = x.shape[1] * size
        # The raw bits of a bit generator stay the same in every version of numpy.
        raw = np.random.PCG64(list(seed)).random_raw(-(-count // 64)).astype("<u8")
        bits = np.unpackbits(raw.view(np.uint8), count=count)
        super().__init__(x, (2 * bits.astype(np.int8) - 1).reshape(-1, size), 1.0)

    def __call__(self, x: Array) -> Array:
        """The projections (n, size) of float64."""
        return self.project(x)


class Frequencies(_Projection):
    """Cosine and sine of random frequencies: units of two columns, whose kernel is the RBF kernel on average.

    Parameters
    ----------
    x : array (n, width)
        A first batch, for the library, the device and a shift.
    size : int
        Number of frequencies.
    seed : sequence of int
        What the frequencies depend on.
    bandwidth : float
        Of the kernel. NaN makes all features NaN.

    References
    ----------
    Rahimi and Recht, Random Features for Large-Scale Kernel Machines, NIPS 2007.
    """

    unit = 2

    def __init__(self, x: Array, size: int, seed: Sequence[int], bandwidth: float) -> None:
        normal = np.random.Generator(np.random.PCG64(list(seed))).standard_normal((x.shape[1], size), dtype=np.float32)
        super().__init__(x, normal, bandwidth)

    def __call__(self, x: Array) -> Array:
        """Cosine and sine (n, 2 * size) of float64, side by side for each frequency."""
        xp = array_namespace(x)
        phase = self.project(x)
        return xp.reshape(xp.stack([xp.cos(phase), xp.sin(phase)], axis=2), (x.shape[0], -1))
