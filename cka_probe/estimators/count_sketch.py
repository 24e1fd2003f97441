"""Count sketches of long vectors: a few thousand numbers that keep the inner products of all of them, without bias."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

__all__ = ["RowSketch", "cosine_error", "folded", "inner_product_variance"]

# Larger than any file of signatures needs; 64 numbers give errors of 0.12 already.
SMALLEST, LARGEST = 64, 2**22


class RowSketch:
    """Sketch of the rows of a matrix that arrives in blocks of columns, each divided by its norm at the end.

    Each number of a row is multiplied by a random sign and added to one of ``size`` bins, chosen at random. Signs and
    bins follow from ``seed``, the number of the block and the place in it alone, on every machine. So rows that were
    sketched in different places can be compared, if their blocks agree.

    Parameters
    ----------
    size : int
        Numbers of a sketch, from 64 to 4,194,304.
    seed : int
        At least 0.

    Raises
    ------
    TypeError
        If ``size`` or ``seed`` is no integer.
    ValueError
        If ``size`` or ``seed`` is out of range.

    References
    ----------
    Charikar, Chen, Farach-Colton, Finding Frequent Items in Data Streams, ICALP 2002. docs/theory.md, section 3.

    Examples
    --------
    >>> rows = np.random.default_rng(0).normal(size=(2, 20_000))
    >>> sketch = RowSketch(4096, seed=0)
    >>> sketch.add(rows[:, :10_000])
    >>> sketch.add(rows[:, 10_000:])
    >>> sketch.result().shape
    (2, 4096)
    """

    def __init__(self, size: int, seed: int) -> None:
        for name, value in (("size", size), ("seed", seed)):
            if isinstance(value, bool) or not isinstance(value, int | np.integer):
                raise TypeError(f"`{name}` must be an integer, got {value!r}.")
        if not SMALLEST <= size <= LARGEST:
            raise ValueError(f"`size` must lie between {SMALLEST:,} and {LARGEST:,}, got {size:,}.")
        if not 0 <= seed < 2**63:
            raise ValueError(f"`seed` must lie between 0 and 2^63 - 1, got {seed}.")
        self.size, self.seed = int(size), int(seed)
        self.columns = self.blocks = 0
        self._whole: list[NDArray[np.float64]] = []
        self._sketch: NDArray[np.float64] | None = None
        self._squares: NDArray[np.float64] | None = None

    def add(self, rows: NDArray[np.floating]) -> None:
        """Add the next block of columns.

        Parameters
        ----------
        rows : array (layers, columns)
            Finite numbers.

        Raises
        ------
        ValueError
            If the number of rows differs from that of the blocks before.
        """
        self._add(np.asarray(rows, dtype=np.float64))

    def _add(self, rows: NDArray[np.float64]) -> None:
        if self._sketch is None or self._squares is None:
            self._sketch, self._squares = np.zeros((len(rows), self.size)), np.zeros(len(rows))
        if len(rows) != len(self._sketch):
            raise ValueError(f"This block has {len(rows)} rows, those before have {len(self._sketch)}.")
        self._squares = self._squares + np.sum(rows * rows, axis=1)
        self._sketch += self._hashed(rows)
        self.columns += rows.shape[1]
        self.blocks += 1
        if self.columns <= self.size:
            self._whole.append(rows)
        else:
            self._whole.clear()

    def _hashed(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sketch of one block. The random numbers are raw: numpy promises that these stay the same in all versions."""
        count = rows.shape[1]
        raw = np.random.PCG64(np.random.SeedSequence([self.seed, self.blocks])).random_raw(count)
        bins = ((raw >> np.uint64(1)) % np.uint64(self.size)).astype(np.int64)
        signs = 1.0 - 2.0 * (raw & np.uint64(1)).astype(np.float64)
        into = sparse.csr_array((signs, (bins, np.arange(count))), shape=(self.size, count))
        return (into @ rows.T).T

    def result(self) -> NDArray[np.float64]:
        """The sketches of all rows.

        Returns
        -------
        array (layers, m) of float64
            Inner products are, without bias, the cosines between the rows. m is ``size``; if the rows have no more
            columns than that, they are the rows themselves, divided by their norms, and m is the number of columns. A
            row of zeros stays so.

        Raises
        ------
        ValueError
            If nothing was added.
        """
        if self._sketch is None or self._squares is None:
            raise ValueError("Nothing was added to this sketch.")
        rows = np.concatenate(self._whole, axis=1) if self._whole else self._sketch
        norms = np.sqrt(np.where(self._squares > 0, self._squares, 1.0))
        return rows / norms[:, None]


def cosine_error(cosine: NDArray[np.float64] | float, size: int) -> NDArray[np.float64]:
    """Standard error of the cosine between two sketches, ``(1 - cosine^2) / sqrt(size)``: largest at 0, none at 1.

    Parameters
    ----------
    cosine : array or float
        Cosines, from -1 to 1.
    size : int
        Numbers of a sketch.

    Returns
    -------
    array
        To first order in 1 / size, and for vectors of which no single number holds much of the norm; otherwise the
        error is smaller.

    References
    ----------
    docs/theory.md, section 3.

    Examples
    --------
    >>> float(cosine_error(0.0, 4096)), float(cosine_error(1.0, 4096))
    (0.015625, 0.0)
    """
    return np.maximum(1.0 - np.square(np.asarray(cosine, dtype=np.float64)), 0.0) / math.sqrt(size)


def inner_product_variance(x: NDArray[np.floating], y: NDArray[np.floating], size: int) -> float:
    """Variance of the inner product of the sketches of two vectors, over the seeds; exact.

    Parameters
    ----------
    x, y : array (n,)
        The vectors.
    size : int
        Numbers of a sketch.

    Returns
    -------
    float
        ``(|x|^2 |y|^2 + <x, y>^2 - 2 sum x_i^2 y_i^2) / size``.

    References
    ----------
    docs/theory.md, section 3.

    Examples
    --------
    >>> inner_product_variance(np.array([1.0, 0.0]), np.array([0.0, 1.0]), 100)
    0.01
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    return float((x @ x * (y @ y) + (x @ y) ** 2 - 2 * np.sum(x * x * y * y)) / size)


def folded(rows: NDArray[np.floating], size: int) -> NDArray[np.float32]:
    """Smaller sketches of rows, themselves sketches or not: random signs, then entries at equal places modulo ``size``
    are added.

    Parameters
    ----------
    rows : array (layers, m)
        Rows of one length.
    size : int
        At least 1.

    Returns
    -------
    array (layers, size)
        Inner products have those of ``rows`` as their mean, with the variance of a sketch of ``size`` bins.

    Examples
    --------
    >>> folded(np.ones((1, 8)), 8).tolist()
    [[-1.0, -1.0, 1.0, -1.0, -1.0, 1.0, -1.0, -1.0]]
    """
    layers, length = rows.shape
    raw = np.random.PCG64(0).random_raw(length)
    signs = np.where(raw & np.uint64(1), np.float32(-1), np.float32(1))
    padded = np.zeros((layers, -(-length // size) * size), np.float32)
    padded[:, :length] = rows * signs
    return padded.reshape(layers, -1, size).sum(axis=1, dtype=np.float32)
