"""Inner products that give HSIC of all pairs of layers, with all samples or with one left out, from centred sums."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

from array_api_compat import array_namespace

from ..closed_form import SampleTerms, unbiased_inner, unbiased_share, without_each
from ..validation import Array
from .moment_sums import MomentSums

__all__ = ["CentredSums", "centre_sums"]


@dataclass(frozen=True)
class CentredSums:
    """Sums about the mean, in units of the scale of each layer. Only pairs that the layout compares are valid.

    Attributes
    ----------
    sums : MomentSums
        The sums about the first shift that these were computed from.
    samples : int
        Number of samples.
    delta : array (columns,)
        Added to each scaled column, it moves the mean to 0.
    ww, wu : array
        Sums of w w' and w u' about the mean (see ``moment_sums``).
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
        """Inner products <A, B> (parts, parts) of the centred ("biased") or U-centred ("unbiased") Gram matrices."""
        if estimator == "biased":
            return self.cross
        totals = self.ww[0, 1:]
        return unbiased_inner(self.cross, self.ww[1:, 1:], totals[:, None], totals[None, :], self.samples)

    def layers(self, of_parts: Array) -> Array:
        """Add up values (parts, parts) over the parts of each layer, to (layers, layers)."""
        xp, gather = array_namespace(of_parts), self.sums.layout.gather_parts
        sums = xp.matrix_transpose(gather(xp, xp.matrix_transpose(gather(xp, of_parts))))
        return (sums + xp.matrix_transpose(sums)) / 2  # exactly symmetric

    def floor(self) -> Array:
        """Rounding error (layers,) of the self terms: a smaller self term counts as 0."""
        xp = array_namespace(self.ww)
        totals = self.sums.layout.gather_parts(xp, self.ww[0, 1:])
        return 64 * float(xp.finfo(xp.float64).eps) * totals * totals

    def of_samples(self, x: Array) -> Array:
        """Samples x (m, columns), centred and scaled like the sums, in float64."""
        return self.sums.scaled(array_namespace(x), x) + self.delta

    def without_each(self, v: Array, estimator: str) -> Array:
        """<A, B> (m, layers, layers) of all samples but one, for each of the m samples v of ``of_samples``."""
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
        """Share t_i of each sample in <A, B>, (m, layers, layers)."""
        layout, gather = self.sums.layout, self.sums.layout.gather_parts
        ww = self.layers(self.ww[1:, 1:])
        totals = gather(xp, self.ww[0, 1:])
        with_norms = xp.matrix_transpose(gather(xp, xp.matrix_transpose(self.wu[1:, :])))  # sum_j b_j x_j for all pairs
        x_of_b = xp.stack([v[:, b:e] @ xp.matrix_transpose(with_norms[:, b:e]) for b, e in layout.layer_spans], axis=1)
        terms = SampleTerms(product, a[:, :, None], a[:, None, :], x_of_b, xp.permute_dims(x_of_b, (0, 2, 1)))
        return unbiased_share(terms, ww, totals[:, None], totals[None, :], self.samples)


def centre_sums(sums: MomentSums) -> CentredSums:
    """Move the sums to the mean of all their samples."""
    sums.flush()
    xp = array_namespace(sums.shift)
    layout, parts = sums.layout, len(sums.layout.part_spans)
    delta = -sums.wu[0, :] / sums.ww[0, 0]
    cross = xp.zeros((parts, parts), dtype=xp.float64, device=delta.device)

    def square(index: int, products: Array) -> None:
        strip = layout.strips[index]
        rows, columns = (layout.cut(layout.part_spans, span) for span in strip)
        squares = rows.sum_rows(xp, products * products) * strip.weights(xp, delta)
        squares = columns.sum_columns(xp, squares)
        cross[rows.first : rows.last, columns.first : columns.last] += squares
        cross[columns.first : columns.last, rows.first : rows.last] += xp.matrix_transpose(squares)

    ww, wu = sums.moved(None, delta, square)
    return CentredSums(sums, sums.samples, delta, ww, wu, cross)
