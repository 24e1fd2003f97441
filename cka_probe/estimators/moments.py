"""Exact CKA of a whole data set in one pass, from sums that merge (linear kernel).

Each sample of a layer is z = [1, |u|^2, u], where u is the sample minus a fixed shift. The products G = sum z z' hold
every statistic that the biased and the unbiased HSIC of all pairs of layers need, whatever the number of samples.
Another shift is a linear map of z, so accumulators that started from different samples merge exactly.

Sums are in float64: the closed form takes the fourth powers of single samples away from squares of sums, and one sample
that lies 300 standard deviations out would cost 1e-3 in float32.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from array_api_compat import array_namespace

from .alignment import ratio
from .hsic import normalizer
from .validation import Array, check_estimator, check_layer_features, namespace


@dataclass(frozen=True)
class Layout:
    """Where the layers stand in the columns of z: the constant, one squared norm a layer, then all features."""

    widths: tuple[int, ...]

    @property
    def layers(self) -> int:
        """Number of layers."""
        return len(self.widths)

    @property
    def columns(self) -> int:
        """Number of columns of z."""
        return 1 + self.layers + sum(self.widths)

    def segments(self, xp: ModuleType, like: Array) -> Array:
        """Indicator (layers, sum of widths) of each layer's features."""
        ends = list(itertools.accumulate(self.widths))
        at = xp.arange(sum(self.widths), device=like.device)[None, :]
        stop = xp.asarray(ends, device=like.device)[:, None]
        start = xp.asarray([0, *ends[:-1]], device=like.device)[:, None]
        return xp.astype((at >= start) & (at < stop), like.dtype)

    def split(self, vector: Array) -> list[Array]:
        """The features' part (..., sum of widths) of each layer."""
        ends = list(itertools.accumulate(self.widths))
        return [vector[..., end - width : end] for end, width in zip(ends, self.widths, strict=True)]


def samples_of(xp: ModuleType, xs: Sequence[Array], shifts: Sequence[Array]) -> Array:
    """The rows z of all samples (n, columns) in float64."""
    shifted = [xp.astype(x, xp.float64) - shift for x, shift in zip(xs, shifts, strict=True)]
    norms = [xp.sum(u * u, axis=1, keepdims=True) for u in shifted]
    return xp.concat([xp.ones_like(norms[0]), *norms, *shifted], axis=1)


def centring_map(xp: ModuleType, products: Array, layout: Layout) -> tuple[Array, Array]:
    """The mean of the shifted features, and the map (layers, columns) from z to squared norms about that mean."""
    n = products[0, 0]
    mean = products[0, 1 + layout.layers :] / n
    segments = layout.segments(xp, products)
    squared = segments @ (mean * mean)
    eye = xp.eye(layout.layers, dtype=products.dtype, device=products.device)
    return mean, xp.concat([squared[:, None], eye, -2 * segments * mean[None, :]], axis=1)


@dataclass(frozen=True)
class PairTerms:
    """What the HSIC of all pairs of layers is made of, about the means: ||C||^2, sum a_i b_i, sum a_i and sum b_i."""

    cross: Array
    norms: Array
    total_x: Array
    total_y: Array

    def hsic(self, n: int, estimator: str) -> Array:
        """HSIC (layers_x, layers_y) by the closed form of MATH 1."""
        if estimator == "biased":
            return self.cross / normalizer(n, estimator)
        totals = self.total_x[:, None] * self.total_y[None, :]
        value = self.cross - n / (n - 2) * self.norms + totals / ((n - 1) * (n - 2))
        return value / normalizer(n, estimator)


def pair_terms(
    xp: ModuleType,
    products: Array,
    left: Layout,
    right: Layout,
    side_x: tuple[Array, Array],
    side_y: tuple[Array, Array],
) -> PairTerms:
    """The terms of all pairs from the products G (columns_x, columns_y) and ``centring_map`` of both sides."""
    (mean_x, map_x), (mean_y, map_y) = side_x, side_y
    n = products[0, 0]
    covariance = products[1 + left.layers :, 1 + right.layers :] - n * mean_x[:, None] * mean_y[None, :]
    squares = covariance * covariance
    cross = left.segments(xp, products) @ squares @ xp.matrix_transpose(right.segments(xp, products))
    norms = map_x @ products @ xp.matrix_transpose(map_y)
    return PairTerms(cross, norms, map_x @ products[:, 0], map_y @ products[0, :])


class MomentCKA:
    """Exact CKA of all pairs of layers over a whole data set, one batch at a time, with the linear kernel.

    Memory is the square of the total width and does not grow with the samples.

    Parameters
    ----------
    groups : int
        Batches are dealt in turn to that many accumulators. From 2 on there is a ``standard_error`` (a jackknife over
        groups), at ``groups`` times the memory.

    Raises
    ------
    ValueError
        If ``groups`` is not at least 1.

    References
    ----------
    MATH 2; Song et al., Feature Selection via Dependence Maximization, JMLR 2012, equation 5.

    Examples
    --------
    >>> import numpy as np
    >>> from cka_probe.estimators import cka
    >>> x, y = np.random.default_rng(0).normal(size=(2, 60, 5))
    >>> statistics = MomentCKA()
    >>> for start in range(0, 60, 20):
    ...     statistics.update([x[start : start + 20]], [y[start : start + 20]])
    >>> bool(abs(statistics.compute()[0, 0] - cka(x, y)) < 1e-12)
    True
    """

    def __init__(self, *, groups: int = 1) -> None:
        if groups < 1:
            raise ValueError(f"`groups` must be at least 1, got {groups}.")
        self.groups = groups
        self.samples = 0
        self.batches = 0
        self.square = True
        self.left: Layout | None = None
        self.right: Layout | None = None
        self.shifts_x: list[Array] = []
        self.shifts_y: list[Array] = []
        self._sums: list[dict[str, Any]] = []

    def update(self, xs: Sequence[Array], ys: Sequence[Array] | None = None) -> None:
        """Add one batch of any size.

        Parameters
        ----------
        xs : sequence of arrays (n, p_i)
            Features of the layers of one network.
        ys : sequence of arrays (n, q_j), optional
            Features of the other; left out, every pair of ``xs``.

        Raises
        ------
        TypeError, ValueError
            For bad features, named by their place; for other layers or widths than before.
        """
        xs = check_layer_features(xs, "xs", minimum=1)
        xp = namespace(xs[0], names=("xs[0]",))
        ys = None if ys is None else check_layer_features(ys, "ys", minimum=1)
        if ys is not None:
            xp = namespace(xs[0], ys[0], names=("xs[0]", "ys[0]"))
            if ys[0].shape[0] != xs[0].shape[0]:
                raise ValueError(
                    f"`xs` hold {xs[0].shape[0]} samples and `ys` {ys[0].shape[0]}: they must be the same."
                )
        self._fit_layout(xp, xs, ys)
        assert self.left is not None
        z_x = samples_of(xp, xs, self.shifts_x)
        sums: dict[str, Any]
        if ys is None:
            sums = {"cross": xp.matrix_transpose(z_x) @ z_x}
        else:
            z_y = samples_of(xp, ys, self.shifts_y)
            sums = {
                "cross": xp.matrix_transpose(z_x) @ z_y,
                "self_x": _self_products(xp, z_x, self.left),
                "self_y": _self_products(xp, z_y, self.right),
            }
        self._add(self.batches % self.groups, sums)
        self.samples += xs[0].shape[0]
        self.batches += 1

    def _fit_layout(self, xp: ModuleType, xs: Sequence[Array], ys: Sequence[Array] | None) -> None:
        left = Layout(tuple(x.shape[1] for x in xs))
        right = left if ys is None else Layout(tuple(y.shape[1] for y in ys))
        if self.left is None:
            self.square, self.left, self.right = ys is None, left, right
            self.shifts_x = [_shift(xp, x) for x in xs]
            self.shifts_y = self.shifts_x if ys is None else [_shift(xp, y) for y in ys]
        elif (self.square, self.left, self.right) != (ys is None, left, right):
            before = () if self.right is None else self.right.widths
            raise ValueError(
                f"This batch has layers of widths {left.widths} and {right.widths}, those before had "
                f"{self.left.widths} and {before}. Every batch must bring the same layers."
            )

    def _add(self, group: int, sums: dict[str, Any]) -> None:
        while len(self._sums) <= group:
            self._sums.append({})
        self._sums[group] = _plus(self._sums[group], sums)

    def merge(self, other: MomentCKA) -> None:
        """Add the samples that ``other`` has seen, whatever its shift.

        Raises
        ------
        ValueError
            If the two hold other layers or another number of groups.
        """
        if other.left is None:
            return
        if self.left is None:
            self.square, self.left, self.right = other.square, other.left, other.right
            self.shifts_x, self.shifts_y = other.shifts_x, other.shifts_y
        same = (self.square, self.left, self.right, self.groups)
        if same != (other.square, other.left, other.right, other.groups):
            raise ValueError("Cannot merge statistics of other layers, widths or numbers of groups.")
        xp = array_namespace(*self.shifts_x)
        maps_x = _change_of_shift(xp, self.left, other.shifts_x, self.shifts_x)
        maps_y = maps_x if self.square else _change_of_shift(xp, self.right, other.shifts_y, self.shifts_y)
        for group, sums in enumerate(other._sums):
            moved: dict[str, Any] = {"cross": maps_x[0] @ sums["cross"] @ xp.matrix_transpose(maps_y[0])}
            if not self.square:
                for key, maps in (("self_x", maps_x), ("self_y", maps_y)):
                    moved[key] = [t @ g @ xp.matrix_transpose(t) for t, g in zip(maps[1], sums[key], strict=True)]
            self._add(group, moved)
        self.samples += other.samples
        self.batches += other.batches

    def compute(self, estimator: str = "unbiased") -> Array:
        """CKA of all pairs over all samples so far.

        Parameters
        ----------
        estimator : "unbiased" or "biased"
            The ratio of HSIC_1 or of HSIC_0.

        Returns
        -------
        array (layers_x, layers_y) of float64
            At most 1; NaN in the rows and columns of constant layers.

        Raises
        ------
        ValueError
            If fewer samples were added than the estimator needs.
        """
        return self._cka(self._total(range(len(self._sums))), estimator)

    def hsic(self, estimator: str = "unbiased") -> Array:
        """HSIC (layers_x, layers_y) of all pairs over all samples so far; errors as ``compute``."""
        return self._terms(self._total(range(len(self._sums))), estimator)[0]

    def standard_error(self, estimator: str = "unbiased") -> Array | None:
        """Standard error of ``compute()`` by leaving out one group at a time; None with a single group.

        Use it with Student's t of ``groups - 1`` degrees of freedom. Groups must hold equal numbers of samples, as they
        do to within a batch.
        """
        used = len(self._sums)
        if used < 2:
            return None
        values = [self._cka(self._total([g for g in range(used) if g != left]), estimator) for left in range(used)]
        xp = array_namespace(*values)
        stack = xp.stack(values, axis=0)
        deviation = stack - xp.mean(stack, axis=0, keepdims=True)
        return xp.sqrt((used - 1) / used * xp.sum(deviation * deviation, axis=0))

    def _total(self, groups: Sequence[int] | range) -> dict[str, Any]:
        total: dict[str, Any] = {}
        for group in groups:
            total = _plus(total, self._sums[group])
        return total

    def _terms(self, total: dict[str, Any], estimator: str) -> tuple[Array, Array, Array, Array, Array]:
        minimum = check_estimator(estimator)
        if not total:
            raise ValueError("No batch has been added yet.")
        assert self.left is not None
        assert self.right is not None
        products = total["cross"]
        xp = array_namespace(products)
        n = round(float(products[0, 0]))
        if n < minimum:
            raise ValueError(f"The {estimator} estimator needs {minimum} samples, got {n}.")
        side_x = centring_map(xp, xp.concat([products[:1, :1], products[1:, :1]], axis=0).T, self.left)
        side_y = centring_map(xp, products[:1, :], self.right)
        terms = pair_terms(xp, products, self.left, self.right, side_x, side_y)
        cross = terms.hsic(n, estimator)
        if self.square:
            self_x = self_y = xp.linalg.diagonal(cross)
        else:
            self_x = _self_hsic(xp, total["self_x"], self.left, n, estimator)
            self_y = _self_hsic(xp, total["self_y"], self.right, n, estimator)
        # A self term below the rounding of its own parts is that of a constant layer.
        eps = 64 * float(xp.finfo(xp.float64).eps) / normalizer(n, estimator)
        return cross, self_x, self_y, eps * terms.total_x**2, eps * terms.total_y**2

    def _cka(self, total: dict[str, Any], estimator: str) -> Array:
        cross, self_x, self_y, floor_x, floor_y = self._terms(total, estimator)
        xp = array_namespace(cross)
        return ratio(xp, cross, self_x[:, None], self_y[None, :], floor_x[:, None], floor_y[None, :])

    def state_dict(self) -> dict[str, Any]:
        """Everything that a later process needs to go on."""
        return {
            "groups": self.groups,
            "samples": self.samples,
            "batches": self.batches,
            "square": self.square,
            "widths_x": None if self.left is None else self.left.widths,
            "widths_y": None if self.right is None else self.right.widths,
            "shifts_x": list(self.shifts_x),
            "shifts_y": list(self.shifts_y),
            "sums": [dict(group) for group in self._sums],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state_dict()``.

        Raises
        ------
        ValueError
            If the number of groups differs.
        """
        if state["groups"] != self.groups:
            raise ValueError(f"The saved state has {state['groups']} groups, this accumulator {self.groups}.")
        self.samples, self.batches, self.square = state["samples"], state["batches"], state["square"]
        self.left = None if state["widths_x"] is None else Layout(tuple(state["widths_x"]))
        self.right = None if state["widths_y"] is None else Layout(tuple(state["widths_y"]))
        self.shifts_x, self.shifts_y = list(state["shifts_x"]), list(state["shifts_y"])
        self._sums = [dict(group) for group in state["sums"]]


def _shift(xp: ModuleType, x: Array) -> Array:
    """The mean of the first batch, exact for a constant layer (by way of the first sample)."""
    x = xp.astype(x, xp.float64)
    return x[0, :] + xp.mean(x - x[:1, :], axis=0)


def _plus(total: dict[str, Any], sums: dict[str, Any]) -> dict[str, Any]:
    if not total:
        return dict(sums)
    return {
        key: [a + b for a, b in zip(value, sums[key], strict=True)] if isinstance(value, list) else value + sums[key]
        for key, value in total.items()
    }


def _one_layer(z: Array, layout: Layout, index: int, start: int) -> Any:
    """The columns of z that belong to one layer."""
    xp = array_namespace(z)
    offset = 1 + layout.layers + start
    return xp.concat([z[:, :1], z[:, 1 + index : 2 + index], z[:, offset : offset + layout.widths[index]]], axis=1)


def _self_products(xp: ModuleType, z: Array, layout: Layout | None) -> list[Array]:
    assert layout is not None
    starts = [0, *itertools.accumulate(layout.widths)]
    own = [_one_layer(z, layout, i, starts[i]) for i in range(layout.layers)]
    return [xp.matrix_transpose(zi) @ zi for zi in own]


def _self_hsic(xp: ModuleType, products: list[Array], layout: Layout, n: int, estimator: str) -> Array:
    values = []
    for own, width in zip(products, layout.widths, strict=True):
        single = Layout((width,))
        side = centring_map(xp, own[:1, :], single)
        values.append(pair_terms(xp, own, single, single, side, side).hsic(n, estimator)[0, 0])
    return xp.stack(values, axis=0)


def _change_of_shift(
    xp: ModuleType, layout: Layout | None, old: Sequence[Array], new: Sequence[Array]
) -> tuple[Array, list[Array]]:
    """The map of z from one shift to another, for all layers together and for each alone."""
    assert layout is not None
    deltas = [a - b for a, b in zip(old, new, strict=True)]
    delta = xp.concat(deltas, axis=0)
    segments = layout.segments(xp, delta)
    whole = _map_of(xp, layout, delta, segments)
    return whole, [
        _map_of(xp, (one := Layout((width,))), d, one.segments(xp, d))
        for d, width in zip(deltas, layout.widths, strict=True)
    ]


def _map_of(xp: ModuleType, layout: Layout, delta: Array, segments: Array) -> Array:
    def zeros(rows: int, columns: int) -> Array:
        return xp.zeros((rows, columns), dtype=delta.dtype, device=delta.device)

    def eye(size: int) -> Array:
        return xp.eye(size, dtype=delta.dtype, device=delta.device)

    count, width = layout.layers, sum(layout.widths)
    constant = xp.concat([eye(1), zeros(1, count + width)], axis=1)
    norms = xp.concat([(segments @ (delta * delta))[:, None], eye(count), 2 * segments * delta[None, :]], axis=1)
    features = xp.concat([delta[:, None], zeros(width, count), eye(width)], axis=1)
    return xp.concat([constant, norms, features], axis=0)
