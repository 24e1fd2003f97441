"""Statement T3 (docs/theory.md, section 7): CKA bounds the quadratic-kernel MMD between two layers from both sides.

Khat and Lhat (n, n) are centred Gram matrices divided by their Frobenius norms. The scaled rows sqrt(n) Khat_i and
sqrt(n) Lhat_i are two clouds of n points in R^n, for layers of any widths. With the kernel (u . v)^2 their squared MMD
is Q = ||Khat^2 - Lhat^2||_F^2.
"""

from __future__ import annotations

from types import ModuleType
from typing import NamedTuple

from array_api_compat import array_namespace

from .alignment import normalized_gram
from .hsic import gram_is_cheaper, scaled_features
from .kernels import Kernel, Linear, given_kernel
from .validation import Array, check_estimator, check_features, check_finite, check_pair, constant, namespace

__all__ = [
    "Corridor",
    "CorridorCurves",
    "alignment_corridor",
    "alignment_corridor_from_covariances",
    "corridor_curves",
    "corridor_of",
]


class Corridor(NamedTuple):
    """CKA, MMD and the two bounds of T3 for a pair of layers; every field is an array (...) of float64.

    Attributes
    ----------
    cka : array
        c, the CKA of the two layers.
    mmd_squared : array
        Q, the squared MMD with the kernel (u . v)^2 between the scaled rows; from 0 to 2.
    lower : array
        Lower bound 4 (1 - c)^2 / rank. NaN for U-centred matrices, which are not positive semi-definite.
    upper : array
        Upper bound 2 (1 - c^2).
    rank : array
        Rank of Khat - Lhat; 0 if both are equal.
    spectral_lower : array
        Sharper lower bound ||(Khat - Lhat)^2||_F^2; ``lower`` follows from it by Cauchy and Schwarz. NaN where
        ``lower`` is NaN.
    """

    cka: Array
    mmd_squared: Array
    lower: Array
    upper: Array
    rank: Array
    spectral_lower: Array


def _spectrum(xp: ModuleType, symmetric: Array) -> Array:
    """Eigenvalues (..., m) of symmetric matrices (..., m, m); NaN where a matrix holds NaN, which LAPACK refuses."""
    defined = xp.all(xp.isfinite(symmetric), axis=(-2, -1), keepdims=True)
    # Without gradient: the rank has none, and repeated eigenvalues have no defined one.
    values = xp.linalg.eigvalsh(constant(xp.where(defined, symmetric, xp.zeros_like(symmetric))))
    return xp.where(defined[..., 0], values, xp.full_like(values, xp.nan))


def _corridor(
    xp: ModuleType, c: Array, gap: Array, mmd_squared: Array, eigenvalues: Array, samples: int, *, psd: bool
) -> Corridor:
    """All fields from c, ``gap`` = 1 - c, Q and the eigenvalues of Khat - Lhat."""
    # Rounding of the difference of two matrices of norm 1. A rank that is too large only makes the lower bound weaker.
    resolution = 4 * samples * float(xp.finfo(xp.float64).eps)
    counted = xp.sum(xp.astype(xp.abs(eigenvalues) > resolution, xp.float64), axis=-1)
    rank = xp.where(xp.isnan(c), c, counted)
    lower = 4 * gap * gap / xp.where(rank > 0, rank, xp.ones_like(rank))
    spectral = xp.sum(eigenvalues**4, axis=-1)
    undefined = xp.full_like(lower, xp.nan)
    return Corridor(
        cka=c,
        mmd_squared=mmd_squared,
        lower=lower if psd else undefined,
        upper=2 * gap * (1 + c),
        rank=rank,
        spectral_lower=spectral if psd else undefined,
    )


def corridor_of(unit_x: Array, unit_y: Array, *, psd: bool = True) -> Corridor:
    """The corridor of two symmetric matrices (..., n, n) of Frobenius norm 1.

    Parameters
    ----------
    unit_x, unit_y : array (..., n, n) of float64
        For example from ``normalized_gram``.
    psd : bool
        Whether both are positive semi-definite. The lower bound of T3 needs it.

    Returns
    -------
    Corridor
        NaN where one of the matrices holds NaN.
    """
    xp = array_namespace(unit_x, unit_y)
    difference, total = unit_x - unit_y, unit_x + unit_y
    gap = xp.sum(difference * difference, axis=(-2, -1)) / 2
    c = xp.sum(unit_x * unit_y, axis=(-2, -1))
    # Khat^2 - Lhat^2 = (DS + SD) / 2 with D the difference and S the sum: no digits cancel when both sides are close.
    product = difference @ total
    product = (product + xp.matrix_transpose(product)) / 2
    mmd_squared = xp.sum(product * product, axis=(-2, -1))
    return _corridor(xp, c, gap, mmd_squared, _spectrum(xp, difference), unit_x.shape[-1], psd=psd)


def alignment_corridor(
    x: Array, y: Array, *, kernel: Kernel | None = None, kernel_y: Kernel | None = None, estimator: str = "biased"
) -> Corridor:
    """CKA of two layers, the squared quadratic-kernel MMD between them, and the two bounds of that MMD by CKA (T3).

    Parameters
    ----------
    x : array (..., n, p)
        Features, n >= 2.
    y : array (..., n, q)
        Features of the same samples.
    kernel : Kernel, optional
        Kernel of ``x``, and of ``y`` unless ``kernel_y`` is given. Linear by default.
    kernel_y : Kernel, optional
        Kernel of ``y``.
    estimator : "biased" or "unbiased"
        "biased" centres the Gram matrices, "unbiased" U-centres them. Only centred ones have the lower bound.

    Returns
    -------
    Corridor
        Named tuple of arrays (...) of float64; NaN where one side is constant.

    Raises
    ------
    TypeError, ValueError
        As ``cka``.

    Notes
    -----
    For linear kernels and fewer features than samples, all fields are computed from the covariances, at a cost of
    (p + q)^2 (n + p + q).

    References
    ----------
    Ando, Comparison of Norms |||f(A) - f(B)||| and |||f(|A - B|)|||, Math. Z. 1988 (lower bound). T3 (docs/theory.md,
    section 7).

    Examples
    --------
    >>> import numpy as np
    >>> x, y = np.random.default_rng(0).normal(size=(2, 40, 3))
    >>> point = alignment_corridor(x, y)
    >>> bool(point.lower <= point.mmd_squared <= point.upper)
    True
    """
    xp, x, y = check_pair(x, y, minimum=check_estimator(estimator))
    kernel = given_kernel(kernel)
    kernel_y = given_kernel(kernel_y, "kernel_y", kernel)
    n, p, q = x.shape[-2], x.shape[-1], y.shape[-1]
    linear = isinstance(kernel, Linear) and isinstance(kernel_y, Linear)
    if linear and estimator == "biased" and not gram_is_cheaper(n, p, q):
        u, _ = scaled_features(xp.astype(x, xp.float64))
        v, _ = scaled_features(xp.astype(y, xp.float64))
        ut, vt = xp.matrix_transpose(u), xp.matrix_transpose(v)
        return _from_covariances(xp, ut @ u, vt @ v, ut @ v)
    left, right = normalized_gram(x, kernel, centring=estimator), normalized_gram(y, kernel_y, centring=estimator)
    return corridor_of(left, right, psd=estimator == "biased")


def alignment_corridor_from_covariances(covariance_x: Array, covariance_y: Array, covariance_xy: Array) -> Corridor:
    """The result of ``alignment_corridor`` for linear kernels, from the covariances of the features.

    Q = tr Cxx^4/||Cxx||^4 + tr Cyy^4/||Cyy||^4 - 2 tr(Cxx Cxy Cyy Cyx)/(||Cxx||^2 ||Cyy||^2), with Frobenius norms.

    Parameters
    ----------
    covariance_x : array (..., p, p)
        Covariance matrix Cxx of ``x``, times any factor a > 0.
    covariance_y : array (..., q, q)
        Covariance matrix Cyy of ``y``, times any factor b > 0.
    covariance_xy : array (..., p, q)
        Covariances Cxy between ``x`` and ``y``, times sqrt(a b).

    Returns
    -------
    Corridor
        As ``alignment_corridor``; NaN where Cxx or Cyy is zero.

    Raises
    ------
    TypeError
        If an argument is not a real floating array, or they come from different libraries.
    ValueError
        If the shapes do not fit, or a matrix holds NaN or infinity.

    References
    ----------
    T3 (docs/theory.md, section 7).

    Examples
    --------
    >>> import numpy as np
    >>> point = alignment_corridor_from_covariances(np.eye(2), np.eye(2), np.diag([1.0, 0.0]))
    >>> round(float(point.cka), 6)
    0.5
    """
    names = ("covariance_x", "covariance_y", "covariance_xy")
    xp = namespace(covariance_x, covariance_y, covariance_xy, names=names)
    p, q = covariance_x.shape[-1:], covariance_y.shape[-1:]
    expected = ((*p, *p), (*q, *q), (*p, *q))
    checked = []
    for matrix, name, shape in zip((covariance_x, covariance_y, covariance_xy), names, expected, strict=True):
        if matrix.ndim < 2 or tuple(matrix.shape[-2:]) != shape:
            raise ValueError(
                f"`{name}` must have shape (..., {', '.join(map(str, shape))}) beside the others, got "
                f"{tuple(matrix.shape)}. Pass the covariances (p, p), (q, q) and (p, q) of one pair of layers."
            )
        _, matrix = check_features(matrix, name, minimum=1)
        checked.append(xp.astype(matrix, xp.float64))
    return _from_covariances(xp, *checked)


def _from_covariances(xp: ModuleType, cxx: Array, cyy: Array, cxy: Array) -> Corridor:
    # Divide Cxx and Cyy by their Frobenius norms, and Cxy by the root of both norms.
    norms = []
    for matrix in (cxx, cyy):
        squares = xp.sum(matrix * matrix, axis=(-2, -1), keepdims=True)
        norms.append(xp.sqrt(xp.where(squares > 0, squares, xp.full_like(squares, xp.nan))))
    cxx, cyy, cxy = cxx / norms[0], cyy / norms[1], cxy / xp.sqrt(norms[0]) / xp.sqrt(norms[1])
    cyx = xp.matrix_transpose(cxy)
    c = xp.sum(cxy * cxy, axis=(-2, -1))
    xx, yy = cxx @ cxx, cyy @ cyy
    mmd_squared = (
        xp.sum(xx * xx, axis=(-2, -1))
        + xp.sum(yy * yy, axis=(-2, -1))
        - 2 * xp.sum((cxx @ cxy) * xp.matrix_transpose(cyy @ cyx), axis=(-2, -1))
    )
    # Khat - Lhat = [X Y] S [X Y]' with S = diag(I, -I). Apart from zeros, its eigenvalues are those of G^1/2 S G^1/2,
    # where G = [X Y]'[X Y] is the joint covariance matrix.
    joint = xp.concat([xp.concat([cxx, cxy], axis=-1), xp.concat([cyx, cyy], axis=-1)], axis=-2)
    defined = xp.all(xp.isfinite(joint), axis=(-2, -1), keepdims=True)
    values, vectors = xp.linalg.eigh(constant(xp.where(defined, joint, xp.zeros_like(joint))))
    # G is positive semi-definite, so eigenvalues below its rounding, or below 0, are set to 0. Otherwise their roots
    # would be as large as 1e-8 and would be counted in the rank.
    p, m = cxx.shape[-1], values.shape[-1]
    resolution = 4 * m * float(xp.finfo(xp.float64).eps) * values[..., -1:]
    roots = xp.sqrt(xp.where(values > resolution, values, xp.zeros_like(values)))[..., None, :]
    half = vectors * roots
    top, bottom = half[..., :p, :], half[..., p:, :]
    inner = xp.matrix_transpose(top) @ top - xp.matrix_transpose(bottom) @ bottom
    eigenvalues = _spectrum(xp, xp.where(defined, inner, xp.full_like(inner, xp.nan)))
    return _corridor(xp, c, 1 - c, mmd_squared, eigenvalues, eigenvalues.shape[-1], psd=True)


class CorridorCurves(NamedTuple):
    """The two bounds of T3 as functions of CKA."""

    lower: Array
    upper: Array


def corridor_curves(c: Array, rank: int) -> CorridorCurves:
    """The bounds 4 (1 - c)^2 / rank and 2 (1 - c^2) of the squared quadratic-kernel MMD.

    Parameters
    ----------
    c : array (...)
        Values of CKA, of a floating dtype.
    rank : int
        Rank of Khat - Lhat: at most n - 1, and at most p + q for linear kernels.

    Returns
    -------
    CorridorCurves
        ``lower`` and ``upper``, arrays of the shape of ``c``; both are 0 at c = 1.

    Raises
    ------
    TypeError
        If ``c`` is not a real floating array.
    ValueError
        If ``rank`` is below 1, or ``c`` holds NaN or infinity.

    References
    ----------
    T3 (docs/theory.md, section 7).

    Examples
    --------
    >>> import numpy as np
    >>> lower, upper = corridor_curves(np.array([0.0, 0.5, 1.0]), rank=4)
    >>> lower.tolist(), upper.tolist()
    ([1.0, 0.25, 0.0], [2.0, 1.5, 0.0])
    """
    xp = namespace(c, names=("c",))
    if not xp.isdtype(c.dtype, "real floating"):
        raise TypeError(f"`c` must have a real floating dtype, got {c.dtype}. Cast it first, for example to float64.")
    check_finite(xp, c, "c")
    if not rank >= 1:
        raise ValueError(f"`rank` must be at least 1, got {rank!r}. It is at most n - 1 for n samples.")
    return CorridorCurves(4 * (1 - c) ** 2 / rank, 2 * (1 - c * c))
