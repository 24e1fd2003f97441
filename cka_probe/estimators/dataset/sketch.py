"""CKA of a whole data set by random projections, for layers too wide for moments and too many samples to keep.

For two layers with independent projections, HSIC_1 of the projections is unbiased. For a layer with itself it is not,
because each projection is compared with itself. So self terms use pairs of different projections only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from array_api_compat import array_namespace

from ..alignment import ratio
from ..centring import u_center_gram
from ..kernels import RBF, Kernel, Linear, given_kernel
from ..validation import Array, as_numpy
from .centred_sums import CentredSums, centre_sums
from .far_samples import Spread, spread_of
from .moment_layout import Layout
from .moment_sums import MomentSums
from .moments import check_layout, checked_layers, jackknife_error
from .projections import Frequencies, Signs

__all__ = ["GROUPS", "SketchCKA"]

GROUPS = 16
"""Number of groups of projections of each layer. ``projection_error`` leaves out one group at a time."""


class SketchCKA:
    """Unbiased CKA of all pairs of layers over a whole data set by random projections, one batch at a time.

    Memory does not grow with the number of samples. Each feature of a layer takes ``size`` bytes (RBF: 4 ``size``),
    each pair of layers 8 ``size``^2 bytes (RBF: 32 ``size``^2).

    Parameters
    ----------
    size : int
        Number of random projections (RBF: frequencies) of each layer, a multiple of 16. The error of the sketch falls
        with its square root.
    kernel : Linear or RBF, optional
        Linear when left out. A median bandwidth is measured on the first batch and then kept.
    seed : int
        Seed of the projections. Accumulators that will merge need the same seed.

    Attributes
    ----------
    samples, batches : int
        Number of samples and of batches added so far.
    degrees_of_freedom : int
        Degrees of freedom of Student's t for ``projection_error``.

    Raises
    ------
    ValueError
        If ``size`` is not a positive multiple of 16.
    TypeError
        If the kernel has no sketch.

    References
    ----------
    Achlioptas, Database-friendly random projections, JCSS 2003. Rahimi and Recht, Random Features for Large-Scale
    Kernel Machines, NIPS 2007. Chun, Canatar, Chung, Lee, Estimating Neural Representation Alignment from Sparsely
    Sampled Inputs and Features, 2025 (self terms over different features). docs/theory.md, section 2.

    Examples
    --------
    >>> import numpy as np
    >>> from cka_probe.estimators import cka
    >>> rng = np.random.default_rng(0)
    >>> x = rng.normal(size=(200, 5000))
    >>> y = x + rng.normal(size=(200, 5000))
    >>> statistics = SketchCKA(size=512)
    >>> statistics.update([x], [y])
    >>> bool(abs(statistics.compute()[0, 0] - cka(x, y)) < 3 * statistics.projection_error()[0, 0])
    True
    """

    degrees_of_freedom = GROUPS - 1

    def __init__(self, *, size: int = 512, kernel: Kernel | None = None, seed: int = 0) -> None:
        if size < GROUPS or size % GROUPS:
            raise ValueError(f"`size` must be a positive multiple of {GROUPS}, got {size}.")
        self.kernel = given_kernel(kernel)
        if not isinstance(self.kernel, Linear | RBF):
            raise TypeError(f"SketchCKA supports the Linear and the RBF kernel, got {self.kernel!r}.")
        self.size = size
        self.seed = seed
        self.batches = 0
        self.features: Layout | None = None
        self.bandwidths: list[float] = []
        self.sums: MomentSums | None = None
        self._projections: list[Signs | Frequencies] = []
        self._shifts: list[Array] = []

    @property
    def samples(self) -> int:
        """Number of samples added so far."""
        return 0 if self.sums is None else self.sums.samples

    def update(self, xs: Sequence[Array], ys: Sequence[Array] | None = None) -> None:
        """Add one batch of any size. For a median bandwidth the first batch needs at least 2 samples.

        Parameters
        ----------
        xs : sequence of arrays (n, p_i)
            Features of the layers of one network.
        ys : sequence of arrays (n, q_j), optional
            Features of the layers of the other network; when left out, every two layers of ``xs`` are compared.

        Raises
        ------
        TypeError, ValueError
            If features are invalid (the message names the layer by its place), or if the layers, their widths or the
            device differ from those before.
        """
        features = self._begun(xs, ys)
        xp = array_namespace(*features)
        assert self.features is not None
        assert self.sums is not None
        joined = xp.concat([project(x) for project, x in zip(self._projections, features, strict=True)], axis=1)
        self.sums.add(joined, single=all(x.dtype == xp.float32 for x in features))
        self.batches += 1

    def begin(self, xs: Sequence[Array], ys: Sequence[Array] | None = None) -> None:
        """Make the projections by a first batch as ``update``, without adding it. Raises as ``update``."""
        self._begun(xs, ys)

    def _begun(self, xs: Sequence[Array], ys: Sequence[Array] | None) -> list[Array]:
        layout, features = checked_layers(xs, ys)
        if self.features is None:
            self._begin(layout, features)
        assert self.features is not None
        assert self.sums is not None
        check_layout(layout, self.features)
        self.sums.check_home(features[0], "This batch")
        if not self._projections:
            self._projections = [self._projection(i, x) for i, x in enumerate(features)]
        return features

    def _begin(self, layout: Layout, features: Sequence[Array]) -> None:
        unit = 1
        if isinstance(self.kernel, RBF):
            unit = 2
            if features[0].shape[0] < 2 and self.kernel.bandwidth == "median":
                raise ValueError(
                    "A median bandwidth needs at least 2 samples in the first batch, got 1. Pass a number as "
                    "`bandwidth`, or larger batches."
                )
            # NaN if half of all pairs or more are equal, as in a constant layer; CKA of the layer is NaN then.
            self.bandwidths = [_number(self.kernel.width(x)) for x in features]
        self.features = layout
        self.sums = self._new_sums(layout, unit)

    def _new_sums(self, layout: Layout, unit: int) -> MomentSums:
        projected = Layout((unit * self.size,) * len(layout.widths), layout.split, GROUPS)
        return MomentSums(projected, unit=unit)

    def _projection(self, layer: int, x: Array) -> Signs | Frequencies:
        seed = (self.seed, layer)
        shift = self._shifts[layer] if self._shifts else None
        if isinstance(self.kernel, RBF):
            return Frequencies(x, self.size, seed, self.bandwidths[layer], shift)
        return Signs(x, self.size, seed, shift)

    def merge(self, other: SketchCKA) -> None:
        """Add all samples of ``other``, which must have the same projections.

        Raises
        ------
        ValueError
            If the two differ in size, kernel, seed, layers or measured bandwidths, or lie on different devices.
        TypeError
            If their arrays come from different libraries.
        """
        for name in ("size", "kernel", "seed"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                raise ValueError(
                    f"Cannot merge: `{name}` is {mine!r} on one side and {theirs!r} on the other. Use the same on both."
                )
        if other.sums is None or other.features is None:
            return
        if self.features is None or self.sums is None:
            self.features, self.bandwidths = other.features, list(other.bandwidths)
            self.sums = self._new_sums(other.features, 2 if isinstance(self.kernel, RBF) else 1)
        check_layout(other.features, self.features, "the statistics to merge")
        if repr(self.bandwidths) != repr(other.bandwidths):
            raise ValueError(
                "Cannot merge: the two sides have measured different bandwidths. Pass the same number as `bandwidth` "
                "to all of them."
            )
        self.sums.merge(other.sums)
        self.batches += other.batches

    def _centred(self) -> CentredSums:
        if self.sums is None:
            raise ValueError("No batch has been added yet. Call `update` first.")
        if self.samples < 4:
            raise ValueError(f"The unbiased estimator needs at least 4 samples, got {self.samples}. Add more batches.")
        return centre_sums(self.sums)

    def _units(self, centred: CentredSums) -> Array:
        """Inner product <A, A> (layers, size) of each projection, which is subtracted from the self terms."""
        units = centred.sums.units
        assert units is not None
        inner = units.centred().inner()
        return array_namespace(inner).reshape(inner, (-1, self.size))

    def _ratio(
        self, xp: ModuleType, cross: Array, own_x: Array, own_y: Array, floor: Array, counts: tuple[int, int]
    ) -> Array:
        """CKA from cross terms (..., layers, layers) and self terms (..., layers).

        ``counts`` are the numbers of projections of x and of y that the terms are sums over.
        """
        assert self.features is not None
        split = self.features.split
        own_x, own_y = own_x / (counts[0] * (counts[0] - 1)), own_y / (counts[1] * (counts[1] - 1))
        cross = cross / (counts[0] * counts[1])
        if split is None:
            # On the diagonal both sides have the same projections, so the cross term is the self term.
            eye = xp.eye(cross.shape[-1], dtype=xp.float64, device=cross.device)
            cross = xp.where(eye > 0, own_x[..., :, None] * eye, cross)
            floor_x = floor_y = floor
        else:
            cross, own_x, own_y = cross[..., :split, split:], own_x[..., :split], own_y[..., split:]
            floor_x, floor_y = floor[:split], floor[split:]
        floor_x, floor_y = floor_x[:, None] / self.size**2, floor_y[None, :] / self.size**2
        return ratio(xp, cross, own_x[..., :, None], own_y[..., None, :], floor_x, floor_y)

    def compute(self) -> Array:
        """Unbiased CKA of all pairs of layers over all samples added so far, estimated from the projections.

        Returns
        -------
        array (layers_x, layers_y) of float64
            It may exceed 1 within its ``projection_error``. NaN in the rows and columns of constant layers, and of
            layers whose self term is 0 within rounding, or negative.

        Raises
        ------
        ValueError
            If fewer than 4 samples were added.
        """
        centred = self._centred()
        xp = array_namespace(centred.ww)
        cross = centred.layers(centred.inner("unbiased"))
        own = xp.linalg.diagonal(cross) - xp.sum(self._units(centred), axis=1)
        return self._ratio(xp, cross, own, own, centred.floor(), (self.size, self.size))

    def spread(self) -> Spread:
        """The spread of the projections of each layer, as ``MomentCKA.spread``.

        Raises
        ------
        ValueError
            If fewer than 4 samples were added.
        """
        return spread_of(self._centred())

    def projection_error(self) -> Array:
        """Standard error of ``compute()`` as an estimate of the exact CKA of these samples.

        It is a jackknife over 16 groups of projections of each layer; the part that this counts twice is subtracted.
        The error of sampling the data is not included. A sketch cannot estimate it, because it cannot separate the
        joint effects of projections and samples.

        Returns
        -------
        array (layers_x, layers_y) of float64
            0 for a layer with itself; NaN where ``compute()`` is.

        Raises
        ------
        ValueError
            As ``compute``.
        """
        centred = self._centred()
        xp = array_namespace(centred.ww)
        layers, size = len(centred.sums.layout.widths), self.size
        blocks = xp.reshape(centred.inner("unbiased"), (layers, GROUPS, layers, GROUPS))
        of_x = xp.sum(blocks, axis=3)  # (layers, groups, layers): the part of each group of x in the terms
        cross = xp.sum(of_x, axis=1)
        units = xp.sum(xp.reshape(self._units(centred), (layers, GROUPS, -1)), axis=2)
        own = xp.linalg.diagonal(cross) - xp.sum(units, axis=1)
        of_own = xp.stack([of_x[i, :, i] for i in range(layers)], axis=0)  # (layers, groups)
        within = xp.stack([xp.linalg.diagonal(blocks[i, :, i, :]) for i in range(layers)], axis=0)
        own_without = xp.permute_dims(own[:, None] - 2 * of_own + within + units, (1, 0))
        of_x = xp.permute_dims(of_x, (1, 0, 2))
        of_y = xp.permute_dims(of_x, (0, 2, 1))  # the terms are symmetric
        fewer, floor = size - size // GROUPS, centred.floor()
        without_x = self._ratio(xp, cross[None, ...] - of_x, own_without, own[None, :], floor, (fewer, size))
        without_y = self._ratio(xp, cross[None, ...] - of_y, own[None, :], own_without, floor, (size, fewer))
        jackknife = [jackknife_error(xp, values, GROUPS) ** 2 for values in (without_x, without_y)]
        value = self._ratio(xp, cross, own, own, floor, (size, size))
        pairs = self._pair_variance(xp, value, blocks, own)
        # The jackknives of x and y hold the variance of single projections once and that of pairs of them twice. The
        # difference estimates a variance, so a negative value is due to chance and counts as 0.
        single = jackknife[0] + jackknife[1] - 2 * pairs
        error = xp.sqrt(pairs + xp.where(single < 0, xp.zeros_like(single), single))
        if centred.sums.layout.split is None:
            return error * (1 - xp.eye(layers, dtype=error.dtype, device=error.device))
        return error

    def _pair_variance(self, xp: ModuleType, value: Array, blocks: Array, own: Array) -> Array:
        """Variance of CKA from pairs of projections, beyond the variance from single projections.

        It comes from the terms of all pairs of groups after centring (cross terms) or U-centring (self terms), by the
        delta method.
        """
        assert self.features is not None
        g, scale = GROUPS, (GROUPS / self.size) ** 2
        table = xp.permute_dims(blocks, (0, 2, 1, 3)) * scale
        rows, columns = (xp.mean(table, axis=axis, keepdims=True) for axis in (3, 2))
        rest = table - rows - columns + xp.mean(rows, axis=2, keepdims=True)
        of_cross = xp.sum(rest * rest, axis=(2, 3)) / ((g - 1) * g) ** 2
        own = own / (self.size * (self.size - 1))
        within = u_center_gram(xp.stack([table[i, i, :, :] for i in range(own.shape[0])], axis=0))
        of_own = xp.sum(within * within, axis=(1, 2)) / (g * (g - 3)) * 2 / (g * (g - 1))
        # Where a self term is not positive, `value` is NaN already.
        own = xp.where(own > 0, own, xp.ones_like(own))
        of_cross = of_cross / own[:, None] / own[None, :]
        of_own = of_own / own**2 / 4
        split = self.features.split
        if split is None:
            return of_cross + value**2 * (of_own[:, None] + of_own[None, :])
        return of_cross[:split, split:] + value**2 * (of_own[:split, None] + of_own[None, split:])

    def state_dict(self, *, live: bool = False) -> dict[str, Any]:
        """State from which another process can continue; the projections follow from the seed.

        ``live`` as in ``MomentSums.state_dict``.
        """
        return {
            "size": self.size,
            "kernel": repr(self.kernel),
            "seed": self.seed,
            "batches": self.batches,
            "widths": None if self.features is None else list(self.features.widths),
            "split": None if self.features is None else self.features.split,
            "bandwidths": list(self.bandwidths),
            "sums": None if self.sums is None else self.sums.state_dict(live=live),
            "shifts": [project.shift for project in self._projections] if live else [],
        }

    def load_state_dict(self, state: dict[str, Any], *, live: bool = False) -> None:
        """Continue from the ``state_dict()`` of an accumulator with the same settings.

        Raises
        ------
        ValueError
            If size, kernel or seed differ.
        """
        for name, mine in {"size": self.size, "kernel": repr(self.kernel), "seed": self.seed}.items():
            if state[name] != mine:
                raise ValueError(
                    f"The saved state has {name}={state[name]}, this SketchCKA {mine}. Make it with the same {name}."
                )
        self.batches, self.bandwidths, self._projections = state["batches"], list(state["bandwidths"]), []
        self._shifts = list(state.get("shifts", ()))
        self.features = None if state["widths"] is None else Layout(tuple(state["widths"]), state["split"])
        self.sums = None if state["sums"] is None else MomentSums.from_state(state["sums"], live=live)


def _number(width: Array | float) -> float:
    """Bandwidth as a float; NaN instead of 0."""
    return width if isinstance(width, float) else float(as_numpy(width)[0, 0]) or math.nan
