"""Sums over samples that give the HSIC of pairs of layers; their size does not grow with the samples (linear kernel).

For each sample, u is its joined features minus a fixed shift, and a_l = |u_l|^2 is the squared norm of layer l. With
w = [1, a_1 .. a_L], the sums of w w', w u', and of u u' for the pairs of layers to compare, give HSIC_0 and HSIC_1
exactly. Another shift changes u to u + d and a_l to a_l + 2 d_l.u_l + |d_l|^2, so the new sums follow from the old
ones: accumulators that started with different shifts can merge, and at the end the shift becomes the mean.

float32 features of many columns are multiplied in float32 and added up in float64. Samples at more than 8 times the
usual distance are multiplied in float64: the closed form subtracts fourth powers of single samples from squares of
sums, and in float32 one sample at 300 standard deviations would cause an error of 1e-3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

from ..validation import Array, namespace
from .moment_layout import Layout, Strip
from .unit_sums import UnitSums

__all__ = ["FAR", "NARROW", "NUMBERS", "ROWS", "MomentSums"]

ROWS = 1024
"""Samples per product: few enough for a small float32 rounding error, enough for cheap float64 additions."""

NUMBERS = 2**24
"""Largest size of the float64 copy of the samples of one product; wide layers take fewer samples at a time."""

NARROW = 2048
"""Up to this number of columns all products are in float64: they are a small part of the work."""

FAR = 64.0
"""A sample whose squared norm is this many times the usual one is multiplied in float64."""


class MomentSums:
    """Sums for the pairs of layers that a ``Layout`` compares.

    Parameters
    ----------
    layout : Layout
        Widths of the layers and the pairs to compare.
    unit : int
        Number of columns of a unit, for ``UnitSums``; 0 for no units.
    kept : int
        Number of samples to keep, drawn at random from all, for the standard error.
    seed : int
        Seed of that draw.
    first, stride : int
        Number of the first batch, and what is added to it for the next one. The draw depends on the numbers, so that
        processes that share the batches of a data set draw the samples that one process would.
    """

    def __init__(
        self, layout: Layout, *, unit: int = 0, kept: int = 0, seed: int = 0, first: int = 0, stride: int = 1
    ) -> None:
        self.layout = layout
        self.units = UnitSums(unit) if unit else None
        self.kept = kept
        self.seed = seed
        self.samples = 0
        self.draws, self.stride = first, stride
        self.shift: Array = None
        self.scale: Array = None
        self.ww: Array = None
        self.wu: Array = None
        self.strips: list[Array] = []
        self.rows: Array = None
        self.keys = np.empty(0)
        self.largest: Array = None
        self.farthest: Array = None
        self._taken = 0
        self._pending: list[tuple[Array, bool, np.ndarray]] = []

    def add(self, x: Array, *, single: bool) -> None:
        """Add samples x (n, columns); ``x`` itself is kept until the next flush. ``single`` allows float32 products."""
        self.check_home(x, "This batch")
        keys = np.random.default_rng([self.seed, self.draws]).random(x.shape[0]) if self.kept else np.empty(0)
        self.draws += self.stride
        self._pending.append((x, single, keys))
        self.samples += x.shape[0]
        if sum(x.shape[0] for x, *_ in self._pending) >= self._chunk:
            self.flush()

    @property
    def _some_array(self) -> Array:
        """An array of the samples added so far, or None."""
        return self._pending[0][0] if self._pending else self.shift

    def check_home(self, x: Array, what: str) -> None:
        """Raise TypeError or ValueError unless ``x`` has the library and the device of the samples added before."""
        before = self._some_array
        if before is None:
            return
        namespace(x, before, names=(what.lower(), "those before"))
        if device(x) != device(before):
            raise ValueError(
                f"{what} is on {device(x)}, the samples before are on {device(before)}. Move it to that device first."
            )

    @property
    def _chunk(self) -> int:
        """Number of samples per product."""
        return max(64, min(ROWS, NUMBERS // self.layout.columns))

    def flush(self) -> None:
        """Add the pending samples to the sums. Small batches are collected, so that each product has many samples."""
        if not self._pending:
            return
        arrays, singles, keys = zip(*self._pending, strict=True)
        self._pending = []
        xp = array_namespace(*arrays)
        if len({x.dtype for x in arrays}) > 1:
            arrays = tuple(xp.astype(x, xp.float64) for x in arrays)
        x = arrays[0] if len(arrays) == 1 else xp.concat(list(arrays), axis=0)
        del arrays  # half of the memory
        if self.shift is None:
            self._start(xp, x[: min(self._chunk, x.shape[0]), :])
        if self.kept:
            self._choose(xp, x, np.concatenate(keys))
        for start in range(0, x.shape[0], self._chunk):
            self._take(xp, x[start : min(start + self._chunk, x.shape[0]), :], all(singles))

    def _start(self, xp: ModuleType, x: Array) -> None:
        """Set the shift, and one scale for each layer: a power of two, so that the division is exact."""
        x = xp.astype(x, xp.float64)
        # Subtracting the first sample before the mean is exact for a constant layer.
        self.shift = x[0, :] + xp.mean(x - x[:1, :], axis=0)
        squares = (x - self.shift) ** 2
        norms = self.layout.cut(self.layout.layer_spans, (0, self.layout.columns)).sum_columns(xp, squares)
        widths = xp.asarray([float(w) for w in self.layout.widths], dtype=xp.float64, device=x.device)
        usual = xp.sort(norms, axis=0)[x.shape[0] // 2, :] / widths
        usual = xp.where(usual > 0, usual, xp.mean(norms, axis=0) / widths)
        power = xp.round(xp.log2(xp.where(usual > 0, usual, xp.ones_like(usual))) / 2)
        self.scale = xp.pow(xp.full_like(power, 2.0), power)
        self._zeros(xp, x)

    def _zeros(self, xp: ModuleType, like: Array) -> None:
        parts, columns = len(self.layout.part_spans), self.layout.columns

        def zeros(rows: int, columns: int) -> Array:
            return xp.zeros((rows, columns), dtype=xp.float64, device=like.device)

        self.ww, self.wu = zeros(1 + parts, 1 + parts), zeros(1 + parts, columns)
        self.strips = [zeros(r[1] - r[0], c[1] - c[0]) for r, c in self.layout.strips]

    def _choose(self, xp: ModuleType, x: Array, keys: np.ndarray) -> None:
        """Keep the samples with the smallest random keys among those kept before and ``x``: a draw that can merge."""
        before = len(self.keys)
        every = np.concatenate([self.keys, keys])
        chosen = np.sort(np.argsort(every, kind="stable")[: self.kept])
        self.keys = every[chosen]
        old, new = chosen[chosen < before], chosen[chosen >= before] - before
        if not len(new):
            return
        taken = xp.take(x, xp.asarray(new, device=x.device), axis=0)
        if self.rows is None:
            self.rows = taken
            return
        rows = xp.take(self.rows, xp.asarray(old, device=x.device), axis=0)
        if rows.dtype != taken.dtype:
            rows, taken = xp.astype(rows, xp.float64), xp.astype(taken, xp.float64)
        self.rows = xp.concat([rows, taken], axis=0)

    def keep_some(self, rows: Sequence[Array], keys: Sequence[np.ndarray]) -> None:
        """Keep the samples with the smallest keys among ``rows``, instead of those kept before."""
        self.rows, self.keys = None, np.empty(0)
        for some, own in zip(rows, keys, strict=True):
            self._choose(array_namespace(some), some, own)

    def scaled(self, xp: ModuleType, x: Array) -> Array:
        """Samples minus the shift, each layer divided by its scale, in float64."""
        return (xp.astype(x, xp.float64, copy=False) - self.shift) / self.layout.spread(xp, self.scale)

    def _take(self, xp: ModuleType, x: Array, single: bool) -> None:
        """Add the products of samples x (n, columns) to all sums."""
        v = self.scaled(xp, x)
        spans = self.layout.part_spans
        norms = self.layout.cut(spans, (0, v.shape[1])).sum_columns(xp, v * v)
        self._compare_farthest(xp, self.layout.gather_parts(xp, norms))
        w = xp.concat([xp.ones_like(v[:, :1]), norms], axis=1)
        self.ww += xp.matrix_transpose(w) @ w
        self.wu += xp.matrix_transpose(w) @ v
        if self.units is not None:
            self.units.add(v)
        pieces = [v]
        if single and v.shape[1] > NARROW:
            limits = xp.asarray([FAR * (b - a) for a, b in spans], dtype=xp.float64, device=v.device)
            far = xp.any(norms > limits, axis=1)
            count = int(xp.sum(xp.astype(far, xp.int64)))
            if 4 * count < v.shape[0]:
                near = xp.astype(v, xp.float32)
                pieces = [xp.where(far[:, None], xp.zeros_like(near), near) if count else near]
                if count:
                    pieces.append(xp.take(v, xp.nonzero(far)[0], axis=0))
        for i, (rows, columns) in enumerate(self.layout.strips):
            for u in pieces:
                self.strips[i] += xp.matrix_transpose(u[:, slice(*rows)]) @ u[:, slice(*columns)]

    def _compare_farthest(self, xp: ModuleType, squares: Array) -> None:
        """Keep the largest squared distance (layers,) from the shift, and its sample. They are not merged."""
        largest, place = xp.max(squares, axis=0), xp.argmax(squares, axis=0) + self._taken
        self._taken += squares.shape[0]
        if self.largest is not None:
            farther = largest > self.largest
            largest = xp.where(farther, largest, self.largest)
            place = xp.where(farther, place, self.farthest)
        self.largest, self.farthest = largest, place

    def merge(self, other: MomentSums) -> None:
        """Add the samples of ``other``: same layout, library and device; its shift and scale may differ."""
        if other._some_array is not None:
            self.check_home(other._some_array, "The other side")
        self.flush()
        other.flush()
        if other.shift is None:
            return
        xp = array_namespace(other.shift)
        if self.shift is None:
            vars(self).update(vars(MomentSums.from_state({**other.state_dict(), "kept": self.kept, "seed": self.seed})))
            return
        spread = self.layout.spread
        delta = (other.shift - self.shift) / spread(xp, self.scale)
        factor = other.scale / self.scale

        def receive(index: int, products: Array) -> None:
            self.strips[index] += products

        ww, wu = other.moved(factor, delta, receive)
        self.ww, self.wu = self.ww + ww, self.wu + wu
        if self.units is not None and other.units is not None:
            moved = other.units.moved(spread(xp, factor), delta)
            self.units.add_products(moved.products)
        if self.kept and other.rows is not None:
            self._choose(xp, other.rows, other.keys)
        self.samples += other.samples
        self.draws += other.draws

    def rebase(self, shift: Array, scale: Array) -> None:
        """Express the sums by another shift (columns,) and scale (layers,), in place; without samples they become 0."""
        self.flush()
        xp = array_namespace(shift)
        if self.shift is None:
            self.shift, self.scale = _copy(shift), _copy(scale)
            self._zeros(xp, shift)
            return
        delta = (self.shift - shift) / self.layout.spread(xp, scale)
        factor = self.scale / scale

        def receive(index: int, products: Array) -> None:
            self.strips[index] = products

        self.ww, self.wu = self.moved(factor, delta, receive)
        if self.units is not None:
            self.units = self.units.moved(self.layout.spread(xp, factor), delta)
        if self.largest is not None:
            self.largest = self.largest * factor * factor
        self.shift, self.scale = _copy(shift), _copy(scale)

    def moved(self, factor: Array | None, delta: Array, receive: Callable[[int, Array], None]) -> tuple[Array, Array]:
        """Sums of w w' and w u' for factor * u + delta; ``receive`` is called with each index and strip of u u'.

        Only the entries of pairs of layers that the layout compares are right.
        """
        xp = array_namespace(delta)
        layout, ww, wu = self.layout, self.ww, self.wu
        columns_factor = None
        if factor is not None:
            columns_factor = layout.spread(xp, factor)
            norms_factor = xp.concat([xp.ones_like(factor[:1]), layout.spread_to_parts(xp, factor) ** 2], axis=0)
            ww = ww * norms_factor[:, None] * norms_factor[None, :]
            wu = wu * norms_factor[:, None] * columns_factor[None, :]
        n, s = ww[0, 0], wu[0, :]
        parts = len(layout.part_spans)
        mixed = xp.zeros((parts, layout.columns), dtype=xp.float64, device=delta.device)  # d_l.u_l u'
        for i, strip in enumerate(layout.strips):
            r, c = slice(*strip.rows), slice(*strip.columns)
            products = self.strips[i]
            if columns_factor is not None:
                products = products * columns_factor[r, None] * columns_factor[None, c]
            self._mix(xp, mixed, strip, products, delta)
            receive(i, products + s[r, None] * delta[None, c] + delta[r, None] * (s[c] + n * delta[c])[None, :])
        every = layout.cut(layout.part_spans, (0, layout.columns))
        squared, shifted = (every.sum_columns(xp, (d * delta)[None, :])[0, :, None] for d in (delta, s))
        a = ww[0, 1:, None]
        new_a = a + 2 * shifted + n * squared
        new_wu = wu[1:, :] + 2 * mixed + squared * s[None, :] + new_a * delta[None, :]
        half = 2 * every.sum_columns(xp, (wu[1:, :] + mixed) * delta[None, :])
        half = half + squared * xp.matrix_transpose(a + 2 * shifted)
        new_ww = ww[1:, 1:] + half + xp.matrix_transpose(half) + n * squared * xp.matrix_transpose(squared)
        first = xp.concat([ww[:1, :1], xp.matrix_transpose(new_a)], axis=1)
        rest = xp.concat([new_a, new_ww], axis=1)
        return xp.concat([first, rest], axis=0), xp.concat([(s + n * delta)[None, :], new_wu], axis=0)

    def _mix(self, xp: ModuleType, mixed: Array, strip: Strip, products: Array, delta: Array) -> None:
        """Add the part of a strip of u u', and of its transpose, to the sums of (d_l.u_l) u'."""
        spans, (r, c) = self.layout.part_spans, strip
        weights = strip.weights(xp, delta)
        cut, d = self.layout.cut(spans, r), delta[slice(*r)]
        mixed[cut.first : cut.last, slice(*c)] += weights * xp.stack(
            [d[k] @ products[k, :] for k in cut.slices], axis=0
        )
        cut, d = self.layout.cut(spans, c), delta[slice(*c)] * weights
        mixed[cut.first : cut.last, slice(*r)] += xp.stack([products[:, k] @ d[k] for k in cut.slices], axis=0)

    def state_dict(self, *, live: bool = False) -> dict[str, Any]:
        """State from which another process can continue.

        ``live`` gives the arrays themselves, and the samples that wait for the next product: to be written at once, so
        that what continues from the file has the same bits.
        """
        taken = _same if live else _copy
        if not live:
            self.flush()
        return {
            "widths": list(self.layout.widths),
            "split": self.layout.split,
            "parts": self.layout.parts,
            "unit": 0 if self.units is None else self.units.size,
            "kept": self.kept,
            "seed": self.seed,
            "samples": self.samples,
            "draws": self.draws,
            "stride": self.stride,
            **{name: taken(getattr(self, name)) for name in ARRAYS},
            "strips": [taken(products) for products in self.strips],
            "units": None if self.units is None else taken(self.units.products),
            "keys": self.keys.tolist(),
            "taken": self._taken,
            "pending": [(taken(x), single, keys.tolist()) for x, single, keys in self._pending],
        }

    @classmethod
    def from_state(cls, state: dict[str, Any], *, live: bool = False) -> MomentSums:
        """Make sums from a ``state_dict()``; with ``live`` its arrays become theirs."""
        taken = _same if live else _copy
        layout = Layout(tuple(state["widths"]), state["split"], state["parts"])
        sums = cls(layout, unit=state["unit"], kept=state["kept"], seed=state["seed"], stride=state.get("stride", 1))
        sums.samples, sums.draws, sums._taken = state["samples"], state["draws"], state.get("taken", 0)
        for name in ARRAYS:
            setattr(sums, name, taken(state.get(name)))
        sums.strips = [taken(products) for products in state["strips"]]
        sums.keys = np.asarray(state["keys"], dtype=np.float64)
        sums._pending = [(taken(x), single, np.asarray(keys)) for x, single, keys in state.get("pending", ())]
        if sums.units is not None:
            sums.units.products = taken(state["units"])
        return sums


ARRAYS = ("shift", "scale", "ww", "wu", "rows", "largest", "farthest")
"""Attributes that are arrays or None."""


def _same(array: Array) -> Array:
    return array


def _copy(array: Array) -> Array:
    """Copy, because sums are updated in place."""
    return None if array is None else array_namespace(array).asarray(array, copy=True)
