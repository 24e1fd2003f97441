"""Find layers whose sums over a data set are dominated by one sample, and the rounding error that it causes."""

from __future__ import annotations

from typing import NamedTuple

from array_api_compat import array_namespace

from ..validation import Array
from .centred_sums import CentredSums

__all__ = ["Spread", "spread_of"]


class Spread(NamedTuple):
    """The spread of each layer, as arrays (layers,).

    Attributes
    ----------
    total : array of float64
        Sum of the squared distances to the mean, in units of the scale of the layer; 0 for a constant layer.
    share : array of float64
        Part of ``total`` that the farthest sample has.
    sample : array of int64
        Index of that sample.
    rounding : array of float64
        Relative rounding error of the self term; infinite where the self term is rounding only.
    """

    total: Array
    share: Array
    sample: Array
    rounding: Array


def spread_of(centred: CentredSums) -> Spread:
    """The spread of each layer, from sums that were not merged with others (which have no farthest sample)."""
    xp = array_namespace(centred.ww)
    sums = centred.sums
    total = sums.layout.gather_parts(xp, centred.ww[0, 1:])
    some = xp.where(total > 0, total, xp.ones_like(total))
    largest = xp.zeros_like(total) if sums.largest is None else sums.largest
    sample = xp.zeros(total.shape, dtype=xp.int64, device=total.device) if sums.farthest is None else sums.farthest
    own = xp.linalg.diagonal(centred.layers(centred.inner("unbiased")))
    told = own > centred.floor()
    rounding = 4 * float(xp.finfo(xp.float64).eps) * total * total / xp.where(told, own, xp.ones_like(own))
    return Spread(total, largest / some, sample, xp.where(told, rounding, xp.full_like(rounding, xp.inf)))
