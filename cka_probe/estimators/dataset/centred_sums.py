"""What sums over samples give once they are about the mean: HSIC of all pairs, and of all samples but one."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

from array_api_compat import array_namespace

from ..closed_form import SampleTerms, unbiased_inner, unbiased_share, without_each
from ..validation import Array

if TYPE_CHECKING:
    from .moment_sums import MomentSums


@dataclass(frozen=True)
class CentredSums:
    """Sums about the mean, in units of the scale of each layer, and what they give for all pairs that are needed.

    Attributes
    ----------
    sums : MomentSums
        What they come from.
    samples : int
        Number of samples.
    delta : array (columns,)
        What the mean asks to be added to each column.
    ww, wu : array
        Sums of w w' and w u' about the mean.
    cross : array (parts, parts)
        ||C||_F^2 of all pairs of parts.
    """

    sums: MomentSums
    samples: int
    delta: Array
    ww: Array
    wu: Array
    cross: Array

    def inner(self, estimator: str) -> Array:
        """<A, B> (parts, parts) of centred ("biased") or U-centred Gram matrices."""
        if estimator == "biased":
            return self.cross
        totals = self.ww[0, 1:]
        return unbiased_inner(self.cross, self.ww[1:, 1:], totals[:, None], totals[None, :], self.samples)

    def layers(self, of_parts: Array) -> Array:
        """Sums (layers, layers) over the parts of layers, of sums (parts, parts) over theirs."""
        xp, gather = array_namespace(of_parts), self.sums.layout.gather_parts
        sums = xp.matrix_transpose(gather(xp, xp.matrix_transpose(gather(xp, of_parts))))
        return (sums + xp.matrix_transpose(sums)) / 2  # symmetric to the last bit

    def floor(self) -> Array:
        """Self terms (layers,) below this are the rounding of the sums that they are the difference of."""
        xp = array_namespace(self.ww)
        totals = self.sums.layout.gather_parts(xp, self.ww[0, 1:])
        return 64 * float(xp.finfo(xp.float64).eps) * totals * totals

    def of_samples(self, x: Array) -> Array:
        """Samples x (m, columns) as the sums have them: centred and scaled, float64."""
        return self.sums.scaled(array_namespace(x), x) + self.delta

    def without_each(self, v: Array, estimator: str) -> Array:
        """<A, B> (m, layers, layers) without one of the samples v (m, columns) of ``of_samples`` at a time."""
        xp, layout, n = array_namespace(v), self.sums.layout, self.samples
        count = len(layout.widths)
        a = layout.cut(layout.layer_spans, (0, layout.columns)).sum_columns(xp, v * v)
        product = xp.zeros((v.shape[0], count, count), dtype=xp.float64, device=v.device)

        def multiply(index: int, products: Array) -> None:
            strip = layout.strips[index]
            rows, columns = (layout.cut(layout.layer_spans, span) for span in strip)
            right = v[:, slice(*strip.columns)] * strip.weights(xp, v)
            left = v[:, slice(*strip.rows)]
            for layer, k in zip(range(rows.first, rows.last), rows.slices, strict=True):
                sums = columns.sum_columns(xp, (left[:, k] @ products[k, :]) * right)
                product[:, layer, columns.first : columns.last] += sums
                product[:, columns.first : columns.last, layer] += sums

        self.sums.moved(None, self.delta, multiply)
        diagonal = a[:, :, None] * a[:, None, :]
        total = self.layers(self.inner(estimator))
        if estimator == "biased":
            return without_each(total, product, diagonal, n, estimator)
        share = self._shares(xp, v, a, product)
        return without_each(total, share, diagonal, n, estimator)

    def _shares(self, xp: ModuleType, v: Array, a: Array, product: Array) -> Array:
        layout, gather = self.sums.layout, self.sums.layout.gather_parts
        ww = self.layers(self.ww[1:, 1:])
        totals = gather(xp, self.ww[0, 1:])
        with_norms = xp.matrix_transpose(gather(xp, xp.matrix_transpose(self.wu[1:, :])))  # sum_j b_j x_j of all layers
        x_of_b = xp.stack([v[:, b:e] @ xp.matrix_transpose(with_norms[:, b:e]) for b, e in layout.layer_spans], axis=1)
        terms = SampleTerms(product, a[:, :, None], a[:, None, :], x_of_b, xp.permute_dims(x_of_b, (0, 2, 1)))
        return unbiased_share(terms, ww, totals[:, None], totals[None, :], self.samples)
