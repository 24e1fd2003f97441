"""A measure against its own null: values with the samples of one side in random order, for all pairs of layers at once.

From these come counted p-values, p-values that are corrected for the number of pairs (by the largest value of each
permutation), and scores that are centred and scaled by the null, so that they can be compared across widths and
measures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any

from array_api_compat import array_namespace, device

from .hsic import pairwise_inner
from .validation import Array, as_numpy

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Calibration", "check_permutations", "packed_rows", "permuted_inner"]


@dataclass(frozen=True)
class Calibration:
    """Values of a measure for all pairs of layers, and of its null: the samples of one side in random order.

    Attributes
    ----------
    value : array (layers_x, layers_y) of float64
        The measure.
    mean, deviation : array (layers_x, layers_y) of float64
        Mean and standard deviation of the null.
    z_score : array (layers_x, layers_y) of float64
        Distance of the value from the mean of the null in its standard deviations; positive if the layers are more
        alike than by chance, also for a distance.
    p_value : array (layers_x, layers_y) of float64
        (1 + number of permutations at least as alike) / (1 + permutations).
    corrected_p_value : array (layers_x, layers_y) of float64
        (1 + number of permutations whose most alike pair of all is at least as alike) / (1 + permutations), each pair
        centred and scaled by its own null. Under the null, the chance that the smallest of all pairs is at most p is at
        most p. The smallest one is the p-value of the maximum over layers.
    score : array (layers_x, layers_y) of float64
        (value - t) / (best - t), where t is the value that the null passes with probability ``level``, and best the
        value of equal layers: at most 1, and above 0 for the pairs that are significant at ``level``. NaN if the
        measure has no largest value.
    permutations : int
        Number of permutations.
    level : float
        Of the score.
    """

    value: Array
    mean: Array
    deviation: Array
    z_score: Array
    p_value: Array
    corrected_p_value: Array
    score: Array
    permutations: int
    level: float

    @classmethod
    def of(
        cls,
        value: Array,
        null: Sequence[Array],
        *,
        best: float = 1.0,
        distance: bool = False,
        level: float = 0.05,
        rounding: float = 1e-12,
    ) -> Calibration:
        """The calibration of ``value`` (layers_x, layers_y) by the values of permuted samples.

        Parameters
        ----------
        value : array (layers_x, layers_y)
            The measure.
        null : sequence of arrays (layers_x, layers_y)
            One for each permutation.
        best : float
            Value of equal layers.
        distance : bool
            Whether a smaller value means more alike.
        level : float
            Of the score.
        rounding : float
            Differences below this count as none: a permutation that does not change the value must count.
        """
        import numpy as np

        xp = array_namespace(value)
        sign = -1.0 if distance else 1.0
        own = sign * as_numpy(value).astype(np.float64)
        drawn = sign * np.stack([as_numpy(one) for one in null]).astype(np.float64)
        count = len(drawn)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean, deviation = drawn.mean(axis=0), drawn.std(axis=0, ddof=1 if count > 1 else 0)
            as_high = (drawn >= own - rounding).sum(axis=0)
            # The observed value is one of the permutations. With it in the mean and deviation all are treated alike,
            # so that the corrected p-values are exact.
            every = np.concatenate([own[None], drawn])
            spread = every.std(axis=0)
            unit = (every - every.mean(axis=0)) / np.where(spread > rounding, spread, np.nan)
            largest = np.nanmax(np.where(np.isnan(unit), -np.inf, unit), axis=(1, 2))
            above = (largest[1:, None, None] >= unit[0] - 1e-9).sum(axis=0)
            kept = np.sort(every, axis=0)
            threshold = kept[max(0, math.ceil((1 - level) * (count + 1)) - 1)]
            score = (own - threshold) / (sign * best - threshold) if math.isfinite(best) else np.nan * own
            parts = {
                "value": sign * own,
                "mean": sign * mean,
                "deviation": deviation,
                "z_score": (own - mean) / np.where(deviation > rounding, deviation, np.nan),
                "p_value": np.where(np.isnan(own), np.nan, (1 + as_high) / (1 + count)),
                "corrected_p_value": np.where(np.isnan(unit[0]), np.nan, (1 + above) / (1 + count)),
                "score": np.where(np.isfinite(score), score, np.nan),
            }
        arrays = {key: xp.asarray(part, dtype=xp.float64, device=device(value)) for key, part in parts.items()}
        return cls(**arrays, permutations=count, level=level)


def check_permutations(permutations: Any) -> None:
    """Raise TypeError or ValueError unless ``permutations`` is a whole number of at least 19."""
    if isinstance(permutations, bool) or not isinstance(permutations, Integral):
        raise TypeError(f"`permutations` must be an int, got {permutations!r}.")
    if permutations < 19:
        raise ValueError(
            f"`permutations` must be at least 19, got {permutations}: the smallest p-value is 1 / (1 + permutations)."
        )


def packed_rows(rows: Array, n: int, *, diagonal: bool = False) -> Array:
    """The entries of flattened symmetric matrices (layers, n * n) above the diagonal, for ``permuted_inner``.

    With ``diagonal`` the diagonal is in them, divided by the square root of 2: the others count twice.
    """
    import numpy as np

    xp = array_namespace(rows)
    i, j = np.triu_indices(n, 0 if diagonal else 1)
    packed = xp.take(rows, xp.asarray(i * n + j, device=device(rows)), axis=1)
    if not diagonal:
        return packed
    weights = xp.asarray(np.where(i == j, 0.5**0.5, 1.0), device=device(rows))
    return packed * xp.astype(weights, rows.dtype)


def permuted_inner(
    packed_x: Array,
    packed_y: Array,
    n: int,
    permutations: int,
    generator: np.random.Generator,
    *,
    diagonal: bool = False,
) -> list[Array]:
    """<A, PBP'> of all pairs of layers, for random permutations P of the n samples of the second side.

    Parameters
    ----------
    packed_x, packed_y : array (layers, entries)
        From ``packed_rows`` with the same ``diagonal``.
    n : int
        Number of samples.
    permutations : int
        How many.
    generator : numpy.random.Generator
        Draws them.
    diagonal : bool
        Whether the diagonal counts.

    Returns
    -------
    list of arrays (layers_x, layers_y) of float64
        One for each permutation.
    """
    import numpy as np

    xp = array_namespace(packed_x, packed_y)
    i, j = np.triu_indices(n, 0 if diagonal else 1)
    found = []
    for _ in range(permutations):
        order = generator.permutation(n)
        low, high = np.minimum(order[i], order[j]), np.maximum(order[i], order[j])
        before = low * (2 * n - low + 1) // 2 if diagonal else low * (2 * n - low - 1) // 2 - 1
        picked = xp.asarray(before + high - low, device=device(packed_y))
        found.append(2 * pairwise_inner(packed_x, xp.take(packed_y, picked, axis=1)))
    return found
