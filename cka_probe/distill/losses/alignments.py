"""Mean alignment over the slices of a map, from their small products or their stacks, and its chance level."""

from __future__ import annotations

import torch
from torch import Tensor

from ...estimators.alignment import cka_of_features, ratio
from ...estimators.hsic import CentredGram
from ...estimators.kernels import Linear, center_features
from .patches import PatchProducts, patch_products
from .uncentred import uncentred_cka

__all__ = [
    "both_of_matrix",
    "cka_of_centred",
    "inter_of_products",
    "intra_of_products",
    "of_stacks",
    "value_and_chance",
]


def intra_of_products(products: PatchProducts, estimator: str) -> Tensor:
    """Mean over slices of the alignment over patches, float64.

    A slice that is constant in the teacher is left out. One that is constant in the student alone counts as 0. NaN if
    all are constant in the teacher, or if a slice holds NaN.
    """
    return _mean(*_intra(products, estimator))


def inter_of_products(products: PatchProducts) -> Tensor:
    """Mean over slices of the biased alignment over entries, float64, by <X'X, Y'Y> = ||X Y'||^2.

    Constant slices count as in `intra_of_products`.
    """
    return _mean(*_inter(products))


def both_of_matrix(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Biased linear CKA of two matrices (n, p) over rows, and of their transposes over columns, float64.

    Three small products give both; two separate alignments would need five. NaN if x or y is constant.

    References
    ----------
    docs/paper.md, section 3.
    """
    wide = x.shape[0] <= x.shape[1]
    # The rows become the patches of one sample; each column is a channel.
    maps = [(z.mT if wide else z)[None, :, :, None] for z in (x, y)]
    products = patch_products(maps[0], maps[1], 1, "sample", centred=True, inter=True)
    found = []
    for value, dead_x, dead_y in (_intra(products, "biased"), _inter(products)):
        found.append(torch.where(dead_x | dead_y, torch.full_like(value, torch.nan), value)[0])
    return (found[0], found[1]) if wide else (found[1], found[0])


def cka_of_centred(gram_x: Tensor, gram_y: Tensor, estimator: str) -> Tensor:
    """CKA of centred Gram matrices (L, n, n), shape (L,), float64; NaN where one is zero."""
    left, right = (_one_side(gram, estimator) for gram in (gram_x, gram_y))
    return ratio(torch, left.inner(right), left.inner(left), right.inner(right))


Values = tuple[Tensor, Tensor, Tensor]


def _intra(products: PatchProducts, estimator: str) -> Values:
    """Alignment of each slice over patches, and which slices are constant in the student and in the teacher."""
    value = cka_of_centred(products.gram_x, products.gram_y, estimator)
    return value, _trace(products.gram_x) <= products.floors[0], _trace(products.gram_y) <= products.floors[1]


def _inter(products: PatchProducts) -> Values:
    """Alignment of each slice over patch entries, and which slices are constant, as in `_intra`."""
    inner_x, inner_y = products.inner_x, products.inner_y
    scale_x, scale_y = _largest(inner_x), _largest(inner_y)
    value = ratio(
        torch,
        _square_sum(products.cross / scale_x.sqrt() / scale_y.sqrt()),
        _square_sum(inner_x / scale_x),
        _square_sum(inner_y / scale_y),
    )
    return value, _trace(inner_x) <= products.inner_floors[0], _trace(inner_y) <= products.inner_floors[1]


def of_stacks(x: Tensor, y: Tensor, estimator: str, variant: str) -> Tensor:
    """Mean over slices of the alignment of stacks (L, n, m) and (L, n, m'), float64; the estimators choose the form.

    Constant slices count as in `intra_of_products`.
    """
    return _mean(_slice_values(x, y, estimator, variant), _constant(x, variant), _constant(y, variant))


def value_and_chance(x: Tensor, y: Tensor, estimator: str, variant: str) -> tuple[float, float]:
    """Mean alignment of stacks (L, n, m) and (L, n, m'), and its mean over all permutations of the n samples.

    Slices without a defined alignment are left out of both. NaN if none is left.

    References
    ----------
    docs/theory.md, section 1 (chance level). For Gram matrices that are not centred, over permutation matrices P:
    E <K, P L P'> = tr K tr L / n + (sum K - tr K)(sum L - tr L) / (n (n - 1)).
    """
    value = _slice_values(x, y, estimator, variant)
    if x.shape[1] < 2:
        return float(value.nanmean()), float(value.nanmean())
    if estimator == "unbiased":
        return float(value.nanmean()), float((0 * value).nanmean())
    n = x.shape[1]
    facts = []
    for z in (x, y):
        z = center_features(z) if variant == "paper" else z
        z = (z / _largest(z)).double()
        small = z @ z.mT if n <= z.shape[2] else z.mT @ z
        trace = z.square().sum((1, 2))
        facts.append((trace, z.sum(1).square().sum(1) - trace, small.square().sum((1, 2)).sqrt()))
    (trace_x, rest_x, norm_x), (trace_y, rest_y, norm_y) = facts
    chance = (trace_x * trace_y / n + rest_x * rest_y / (n * (n - 1))) / norm_x / norm_y
    return float(value.nanmean()), float(torch.where(value.isnan(), value, chance).nanmean())


def _slice_values(x: Tensor, y: Tensor, estimator: str, variant: str) -> Tensor:
    if variant == "released":
        return uncentred_cka(x, y, rows_scaled=False)
    return cka_of_features(torch, x, y, Linear(), Linear(), estimator)


def _one_side(gram: Tensor, estimator: str) -> CentredGram:
    """Prepare a Gram matrix, already centred where the variant centres, for inner products."""
    if estimator == "unbiased":
        return CentredGram.of(gram, estimator)
    scale = _largest(gram)
    return CentredGram(gram / scale, scale[..., 0, 0].double(), gram.shape[-1])


def _mean(value: Tensor, dead_x: Tensor, dead_y: Tensor) -> Tensor:
    """Mean over the slices that vary in the teacher; one that is constant in the student alone counts as 0."""
    value = torch.where(dead_x & ~dead_y, torch.zeros_like(value), value)
    return torch.where(dead_y, torch.zeros_like(value), value).sum() / (~dead_y).sum()


def _constant(x: Tensor, variant: str) -> Tensor:
    """Whether each slice (L,) has no spread over samples beyond rounding; for "released", whether it is zero."""
    x = x.detach()
    largest = x.abs().amax((1, 2))
    if variant == "released":
        return largest == 0
    return (x - x[:, :1]).abs().amax((1, 2)) <= 16 * torch.finfo(x.dtype).eps * largest


def _largest(x: Tensor) -> Tensor:
    """Largest magnitude of each matrix, (L, 1, 1), without gradient; 1 for a zero matrix."""
    largest = x.detach().abs().amax((1, 2), keepdim=True)
    return torch.where(largest > 0, largest, torch.ones_like(largest))


def _trace(x: Tensor) -> Tensor:
    return x.detach().diagonal(dim1=1, dim2=2).sum(1)


def _square_sum(x: Tensor) -> Tensor:
    return x.square().sum((1, 2), dtype=torch.float64)
