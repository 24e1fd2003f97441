"""CKA (centred kernel alignment): the cosine between the centred Gram matrices of two layers."""

from __future__ import annotations

from types import ModuleType

from .centring import center_gram, u_center_gram
from .hsic import Centred, CentredFeatures, CentredGram, both_sides, inner, wide_unless_linear
from .kernels import Kernel, Linear, center_features, check_defined, given_kernel
from .traceable import array_namespace
from .validation import Array, check_estimator, check_grams, check_pair, constant

__all__ = [
    "chance_level",
    "cka",
    "cka_from_grams",
    "cka_of_features",
    "normalized_gram",
    "participation_ratio",
    "ratio",
    "self_term",
]


def ratio(
    xp: ModuleType,
    cross: Array,
    self_x: Array,
    self_y: Array,
    floor_x: Array | float = 0.0,
    floor_y: Array | float = 0.0,
) -> Array:
    """``cross / sqrt(self_x self_y)``; NaN where a self term is not above its floor."""
    defined = (self_x > floor_x) & (self_y > floor_y)
    one = xp.ones_like(self_x + self_y)  # for its shape; a product could leave the range of the dtype
    # Two square roots, because the product of both self terms can overflow or underflow float64.
    norm = xp.sqrt(xp.where(defined, self_x * one, one)) * xp.sqrt(xp.where(defined, self_y * one, one))
    return xp.where(defined, cross / norm, xp.full_like(norm, xp.nan))


def self_term(xp: ModuleType, side: Centred) -> tuple[Array, Array | float]:
    """<A, A>, and the floor below which it is only rounding error: 0 for a ``CentredGram``."""
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
    """Centred kernel alignment (CKA) between two sets of features of the same samples.

    Parameters
    ----------
    x : array (..., n, p)
        Features of any scale and mean. The unbiased estimator needs n >= 4, the biased n >= 2.
    y : array (..., n, q)
        Features of the same samples in the same order, from the same library and on the same device.
    kernel : Kernel, optional
        Kernel of ``x``, and of ``y`` unless ``kernel_y`` is given. Linear by default.
    kernel_y : Kernel, optional
        Kernel of ``y``.
    estimator : "unbiased" or "biased"
        "unbiased" takes the ratio of HSIC_1: near 0 for unrelated features, and slightly negative for about half of
        them. "biased" takes the ratio of HSIC_0: far above 0 unless n is far above p and q (see ``chance_level``).

    Returns
    -------
    array (...) of float64
        At most 1; the unbiased value may be negative. NaN where one side is constant over the samples.

    Raises
    ------
    TypeError
        If ``x`` or ``y`` is not a real floating array, they come from different libraries, or a kernel is a class or a
        text instead of an instance.
    ValueError
        If the numbers of samples differ or are too small, a value is NaN or infinite, the devices differ, the
        estimator is unknown, or a median bandwidth is 0 because half of all pairs of samples or more are equal.

    Notes
    -----
    Features in float16 and bfloat16 are computed in float32, or in float64 if a kernel is not linear. Sums are in
    float64. Gradients flow. For linear kernels the cheaper of two forms is used: Gram matrices (n, n), or products of
    features (p, q).

    References
    ----------
    Kornblith et al., Similarity of Neural Network Representations Revisited, ICML 2019. Nguyen, Raghu, Kornblith,
    Do Wide and Deep Networks Learn the Same Things?, ICLR 2021, equation 3 (unbiased). docs/theory.md, section 1.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(50, 3))
    >>> float(cka(x, 7 * x + 100)).__round__(6)
    1.0
    """
    xp, x, y = check_pair(x, y, minimum=check_estimator(estimator))
    kernel = given_kernel(kernel)
    kernel_y = given_kernel(kernel_y, "kernel_y", kernel)
    wide = wide_unless_linear(x, y, kernel, kernel_y)
    value = cka_of_features(xp, *wide, kernel, kernel_y, estimator)
    check_defined(value, [("x", x, kernel), ("y", y, kernel_y)])
    return value


def cka_of_features(xp: ModuleType, x: Array, y: Array, kernel: Kernel, kernel_y: Kernel, estimator: str) -> Array:
    """``cka`` without its checks, for hot loops; the features are float32 or float64, of one library and device."""
    return _cka_of(xp, *both_sides(x, y, kernel, kernel_y, estimator))


def cka_from_grams(gram_x: Array, gram_y: Array, *, estimator: str = "unbiased") -> Array:
    """Centred kernel alignment (CKA) between two Gram matrices.

    Parameters
    ----------
    gram_x, gram_y : array (..., n, n)
        Symmetric Gram matrices of the same samples. They need not be centred.
    estimator : "unbiased" or "biased"
        "unbiased" takes the ratio of HSIC_1, "biased" that of HSIC_0.

    Returns
    -------
    array (...) of float64
        At most 1; NaN where a matrix is zero after centring.

    Raises
    ------
    TypeError, ValueError
        As ``cka``, and if a matrix is not square.

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
    """The participation ratio (tr Kc)^2 / ||Kc||_F^2 of the centred Gram matrix Kc: an effective number of dimensions.

    Parameters
    ----------
    gram : array (..., n, n)
        Symmetric Gram matrix.

    Returns
    -------
    array (...) of float64
        Between 1 and n - 1; NaN where the centred matrix is zero.
    """
    xp = array_namespace(gram)
    side = CentredGram.of(gram, "biased")
    trace = xp.sum(
        side.matrix * xp.eye(side.samples, dtype=gram.dtype, device=gram.device), axis=(-2, -1), dtype=xp.float64
    )
    squares = side.inner(side)
    return ratio(xp, trace * trace, squares, squares)


def chance_level(x: Array, y: Array, *, kernel: Kernel | None = None, kernel_y: Kernel | None = None) -> Array:
    """Chance level of biased CKA: its mean over all permutations of the samples of one side.

    It is exactly sqrt(PR_x PR_y) / (n - 1), with PR the ``participation_ratio`` of each side.

    Parameters
    ----------
    x, y : array (..., n, p) and (..., n, q)
        Features, n >= 2.
    kernel, kernel_y : Kernel, optional
        As in ``cka``.

    Returns
    -------
    array (...) of float64
        Between 0 and 1; NaN where one side is constant. The chance level of unbiased CKA is 0.

    Raises
    ------
    TypeError, ValueError
        As ``cka``.

    References
    ----------
    docs/theory.md, section 1.

    Examples
    --------
    >>> import numpy as np
    >>> x, y = np.random.default_rng(0).normal(size=(2, 32, 1024))
    >>> round(float(chance_level(x, y)), 2)
    0.97
    """
    xp, x, y = check_pair(x, y, minimum=2)
    kernel = given_kernel(kernel)
    ratios = []
    for features, k in ((x, kernel), (y, given_kernel(kernel_y, "kernel_y", kernel))):
        features = center_features(features) if isinstance(k, Linear) else xp.astype(features, xp.float64)
        ratios.append(participation_ratio(k(features)))
    return xp.sqrt(ratios[0] * ratios[1]) / (x.shape[-2] - 1)


def _unit_norm(xp: ModuleType, matrix: Array) -> Array:
    """The matrix (..., n, n) divided by its Frobenius norm; all entries are NaN where the matrix is zero."""
    largest = xp.max(xp.abs(constant(matrix)), axis=(-2, -1), keepdims=True)
    alive = largest > 0
    matrix = matrix / xp.where(alive, largest, xp.ones_like(largest))
    squares = xp.sum(matrix * matrix, axis=(-2, -1), keepdims=True)
    return matrix / xp.sqrt(xp.where(alive, squares, xp.full_like(squares, xp.nan)))


def normalized_gram(x: Array, kernel: Kernel, *, centring: str = "biased") -> Array:
    """The Gram matrix of features divided by its Frobenius norm, in float64.

    Parameters
    ----------
    x : array (..., n, p)
        Features that passed ``check_features``.
    kernel : Kernel
        Kernel of the Gram matrix.
    centring : "biased", "unbiased" or "none"
        Whether the matrix is centred, U-centred, or left as it is.

    Returns
    -------
    array (..., n, n) of float64
        NaN where the matrix is zero after this centring.
    """
    xp = array_namespace(x)
    x = xp.astype(x, xp.float64)
    if centring == "none":
        if isinstance(kernel, Linear):
            largest = xp.max(xp.abs(constant(x)), axis=(-2, -1), keepdims=True)
            x = x / xp.where(largest > 0, largest, xp.ones_like(largest))
        return _unit_norm(xp, kernel(x))
    matrix = CentredGram.of_features(x, kernel, centring).matrix
    if isinstance(kernel, Linear):
        return _unit_norm(xp, matrix)
    # If the spread is far below the values, rounding leaves a mean. A second centring removes it.
    return _unit_norm(xp, center_gram(matrix) if centring == "biased" else u_center_gram(matrix))
