"""The alignment of the paper's released code: Gram matrices that are not centred and whose rows alone are scaled.

It is here to reproduce that code. The mean of the features dominates an un-centred alignment: for independent features
of patches it starts at 0.86 to 0.99 (docs/paper.md, departure 11).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...estimators.alignment import ratio
from ...estimators.hsic import gram_is_cheaper

__all__ = ["uncentred_cka"]


def uncentred_cka(x: Tensor, y: Tensor, *, rows_scaled: bool) -> Tensor:
    """tr(G_x G_y') / sqrt(tr(G_x G_x') tr(G_y G_y')) of un-centred Gram matrices G.

    Parameters
    ----------
    x, y : Tensor (..., n, p) and (..., n, q)
        Features.
    rows_scaled : bool
        If true, row i of each Gram matrix is divided by |x_i|, the square root of its diagonal entry. The columns are
        not divided, so that G is no longer a Gram matrix.

    Returns
    -------
    Tensor (...) of float64
        At most 1. NaN if x or y is zero, or has a zero row that should be scaled.

    Notes
    -----
    The cheaper of two forms is computed. With weights w_i = 1 / (|x_i| |y_i|), or 1, the numerator is
    sum_ij w_i (x_i . x_j)(y_i . y_j), or <X'Y, X' diag(w) Y>, which needs no n x n matrix.

    References
    ----------
    docs/paper.md, section 2 (departures 1 and 2) and section 3.

    Examples
    --------
    >>> import torch
    >>> x = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    >>> float(uncentred_cka(x, 3 * x, rows_scaled=False))
    1.0
    """
    # A common factor of x or y cancels in the ratio. This one keeps the squares in range.
    x, y = _unit_size(x), _unit_size(y)
    as_gram = gram_is_cheaper(x.shape[-2], x.shape[-1], y.shape[-1])
    inner = _gram_inner if as_gram else _feature_inner
    left = (x, _inverse_norms(x) if rows_scaled else None, x @ x.mT if as_gram else None)
    right = (y, _inverse_norms(y) if rows_scaled else None, y @ y.mT if as_gram else None)
    return ratio(torch, inner(left, right), inner(left, left), inner(right, right))


Side = tuple[Tensor, Tensor | None, Tensor | None]


def _unit_size(x: Tensor) -> Tensor:
    largest = x.detach().abs().amax((-2, -1), keepdim=True)
    return x / torch.where(largest > 0, largest, torch.ones_like(largest))


def _inverse_norms(x: Tensor) -> Tensor:
    """1 / |x_i|, shape (..., n, 1). NaN for a zero row, as 0 / 0 in the released code."""
    norms = x.square().sum(-1, keepdim=True)
    return torch.where(norms > 0, norms, torch.full_like(norms, torch.nan)).rsqrt()


def _gram_inner(left: Side, right: Side) -> Tensor:
    product = left[2] * right[2]  # type: ignore[operator]
    if left[1] is not None and right[1] is not None:
        product = product * (left[1] * right[1])
    return product.sum((-2, -1), dtype=torch.float64)


def _feature_inner(left: Side, right: Side) -> Tensor:
    (x, scale_x, _), (y, scale_y, _) = left, right
    cross = x.mT @ y
    weighted = cross if scale_x is None or scale_y is None else (x * (scale_x * scale_y)).mT @ y
    return (cross * weighted).sum((-2, -1), dtype=torch.float64)
