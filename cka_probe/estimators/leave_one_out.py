"""Leave one sample out of CKA of all pairs of layers: the exact jackknife error, block by block of the samples."""

from __future__ import annotations

from types import ModuleType
from typing import Protocol

from .alignment import ratio
from .closed_form import jackknife_degrees, without_each
from .validation import Array

__all__ = ["CentredRows", "jackknife_pairs", "sample_weights"]

BLOCK = 4_000_000
"""Largest number of values that are held at once while samples are left out of all pairs of layers."""


class CentredRows(Protocol):
    """Centred Gram matrices of the layers of one network, of which some rows can be read at once."""

    @property
    def samples(self) -> int:
        """Number n of samples."""

    @property
    def shares(self) -> Array:
        """Part t_i = sum_j A_ij^2 of each sample in <A, A>, (layers, n), in float64."""

    def block(self, start: int, stop: int) -> Array:
        """Rows ``start`` to ``stop`` of all matrices, (layers, stop - start, n), in float64."""


def sample_weights(xp: ModuleType, shares: Array) -> Array:
    """Shares (..., n) divided by their sum; 0 where that is not positive."""
    total = xp.sum(shares, axis=-1, keepdims=True)
    return shares / xp.where(total > 0, total, xp.ones_like(total))


def jackknife_pairs(
    xp: ModuleType, left: CentredRows, right: CentredRows, cross: Array, estimator: str
) -> tuple[Array, Array]:
    """Exact jackknife error (layers_x, layers_y) of CKA, and its degrees of freedom (``jackknife_degrees``).

    Parameters
    ----------
    xp : module
        Array namespace.
    left, right : CentredRows
        Of the rows and columns; the same object if they are the same layers.
    cross : array (layers_x, layers_y)
        Inner products of all pairs of matrices.
    estimator : "unbiased" or "biased"
        How the matrices were centred.
    """
    n = left.samples
    self_x, self_y = (xp.sum(side.shares, axis=-1) for side in (left, right))
    layers = left.shares.shape[0] + right.shares.shape[0]
    size = max(1, BLOCK // max(layers * n, cross.shape[0] * cross.shape[1]))
    count, mean, squares = 0, xp.zeros_like(cross), xp.zeros_like(cross)
    value = ratio(xp, cross, self_x[:, None], self_y[None, :])
    cubes, fourths = xp.zeros_like(cross), xp.zeros_like(cross)  # about the value, which is near their mean
    for start in range(0, n, size):
        stop = min(start + size, n)
        a = left.block(start, stop)
        b = a if right is left else right.block(start, stop)
        shares = xp.permute_dims(a, (1, 0, 2)) @ xp.permute_dims(b, (1, 2, 0))  # (block, layers_x, layers_y)
        of_x, of_y = (xp.permute_dims(side.shares[:, start:stop], (1, 0)) for side in (left, right))
        diagonals: list[Array | float] = [0.0, 0.0, 0.0]
        if estimator == "biased":
            d_x, d_y = (_block_diagonal(xp, part, start) for part in (a, b))
            diagonals = [d_x[:, :, None] * d_y[:, None, :], d_x * d_x, d_y * d_y]
        without = ratio(
            xp,
            without_each(cross, shares, diagonals[0], n, estimator),
            without_each(self_x, of_x, diagonals[1], n, estimator)[:, :, None],
            without_each(self_y, of_y, diagonals[2], n, estimator)[:, None, :],
        )
        # Update the mean and the sum of squares by this block (Chan, Golub, LeVeque 1979).
        block_mean = xp.mean(without, axis=0)
        new, step = without.shape[0], block_mean - mean
        squares = squares + xp.sum((without - block_mean) ** 2, axis=0) + step * step * (count * new / (count + new))
        mean = mean + step * (new / (count + new))
        count += new
        apart = without - value
        cubes, fourths = cubes + xp.sum(apart**3, axis=0), fourths + xp.sum(apart**4, axis=0)
    shift = mean - value
    fourths = fourths - 4 * shift * cubes + 6 * shift**2 * (squares + n * shift**2) - 3 * n * shift**4
    return xp.sqrt((n - 1) / n * squares), jackknife_degrees(xp, squares, fourths, n)


def _block_diagonal(xp: ModuleType, block: Array, start: int) -> Array:
    """Diagonal entries (rows, layers) of Gram matrices, given only their rows from ``start`` on (layers, rows, n)."""
    rows, n = block.shape[1:]
    eye = xp.eye(rows, n, k=start, dtype=block.dtype, device=block.device)
    return xp.permute_dims(xp.sum(block * eye, axis=-1), (1, 0))
