"""Find the few samples that hold much of the weight of a layer in CKA."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

from .validation import Array

__all__ = ["HEAVY", "OutlierWarning", "Outliers", "find_outliers", "warn_of_outliers"]

HEAVY = 0.4
"""A warning is given when 1 % of the samples (at least one) hold this part of the weight of a layer or more.

The weight of sample i is sum_{j != i} A_ij^2 divided by the sum of these over all i, with A the centred or U-centred
Gram matrix.
"""


class OutlierWarning(UserWarning):
    """1 % of the samples (at least one) hold two fifths of the weight of a layer and can move its CKA to any value."""


@dataclass(frozen=True)
class Outliers:
    """A few samples that hold two fifths of the weight of one layer, so that they alone can move its CKA to any value.

    Attributes
    ----------
    side, layer : int
        0 for x and 1 for y; position of the layer in the list of layers.
    samples : tuple of int
        Indices of the samples, the heaviest first.
    total : int
        Number of all samples.
    """

    side: int
    layer: int
    samples: tuple[int, ...]
    total: int

    def message(self, name: str) -> str:
        """The text of the warning; it calls the layer ``name``."""
        listed = ", ".join(map(str, sorted(self.samples[:10])))
        more = " and more" if len(self.samples) > 10 else ""
        return (
            f"Two fifths of the weight of {name} rest on {len(self.samples)} of {self.total} samples (index "
            f"{listed}{more}), so that they alone can move its CKA to any value. Look at them, and compare with a "
            "kernel that bounds them: Cosine or RBF."
        )


def find_outliers(xp: ModuleType, weights: Array, side: int, layer: int = 0) -> list[Outliers]:
    """The outliers of one layer, from the weights (..., n) of its samples; empty if there are none.

    Of a stack, the worst layer is reported. A single sample holds at most half of the weight, because every entry of
    its row of the Gram matrix counts for another sample too. No set in 2000 of Gaussian features is reported, and 1 in
    40 of Student's t with 3 degrees of freedom.
    """
    n = weights.shape[-1]
    if n < 8:
        return []  # with so few samples, one may hold that much by chance
    few = max(1, n // 100)
    weights = xp.reshape(weights, (-1, n))
    held = xp.sum(xp.sort(weights, axis=-1, descending=True)[:, :few], axis=-1)
    if not bool(xp.any(held >= HEAVY)):
        return []
    worst = weights[int(xp.argmax(held)), :]
    order = [int(i) for i in xp.argsort(worst, descending=True)[:few]]
    count = next(k for k in range(1, few + 1) if k == few or float(sum(worst[i] for i in order[:k])) >= HEAVY)
    return [Outliers(side, layer, tuple(order[:count]), n)]


def warn_of_outliers(outliers: Sequence[Outliers], names: str) -> None:
    """Issue one ``OutlierWarning`` for each of ``outliers``, at the line that called the calling function.

    ``names`` is a pattern for the name of a layer: its first ``{}`` becomes "x" or "y", its second the position of the
    layer.
    """
    for found in outliers:
        warnings.warn(found.message(names.format("xy"[found.side], found.layer)), OutlierWarning, stacklevel=3)
