"""Minibatch CKA of all pairs of layers, its standard error and its p-values, from sums over minibatches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from array_api_compat import array_namespace

from .alignment import ratio
from .calibration import Calibration, check_permutations, packed_rows, permuted_inner
from .hsic import normalizer, pairwise_inner
from .kernels import Kernel, given_kernel
from .layer_grams import layer_rows
from .null_moments import null_shape_of, null_sums, scaled_moments
from .permutation import upper_tail
from .validation import Array, check_estimator, check_layer_lists, check_same_samples

__all__ = ["MinibatchCKA"]


class MinibatchCKA:
    """CKA of all pairs of layers over a stream of minibatches: the ratio of the means of minibatch HSIC.

    It holds only float64 sums, on the device of the features. Memory grows with the number of pairs of layers, not with
    the number of samples. Two accumulators merge by addition.

    Parameters
    ----------
    kernel : Kernel, optional
        Linear by default. A median bandwidth is taken anew for each minibatch.
    estimator : "unbiased" or "biased"
        "unbiased" takes HSIC_1, whose mean does not depend on the batch size; "biased" takes HSIC_0.
    skewness : bool
        Whether to compute the exact skewness and kurtosis of the null too, for ``p_value``. They cost one n x n matrix
        product for each layer and minibatch. Without effect for the biased estimator, which has no p-value.
    permutations : int
        Number of random permutations of the samples within each minibatch for ``calibration``; 0 for none. Each costs
        as much as the products of all pairs of layers, and 8 bytes for each pair.
    seed : int or sequence of int
        Seed of the permutations; give each process its own.

    Attributes
    ----------
    samples, batches : int
        Number of samples and of minibatches added so far.

    Raises
    ------
    ValueError
        If the estimator is unknown, or there are fewer than 19 permutations.

    References
    ----------
    Nguyen, Raghu, Kornblith, Do Wide and Deep Networks Learn the Same Things?, ICLR 2021, section 2. docs/theory.md,
    sections 1, 3 and 4.

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

    def __init__(
        self,
        *,
        kernel: Kernel | None = None,
        estimator: str = "unbiased",
        skewness: bool = True,
        permutations: int = 0,
        seed: int | Sequence[int] = 0,
    ) -> None:
        self.minimum = check_estimator(estimator)
        if permutations:
            check_permutations(permutations)
        self.kernel = given_kernel(kernel)
        self.estimator = estimator
        self.skewness = skewness and estimator == "unbiased"
        self.permutations = permutations
        self.seed = (seed,) if isinstance(seed, int) else tuple(seed)
        self.samples = 0
        self.batches = 0
        self.sums: dict[str, Array] = {}

    def update(self, xs: Sequence[Array], ys: Sequence[Array] | None = None) -> None:
        """Add one minibatch.

        Parameters
        ----------
        xs : sequence of arrays (n, p_i)
            Features of the layers of one network. The unbiased estimator needs n >= 4, the biased n >= 2.
        ys : sequence of arrays (n, q_j), optional
            Features of the layers of the other network; by default, every two layers of ``xs`` are compared.

        Raises
        ------
        TypeError, ValueError
            If features are invalid (the message names the layer by its place), the numbers of samples differ, or the
            number of layers differs from before.
        """
        check_layer_lists(xs, ys)
        rows_x, scale_x, samples = layer_rows(xs, "xs", self.kernel, self.estimator)
        if ys is None:
            self.update_rows(rows_x, scale_x, rows_x, scale_x, samples)
            return
        rows_y, scale_y, samples_y = layer_rows(ys, "ys", self.kernel, self.estimator)
        check_same_samples(samples, samples_y)
        self.update_rows(rows_x, scale_x, rows_y, scale_y, samples)

    def update_rows(
        self,
        rows_x: Array,
        scale_x: Array,
        rows_y: Array,
        scale_y: Array,
        samples: int,
        more: dict[str, Array] | None = None,
    ) -> None:
        """Add one minibatch of flattened centred Gram matrices (``hsic.flat_centred``) and their divisors (layers,).

        To compare a network with itself, pass the same object as ``rows_x`` and ``rows_y``. ``more`` are other sums of
        this minibatch (layers_x, layers_y) by name, which are added up and merged beside those of CKA.
        """
        xp = array_namespace(rows_x, rows_y)
        n = samples
        same = rows_y is rows_x
        norm = normalizer(n, self.estimator)
        cross = pairwise_inner(rows_x, rows_y) * scale_x[:, None] * scale_y[None, :] / norm
        if same:
            # The two triangles of a float32 product differ in their last bits.
            cross = (cross + xp.matrix_transpose(cross)) / 2
            self_x = self_y = xp.linalg.diagonal(cross)
        else:
            self_x = xp.sum(rows_x * rows_x, axis=1, dtype=xp.float64) * scale_x**2 / norm
            self_y = xp.sum(rows_y * rows_y, axis=1, dtype=xp.float64) * scale_y**2 / norm
        w = float(n)
        hx, hy = w * self_x[:, None], w * self_y[None, :]
        hxy = w * cross
        # Over all permutations of one side, <A, B> has mean 0 and variance 2 <A, A> <B, B> / (n(n-3)) if unbiased
        # (docs/theory.md, section 4) and mean tr(Kc) tr(Lc) / (n-1) if biased (section 1).
        null = 2 / (n * (n - 3)) if n > 3 else math.nan
        null_mean, null_moments, null_cross = {}, {}, {}
        if self.estimator == "biased":
            trace_x = xp.sum(rows_x[:, :: n + 1], axis=1, dtype=xp.float64) * scale_x
            trace_y = trace_x if same else xp.sum(rows_y[:, :: n + 1], axis=1, dtype=xp.float64) * scale_y
            null_mean = {"null_mean": w * trace_x[:, None] * trace_y[None, :] / ((n - 1) * norm)}
        if self.skewness:
            sums_x = null_sums(xp.reshape(rows_x, (-1, n, n)))
            sums_y = sums_x if same else null_sums(xp.reshape(rows_y, (-1, n, n)))
            scale = w / norm * scale_x[:, None] * scale_y[None, :]
            null_moments = dict(
                zip(("null_third", "null_fourth"), scaled_moments(sums_x, sums_y, n, scale), strict=True)
            )
        if self.permutations:
            shuffled = self._shuffled(rows_x, rows_y, n)
            null_cross = {"null_cross": shuffled * (w / norm) * (scale_x[:, None] * scale_y[None, :])[..., None]}
        self._add(
            {
                **null_mean,
                **null_cross,
                **(more or {}),
                **null_moments,
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

    def _shuffled(self, rows_x: Array, rows_y: Array, n: int) -> Array:
        """Inner products (layers_x, layers_y, permutations) with the samples of ``rows_y`` in random order."""
        import numpy as np

        biased = self.estimator == "biased"
        packed_x, packed_y = (packed_rows(rows, n, diagonal=biased) for rows in (rows_x, rows_y))
        generator = np.random.default_rng([*self.seed, self.batches])
        drawn = permuted_inner(packed_x, packed_y, n, self.permutations, generator, diagonal=biased)
        return array_namespace(rows_x).stack(drawn, axis=-1)

    def _add(self, sums: dict[str, Array], samples: int, batches: int) -> None:
        if not self.sums:
            self.sums = dict(sums)
        elif self.sums["cross"].shape != sums["cross"].shape:
            raise ValueError(
                f"These statistics have {tuple(sums['cross'].shape)} layers, the earlier ones have "
                f"{tuple(self.sums['cross'].shape)}. Every minibatch must have the same layers."
            )
        else:
            self.sums = {name: total + sums[name] for name, total in self.sums.items()}
        self.samples += samples
        self.batches += batches

    def merge(self, other: MinibatchCKA) -> None:
        """Add all minibatches of ``other``, for example from another process or part of the data.

        Raises
        ------
        ValueError
            If both differ in kernel, estimator, skewness, permutations or layers.
        """
        if (repr(self.kernel), self.estimator) != (repr(other.kernel), other.estimator):
            raise ValueError(
                f"Cannot merge {other.estimator} HSIC with {other.kernel!r} "
                f"into {self.estimator} HSIC with {self.kernel!r}."
            )
        if self.skewness != other.skewness:
            raise ValueError("Cannot merge: one side has the shape of the null, the other has not.")
        if self.permutations != other.permutations:
            raise ValueError(f"Cannot merge: permutations={self.permutations} and {other.permutations}.")
        if other.sums:
            self._add(other.sums, other.samples, other.batches)

    def _need_data(self) -> Any:
        if not self.sums:
            raise ValueError("No minibatch has been added yet.")
        return array_namespace(self.sums["cross"])

    def compute(self) -> Array:
        """CKA of all pairs of layers over the minibatches so far.

        Returns
        -------
        array (layers_x, layers_y) of float64
            At most 1; the unbiased value may be negative. NaN where a layer was constant in every minibatch.

        Raises
        ------
        ValueError
            If no minibatch was added yet.
        """
        xp = self._need_data()
        return ratio(xp, self.sums["cross"], self.sums["self_x"], self.sums["self_y"])

    def standard_error(self) -> Array:
        """Standard error of ``compute()``, from the influence of each minibatch (docs/theory.md, section 4).

        For an interval use Student's t with ``batches - 1`` degrees of freedom. Too small if 1 % of the samples decide.

        Returns
        -------
        array (layers_x, layers_y) of float64
            0 for a layer with itself; NaN with fewer than two minibatches.

        Raises
        ------
        ValueError
            If no minibatch was added yet.
        """
        xp = self._need_data()
        s = self.sums
        if self.batches < 2:
            return xp.full_like(s["cross"], xp.nan)
        c = self.compute()
        # The influence of batch b is h_xy/sqrt(m_x m_y) - c h_x/(2 m_x) - c h_y/(2 m_y). Sum its squares.
        mx, my = s["self_x"], s["self_y"]
        mx, my = xp.where(mx > 0, mx, xp.ones_like(mx)), xp.where(my > 0, my, xp.ones_like(my))
        norm = xp.sqrt(mx) * xp.sqrt(my)
        squares = (
            s["cross2"] / norm / norm
            - c * s["cross_x"] / norm / mx
            - c * s["cross_y"] / norm / my
            + c * c * (s["x2"] / mx / mx / 4 + s["y2"] / my / my / 4 + s["x_y"] / mx / my / 2)
        )
        # Below 1e-15 the expanded form is only rounding: the exact value is 0 (a layer with itself).
        squares = xp.where(squares < 1e-15, xp.where(xp.isnan(squares), squares, 0.0 * c), squares)
        return xp.sqrt(squares * self.batches / (self.batches - 1))

    def chance_level(self) -> Array:
        """Chance level of ``compute()``: its mean if the samples of one side are permuted within each minibatch.

        Returns
        -------
        array (layers_x, layers_y) of float64
            0 for the unbiased estimator, positive for the biased; NaN for a constant layer.

        Raises
        ------
        ValueError
            If no minibatch was added yet.
        """
        xp = self._need_data()
        mean = self.sums.get("null_mean", xp.zeros_like(self.sums["cross"]))
        return ratio(xp, mean, self.sums["self_x"], self.sums["self_y"])

    def z_score(self) -> Array:
        """Unbiased CKA divided by its standard deviation under the permutation null.

        The null permutes the samples of one network within each minibatch (docs/theory.md, section 4).

        Returns
        -------
        array (layers_x, layers_y) of float64
            About standard normal if the layers are unrelated; NaN for a constant layer.

        Raises
        ------
        ValueError
            If no minibatch was added yet, or the estimator is biased: the mean of its null is not 0.
        """
        xp = self._need_data()
        if self.estimator != "unbiased":
            raise ValueError('The z-score is defined for estimator="unbiased"; the mean of the biased null is not 0.')
        variance = self.sums["null_variance"]
        return ratio(xp, self.sums["cross"], variance, variance) * xp.sqrt(variance)

    def p_value(self) -> Array:
        """One-sided p-value of ``compute()`` under permutations of the samples within each minibatch.

        By the Pearson distribution with the exact mean, variance, skewness and kurtosis of the null. With
        ``skewness=False`` by the normal one, which rejects 4 to 20 times too often at 0.001 (docs/theory.md).

        Returns
        -------
        array (layers_x, layers_y) of float64
            Above 0, at most 1; NaN for a constant layer.

        Raises
        ------
        ValueError
            If no minibatch was added yet, or the estimator is biased.
        """
        if not self.skewness:
            return upper_tail(self.z_score())
        return upper_tail(
            self.z_score(), null_shape_of(*(self.sums[f"null_{k}"] for k in ("variance", "third", "fourth")))
        )

    def calibration(self, level: float = 0.05) -> Calibration:
        """``compute()`` beside its values with the samples of one side permuted within each minibatch.

        Parameters
        ----------
        level : float
            Of the score.

        Returns
        -------
        Calibration
            With counted p-values, and p-values that are corrected for the number of pairs.

        Raises
        ------
        ValueError
            If no minibatch was added yet, or ``permutations`` is 0.
        """
        xp = self._need_data()
        if not self.permutations:
            raise ValueError("No permutations were counted. Make MinibatchCKA(permutations=999).")
        null = self.sums["null_cross"]
        self_x, self_y = self.sums["self_x"], self.sums["self_y"]
        drawn = [ratio(xp, null[..., b], self_x, self_y) for b in range(self.permutations)]
        return Calibration.of(self.compute(), drawn, level=level, rounding=64 * 2.0**-23)

    def state_dict(self) -> dict[str, Any]:
        """Everything that another process needs to continue: the settings by name, the counts and the sums."""
        return {
            "kernel": repr(self.kernel),
            "estimator": self.estimator,
            "skewness": self.skewness,
            "permutations": self.permutations,
            "samples": self.samples,
            "batches": self.batches,
            "sums": dict(self.sums),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the ``state_dict()`` of an accumulator with the same settings.

        Raises
        ------
        ValueError
            If kernel, estimator, skewness or permutations differ, or an older version has saved it.
        """
        if (state["kernel"], state["estimator"]) != (repr(self.kernel), self.estimator):
            raise ValueError(
                f"The saved state has {state['estimator']} HSIC with {state['kernel']}, not {self.estimator} HSIC with "
                f"{self.kernel!r}."
            )
        for name, own in (("skewness", self.skewness), ("permutations", self.permutations)):
            if (saved := state.get(name, 0)) != own:
                raise ValueError(f"The saved state has {name}={saved}, this one {own}.")
        if self.skewness and state["sums"] and "null_fourth" not in state["sums"]:
            raise ValueError("The saved state is of an older version, without the kurtosis of the null. Start anew.")
        self.samples, self.batches, self.sums = state["samples"], state["batches"], dict(state["sums"])
