"""Shape distances: distances between two layers after the best rotation of one onto the other."""

from __future__ import annotations

from typing import NamedTuple

from array_api_compat import array_namespace

from ..distances import safe_sqrt
from ..hsic import scaled_features
from ..validation import Array, check_pair, constant

__all__ = [
    "Shape",
    "angle",
    "angular_distance",
    "distance",
    "normalized_bures_similarity",
    "prepare",
    "procrustes_distance",
    "reduced",
    "shape_of",
    "similarity",
    "squared_chord",
]


class Shape(NamedTuple):
    """Centred features of Frobenius norm 1, in at most n columns. ``undefined`` is NaN for a constant layer, else 0."""

    features: Array
    undefined: Array


def reduced(z: Array) -> Array:
    """Features (..., n, min(n, p)) with the same inner products as ``z`` (..., n, p)."""
    if z.shape[-1] <= z.shape[-2]:
        return z
    xp = array_namespace(z)
    # Projecting onto a basis of the row space keeps all distances. The gradient is exact with a constant basis, because
    # the features lie in its span.
    basis, _ = xp.linalg.qr(constant(xp.matrix_transpose(z)))
    return z @ basis


def shape_of(z: Array) -> Shape:
    """Shape of centred features (..., n, p) in float64, of any size that does not overflow when squared."""
    xp = array_namespace(z)
    squares = xp.sum(z * z, axis=(-2, -1), keepdims=True)
    alive = squares > 0
    z = reduced(z / xp.sqrt(xp.where(alive, squares, xp.ones_like(squares))))
    nan = xp.full_like(squares, xp.nan)
    return Shape(z, xp.where(alive, xp.zeros_like(squares), nan)[..., 0, 0])


def prepare(x: Array) -> Shape:
    """Shape of one layer from its checked features (..., n, p), in float64."""
    xp = array_namespace(x)
    return shape_of(scaled_features(xp.astype(x, xp.float64))[0])


def squared_chord(x: Shape, y: Shape) -> Array:
    """Minimum of ||X - Y R||_F^2 over orthogonal R, as a sum of squares; 2 - 2 ||X'Y||_* would cancel for near layers.

    With X'Y = U S V' it is ||XU - YV||_F^2 plus the squared parts of X and Y outside the spans of U and V. The gradient
    treats U and V as constants, because at the minimum the derivative by R is 0.
    """
    xp = array_namespace(x.features)
    cross = constant(xp.matrix_transpose(x.features) @ y.features)
    u, _, vh = xp.linalg.svd(cross, full_matrices=False)
    projected_x, projected_y = x.features @ u, y.features @ xp.matrix_transpose(vh)
    parts = [projected_x - projected_y]
    if u.shape[-2] > u.shape[-1]:
        parts.append(x.features - projected_x @ xp.matrix_transpose(u))
    if vh.shape[-1] > vh.shape[-2]:
        parts.append(y.features - projected_y @ vh)
    total = x.undefined + y.undefined
    for part in parts:
        total = total + xp.sum(part * part, axis=(-2, -1))
    return total


def distance(x: Shape, y: Shape) -> Array:
    """Procrustes distance of two prepared layers."""
    squared = squared_chord(x, y)
    return safe_sqrt(array_namespace(squared), squared)


def angle(x: Shape, y: Shape) -> Array:
    """Angular distance of two prepared layers: the angle whose chord is the Procrustes distance."""
    chord = distance(x, y)
    return 2 * array_namespace(chord).asin(chord / 2)


def similarity(x: Shape, y: Shape) -> Array:
    """Normalised Bures similarity of two prepared layers."""
    return 1 - squared_chord(x, y) / 2


def _prepared(x: Array, y: Array) -> tuple[Shape, Shape]:
    """Check a pair of layers and return both shapes."""
    _, x, y = check_pair(x, y)
    return prepare(x), prepare(y)


def procrustes_distance(x: Array, y: Array) -> Array:
    """The Procrustes distance of two layers: min ||X - Y R||_F over orthogonal R, for centred features of norm 1.

    Parameters
    ----------
    x : array (..., n, p)
        Features, n >= 2.
    y : array (..., n, q)
        Features of the same samples.

    Returns
    -------
    array (...) of float64
        From 0 to sqrt(2), a metric; equal to sqrt(2 - 2 NBS). NaN if a side is constant.

    Raises
    ------
    TypeError, ValueError
        As ``cka``.

    Notes
    -----
    The gradient is exact, and 0 at distance 0. ``scipy.spatial.procrustes`` scales one side as well: its disparity is
    1 - NBS^2.

    References
    ----------
    Williams et al., Generalized Shape Metrics on Neural Representations, NeurIPS 2021. Ding et al., Grounding
    Representation Similarity Through Statistical Testing, NeurIPS 2021 (the square). docs/theory.md, section 5.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(30, 2))
    >>> bool(procrustes_distance(x, 3 * x[:, ::-1] + 1) < 1e-12)
    True
    """
    return distance(*_prepared(x, y))


def angular_distance(x: Array, y: Array) -> Array:
    """The angular shape distance between two layers: arccos of their normalised Bures similarity.

    Parameters
    ----------
    x : array (..., n, p)
        Features, n >= 2.
    y : array (..., n, q)
        Features of the same samples.

    Returns
    -------
    array (...) of float64
        From 0 to pi / 2, a metric. NaN if a side is constant.

    Raises
    ------
    TypeError, ValueError
        As ``cka``.

    References
    ----------
    Williams et al., Generalized Shape Metrics on Neural Representations, NeurIPS 2021, equation 5. docs/theory.md,
    section 5.

    Examples
    --------
    >>> import numpy as np
    >>> x, y = np.array([[1.0], [-1.0], [0.0], [0.0]]), np.array([[0.0], [0.0], [1.0], [-1.0]])
    >>> round(float(angular_distance(x, y)), 6)
    1.570796
    """
    return angle(*_prepared(x, y))


def normalized_bures_similarity(x: Array, y: Array) -> Array:
    """The normalised Bures similarity (NBS) of two layers: ||X'Y||_* / (||X||_F ||Y||_F) of centred features.

    Parameters
    ----------
    x : array (..., n, p)
        Features, n >= 2.
    y : array (..., n, q)
        Features of the same samples.

    Returns
    -------
    array (...) of float64
        From 0 to 1. NaN if a side is constant.

    Raises
    ------
    TypeError, ValueError
        As ``cka``.

    References
    ----------
    Tang et al., Similarity of Neural Networks with Gradients, arXiv 2003.11498. Harvey et al., What Representational
    Similarity Measures Imply about Decodable Information, 2024 (NBS and CKA). docs/theory.md, section 5.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(30, 2))
    >>> round(float(normalized_bures_similarity(x, 3 * x[:, ::-1] + 1)), 6)
    1.0
    """
    return similarity(*_prepared(x, y))
