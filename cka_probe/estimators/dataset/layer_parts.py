"""The n x n Gram matrix of a layer whose features are read in parts, so that no more than a part is held twice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from array_api_compat import array_namespace, device

from ..kernels import Kernel, Linear
from ..layer_grams import layer_gram, wide_gram
from ..validation import Array

__all__ = ["FEW", "PART", "WIDE", "ArrayFeatures", "Features", "WholeGram", "part_bytes", "whole_gram"]

PART = 2**23
"""Numbers of the features of a layer that are read at once."""

FEW = 512
"""Up to this number of samples, the entries of Gram matrices are kept in float64.

A kernel takes its median bandwidth from at most this number of evenly spaced samples."""

WIDE = 128
"""Up to this number of samples, linear Gram matrices are computed in float64: reading the features takes longer."""


class Features(Protocol):
    """Features (n, d) of one layer that can be read in parts: an array, or blocks in memory and in a file."""

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of samples and of columns."""

    def columns(self, start: int, stop: int) -> Array:
        """Some columns of all samples, (n, stop - start)."""

    def rows(self, start: int, stop: int, step: int = 1) -> Array:
        """All columns of some samples, (samples, d)."""


@dataclass(frozen=True)
class ArrayFeatures:
    """``Features`` of an array (n, d)."""

    array: Array

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of samples and of columns."""
        return self.array.shape

    def columns(self, start: int, stop: int) -> Array:
        """Some columns of all samples."""
        return self.array[:, start:stop]

    def rows(self, start: int, stop: int, step: int = 1) -> Array:
        """All columns of some samples."""
        return self.array[start:stop:step, :]


@dataclass(frozen=True)
class WholeGram:
    """The Gram matrix of one layer over all samples.

    Attributes
    ----------
    gram : array (n, n) of float64
        Up to terms that centring removes.
    rounding : float
        Relative rounding error of its entries.
    constant : bool
        Whether all samples are equal.
    defined : bool
        Whether the kernel has a Gram matrix: half of all pairs of samples or more may be equal, so that there is no
        median bandwidth.
    """

    gram: Array
    rounding: float
    constant: bool
    defined: bool = True

    def __add__(self, other: WholeGram) -> WholeGram:
        """The Gram matrix of the columns of both, for the linear kernel."""
        return WholeGram(
            self.gram + other.gram, max(self.rounding, other.rounding), self.constant and other.constant, self.defined
        )


def part_bytes(samples: int, width: int, kernel: Kernel) -> int:
    """Bytes that ``whole_gram`` needs beside the features and the Gram matrix."""
    if isinstance(kernel, Linear):
        return 24 * min(max(PART, samples), samples * width)
    return 40 * min(max(PART, width), samples * width) + 24 * min(samples, FEW) * width


def whole_gram(features: Features, kernel: Kernel) -> WholeGram:
    """The Gram matrix of all samples of a layer.

    Parameters
    ----------
    features : Features
        Of one layer, in float32 or float64. They are read once; for a median bandwidth some samples are read before.
    kernel : Kernel
        For the linear kernel each part of the columns is centred as it needs (``layer_gram``). Other kernels are
        computed in float64.

    Returns
    -------
    WholeGram
        Of zeros if all samples are equal, or the kernel has no median bandwidth.

    Examples
    --------
    >>> import numpy as np
    >>> found = whole_gram(ArrayFeatures(np.array([[5.0], [7.0]])), Linear())
    >>> found.gram.tolist(), found.constant  # of the differences from one sample; centring gives [[1, -1], [-1, 1]]
    ([[4.0, 0.0], [0.0, 0.0]], False)
    """
    return _linear(features) if isinstance(kernel, Linear) else _of_kernel(features, kernel)


def _linear(features: Features) -> WholeGram:
    n, width = features.shape
    step = max(1, (PART // 4 if n <= WIDE else PART) // n)
    total: Array = None
    rounding, constant = 0.0, True
    for start in range(0, width, step):
        x = features.columns(start, min(start + step, width))
        xp = array_namespace(x)
        constant = constant and not bool(xp.any(x != x[:1, :]))
        if n <= WIDE:
            gram, eps = wide_gram(x), float(xp.finfo(xp.float64).eps)
        else:
            part = layer_gram(x)
            gram, eps = xp.astype(part.gram, xp.float64), float(xp.finfo(part.gram.dtype).eps)
            gram *= part.factor
        rounding = max(rounding, eps)
        total = gram if total is None else total + gram
    return WholeGram(total, rounding, constant)


def _of_kernel(features: Features, kernel: Kernel) -> WholeGram:
    """Tile by tile, because a kernel needs all columns of its samples."""
    n, width = features.shape
    step = max(1, PART // width)
    first = features.rows(0, min(step, n))
    xp = array_namespace(first)
    gram = xp.zeros((n, n), dtype=xp.float64, device=device(first))
    rounding = float(xp.finfo(xp.float64).eps)
    spans = [(start, min(start + step, n)) for start in range(0, n, step)]
    if not any(bool(xp.any(features.rows(*span) != first[:1, :])) for span in spans):
        return WholeGram(gram, rounding, constant=True)
    fixed = getattr(kernel, "fixed", None)
    if fixed is not None:
        try:
            kernel = fixed(xp.astype(features.rows(0, n, -(-n // FEW)), xp.float64))
        except ValueError:  # no median distance
            return WholeGram(gram, rounding, constant=False, defined=False)
    for i, rows in enumerate(spans):
        x = xp.astype(features.rows(*rows), xp.float64)
        gram[slice(*rows), slice(*rows)] = kernel(x)
        for columns in spans[i + 1 :]:
            tile = kernel(x, xp.astype(features.rows(*columns), xp.float64))
            gram[slice(*rows), slice(*columns)] = tile
            gram[slice(*columns), slice(*rows)] = xp.matrix_transpose(tile)
    return WholeGram(gram, rounding, constant=False)
