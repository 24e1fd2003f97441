"""Minibatch CKA of all pairs of layers: sums of minibatch HSIC that stream, merge and know their own error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from array_api_compat import array_namespace

from .alignment import ratio
from .hsic import normalizer, pairwise_inner
from .kernels import Kernel, Linear
from .layer_grams import layer_rows
from .permutation import cubic_sums, third_moment, upper_tail
from .validation import Array, check_estimator, check_layer_lists


class MinibatchCKA:
    """CKA of all pairs of layers from a stream of minibatches: the ratio of mean minibatch HSIC.

    Holds float64 sums only, on the device of the features: memory grows with the number of pairs of layers, not of
    samples. Two accumulators merge by addition.

    Parameters
    ----------
    kernel : Kernel, optional
        Linear when left out. A median bandwidth is taken anew for each minibatch.
    estimator : "unbiased" or "biased"
        HSIC_1, whose mean does not depend on the batch size, or HSIC_0.
    skewness : bool
        Gather the exact skewness of the null as well, for ``p_value``. It costs one n x n product for each layer and
        minibatch, so that it is left out unless asked for. For the unbiased estimator.

    Raises
    ------
    ValueError
        For an unknown estimator, or the skewness of the biased one.

    References
    ----------
    Nguyen, Raghu, Kornblith, Do Wide and Deep Networks Learn the Same Things?, ICLR 2021, section 2. MATH 1, 3, 4.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> statistics = MinibatchCKA()
    >>> for _ in range(10):
    ...     x = rng.normal(size=(32, 8))
    ...     statistics.update([x, x**3])
    >>> statistics.compute().round(2).tolist()[0][0]
    1.0
    """

    def __init__(self, *, kernel: Kernel | None = None, estimator: str = "unbiased", skewness: bool = False) -> None:
        self.minimum = check_estimator(estimator)
        if skewness and estimator != "unbiased":
            raise ValueError('The skewness of the null is known for estimator="unbiased" only. Leave `skewness` out.')
        self.kernel = kernel or Linear()
        self.estimator = estimator
        self.skewness = skewness
        self.samples = 0
        self.batches = 0
        self.sums: dict[str, Array] = {}

    def update(self, xs: Sequence[Array], ys: Sequence[Array] | None = None) -> None:
        """Add one minibatch.

        Parameters
        ----------
        xs : sequence of arrays (n, p_i)
            Features of the layers of one network, n >= 4 (2 for the biased estimator).
        ys : sequence of arrays (n, q_j), optional
            Features of the other network; left out, every pair of ``xs``.

        Raises
        ------
        TypeError, ValueError
            For bad features, named by their place; for different numbers of samples or of layers than before.
        """
        check_layer_lists(xs, ys)
        rows_x, scale_x, samples = layer_rows(xs, "xs", self.kernel, self.estimator)
        if ys is None:
            self.update_rows(rows_x, scale_x, rows_x, scale_x, samples)
            return
        rows_y, scale_y, samples_y = layer_rows(ys, "ys", self.kernel, self.estimator)
        if samples != samples_y:
            raise ValueError(f"`xs` hold {samples} samples and `ys` {samples_y}. Both must be of the same samples.")
        self.update_rows(rows_x, scale_x, rows_y, scale_y, samples)

    def update_rows(self, rows_x: Array, scale_x: Array, rows_y: Array, scale_y: Array, samples: int) -> None:
        """Add one minibatch of flattened centred Gram matrices (``hsic.flat_centred``) and their divisors.

        Pass the same object for both networks to compare one with itself.
        """
        xp = array_namespace(rows_x, rows_y)
        n = samples
        same = rows_y is rows_x
        norm = normalizer(n, self.estimator)
        cross = pairwise_inner(rows_x, rows_y) * scale_x[:, None] * scale_y[None, :] / norm
        if same:
            # The two halves of a float32 product differ in their last bits.
            cross = (cross + xp.matrix_transpose(cross)) / 2
            self_x = self_y = xp.linalg.diagonal(cross)
        else:
            self_x = xp.sum(rows_x * rows_x, axis=1, dtype=xp.float64) * scale_x**2 / norm
            self_y = xp.sum(rows_y * rows_y, axis=1, dtype=xp.float64) * scale_y**2 / norm
        w = float(n)
        hx, hy = w * self_x[:, None], w * self_y[None, :]
        hxy = w * cross
        # Under random permutation of one side <A, B> has mean 0 and variance 2 <A, A> <B, B> / (n(n-3)) (MATH 4).
        null = 2 / (n * (n - 3)) if n > 3 else math.nan
        null_mean = {}
        if self.estimator == "biased":
            # ... and for the biased estimator mean tr(Kc) tr(Lc) / (n-1) (MATH 1).
            trace_x = xp.sum(rows_x[:, :: n + 1], axis=1, dtype=xp.float64) * scale_x
            trace_y = trace_x if same else xp.sum(rows_y[:, :: n + 1], axis=1, dtype=xp.float64) * scale_y
            null_mean = {"null_mean": w * trace_x[:, None] * trace_y[None, :] / ((n - 1) * norm)}
        null_third = {}
        if self.skewness:
            cubes_x = cubic_sums(xp.reshape(rows_x, (-1, n, n))) * scale_x[:, None] ** 3
            cubes_y = cubes_x if same else cubic_sums(xp.reshape(rows_y, (-1, n, n))) * scale_y[:, None] ** 3
            null_third = {"null_third": (w / norm) ** 3 * third_moment(cubes_x[:, None, :], cubes_y[None, :, :], n)}
        self._add(
            {
                **null_mean,
                **null_third,
                "cross": hxy,
                "self_x": hx,
                "self_y": hy,
                "cross2": hxy * hxy,
                "cross_x": hxy * hx,
                "cross_y": hxy * hy,
                "x2": hx * hx,
                "y2": hy * hy,
                "x_y": hx * hy,
                "null_variance": hx * hy * null,
            },
            n,
            1,
        )

    def _add(self, sums: dict[str, Array], samples: int, batches: int) -> None:
        if not self.sums:
            self.sums = dict(sums)
        elif self.sums["cross"].shape != sums["cross"].shape:
            raise ValueError(
                f"These statistics are of {tuple(sums['cross'].shape)} layers, those so far of "
                f"{tuple(self.sums['cross'].shape)}. Every minibatch must bring the same layers."
            )
        else:
            self.sums = {name: total + sums[name] for name, total in self.sums.items()}
        self.samples += samples
        self.batches += batches

    def merge(self, other: MinibatchCKA) -> None:
        """Add the minibatches that ``other`` has seen (another process, another shard of the data).

        Raises
        ------
        ValueError
            If the two differ in kernel, estimator, skewness or layers.
        """
        if (repr(self.kernel), self.estimator) != (repr(other.kernel), other.estimator):
            raise ValueError(
                f"Cannot merge {other.estimator} HSIC with {other.kernel!r} "
                f"into {self.estimator} HSIC with {self.kernel!r}."
            )
        if self.skewness != other.skewness:
            raise ValueError("Cannot merge: one side has gathered the skewness of the null, the other has not.")
        if other.sums:
            self._add(other.sums, other.samples, other.batches)

    def _need_data(self) -> Any:
        if not self.sums:
            raise ValueError("No minibatch has been added yet.")
        return array_namespace(self.sums["cross"])

    def compute(self) -> Array:
        """CKA of all pairs so far.

        Returns
        -------
        array (layers_x, layers_y) of float64
            At most 1, may be negative for the unbiased estimator; NaN where a layer was constant in every minibatch.

        Raises
        ------
        ValueError
            If nothing was added yet.
        """
        xp = self._need_data()
        return ratio(xp, self.sums["cross"], self.sums["self_x"], self.sums["self_y"])

    def standard_error(self) -> Array:
        """Standard error of ``compute()`` over the minibatches, from the influence of each (MATH 4).

        Use it with Student's t of ``batches - 1`` degrees of freedom.

        Returns
        -------
        array (layers_x, layers_y) of float64
            0 for a layer with itself; NaN with fewer than two minibatches.

        Raises
        ------
        ValueError
            If nothing was added yet.
        """
        xp = self._need_data()
        s = self.sums
        if self.batches < 2:
            return xp.full_like(s["cross"], xp.nan)
        c = self.compute()
        # The influence of batch b is h_xy/sqrt(m_x m_y) - c h_x/(2 m_x) - c h_y/(2 m_y); here the sum of its squares.
        mx, my = s["self_x"], s["self_y"]
        mx, my = xp.where(mx > 0, mx, xp.ones_like(mx)), xp.where(my > 0, my, xp.ones_like(my))
        norm = xp.sqrt(mx) * xp.sqrt(my)
        squares = (
            s["cross2"] / norm / norm
            - c * s["cross_x"] / norm / mx
            - c * s["cross_y"] / norm / my
            + c * c * (s["x2"] / mx / mx / 4 + s["y2"] / my / my / 4 + s["x_y"] / mx / my / 2)
        )
        # A sum of squares below zero is rounding of the expanded form: the true value is 0 (a layer with itself).
        squares = xp.where(squares < 1e-15, xp.where(xp.isnan(squares), squares, 0.0 * c), squares)
        return xp.sqrt(squares * self.batches / (self.batches - 1))

    def chance_level(self) -> Array:
        """What unrelated layers of these shapes would score: the permutation mean of ``compute()``.

        Returns
        -------
        array (layers_x, layers_y) of float64
            0 for the unbiased estimator, positive for the biased; NaN for a constant layer.

        Raises
        ------
        ValueError
            If nothing was added yet.
        """
        xp = self._need_data()
        mean = self.sums.get("null_mean", xp.zeros_like(self.sums["cross"]))
        return ratio(xp, mean, self.sums["self_x"], self.sums["self_y"])

    def z_score(self) -> Array:
        """How many standard deviations of the permutation null the alignment lies above 0.

        The null shuffles the samples of one network within each minibatch: mean 0 and variance exactly
        2 / (n(n-3)) of the squared norms for each minibatch (MATH 4). For the unbiased estimator.

        Returns
        -------
        array (layers_x, layers_y) of float64
            About standard normal when the layers are unrelated; NaN for a constant layer.

        Raises
        ------
        ValueError
            If nothing was added yet, or the estimator is biased: its null is not centred at 0.
        """
        xp = self._need_data()
        if self.estimator != "unbiased":
            raise ValueError('The z-score is defined for estimator="unbiased"; the biased null is not centred at 0.')
        variance = self.sums["null_variance"]
        return ratio(xp, self.sums["cross"], variance, variance) * xp.sqrt(variance)

    def p_value(self) -> Array:
        """The chance that unrelated layers score as high, when samples are shuffled within each minibatch.

        With ``skewness=True`` that of the Pearson III distribution with the exact mean, variance and skewness of the
        null, otherwise that of the normal distribution, which rejects up to 2.6 times too often at 0.01 when features
        have heavy tails (benchmarks/coverage.py).

        Returns
        -------
        array (layers_x, layers_y) of float64
            One-sided; NaN for a constant layer.

        Raises
        ------
        ValueError
            If nothing was added yet, or the estimator is biased.
        """
        z_score = self.z_score()
        if not self.skewness:
            return upper_tail(z_score)
        xp = self._need_data()
        deviation = xp.sqrt(self.sums["null_variance"])
        third = ratio(xp, self.sums["null_third"], self.sums["null_variance"], self.sums["null_variance"])
        return upper_tail(z_score, third / xp.where(deviation > 0, deviation, xp.ones_like(deviation)))

    def state_dict(self) -> dict[str, Any]:
        """Everything that a later process needs to go on: the sums as they are, and the settings by name."""
        return {
            "kernel": repr(self.kernel),
            "estimator": self.estimator,
            "skewness": self.skewness,
            "samples": self.samples,
            "batches": self.batches,
            "sums": dict(self.sums),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state_dict()`` of an accumulator with the same settings.

        Raises
        ------
        ValueError
            If kernel, estimator or skewness differ.
        """
        if (state["kernel"], state["estimator"]) != (repr(self.kernel), self.estimator):
            raise ValueError(
                f"The saved state is of {state['estimator']} HSIC with {state['kernel']}, not of {self.estimator} HSIC "
                f"with {self.kernel!r}."
            )
        skewness = state.get("skewness", False)
        if skewness != self.skewness:
            raise ValueError(f"The saved state has skewness={skewness}, this one skewness={self.skewness}.")
        self.samples, self.batches, self.sums = state["samples"], state["batches"], dict(state["sums"])


def cka_matrix(
    xs: Sequence[Array], ys: Sequence[Array] | None = None, *, kernel: Kernel | None = None, estimator: str = "unbiased"
) -> Array:
    """CKA of every pair of layers from their features, each Gram matrix taken once and all pairs as one product.

    Parameters
    ----------
    xs : sequence of arrays (n, p_i)
        Features of the layers of one network.
    ys : sequence of arrays (n, q_j), optional
        Features of the layers of the other; ``xs`` again when left out.
    kernel : Kernel, optional
        Linear when left out.
    estimator : "unbiased" or "biased"
        The ratio of HSIC_1 or of HSIC_0.

    Returns
    -------
    array (len(xs), len(ys)) of float64
        Rows follow ``xs``, columns ``ys``. NaN in the rows and columns of constant layers.

    Raises
    ------
    TypeError, ValueError
        As ``cka``, naming the layer by its place.

    Examples
    --------
    >>> import numpy as np
    >>> x, y = np.random.default_rng(0).normal(size=(2, 50, 3))
    >>> cka_matrix([x, y]).shape
    (2, 2)
    """
    statistics = MinibatchCKA(kernel=kernel, estimator=estimator)
    statistics.update(xs, ys)
    return statistics.compute()
