"""HSIC, and the inner products of centred Gram matrices that every CKA needs.

Leading axes are batch axes. Features and Gram matrices may be float32. Their products are summed in float64, and every
statistic is float64 on the caller's device.

Notation of the formulas: n samples, K and L Gram matrices (n, n), A and B their centred or U-centred forms, X and Y
centred features, C = X'Y.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

from .centring import center_gram, off_diagonal, u_centred
from .closed_form import SampleTerms, unbiased_inner, unbiased_share
from .gram_accuracy import has_far_sample
from .kernels import Kernel, Linear, center_features, check_defined, given_kernel
from .traceable import array_namespace
from .validation import Array, check_estimator, check_grams, check_pair, constant

__all__ = [
    "Centred",
    "CentredFeatures",
    "CentredGram",
    "both_sides",
    "flat_centred",
    "gram_is_cheaper",
    "hsic",
    "hsic_from_grams",
    "inner",
    "normalizer",
    "pairwise_inner",
    "row_inner",
    "scaled_features",
    "wide_unless_linear",
]

CHUNK = 4096
"""Columns that a float32 product sums before float64 takes over; the rounding error then stays below 1e-7."""


def normalizer(n: int, estimator: str) -> float:
    """The divisor that turns <A, B> into HSIC: (n-1)^2 for the biased, n(n-3) for the unbiased estimator."""
    return float((n - 1) ** 2 if estimator == "biased" else n * (n - 3))


def _sum64(xp: ModuleType, product: Array, axes: tuple[int, ...]) -> Array:
    return xp.sum(product, axis=axes, dtype=xp.float64)


@dataclass(frozen=True)
class CentredGram:
    """One side of an inner product as a centred (or U-centred) Gram matrix.

    ``matrix`` (..., n, n) is that Gram matrix divided by ``scale`` (...), so that its squares stay in range.
    """

    matrix: Array
    scale: Array
    samples: int

    @classmethod
    def of(cls, gram: Array, estimator: str) -> CentredGram:
        """Centre (or U-centre) and scale a Gram matrix (..., n, n)."""
        xp = array_namespace(gram)
        centred, scale = _centred_and_scale(xp, gram, estimator)
        return cls(centred / scale, xp.astype(scale[..., 0, 0], xp.float64), gram.shape[-1])

    @classmethod
    def of_features(cls, x: Array, kernel: Kernel, estimator: str) -> CentredGram:
        """Centred Gram matrix of features (..., n, p); for the linear kernel they are centred and scaled first."""
        if not isinstance(kernel, Linear):
            return cls.of(kernel(x), estimator)
        z, scale = scaled_features(x)
        gram = cls.of(kernel(z), estimator)
        return cls(gram.matrix, gram.scale * scale * scale, gram.samples)

    def inner(self, other: CentredGram) -> Array:
        """<A, B> = sum_ij A_ij B_ij of the two scaled matrices, shape (...)."""
        xp = array_namespace(self.matrix)
        return _sum64(xp, self.matrix * other.matrix, (-2, -1))

    def row_inner(self, other: CentredGram) -> Array:
        """The share t_i = sum_j A_ij B_ij of each sample in ``inner``, shape (..., n)."""
        return _sum64(array_namespace(self.matrix), self.matrix * other.matrix, (-1,))

    def diagonal(self) -> Array:
        """The diagonal A_ii in float64, shape (..., n)."""
        xp = array_namespace(self.matrix)
        return xp.astype(xp.linalg.diagonal(self.matrix), xp.float64)


@dataclass(frozen=True)
class CentredFeatures:
    """One side of an inner product as centred features (..., n, p) in float64, for the linear kernel.

    The inner product is that of ``CentredGram``, at a cost of n p q instead of n^2 (p + q).
    """

    features: Array
    scale: Array
    samples: int
    unbiased: bool

    @classmethod
    def of(cls, x: Array, estimator: str) -> CentredFeatures:
        """Centre and scale features (..., n, p)."""
        # In float64: the closed form subtracts squares of single samples from ||C||^2. In float32 that costs 1e-3 when
        # one sample lies 300 standard deviations out, and the product alone costs 5e-5 at n = 200,000 and p = 8.
        xp = array_namespace(x)
        z, scale = scaled_features(xp.astype(x, xp.float64))
        return cls(z, scale * scale, x.shape[-2], estimator == "unbiased")

    def inner(self, other: CentredFeatures) -> Array:
        """||C||_F^2, or for the unbiased estimator <A, B> in closed form, of the scaled features, shape (...)."""
        xp = array_namespace(self.features)
        cross = xp.matrix_transpose(self.features) @ other.features
        value = _sum64(xp, cross * cross, (-2, -1))
        if not self.unbiased:
            return value
        a = self.diagonal()
        b = a if other is self else other.diagonal()
        totals = xp.sum(a, axis=-1), xp.sum(b, axis=-1)
        return unbiased_inner(value, xp.sum(a * b, axis=-1), *totals, self.samples)

    def row_inner(self, other: CentredFeatures) -> Array:
        """The share t_i = sum_j A_ij B_ij of each sample in ``inner``, shape (..., n)."""
        x, y = self.features, other.features
        xp = array_namespace(x)
        products = _sum64(xp, (x @ (xp.matrix_transpose(x) @ y)) * y, (-1,))
        if not self.unbiased:
            return products
        a, b = self.diagonal(), other.diagonal()
        totals = xp.sum(a, axis=-1, keepdims=True), xp.sum(b, axis=-1, keepdims=True)
        x_of_b = xp.sum(x * (xp.matrix_transpose(b[..., :, None]) @ x), axis=-1)
        y_of_a = xp.sum(y * (xp.matrix_transpose(a[..., :, None]) @ y), axis=-1)
        terms = SampleTerms(products, a, b, x_of_b, y_of_a)
        return unbiased_share(terms, xp.sum(a * b, axis=-1, keepdims=True), *totals, self.samples)

    def diagonal(self) -> Array:
        """|x_i|^2, the diagonal of the centred Gram matrix before U-centring, shape (..., n)."""
        return _sum64(array_namespace(self.features), self.features * self.features, (-1,))


Centred = CentredGram | CentredFeatures


def _largest(xp: ModuleType, x: Array) -> Array:
    """The largest magnitude of each matrix, shape (..., 1, 1); 1 where the matrix is zero.

    It carries no gradient. The gradient stays exact, because the result is multiplied by the same constant again.
    """
    largest = xp.max(xp.abs(constant(x)), axis=(-2, -1), keepdims=True)
    return xp.where(largest > 0, largest, xp.ones_like(largest))


def _centred_and_scale(xp: ModuleType, gram: Array, estimator: str) -> tuple[Array, Array]:
    """The centred (or U-centred) Gram matrix, and the largest magnitude of the entries it came from (..., 1, 1).

    A centred matrix below the rounding of those entries belongs to a constant layer: it becomes exactly 0.
    """
    if estimator == "unbiased":
        # The diagonal is not used, and with a narrow RBF kernel it is far above all other entries.
        off = off_diagonal(gram)
        gram = gram * off
        centred = u_centred(gram, off)
    else:
        centred = center_gram(gram)
    scale = _largest(xp, gram)
    resolution = 16 * float(xp.finfo(gram.dtype).eps)
    noise = xp.max(xp.abs(constant(centred)), axis=(-2, -1), keepdims=True) <= resolution * scale
    return centred * xp.astype(~noise, centred.dtype), scale


def scaled_features(x: Array) -> tuple[Array, Array]:
    """Centred features (..., n, p) divided by their largest magnitude, and that magnitude (...) in float64."""
    xp = array_namespace(x)
    # Centre first: a division before it would round away the spread of features with a large mean.
    z = center_features(x)
    scale = _largest(xp, z)
    return z / scale, xp.astype(scale[..., 0, 0], xp.float64)


def gram_is_cheaper(n: int, p: int, q: int) -> bool:
    """Whether linear CKA costs less with Gram matrices than with products of features.

    Compares multiply-adds: n^2 (p + q + 3) for two Gram matrices and three inner products, n (p q + p^2 + q^2) for the
    three products of features.
    """
    return n * (p + q + 3) < p * q + p * p + q * q


def both_sides(x: Array, y: Array, kernel: Kernel, kernel_y: Kernel, estimator: str) -> tuple[Centred, Centred]:
    """Both sides of the inner products of checked features, in the cheaper form."""
    n, p, q = x.shape[-2], x.shape[-1], y.shape[-1]
    if isinstance(kernel, Linear) and isinstance(kernel_y, Linear) and not gram_is_cheaper(n, p, q):
        features = CentredFeatures.of(x, estimator)
        return features, features if y is x else CentredFeatures.of(y, estimator)
    gram = CentredGram.of_features(x, kernel, estimator)
    return gram, gram if y is x and kernel_y is kernel else CentredGram.of_features(y, kernel_y, estimator)


def wide_unless_linear(x: Array, y: Array, kernel: Kernel, kernel_y: Kernel) -> tuple[Array, Array]:
    """Both features in float64 if one kernel is not linear, or if a sample lies far from all others; else unchanged.

    A kernel cannot be centred before it is computed. In float32 the cosines of features with a large mean keep few
    digits, and the powers of a polynomial overflow. The squares of a far sample leave only the rounding of all others.
    """
    xp = array_namespace(x)
    linear = isinstance(kernel, Linear) and isinstance(kernel_y, Linear)
    sides = [x] if y is x else [x, y]
    if linear and not any(z.dtype != xp.float64 and has_far_sample(constant(z)) for z in sides):
        return x, y
    wide = xp.astype(x, xp.float64)
    return wide, wide if y is x else xp.astype(y, xp.float64)


def inner(left: Centred, right: Centred) -> Array:
    """<A, B> of two sides in the same form, shape (...)."""
    if isinstance(left, CentredGram) and isinstance(right, CentredGram):
        return left.inner(right)
    assert isinstance(left, CentredFeatures)
    assert isinstance(right, CentredFeatures)
    return left.inner(right)


def row_inner(left: Centred, right: Centred) -> Array:
    """The share t_i = sum_j A_ij B_ij of each sample in ``inner``, shape (..., n)."""
    if isinstance(left, CentredGram) and isinstance(right, CentredGram):
        return left.row_inner(right)
    assert isinstance(left, CentredFeatures)
    assert isinstance(right, CentredFeatures)
    return left.row_inner(right)


def _hsic_of(left: Centred, right: Centred, estimator: str) -> Array:
    return inner(left, right) * left.scale * right.scale / normalizer(left.samples, estimator)


def hsic(
    x: Array, y: Array, *, kernel: Kernel | None = None, kernel_y: Kernel | None = None, estimator: str = "unbiased"
) -> Array:
    """The Hilbert-Schmidt independence criterion (HSIC) between two sets of features of the same samples.

    Parameters
    ----------
    x : array (..., n, p)
        Features. The unbiased estimator needs n >= 4, the biased n >= 2.
    y : array (..., n, q)
        Features of the same samples in the same order, from the same library and on the same device.
    kernel : Kernel, optional
        Kernel of ``x``, and of ``y`` unless ``kernel_y`` is given. Linear by default.
    kernel_y : Kernel, optional
        Kernel of ``y``.
    estimator : "unbiased" or "biased"
        HSIC_1 of Song et al. or HSIC_0 of Gretton et al.

    Returns
    -------
    array (...) of float64
        For linear kernels in units of x^2 y^2. The biased value is never negative; the unbiased value may be.

    Raises
    ------
    TypeError
        If ``x`` or ``y`` is not a real floating array, they come from different libraries, or a kernel is a class or a
        text instead of an instance.
    ValueError
        If the numbers of samples differ or are too small, a value is NaN or infinite, the devices differ, the
        estimator is unknown, or a median bandwidth is 0 because half of all pairs of samples or more are equal.

    References
    ----------
    Gretton et al., Measuring Statistical Dependence with Hilbert-Schmidt Norms, ALT 2005. Song et al., Feature
    Selection via Dependence Maximization, JMLR 2012, equation 5. docs/theory.md, section 1.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.array([[0.0], [1.0], [2.0], [3.0]])
    >>> float(hsic(x, x, estimator="biased")).__round__(4)
    2.7778
    """
    _, x, y = check_pair(x, y, minimum=check_estimator(estimator))
    kernel = given_kernel(kernel)
    kernel_y = given_kernel(kernel_y, "kernel_y", kernel)
    left, right = both_sides(*wide_unless_linear(x, y, kernel, kernel_y), kernel, kernel_y, estimator)
    value = _hsic_of(left, right, estimator)
    check_defined(value, [("x", x, kernel), ("y", y, kernel_y)])
    return value


def hsic_from_grams(gram_x: Array, gram_y: Array, *, estimator: str = "unbiased") -> Array:
    """The Hilbert-Schmidt independence criterion (HSIC) between two Gram matrices.

    Parameters
    ----------
    gram_x, gram_y : array (..., n, n)
        Symmetric Gram matrices of the same samples. They need not be centred.
    estimator : "unbiased" or "biased"
        HSIC_1 or HSIC_0.

    Returns
    -------
    array (...) of float64
        The unbiased value may be negative.

    Raises
    ------
    TypeError, ValueError
        As ``hsic``, and if a matrix is not square.

    Examples
    --------
    >>> import numpy as np
    >>> round(float(hsic_from_grams(np.eye(4), np.eye(4), estimator="biased")), 4)
    0.3333
    """
    _, gram_x, gram_y = check_grams(gram_x, gram_y, minimum=check_estimator(estimator))
    return _hsic_of(CentredGram.of(gram_x, estimator), CentredGram.of(gram_y, estimator), estimator)


def flat_centred(grams: Array, estimator: str) -> Array:
    """Centred Gram matrices of several layers, flattened to one row each for ``pairwise_inner``.

    Parameters
    ----------
    grams : array (layers, n, n)
        Gram matrices whose largest magnitude is about 1.
    estimator : "unbiased" or "biased"
        "unbiased" U-centres, "biased" centres.

    Returns
    -------
    array (layers, n * n)
        One row for each layer.
    """
    xp = array_namespace(grams)
    centred, _ = _centred_and_scale(xp, grams, estimator)
    return xp.reshape(centred, (grams.shape[0], -1))


def pairwise_inner(rows_x: Array, rows_y: Array) -> Array:
    """Inner products of all pairs of rows, as matrix products of chunks of columns that are summed in float64.

    Parameters
    ----------
    rows_x : array (layers_x, m)
        Flattened centred Gram matrices of one network.
    rows_y : array (layers_y, m)
        Flattened centred Gram matrices of the other network.

    Returns
    -------
    array (layers_x, layers_y) of float64
        All inner products.

    Raises
    ------
    ValueError
        If m is 0.

    References
    ----------
    docs/theory.md, section 3.
    """
    xp = array_namespace(rows_x, rows_y)
    if rows_x.dtype != rows_y.dtype:
        rows_x, rows_y = xp.astype(rows_x, xp.float64), xp.astype(rows_y, xp.float64)
    total = None
    size = rows_x.shape[1]
    for start in range(0, size, CHUNK):
        stop = min(start + CHUNK, size)
        part = rows_x[:, start:stop] @ xp.matrix_transpose(rows_y[:, start:stop])
        part = xp.astype(part, xp.float64)
        total = part if total is None else total + part
    if total is None:
        raise ValueError("There are no entries to multiply: the Gram matrices are empty.")
    return total
