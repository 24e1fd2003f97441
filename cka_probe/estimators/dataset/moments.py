"""Exact CKA of a whole data set in one pass over its batches, from sums that can merge (linear kernel)."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

from array_api_compat import array_namespace

from ..alignment import ratio
from ..hsic import normalizer
from ..kernels import Linear
from ..null_moments import NullShape, null_shape, unit_sums
from ..validation import Array, check_estimator, check_layer_features, check_layer_lists, check_same_samples, constant
from .centred_sums import CentredSums, centre_sums
from .far_samples import Spread, spread_of
from .moment_layout import Layout
from .moment_sums import MomentSums

__all__ = ["PRODUCTS", "MomentCKA", "check_layout", "checked_layers", "jackknife_error", "join"]

PRODUCTS = 2**24
"""Largest number of leave-one-out values of all pairs of layers that are held at once."""


class MomentCKA:
    """Exact CKA of all pairs of layers over a whole data set, one batch at a time, with the linear kernel.

    Memory does not grow with the number of samples. It takes 8 bytes for each product of two features whose layers are
    compared (for ``ys=None`` half the square of the total width), and holds ``error_samples`` samples. Of more
    than 2048 columns, float32 features take half the time of float64.

    Parameters
    ----------
    error_samples : int
        Number of samples to keep for ``standard_error``, drawn at random from all; 0 for none.
    seed : int
        Seed of that draw.
    first, stride : int
        Number of the first batch in the whole data set, and the step to the next one, for a process that gets every
        ``stride``-th batch: merged, they then hold the samples that one process would draw.

    Attributes
    ----------
    samples, batches : int
        Number of samples and of batches added so far.

    Raises
    ------
    ValueError
        If ``error_samples`` is negative.

    References
    ----------
    Song et al., Feature Selection via Dependence Maximization, JMLR 2012, equation 5. docs/theory.md, section 2.

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

    def __init__(self, *, error_samples: int = 512, seed: int = 0, first: int = 0, stride: int = 1) -> None:
        if error_samples < 0:
            raise ValueError(f"`error_samples` must not be negative, got {error_samples}.")
        self.error_samples = error_samples
        self.seed = seed
        self.first, self.stride = first, stride
        self.batches = 0
        self.sums: MomentSums | None = None

    @property
    def samples(self) -> int:
        """Number of samples added so far."""
        return 0 if self.sums is None else self.sums.samples

    def update(self, xs: Sequence[Array], ys: Sequence[Array] | None = None) -> None:
        """Add one batch of any size.

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
        layout, features = checked_layers(xs, ys)
        if self.sums is None:
            self.sums = self.empty_sums(layout)
        check_layout(layout, self.sums.layout)
        single, joined = join(features)
        self.sums.add(joined, single=single)
        self.batches += 1

    def empty_sums(self, layout: Layout) -> MomentSums:
        """Sums of no samples, with the settings of this accumulator."""
        return MomentSums(layout, kept=self.error_samples, seed=self.seed, first=self.first, stride=self.stride)

    def merge(self, other: MomentCKA) -> None:
        """Add all samples of ``other``, for example those of another process.

        Give each process its own ``seed``, so that the samples kept for the error are drawn independently.

        Raises
        ------
        ValueError
            If the two hold different layers or lie on different devices.
        TypeError
            If their arrays come from different libraries.
        """
        if other.sums is None:
            return
        if self.sums is None:
            self.sums = self.empty_sums(other.sums.layout)
        check_layout(other.sums.layout, self.sums.layout, "the statistics to merge")
        self.sums.merge(other.sums)
        self.batches += other.batches

    def _centred(self, minimum: int) -> CentredSums:
        if self.sums is None:
            raise ValueError("No batch has been added yet. Call `update` first.")
        if self.samples < minimum:
            raise ValueError(f"This estimator needs at least {minimum} samples, got {self.samples}. Add more batches.")
        return centre_sums(self.sums)

    def _split(self, xp: ModuleType, of_pairs: Array) -> tuple[Array, Array, Array]:
        """Cross terms (..., layers_x, layers_y) and the self terms of both sides, from (..., layers, layers)."""
        assert self.sums is not None
        own = xp.linalg.diagonal(of_pairs)
        split = self.sums.layout.split
        if split is None:
            return of_pairs, own, own
        return of_pairs[..., :split, split:], own[..., :split], own[..., split:]

    def _ratio(self, xp: ModuleType, of_pairs: Array, floor: Array) -> Array:
        """CKA (..., layers_x, layers_y) from inner products (..., layers, layers)."""
        assert self.sums is not None
        split = self.sums.layout.split
        cross, self_x, self_y = self._split(xp, of_pairs)
        floor_x, floor_y = (floor, floor) if split is None else (floor[:split], floor[split:])
        return ratio(xp, cross, self_x[..., :, None], self_y[..., None, :], floor_x[:, None], floor_y[None, :])

    def compute(self, estimator: str = "unbiased") -> Array:
        """CKA of all pairs of layers over all samples added so far.

        Parameters
        ----------
        estimator : "unbiased" or "biased"
            The ratio of HSIC_1 or of HSIC_0.

        Returns
        -------
        array (layers_x, layers_y) of float64
            At most 1; the unbiased estimator may be negative. NaN in the rows and columns of constant layers.

        Raises
        ------
        ValueError
            If fewer samples were added than the estimator needs, or if the estimator is unknown.
        """
        centred = self._centred(check_estimator(estimator))
        xp = array_namespace(centred.ww)
        return self._ratio(xp, centred.inner(estimator), centred.floor())

    def hsic(self, estimator: str = "unbiased") -> Array:
        """HSIC of all pairs of layers over all samples added so far.

        Parameters
        ----------
        estimator : "unbiased" or "biased"
            HSIC_1 or HSIC_0.

        Returns
        -------
        array (layers_x, layers_y) of float64
            In the squared units of the features of both layers.

        Raises
        ------
        ValueError
            As ``compute``.
        """
        centred = self._centred(check_estimator(estimator))
        xp = array_namespace(centred.ww)
        squared = centred.sums.scale**2
        values = centred.inner(estimator) * (squared[:, None] * squared[None, :])
        return self._split(xp, values)[0] / normalizer(self.samples, estimator)

    def standard_error(self, estimator: str = "unbiased") -> Array:
        """Standard error of ``compute()``: a jackknife over the samples that were kept.

        CKA without sample i is computed exactly for each kept sample i. The variance of these values estimates the
        variance over all samples; with at most ``error_samples`` samples it is the full jackknife. For an interval, use
        Student's t with ``degrees_of_freedom``. The error is too small when samples are not independent (positions or
        tokens of one input), or when CKA depends on a few samples in a million that were not drawn.

        Parameters
        ----------
        estimator : "unbiased" or "biased"
            As in ``compute``.

        Returns
        -------
        array (layers_x, layers_y) of float64
            0 for a layer with itself. NaN where CKA is undefined, for fewer than 2 kept samples, and for fewer than 5
            samples (biased: 3).

        Raises
        ------
        ValueError
            As ``compute``.

        References
        ----------
        Tukey, Bias and confidence in not quite large samples, 1958. docs/theory.md, section 4.
        """
        minimum = check_estimator(estimator)
        centred = self._centred(minimum)
        xp, n = array_namespace(centred.ww), self.samples
        kept = centred.sums.rows
        if kept is None or n <= minimum or kept.shape[0] < 2:
            return xp.full_like(self.compute(estimator), xp.nan)
        layers, floor = len(centred.sums.layout.widths), centred.floor()
        size = max(1, PRODUCTS // layers**2)
        values = []
        for start in range(0, kept.shape[0], size):
            v = centred.of_samples(kept[start : min(start + size, kept.shape[0]), :])
            values.append(self._ratio(xp, centred.without_each(v, estimator), floor))
        return jackknife_error(xp, xp.concat(values, axis=0), n)

    def null_shape(self) -> NullShape:
        """Shape of the unbiased ``compute()`` over permutations of the samples, from the samples that were kept.

        Returns
        -------
        NullShape
            Skewness and excess kurtosis, arrays (layers_x, layers_y) of float64. Exact for at most ``error_samples``
            samples, else estimated from that many. 0 (those of the normal distribution) if fewer than 4 samples were
            kept; NaN for a layer that is constant over these.

        Raises
        ------
        ValueError
            If fewer than 4 samples were added.
        """
        centred = self._centred(4)
        xp, rows, layout = array_namespace(centred.ww), centred.sums.rows, centred.sums.layout
        if rows is None or rows.shape[0] < 4:
            return NullShape(*(xp.zeros_like(self.compute()) for _ in range(2)))
        samples = centred.of_samples(rows)
        features = [samples[:, start:stop] for start, stop in layout.layer_spans]
        sums = unit_sums(features, Linear(), self.samples)
        split = layout.split
        return null_shape(sums[:split, :], sums if split is None else sums[split:, :], self.samples)

    def spread(self) -> Spread:
        """The spread of each layer, of ``xs`` and then ``ys``, with its farthest sample and the rounding error.

        Raises
        ------
        ValueError
            If fewer than 4 samples were added.
        """
        return spread_of(self._centred(4))

    @property
    def degrees_of_freedom(self) -> int:
        """Degrees of freedom of Student's t for ``standard_error``: the number of kept samples minus 1."""
        return max(0, min(self.samples, self.error_samples) - 1)

    def state_dict(self, *, live: bool = False) -> dict[str, Any]:
        """State from which another process can continue; ``live`` as in ``MomentSums.state_dict``."""
        return {
            "error_samples": self.error_samples,
            "seed": self.seed,
            "batches": self.batches,
            "sums": None if self.sums is None else self.sums.state_dict(live=live),
        }

    def load_state_dict(self, state: dict[str, Any], *, live: bool = False) -> None:
        """Continue from a ``state_dict()``.

        Raises
        ------
        ValueError
            If ``error_samples`` differs.
        """
        if state["error_samples"] != self.error_samples:
            raise ValueError(
                f"The saved state has error_samples={state['error_samples']}, this MomentCKA {self.error_samples}. "
                "Make it with the same number."
            )
        self.seed, self.batches = state["seed"], state["batches"]
        self.sums = None if state["sums"] is None else MomentSums.from_state(state["sums"], live=live)


def jackknife_error(xp: ModuleType, without: Array, n: int) -> Array:
    """Jackknife standard error (...) from statistics (m, ...), each without one sample, for m of n samples."""
    deviation = without - xp.mean(without, axis=0, keepdims=True)
    variance = xp.sum(deviation * deviation, axis=0) / (without.shape[0] - 1)
    return (n - 1) * xp.sqrt(variance / n)


def checked_layers(xs: Sequence[Array], ys: Sequence[Array] | None) -> tuple[Layout, list[Array]]:
    """Check the features of one batch; return their layout and the features of all layers.

    Raises
    ------
    TypeError, ValueError
        If features are invalid (the message names the layer by its place), or the numbers of samples differ.
    """
    check_layer_lists(xs, ys)
    left = [constant(x) for x in check_layer_features(xs, "xs", minimum=1)]
    if ys is None:
        return Layout(tuple(x.shape[1] for x in left)), left
    right = [constant(y) for y in check_layer_features(ys, "ys", minimum=1)]
    check_same_samples(left[0].shape[0], right[0].shape[0])
    return Layout(tuple(x.shape[1] for x in [*left, *right]), len(left)), [*left, *right]


def check_layout(layout: Layout, before: Layout, what: str = "this batch") -> None:
    """Raise ValueError unless the layers of ``what`` equal those added before."""
    if (layout.widths, layout.split) == (before.widths, before.split):
        return
    raise ValueError(
        f"The layers of {what} are {_described(layout)}, those before {_described(before)}. "
        "Every batch must hold the same layers."
    )


def _described(layout: Layout) -> str:
    if layout.split is None:
        return f"of widths {list(layout.widths)}"
    return f"of widths {list(layout.widths[: layout.split])} against {list(layout.widths[layout.split :])}"


def join(features: Sequence[Array]) -> tuple[bool, Array]:
    """Whether all features are float32, and a copy of the features side by side (n, columns)."""
    xp = array_namespace(*features)
    single = all(x.dtype == xp.float32 for x in features)
    if not single:
        features = [xp.astype(x, xp.float64) for x in features]
    return single, xp.concat(list(features), axis=1)
