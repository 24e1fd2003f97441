"""Similarity of two layers by shared nearest neighbours: mutual k-NN, and CKA restricted to neighbours (CKNNA)."""

from __future__ import annotations

from functools import partial
from numbers import Integral
from typing import NamedTuple

from array_api_compat import array_namespace

from ..hsic import scaled_features
from ..kernels import Cosine, Kernel
from ..validation import Array, check_pair, constant

__all__ = [
    "FORMS",
    "Neighbours",
    "cknna",
    "mutual_knn",
    "neighbour_alignment",
    "neighbour_places",
    "prepare",
    "shared_neighbours",
    "shared_neighbours_chance",
]

FORMS = ("released", "paper")


class Neighbours(NamedTuple):
    """Neighbours in one layer.

    ``mask`` (..., n, n) is 1 where column j is among the k nearest neighbours of row i, else 0. ``places`` (..., n, n)
    is the place of j among the neighbours of i: 0 is the nearest, n - 1 the sample itself. ``undefined`` (...) is NaN
    for a constant layer, else 0.
    """

    mask: Array
    places: Array
    gram: Array
    k: int
    form: str
    undefined: Array


def neighbour_places(gram: Array) -> Array:
    """Place of entry j != i among the entries of row i, the largest first (..., n, n); of equal entries the first."""
    xp = array_namespace(gram)
    n = gram.shape[-1]
    on_diagonal = xp.eye(n, dtype=gram.dtype, device=gram.device) > 0
    closeness = xp.where(on_diagonal, xp.full_like(gram, -xp.inf), constant(gram))
    order = xp.argsort(-closeness, axis=-1, stable=True)
    return xp.argsort(order, axis=-1, stable=True)


def prepare(x: Array, *, k: int = 10, kernel: Kernel | None = None, form: str = "released") -> Neighbours:
    """Neighbours in one layer from its checked features (..., n, p)."""
    n = x.shape[-2]
    if isinstance(k, bool) or not isinstance(k, Integral):
        raise TypeError(f"`k` must be an int, got {type(k).__name__}.")
    if k < 1:
        raise ValueError(f"`k` must be at least 1, got {k}.")
    if k >= n:
        raise ValueError(
            f"`k` must be from 1 to {n - 1} neighbours for {n} samples, got {k}. Pass more samples or a smaller `k`."
        )
    if form not in FORMS:
        raise ValueError(f'`form` must be "released" or "paper", got {form!r}.')
    xp = array_namespace(x)
    x = xp.astype(x, xp.float64)
    gram = (kernel or Cosine())(x)
    centred, _ = scaled_features(x)
    varied = xp.any(constant(centred) != 0, axis=(-2, -1))
    zero = xp.zeros_like(gram[..., 0, 0])
    places = neighbour_places(gram)
    return Neighbours(
        mask=xp.astype(places < k, gram.dtype),
        places=places,
        gram=gram,
        k=int(k),
        form=form,
        undefined=xp.where(varied, zero, xp.full_like(zero, xp.nan)),
    )


def shared_neighbours(x: Neighbours, y: Neighbours) -> Array:
    """Mutual k-NN of two prepared layers."""
    xp = array_namespace(x.mask)
    return xp.sum(x.mask * y.mask, axis=(-2, -1)) / (x.mask.shape[-1] * x.k) + x.undefined + y.undefined


def shared_neighbours_chance(x: Neighbours, y: Neighbours) -> Array:
    """Exact mean of ``shared_neighbours`` over permutations of the samples: k / (n - 1)."""
    return x.k / (x.mask.shape[-1] - 1) + x.undefined + y.undefined


def _released(xp, a: Array, b: Array) -> Array:
    """Formula of n (n - 3) HSIC_1 for symmetric matrices, applied to masked matrices that are not symmetric."""
    n = a.shape[-1]
    traces = xp.sum(a * xp.matrix_transpose(b), axis=(-2, -1))
    totals = xp.sum(a, axis=(-2, -1)) * xp.sum(b, axis=(-2, -1))
    chained = xp.sum(xp.sum(a, axis=-2) * xp.sum(b, axis=-1), axis=-1)
    return traces + totals / ((n - 1) * (n - 2)) - 2 * chained / (n - 2)


def neighbour_alignment(x: Neighbours, y: Neighbours) -> Array:
    """CKNNA of two prepared layers."""
    xp = array_namespace(x.mask)
    sides = (x, y)
    if x.form == "paper":
        centred = [side.gram - xp.mean(side.gram, axis=-1, keepdims=True) for side in sides]
        both = x.mask * y.mask
        cross = xp.sum(both * centred[0] * centred[1], axis=(-2, -1))
        selves = [xp.sum(side.mask * c * c, axis=(-2, -1)) for side, c in zip(sides, centred, strict=True)]
    else:
        cross = _released(xp, x.mask * y.mask * x.gram, x.mask * y.mask * y.gram)
        selves = [_released(xp, side.mask * side.gram, side.mask * side.gram) for side in sides]
    roots = [xp.sqrt(xp.where(s > 0, s, xp.full_like(s, xp.nan))) for s in selves]
    return cross / roots[0] / roots[1] + x.undefined + y.undefined


def mutual_knn(x: Array, y: Array, *, k: int = 10, kernel: Kernel | None = None) -> Array:
    """The mean share of the k nearest neighbours of a sample that two layers have in common.

    Parameters
    ----------
    x : array (..., n, p)
        Features, n > k.
    y : array (..., n, q)
        Features of the same samples.
    k : int
        Number of neighbours of each sample, without the sample itself.
    kernel : Kernel, optional
        The samples with the largest kernel values are the nearest. ``Cosine()`` when left out; ``RBF()`` gives the
        Euclidean neighbours.

    Returns
    -------
    array (...) of float64
        From 0 to 1. Its mean over permutations of the samples is exactly k / (n - 1). NaN if a side is constant. It has
        no gradient.

    Raises
    ------
    TypeError
        As ``cka``, and if ``k`` is not an int.
    ValueError
        As ``cka``, and if ``k`` is outside 1 to n - 1.

    Notes
    -----
    Of equally near samples the earlier counts as nearer, so duplicated samples raise the value of any two layers.

    References
    ----------
    Huh et al., The Platonic Representation Hypothesis, ICML 2024, appendix A. docs/theory.md, section 5.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(30, 4))
    >>> float(mutual_knn(x, 2 * x, k=5))
    1.0
    """
    _, x, y = check_pair(x, y)
    layer = partial(prepare, k=k, kernel=kernel)
    return shared_neighbours(layer(x), layer(y))


def cknna(x: Array, y: Array, *, k: int = 10, kernel: Kernel | None = None, form: str = "released") -> Array:
    """CKA restricted to pairs of samples (i, j) where j is among the k nearest neighbours of i in both layers (CKNNA).

    Parameters
    ----------
    x : array (..., n, p)
        Features, n > k and n >= 4.
    y : array (..., n, q)
        Features of the same samples.
    k : int
        Number of neighbours of each sample; 10 by convention.
    kernel : Kernel, optional
        ``Cosine()`` when left out, which gives each sample norm 1.
    form : "released" or "paper"
        The two give different values. "released" follows the authors' code, and so nearly all published numbers: the
        formula of HSIC_1 on the Gram matrices masked to shared neighbours, without the code's 1e-6 in the denominator.
        "paper" follows the article: products of row-centred kernel values, summed over shared neighbours. Only "paper"
        is symmetric in x and y.

    Returns
    -------
    array (...) of float64
        At most 1 for "paper"; "released" has no proved bound. NaN if a side is constant, or if a self term is not
        positive.

    Raises
    ------
    TypeError
        As ``cka``, and if ``k`` is not an int.
    ValueError
        As ``cka``, if ``k`` is outside 1 to n - 1, and if the form is unknown.

    References
    ----------
    Huh et al., The Platonic Representation Hypothesis, ICML 2024, appendix A, and metrics.py of its repository
    (minyoungg/platonic-rep).

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(30, 4))
    >>> round(float(cknna(x, 2 * x)), 6)
    1.0
    """
    _, x, y = check_pair(x, y, minimum=4)
    layer = partial(prepare, k=k, kernel=kernel, form=form)
    return neighbour_alignment(layer(x), layer(y))
