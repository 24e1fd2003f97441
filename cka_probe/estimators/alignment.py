"""CKA: the cosine between centred Gram matrices, for one pair or for all pairs of layers."""

from __future__ import annotations

from types import ModuleType

from array_api_compat import array_namespace

from .hsic import (
    Centred,
    CentredFeatures,
    CentredGram,
    both_sides,
    center_gram,
    centred_linear,
    inner,
    u_center_gram,
)
from .kernels import Kernel, Linear, center_features
from .validation import Array, check_estimator, check_grams, check_pair, constant


def ratio(
    xp: ModuleType,
    cross: Array,
    self_x: Array,
    self_y: Array,
    floor_x: Array | float = 0.0,
    floor_y: Array | float = 0.0,
) -> Array:
    """``cross / sqrt(self_x self_y)``; NaN where a self term does not rise above its floor."""
    defined = (self_x > floor_x) & (self_y > floor_y)
    one = xp.ones_like(self_x * self_y)
    # Two square roots: the product of two self terms leaves the range of float64 sooner than either.
    norm = xp.sqrt(xp.where(defined, self_x * one, one)) * xp.sqrt(xp.where(defined, self_y * one, one))
    return xp.where(defined, cross / norm, xp.full_like(norm, xp.nan))


def self_term(xp: ModuleType, side: Centred) -> tuple[Array, Array | float]:
    """<A, A> and the value below which it is rounding: 0 for Gram matrices, which are cleaned before."""
    value = inner(side, side)
    if not isinstance(side, CentredFeatures):
        return value, 0.0
    eps = float(xp.finfo(side.features.dtype).eps)
    spread = xp.sum(side.features * side.features, axis=(-2, -1), dtype=xp.float64)
    return value, 16 * eps * spread * spread / side.samples


def _cka_of(xp: ModuleType, left: Centred, right: Centred) -> Array:
    self_x, floor_x = self_term(xp, left)
    self_y, floor_y = (self_x, floor_x) if right is left else self_term(xp, right)
    return ratio(xp, inner(left, right), self_x, self_y, floor_x, floor_y)


def cka(
    x: Array, y: Array, *, kernel: Kernel | None = None, kernel_y: Kernel | None = None, estimator: str = "unbiased"
) -> Array:
    """Centred kernel alignment of two sets of features of the same samples.

    Parameters
    ----------
    x : array (..., n, p)
        Features of any scale and mean; n >= 4 for the unbiased estimator, 2 for the biased.
    y : array (..., n, q)
        Features of the same samples, in the same order, of the same library and device.
    kernel : Kernel
        Kernel of ``x``, and of ``y`` unless ``kernel_y`` is given. Linear when left out.
    kernel_y : Kernel, optional
        Kernel of ``y``.
    estimator : "unbiased" or "biased"
        The ratio of HSIC_1 (near 0 for unrelated features, and slightly negative half the time) or of HSIC_0 (far above
        0 when n is not far above the widths: see ``chance_level``).

    Returns
    -------
    array (...) of float64
        At most 1. NaN where a side is constant over the samples: its alignment is not defined.

    Raises
    ------
    TypeError
        For anything but real floating arrays of one library.
    ValueError
        For different numbers of samples, too few, NaN or infinity, different devices, or an unknown estimator.

    Notes
    -----
    float16 and bfloat16 are computed in float32, float32 products are added up in float64, and gradients flow. With the
    linear kernel the cheaper of the Gram form and the feature form is taken.

    References
    ----------
    Kornblith et al., Similarity of Neural Network Representations Revisited, ICML 2019. Nguyen, Raghu, Kornblith,
    Do Wide and Deep Networks Learn the Same Things?, ICLR 2021, equation 3 (unbiased). MATH 1.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(50, 3))
    >>> float(cka(x, 7 * x + 100)).__round__(6)
    1.0
    """
    xp, x, y = check_pair(x, y, minimum=check_estimator(estimator))
    return cka_of_features(xp, x, y, kernel or Linear(), kernel_y or kernel or Linear(), estimator)


def cka_of_features(xp: ModuleType, x: Array, y: Array, kernel: Kernel, kernel_y: Kernel, estimator: str) -> Array:
    """``cka`` without the checks, for callers in a hot loop: float32 or float64 features of one library and device."""
    return _cka_of(xp, *both_sides(x, y, kernel, kernel_y, estimator))


def cka_from_grams(gram_x: Array, gram_y: Array, *, estimator: str = "unbiased") -> Array:
    """Centred kernel alignment of two Gram matrices.

    Parameters
    ----------
    gram_x, gram_y : array (..., n, n)
        Symmetric Gram matrices of the same samples. Centring is done here.
    estimator : "unbiased" or "biased"
        The ratio of HSIC_1 or of HSIC_0.

    Returns
    -------
    array (...) of float64
        At most 1; NaN where a matrix is constant after centring.

    Raises
    ------
    TypeError, ValueError
        As ``cka``, and for matrices that are not square.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(50, 3))
    >>> float(cka_from_grams(x @ x.T, 2 * x @ x.T)).__round__(6)
    1.0
    """
    xp, gram_x, gram_y = check_grams(gram_x, gram_y, minimum=check_estimator(estimator))
    return _cka_of(xp, CentredGram.of(gram_x, estimator), CentredGram.of(gram_y, estimator))


def participation_ratio(gram: Array) -> Array:
    """The effective dimension (tr Kc)^2 / ||Kc||_F^2 of a Gram matrix after centring.

    Parameters
    ----------
    gram : array (..., n, n)
        Symmetric Gram matrix.

    Returns
    -------
    array (...) of float64
        Between 1 and n - 1; NaN for a constant side.
    """
    xp = array_namespace(gram)
    side = CentredGram.of(gram, "biased")
    trace = xp.sum(
        side.matrix * xp.eye(side.samples, dtype=gram.dtype, device=gram.device), axis=(-2, -1), dtype=xp.float64
    )
    squares = side.inner(side)
    return ratio(xp, trace * trace, squares, squares)


def chance_level(x: Array, y: Array, *, kernel: Kernel | None = None, kernel_y: Kernel | None = None) -> Array:
    """The mean of biased CKA over all permutations of the samples: what unrelated features of this shape score.

    Parameters
    ----------
    x, y : array (..., n, p) and (..., n, q)
        Features, n >= 2.
    kernel, kernel_y : Kernel, optional
        As in ``cka``.

    Returns
    -------
    array (...) of float64
        Between 0 and 1; NaN for a constant side. The chance level of the unbiased estimator is 0.

    Raises
    ------
    TypeError, ValueError
        As ``cka``.

    References
    ----------
    MATH 1: sqrt(PR_x PR_y) / (n - 1), exact.

    Examples
    --------
    >>> import numpy as np
    >>> x, y = np.random.default_rng(0).normal(size=(2, 32, 1024))
    >>> round(float(chance_level(x, y)), 2)
    0.97
    """
    xp, x, y = check_pair(x, y, minimum=2)
    kernel = kernel or Linear()
    ratios = []
    for features, k in ((x, kernel), (y, kernel_y or kernel)):
        features = center_features(features) if isinstance(k, Linear) else features
        ratios.append(participation_ratio(k(features)))
    return xp.sqrt(ratios[0] * ratios[1]) / (x.shape[-2] - 1)


def unit_norm(xp: ModuleType, matrix: Array) -> Array:
    """A matrix (..., n, n) over its Frobenius norm; NaN throughout where the matrix is zero."""
    largest = xp.max(xp.abs(constant(matrix)), axis=(-2, -1), keepdims=True)
    alive = largest > 0
    matrix = matrix / xp.where(alive, largest, xp.ones_like(largest))
    squares = xp.sum(matrix * matrix, axis=(-2, -1), keepdims=True)
    return matrix / xp.sqrt(xp.where(alive, squares, xp.full_like(squares, xp.nan)))


def normalized_gram(x: Array, kernel: Kernel, *, centring: str = "biased") -> Array:
    """The Gram matrix of features over its Frobenius norm, in float64.

    Parameters
    ----------
    x : array (..., n, p)
        Checked features.
    kernel : Kernel
        Kernel of the Gram matrix.
    centring : "biased", "unbiased" or "none"
        Centred, U-centred, or as it is.

    Returns
    -------
    array (..., n, n) of float64
        NaN where it is constant (zero when ``centring="none"``).
    """
    xp = array_namespace(x)
    x = xp.astype(x, xp.float64)
    if centring == "none":
        if isinstance(kernel, Linear):
            largest = xp.max(xp.abs(constant(x)), axis=(-2, -1), keepdims=True)
            x = x / xp.where(largest > 0, largest, xp.ones_like(largest))
        return unit_norm(xp, kernel(x))
    if isinstance(kernel, Linear):
        side = centred_linear(x, centring, as_gram=True)
        assert isinstance(side, CentredGram)
        return unit_norm(xp, side.matrix)
    matrix = CentredGram.of(kernel(x), centring).matrix
    # A spread far below the values leaves a mean by rounding; a second centring takes that too.
    return unit_norm(xp, center_gram(matrix) if centring == "biased" else u_center_gram(matrix))
