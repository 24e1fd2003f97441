"""Centre and U-centre Gram matrices (..., n, n)."""

from __future__ import annotations

from array_api_compat import is_torch_array

from .traceable import array_namespace
from .validation import Array

__all__ = ["center_gram", "off_diagonal", "u_center_gram", "u_centred", "without_diagonal"]


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
    off = off_diagonal(gram)
    return u_centred(gram * off, off)


def off_diagonal(gram: Array) -> Array:
    """The matrix (n, n) with 0 on the diagonal and 1 elsewhere, in the dtype and on the device of ``gram``."""
    xp = array_namespace(gram)
    return 1 - xp.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)


def u_centred(gram: Array, off: Array) -> Array:
    """``u_center_gram`` of a Gram matrix whose diagonal is 0, given ``off_diagonal(gram)``."""
    xp = array_namespace(gram)
    n = gram.shape[-1]
    rows = xp.sum(gram, axis=-1, keepdims=True) / (n - 2)
    shift = rows - xp.sum(rows, axis=-2, keepdims=True) / (2 * (n - 1))
    return (gram - shift - xp.matrix_transpose(shift)) * off


def without_diagonal(stack: Array) -> Array:
    """A stack of Gram matrices with zeros on the diagonals, even where those are infinite.

    Arrays of torch are changed in place, which takes a fraction of the time: nobody else may hold them.
    """
    xp = array_namespace(stack)
    if is_torch_array(stack):
        stack.diagonal(dim1=-2, dim2=-1).zero_()
        return stack
    return xp.where(off_diagonal(stack) > 0, stack, xp.zeros_like(stack))
