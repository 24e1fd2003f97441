"""The cosine between Gram matrices that are not centred."""

from __future__ import annotations

from array_api_compat import array_namespace

from ..alignment import normalized_gram
from ..kernels import Kernel, Linear
from ..validation import Array, check_pair

__all__ = ["chance", "cosine", "prepare", "uncentred_alignment"]


def prepare(x: Array, *, kernel: Kernel | None = None) -> Array:
    """Gram matrix of one layer of norm 1, from its checked features (..., n, p)."""
    return normalized_gram(x, kernel or Linear(), centring="none")


def cosine(x: Array, y: Array) -> Array:
    """Uncentred alignment of two prepared layers."""
    return array_namespace(x).sum(x * y, axis=(-2, -1))


def chance(x: Array, y: Array) -> Array:
    """Exact mean over permutations of the samples. They map diagonal entries to diagonal entries, others to others."""
    xp = array_namespace(x)
    n = x.shape[-1]
    on = [xp.sum(xp.linalg.diagonal(z), axis=-1) for z in (x, y)]
    off = [xp.sum(z, axis=(-2, -1)) - d for z, d in zip((x, y), on, strict=True)]
    return on[0] * on[1] / n + off[0] * off[1] / (n * (n - 1))


def uncentred_alignment(x: Array, y: Array, *, kernel: Kernel | None = None) -> Array:
    """The cosine between the Gram matrices of two layers without centring.

    Parameters
    ----------
    x : array (..., n, p)
        Features, n >= 2. They are not centred: large means alone bring the value near 1.
    y : array (..., n, q)
        Features of the same samples.
    kernel : Kernel, optional
        Linear when left out.

    Returns
    -------
    array (...) of float64
        From 0 to 1 for positive semi-definite kernels. NaN if all features of a side are 0.

    Raises
    ------
    TypeError, ValueError
        As ``cka``.

    References
    ----------
    Cristianini et al., On Kernel-Target Alignment, NeurIPS 2001. c0 in T2 (docs/theory.md, section 7).

    Examples
    --------
    >>> import numpy as np
    >>> x, y = np.random.default_rng(0).normal(size=(2, 50, 3))
    >>> bool(uncentred_alignment(x + 10, y + 10) > 0.95)
    True
    """
    _, x, y = check_pair(x, y)
    return cosine(prepare(x, kernel=kernel), prepare(y, kernel=kernel))
