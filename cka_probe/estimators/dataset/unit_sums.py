"""Sums for the HSIC_1 of many units at once. A unit is a random projection, or the cosine and sine of a frequency."""

from __future__ import annotations

from types import ModuleType

from array_api_compat import array_namespace

from ..closed_form import unbiased_inner
from ..validation import Array

__all__ = ["UnitSums"]


class UnitSums:
    """Sums over samples of z z' for each unit u of ``size`` columns, with z = [1, |u|^2, u].

    Parameters
    ----------
    size : int
        Number of columns of a unit.
    products : array (units, 2 + size, 2 + size), optional
        Sums to start from.
    """

    def __init__(self, size: int, products: Array | None = None) -> None:
        self.size = size
        self.products = products

    def add(self, v: Array) -> None:
        """Add samples v (n, units * size) of float64."""
        xp = array_namespace(v)
        u = xp.reshape(v, (v.shape[0], -1, self.size))
        columns = [xp.sum(u * u, axis=2), *(u[:, :, k] for k in range(self.size))]
        sums = [xp.sum(c, axis=0) for c in columns]
        count = xp.full_like(sums[0], float(v.shape[0]))
        rows = [xp.stack([count, *sums], axis=1)]
        for one, total in zip(columns, sums, strict=True):
            # One column at a time: the products of all units at once would not fit into memory.
            rows.append(xp.stack([total, *(xp.sum(one * other, axis=0) for other in columns)], axis=1))
        self.add_products(xp.stack(rows, axis=1))

    def add_products(self, products: Array) -> None:
        """Add sums of other samples (units, 2 + size, 2 + size)."""
        self.products = products if self.products is None else self.products + products

    def moved(self, factor: Array | None, delta: Array) -> UnitSums:
        """Sums of factor * u + delta instead of u; both arguments have shape (units * size,)."""
        assert self.products is not None
        xp = array_namespace(delta)
        products = self.products
        d = xp.reshape(delta, (-1, self.size))
        if factor is not None:
            f = xp.reshape(factor, (-1, self.size))
            row = xp.concat([xp.ones_like(f[:, :1]), f[:, :1] ** 2, f], axis=1)
            products = products * row[:, :, None] * row[:, None, :]
        change = _change(xp, d)
        return UnitSums(self.size, change @ products @ xp.matrix_transpose(change))

    def centred(self) -> UnitSums:
        """Sums about the mean of each unit."""
        assert self.products is not None
        xp = array_namespace(self.products)
        mean = self.products[:, 0, 2:] / self.products[:, :1, 0]
        return self.moved(None, xp.reshape(-mean, (-1,)))

    def inner(self) -> Array:
        """Inner product <A, A> of each unit (units,), from centred sums."""
        assert self.products is not None
        xp, s = array_namespace(self.products), self.products
        covariance = s[:, 2:, 2:]
        cross = xp.sum(covariance * covariance, axis=(1, 2))
        return unbiased_inner(cross, s[:, 1, 1], s[:, 0, 1], s[:, 0, 1], round(float(s[0, 0, 0])))


def _change(xp: ModuleType, d: Array) -> Array:
    """Matrices (units, 2 + size, 2 + size) that turn z of u into z of u + d; |u + d|^2 = |u|^2 + 2 d.u + |d|^2."""
    units, size = d.shape
    one, zero = xp.ones_like(d[:, :1]), xp.zeros_like(d[:, :1])
    eye = xp.broadcast_to(xp.eye(size, dtype=d.dtype, device=d.device), (units, size, size))
    rows = [
        xp.concat([one, zero, xp.zeros_like(d)], axis=1)[:, None, :],
        xp.concat([xp.sum(d * d, axis=1, keepdims=True), one, 2 * d], axis=1)[:, None, :],
        xp.concat([d[:, :, None], xp.zeros_like(d)[:, :, None], eye], axis=2),
    ]
    return xp.concat(rows, axis=1)
