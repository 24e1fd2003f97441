"""HSIC: centring, U-centring, and the inner products of centred Gram matrices that every CKA is made of.

Everything works on stacks: leading axes are batch axes. Features and Gram matrices may be float32; their products are
added up in float64, and every statistic comes back in float64 on the caller's device.

Notation of the formulas: n samples, K and L Gram matrices, A and B their U-centred forms, C = X'Y for centred features.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

from array_api_compat import array_namespace

from .closed_form import SampleTerms, unbiased_inner, unbiased_share
from .kernels import Kernel, Linear, center_features
from .validation import Array, check_estimator, check_grams, check_pair, constant

CHUNK = 4096
"""Columns of a float32 product that are added up before float64 takes over: its rounding error stays below 1e-7."""


def center_gram(gram: Array) -> Array:
    """The centred Gram matrix HKH, with H = I - 11'/n.

    Parameters
    ----------
    gram : array (..., n, n)
        Symmetric Gram matrix.

    Returns
    -------
    array (..., n, n)
        Its rows and columns sum to 0.

    Examples
    --------
    >>> import numpy as np
    >>> center_gram(np.array([[2.0, 0.0], [0.0, 2.0]])).tolist()
    [[1.0, -1.0], [-1.0, 1.0]]
    """
    xp = array_namespace(gram)
    rows = xp.mean(gram, axis=-1, keepdims=True)
    return gram - rows - xp.matrix_transpose(rows) + xp.mean(rows, axis=-2, keepdims=True)


def u_center_gram(gram: Array) -> Array:
    """The U-centred Gram matrix A, whose inner products are unbiased.

    Parameters
    ----------
    gram : array (..., n, n)
        Symmetric Gram matrix, n >= 3.

    Returns
    -------
    array (..., n, n)
        Zero diagonal; the rest of every row sums to 0.

    References
    ----------
    Szekely and Rizzo, Partial distance correlation, Annals of Statistics 2014, definition 2. MATH 1.

    Examples
    --------
    >>> import numpy as np
    >>> a = u_center_gram(np.arange(16.0).reshape(4, 4) + np.arange(16.0).reshape(4, 4).T)
    >>> bool(np.allclose(a, 0.0))
    True
    """
    xp = array_namespace(gram)
    n = gram.shape[-1]
    off_diagonal = 1 - xp.eye(n, dtype=gram.dtype, device=gram.device)
    gram = gram * off_diagonal
    rows = xp.sum(gram, axis=-1, keepdims=True) / (n - 2)
    total = xp.sum(rows, axis=-2, keepdims=True) / (n - 1)
    return (gram - rows - xp.matrix_transpose(rows) + total) * off_diagonal


def normalizer(n: int, estimator: str) -> float:
    """What an inner product of centred Gram matrices is divided by: (n-1)^2 biased, n(n-3) unbiased."""
    return float((n - 1) ** 2 if estimator == "biased" else n * (n - 3))


def _sum64(xp: ModuleType, product: Array, axes: tuple[int, ...]) -> Array:
    return xp.sum(product, axis=axes, dtype=xp.float64)


@dataclass(frozen=True)
class CentredGram:
    """A centred (or U-centred) Gram matrix: one side of an inner product.

    ``scale`` is the factor by which the Gram matrix was divided to keep its squares within range.
    """

    matrix: Array
    scale: Array
    samples: int

    @classmethod
    def of(cls, gram: Array, estimator: str) -> CentredGram:
        """A Gram matrix (..., n, n), centred as ``estimator`` needs it and scaled."""
        xp = array_namespace(gram)
        centred, scale = _centred_and_scale(xp, gram, estimator)
        return cls(centred / scale, xp.astype(scale[..., 0, 0], xp.float64), gram.shape[-1])

    def inner(self, other: CentredGram) -> Array:
        """<A, B>: the sum of the products of all entries, in units of both scales."""
        xp = array_namespace(self.matrix)
        return _sum64(xp, self.matrix * other.matrix, (-2, -1))

    def row_inner(self, other: CentredGram) -> Array:
        """t_i = sum_j A_ij B_ij (..., n): the share of each sample in ``inner``."""
        return _sum64(array_namespace(self.matrix), self.matrix * other.matrix, (-1,))

    def diagonal(self) -> Array:
        """A_ii (..., n) in float64."""
        xp = array_namespace(self.matrix)
        return xp.astype(xp.linalg.diagonal(self.matrix), xp.float64)


@dataclass(frozen=True)
class CentredFeatures:
    """Centred linear features, float64: the same inner product at a cost of n p q instead of n^2 (p + q)."""

    features: Array
    scale: Array
    samples: int
    unbiased: bool

    def inner(self, other: CentredFeatures) -> Array:
        """||C||_F^2, and for the unbiased estimator its closed form (MATH 1), in units of both scales."""
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
        """t_i = sum_j A_ij B_ij (..., n): the share of each sample in ``inner``."""
        xp = array_namespace(self.features)
        x, y = self.features, other.features
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
        """|x_i|^2 (..., n): the diagonal of the centred Gram matrix before U-centring."""
        return _sum64(array_namespace(self.features), self.features * self.features, (-1,))


Centred = CentredGram | CentredFeatures


def _largest(xp: ModuleType, x: Array) -> Array:
    """The largest magnitude of each matrix (..., 1, 1), 1 where the matrix is zero; carries no gradient.

    Dividing by a constant and multiplying the result back leaves the gradient exact.
    """
    largest = xp.max(xp.abs(constant(x)), axis=(-2, -1), keepdims=True)
    return xp.where(largest > 0, largest, xp.ones_like(largest))


def _centred_and_scale(xp: ModuleType, gram: Array, estimator: str) -> tuple[Array, Array]:
    """The centred Gram matrix, and the largest magnitude (..., 1, 1) of the entries that it is made of.

    It is exactly zero where all of it lies below the rounding of those entries: a constant layer.
    """
    if estimator == "unbiased":
        # The diagonal takes no part, and for a narrow RBF it is far above all other entries.
        gram = gram * (1 - xp.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device))
        centred = u_center_gram(gram)
    else:
        centred = center_gram(gram)
    scale = _largest(xp, gram)
    resolution = 16 * float(xp.finfo(gram.dtype).eps)
    noise = xp.max(xp.abs(constant(centred)), axis=(-2, -1), keepdims=True) <= resolution * scale
    return xp.where(noise, xp.zeros_like(centred), centred), scale


def scaled_features(x: Array) -> tuple[Array, Array]:
    """Centred features divided by their largest magnitude, and that scale (...) in float64."""
    xp = array_namespace(x)
    # Centre before scaling: a division first would round away the spread of features with a large mean.
    z = center_features(x)
    scale = _largest(xp, z)
    return z / scale, xp.astype(scale[..., 0, 0], xp.float64)


def centred_linear(x: Array, estimator: str, *, as_gram: bool) -> Centred:
    """One side of an inner product from features (..., n, p) under the linear kernel."""
    if not as_gram:
        # In float64: the closed form takes the squares of single samples away from ||C||^2, which in float32 costs 1e-3
        # when one sample lies 300 standard deviations out, and a long thin product alone 5e-5 at n = 200,000, p = 8.
        xp = array_namespace(x)
        z, scale = scaled_features(xp.astype(x, xp.float64))
        return CentredFeatures(z, scale * scale, x.shape[-2], estimator == "unbiased")
    z, scale = scaled_features(x)
    gram = CentredGram.of(Linear()(z), estimator)
    return CentredGram(gram.matrix, gram.scale * scale * scale, gram.samples)


def gram_is_cheaper(n: int, p: int, q: int) -> bool:
    """Whether all three products of a linear CKA cost less by Gram matrices than by features.

    Counted in multiply-adds: n^2 (p + q) and three passes over n^2, against n (p q + p^2 + q^2).
    """
    return n * (p + q + 3) < p * q + p * p + q * q


def both_sides(x: Array, y: Array, kernel: Kernel, kernel_y: Kernel, estimator: str) -> tuple[Centred, Centred]:
    """Both sides of the inner products of checked features, by the cheaper route."""
    n, p, q = x.shape[-2], x.shape[-1], y.shape[-1]
    if isinstance(kernel, Linear) and isinstance(kernel_y, Linear):
        as_gram = gram_is_cheaper(n, p, q)
        left = centred_linear(x, estimator, as_gram=as_gram)
        return left, left if y is x else centred_linear(y, estimator, as_gram=as_gram)
    left = _one_gram(x, kernel, estimator)
    same = y is x and kernel_y is kernel
    return left, left if same else _one_gram(y, kernel_y, estimator)


def _one_gram(x: Array, kernel: Kernel, estimator: str) -> Centred:
    if isinstance(kernel, Linear):
        return centred_linear(x, estimator, as_gram=True)
    return CentredGram.of(kernel(x), estimator)


def inner(left: Centred, right: Centred) -> Array:
    """<A, B> of two sides made by the same route."""
    if isinstance(left, CentredGram) and isinstance(right, CentredGram):
        return left.inner(right)
    assert isinstance(left, CentredFeatures)
    assert isinstance(right, CentredFeatures)
    return left.inner(right)


def row_inner(left: Centred, right: Centred) -> Array:
    """The share of each sample in ``inner``, shape (..., n)."""
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
    """The Hilbert-Schmidt independence criterion between two sets of features of the same samples.

    Parameters
    ----------
    x : array (..., n, p)
        Features; n >= 4 for the unbiased estimator, 2 for the biased.
    y : array (..., n, q)
        Features of the same samples, in the same order, of the same library and device.
    kernel : Kernel
        Kernel of ``x``, and of ``y`` unless ``kernel_y`` is given. Linear when left out.
    kernel_y : Kernel, optional
        Kernel of ``y``.
    estimator : "unbiased" or "biased"
        HSIC_1 of Song et al. or HSIC_0 of Gretton et al.

    Returns
    -------
    array (...) of float64
        In the squared units of both features (linear kernel). The biased value is not negative; the unbiased may be.

    Raises
    ------
    TypeError
        For anything but real floating arrays of one library.
    ValueError
        For different numbers of samples, too few, NaN or infinity, different devices, or an unknown estimator.

    References
    ----------
    Gretton et al., Measuring Statistical Dependence with Hilbert-Schmidt Norms, ALT 2005. Song et al., Feature
    Selection via Dependence Maximization, JMLR 2012, equation 5. MATH 1.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.array([[0.0], [1.0], [2.0], [3.0]])
    >>> float(hsic(x, x, estimator="biased")).__round__(4)
    2.7778
    """
    _, x, y = check_pair(x, y, minimum=check_estimator(estimator))
    kernel = kernel or Linear()
    left, right = both_sides(x, y, kernel, kernel_y or kernel, estimator)
    return _hsic_of(left, right, estimator)


def hsic_from_grams(gram_x: Array, gram_y: Array, *, estimator: str = "unbiased") -> Array:
    """The Hilbert-Schmidt independence criterion of two Gram matrices.

    Parameters
    ----------
    gram_x, gram_y : array (..., n, n)
        Gram matrices of the same samples, symmetric. Centring is done here.
    estimator : "unbiased" or "biased"
        HSIC_1 or HSIC_0.

    Returns
    -------
    array (...) of float64
        The unbiased value may be negative.

    Raises
    ------
    TypeError, ValueError
        As ``hsic``, and for matrices that are not square.

    Examples
    --------
    >>> import numpy as np
    >>> round(float(hsic_from_grams(np.eye(4), np.eye(4), estimator="biased")), 4)
    0.3333
    """
    _, gram_x, gram_y = check_grams(gram_x, gram_y, minimum=check_estimator(estimator))
    return _hsic_of(CentredGram.of(gram_x, estimator), CentredGram.of(gram_y, estimator), estimator)


def flat_centred(grams: Array, estimator: str) -> Array:
    """Centred Gram matrices of a stack of layers as rows, ready for ``pairwise_inner``.

    Parameters
    ----------
    grams : array (layers, n, n)
        Gram matrices, already scaled to about 1.
    estimator : "unbiased" or "biased"
        Chooses U-centring or centring.

    Returns
    -------
    array (layers, n * n)
        One layer a row.
    """
    xp = array_namespace(grams)
    centred, _ = _centred_and_scale(xp, grams, estimator)
    return xp.reshape(centred, (grams.shape[0], -1))


def pairwise_inner(rows_x: Array, rows_y: Array) -> Array:
    """Inner products of all pairs of rows as one matrix product, float32 in chunks added up in float64 (MATH 3).

    Parameters
    ----------
    rows_x : array (layers_x, m)
        Flattened centred Gram matrices.
    rows_y : array (layers_y, m)
        The same of the other network.

    Returns
    -------
    array (layers_x, layers_y) of float64
        All inner products.
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
