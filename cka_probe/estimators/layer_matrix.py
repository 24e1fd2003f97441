"""CKA of every pair of layers from their features, in one call."""

from __future__ import annotations

from collections.abc import Sequence

from .kernels import Kernel
from .minibatch import MinibatchCKA
from .validation import Array

__all__ = ["cka_matrix"]


def cka_matrix(
    xs: Sequence[Array], ys: Sequence[Array] | None = None, *, kernel: Kernel | None = None, estimator: str = "unbiased"
) -> Array:
    """CKA of every pair of layers, with one Gram matrix for each layer and one matrix product for all pairs.

    Parameters
    ----------
    xs : sequence of arrays (n, p_i)
        Features of the layers of one network.
    ys : sequence of arrays (n, q_j), optional
        Features of the layers of the other network; ``xs`` by default.
    kernel : Kernel, optional
        Linear by default.
    estimator : "unbiased" or "biased"
        "unbiased" takes the ratio of HSIC_1, "biased" that of HSIC_0.

    Returns
    -------
    array (len(xs), len(ys)) of float64
        Rows follow ``xs``, columns follow ``ys``. NaN in the rows and columns of constant layers.

    Raises
    ------
    TypeError, ValueError
        As ``cka``; the message names the layer by its place.

    Examples
    --------
    >>> import numpy as np
    >>> x, y = np.random.default_rng(0).normal(size=(2, 50, 3))
    >>> cka_matrix([x, y]).shape
    (2, 2)
    """
    statistics = MinibatchCKA(kernel=kernel, estimator=estimator, skewness=False)
    statistics.update(xs, ys)
    return statistics.compute()
