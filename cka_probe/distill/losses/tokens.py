"""Tokens in losses: which mask belongs to a feature, pooling as `compare` pools, and CKA over the real tokens.

No function here asks how many tokens are real: the shapes do not depend on the padding, so that no GPU is waited for.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from ...capture.pooling import pool
from ...estimators.alignment import ratio
from ...estimators.closed_form import unbiased_inner
from ...estimators.hsic import gram_is_cheaper
from .checks import feature_pairs
from .contract import Outputs
from .deferred import raise_if
from .gather import gathered

__all__ = ["check_real", "cka_of_tokens", "filled", "mask_of", "real_tokens", "sample_matrices"]


def mask_of(feature: Tensor, own: Tensor | None, other: Tensor | None = None) -> Tensor | None:
    """The mask of the real tokens (B, T) of a feature, as booleans on its device; None if none belongs to it.

    Parameters
    ----------
    feature : Tensor (B, ...)
        Tokens have the shape (B, T, ...) with three or more axes. Matrices (B, d) have no tokens.
    own : Tensor (B, T), optional
        Mask of the feature's network.
    other : Tensor (B, T), optional
        Mask of the other network, which counts if ``own`` is missing.
    """
    mask = other if own is None else own
    if mask is None or feature.ndim < 3 or tuple(feature.shape[:2]) != tuple(mask.shape):
        return None
    return mask.to(device=feature.device, dtype=torch.bool)


def sample_matrices(student: Outputs, teacher: Outputs, loss: str, gather: bool) -> list[tuple[Tensor, Tensor]]:
    """Pairs of features as matrices with a row for each sample, gathered over all processes if ``gather``.

    Tokens (B, T, ...) with a mask become their mean over the real tokens, as `compare` pools them. Everything else is
    flattened.

    Raises
    ------
    TypeError, ValueError
        As `feature_pairs`, and if a sample has no real token.
    """
    pairs = feature_pairs(student.features, teacher.features, loss)
    matrices = []
    for index, (x, y) in enumerate(pairs):
        pair = []
        for feature, own, other, owner in (
            (x, student.mask, teacher.mask, "student"),
            (y, teacher.mask, student.mask, "teacher"),
        ):
            mask = mask_of(feature, own, other)
            if mask is None:
                _warn_of_tokens(feature, own, f"The {owner}'s feature {index}")
                pair.append(feature.flatten(1))
            else:
                check_real(mask, owner)
                pair.append(pool(feature, "mean", mask))
        matrices.append((pair[0], pair[1]))
    return gathered(matrices, gather)


def real_tokens(x: Tensor, y: Tensor, student: Outputs, teacher: Outputs) -> Tensor | None:
    """Tokens that are real in both networks, (B, T), for features of the same tokens; None without a mask."""
    masks = [mask_of(feature, outputs.mask) for feature, outputs in ((x, student), (y, teacher))]
    given = [mask.to(x.device) for mask in masks if mask is not None]
    if not given:
        return None
    return given[0] if len(given) == 1 else given[0] & given[1]


def check_real(mask: Tensor, owner: str) -> None:
    """Raise ValueError if a sample has no real token; when, `deferred` says."""
    empty = ~mask.any(1)
    raise_if(
        empty.any(),
        lambda: empty.int().argmax().view(1),
        lambda facts: ValueError(
            f"Sample {facts[0]} of the batch has no real token in the {owner}'s mask, so it has no features. The mask "
            "must be True or 1 for real tokens. Leave empty samples out of the data."
        ),
    )


def _warn_of_tokens(feature: Tensor, mask: Tensor | None, what: str) -> None:
    """Warn if the batch has a mask, and tokens (B, T, d) that it does not fit."""
    if mask is None or feature.ndim != 3 or torch.compiler.is_compiling():
        return
    warnings.warn(
        f"{what} has the shape {tuple(feature.shape)}, which the mask {tuple(mask.shape)} does not fit, so all of its "
        "positions count, also those of padding, if any.",
        stacklevel=2,
    )


def cka_of_tokens(x: Tensor, y: Tensor, real: Tensor, estimator: str) -> Tensor:
    """Linear CKA over the real rows of two matrices, a float64 scalar; NaN where it is not defined.

    Parameters
    ----------
    x, y : Tensor (n, p) and (n, q)
        Rows of all tokens. Those of padding may hold anything, also NaN.
    real : Tensor (n,)
        True for the rows that count.
    estimator : "biased" or "unbiased"
        As in `cka_probe.cka`.

    Notes
    -----
    Rows of padding become 0 after the centring over the real ones. So they add nothing to X'Y, X X' and |x_i|^2, of
    which both estimators are made; the unbiased one also needs the number of real rows.

    References
    ----------
    docs/theory.md, section 1.
    """
    count = real.sum(dtype=torch.float64)
    x, y = (_centred_rows(z, real, count) for z in (x, y))
    as_gram = gram_is_cheaper(len(x), x.shape[1], y.shape[1])
    left, right = (z @ z.mT if as_gram else z for z in (x, y))
    norms = x.square().sum(1), y.square().sum(1)

    def inner(a: int, b: int) -> Tensor:
        sides = (left, right)
        product = sides[a] * sides[b] if as_gram else sides[a].mT @ sides[b]
        value = product.sum() if as_gram else product.square().sum()
        if estimator == "biased":
            return value
        return unbiased_inner(value, (norms[a] * norms[b]).sum(), norms[a].sum(), norms[b].sum(), count)

    # Below these floors a self term is rounding error only, as in the estimators.
    floors = [16 * torch.finfo(torch.float64).eps * norm.sum().square() / count for norm in norms]
    return ratio(torch, inner(0, 1), inner(0, 0), inner(1, 1), floors[0].detach(), floors[1].detach())


def filled(x: Tensor, real: Tensor) -> Tensor:
    """The rows (n, p), with the first real one in the place of padding, without gradient."""
    x = x.detach()
    return torch.where(real[:, None], x, _first(x, real))


def _first(x: Tensor, real: Tensor) -> Tensor:
    return x.take_along_dim(real.int().argmax().view(1, 1), 0)


def _centred_rows(x: Tensor, real: Tensor, count: Tensor) -> Tensor:
    """Rows in float64 minus the mean of the real ones, over their largest magnitude; rows of padding are 0."""
    padding = ~real[:, None]
    # The first real row is subtracted before the mean, so that constant columns become exactly 0.
    x = (x - _first(x.detach(), real)).double().masked_fill(padding, 0)
    x = (x - x.sum(0) / count).masked_fill(padding, 0)
    largest = x.detach().abs().amax()
    return x / torch.where(largest > 0, largest, torch.ones_like(largest))
