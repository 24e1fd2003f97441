"""Centre and U-centre Gram matrices (..., n, n)."""

from __future__ import annotations

from .traceable import array_namespace
from .validation import Array

__all__ = ["center_gram", "u_center_gram"]


def center_gram(gram: Array) -> Array:
    """The centred Gram matrix HKH, with H = I - 11'/n.

    Parameters
    ----------
    gram : array (..., n, n)
        Symmetric Gram matrix.

    Returns
    -------
    array (..., n, n)
        Each row and each column sums to 0.

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
    """The U-centred Gram matrix A; <A, B> / (n(n-3)) is the unbiased HSIC_1.

    A_ij = K_ij - (r_i + r_j) / (n-2) + s / ((n-1)(n-2)) for i != j, with row sums r and total s of K without its
    diagonal; A_ii = 0.

    Parameters
    ----------
    gram : array (..., n, n)
        Symmetric Gram matrix, n >= 3.

    Returns
    -------
    array (..., n, n)
        The diagonal is 0, and each row sums to 0.

    References
    ----------
    Szekely and Rizzo, Partial distance correlation, Annals of Statistics 2014, definition 2. docs/theory.md, section 1.

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
