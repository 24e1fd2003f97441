"""Exact CKA of a whole data set from blocks of its Gram matrices, for any kernel and any width.

The features of all samples stay in memory; no n x n Gram matrix is ever formed as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

from array_api_compat import array_namespace, device

from ..alignment import ratio
from ..distances import middle_sample
from ..hsic import pairwise_inner, scaled_features
from ..kernels import Kernel, Linear, given_kernel
from ..validation import (
    Array,
    check_estimator,
    check_layer_features,
    check_layer_lists,
    check_same_samples,
    constant,
)

__all__ = ["BlockShare", "blocked_cka"]


@dataclass(frozen=True)
class BlockShare:
    """The blocks of one of several processes, which all hold the same features.

    Attributes
    ----------
    first, stride : int
        Its first block, and the number of processes.
    add_up : callable
        Returns the sum of an array over all processes.
    """

    first: int
    stride: int
    add_up: Callable[[Array], Array]


def blocked_cka(
    xs: Sequence[Array],
    ys: Sequence[Array] | None = None,
    *,
    kernel: Kernel | None = None,
    estimator: str = "unbiased",
    block: int = 512,
    progress: Callable[[Iterator[Any], int], Iterator[Any]] | None = None,
    share: BlockShare | None = None,
) -> Array:
    """CKA of every pair of layers over all samples, computed block by block.

    The values equal ``cka`` on the whole arrays. Beside the features, each layer needs memory for one block only.

    Parameters
    ----------
    xs : sequence of arrays (n, p_i)
        Features of the layers of one network, all samples.
    ys : sequence of arrays (n, q_j), optional
        Features of the layers of the other network; ``xs`` when left out.
    kernel : Kernel, optional
        Linear when left out. A median bandwidth of a layer is measured on at most ``block`` evenly spaced samples.
    estimator : "unbiased" or "biased"
        The ratio of HSIC_1 or of HSIC_0.
    block : int
        Number of rows and columns of a block.
    progress : callable, optional
        Called with the iterator over blocks and its length; returns an iterator over the same blocks.
    share : BlockShare, optional
        Of several processes that deal the blocks out. All must call this function, and all return the values.

    Returns
    -------
    array (layers_x, layers_y) of float64
        At most 1; NaN in the rows and columns of constant layers.

    Raises
    ------
    TypeError, ValueError
        If features are invalid (the message names the layer by its place), the estimator is unknown, ``block`` is below
        1, or half of all pairs of samples of a layer or more are equal, so that it has no median bandwidth.

    References
    ----------
    docs/theory.md, sections 1 and 2.

    Examples
    --------
    >>> import numpy as np
    >>> from cka_probe.estimators import cka
    >>> x, y = np.random.default_rng(0).normal(size=(2, 50, 4))
    >>> bool(abs(blocked_cka([x], [y], block=16)[0, 0] - cka(x, y)) < 1e-12)
    True
    """
    check_layer_lists(xs, ys)
    minimum = check_estimator(estimator)
    if block < 1:
        raise ValueError(f"`block` must be at least 1, got {block}.")
    kernel = given_kernel(kernel)
    left = [_Layer(x, kernel, block) for x in check_layer_features(xs, "xs", minimum=minimum)]
    right = left if ys is None else [_Layer(y, kernel, block) for y in check_layer_features(ys, "ys", minimum=minimum)]
    xp = array_namespace(left[0].x)
    n = left[0].x.shape[0]
    check_same_samples(n, right[0].x.shape[0])
    spans = [(start, min(start + block, n)) for start in range(0, n, block)]
    pairs = [(rows, columns) for i, rows in enumerate(spans) for columns in spans[i:]]
    every = left if right is left else [*left, *right]
    for layer in every:
        layer.measure(xp, spans, estimator)

    if share is not None:
        pairs = pairs[share.first :: share.stride]
    zeros = partial(xp.zeros, dtype=xp.float64, device=device(left[0].x))
    cross, self_x, self_y = zeros((len(left), len(right))), zeros((len(left),)), zeros((len(right),))
    blocks: Iterator[Any] = iter(pairs)
    for rows, columns in blocks if progress is None else progress(blocks, len(pairs)):
        # Gram matrices are symmetric: a block off the diagonal counts for its transpose too.
        weight = 1.0 if rows == columns else 2.0
        flat_x = xp.stack([layer.centred(xp, rows, columns, estimator) for layer in left], axis=0)
        flat_y = flat_x
        if right is not left:
            flat_y = xp.stack([layer.centred(xp, rows, columns, estimator) for layer in right], axis=0)
        add = weight * pairwise_inner(flat_x, flat_y)
        cross = cross + add
        if right is not left:
            self_x = self_x + weight * xp.sum(flat_x * flat_x, axis=1, dtype=xp.float64)
            self_y = self_y + weight * xp.sum(flat_y * flat_y, axis=1, dtype=xp.float64)
    zero = zeros(())
    floor_x, floor_y = (xp.stack([zero + layer.floor for layer in side], axis=0) for side in (left, right))
    if share is not None:
        cross, self_x, self_y, floor_x, floor_y = map(share.add_up, (cross, self_x, self_y, floor_x, floor_y))
    if right is left:
        self_x = self_y = xp.linalg.diagonal(cross)
    return ratio(xp, cross, self_x[:, None], self_y[None, :], floor_x[:, None], floor_y[None, :])


def _one_is_far(z: Array) -> bool:
    """Whether one of the centred samples has more than half of all squared distances from the mean."""
    xp = array_namespace(z)
    norms = xp.sum(constant(z) ** 2, axis=1, dtype=xp.float64)
    return bool(xp.max(norms) > xp.sum(norms) / 2)


def _less_middle(x: Array) -> Array:
    """Features in float64 minus the middle of a few samples, divided by their largest magnitude."""
    xp = array_namespace(x)
    x = xp.astype(x, xp.float64)
    x = x - middle_sample(constant(x))
    largest = xp.max(xp.abs(constant(x)))
    return x / xp.where(largest > 0, largest, xp.ones_like(largest))


NOISE = 4.0
"""A self term below the square of this many roundings of the Gram matrix is rounding only, and counts as 0."""


class _Layer:
    """Features of one layer, its kernel, and the row means that centring subtracts.

    Kernels that are not linear are computed in float64, one block at a time: in float32 the cosines of features with a
    large mean keep few digits.
    """

    def __init__(self, x: Array, kernel: Kernel, block: int) -> None:
        self.linear = isinstance(kernel, Linear)
        # Centring and scaling leave linear CKA unchanged and keep the Gram entries near 1.
        self.x = scaled_features(x)[0] if self.linear else x
        if self.linear and _one_is_far(self.x):
            # As for other kernels, in float64: in float32 the square of that sample would leave nothing of the others.
            self.x, self.linear = _less_middle(x), False
        fixed = getattr(kernel, "fixed", None)
        self.constant = not bool(array_namespace(x).any(x != x[:1, :]))
        # Samples from all over the data: its first block may hold one class only.
        some = self.x[:: -(-self.x.shape[0] // block), :]
        self.kernel = kernel if fixed is None or self.constant else fixed(some)
        self.scale = 1.0
        self.floor: Array | float = 0.0
        self.rows: Array = None
        self.total: Array = None

    def measure(self, xp: ModuleType, spans: Sequence[tuple[int, int]], estimator: str) -> None:
        """Compute what centring subtracts, from the row sums of the Gram matrix (unbiased: without its diagonal)."""
        if self.constant:
            return
        n = self.x.shape[0]
        parts, diagonals = [], []
        if self.linear:
            x = xp.astype(self.x, xp.float64)
            norms = xp.sum(x * x, axis=1)
            largest = float(xp.max(norms))
            self.scale = largest if largest > 0 else 1.0
            parts = [x @ xp.sum(x, axis=0)]
            diagonals = [norms]
        else:
            for start, stop in spans:
                own = self._block(xp, (start, stop))
                if estimator == "unbiased":
                    own = own * (1 - xp.eye(own.shape[0], dtype=own.dtype, device=own.device))
                diagonals.append(xp.astype(xp.linalg.diagonal(own), xp.float64))
                sums = [self._block(xp, (start, stop), span) for span in spans if span != (start, stop)]
                whole = xp.sum(own, axis=1, dtype=xp.float64)
                for other in sums:
                    whole = whole + xp.sum(other, axis=1, dtype=xp.float64)
                parts.append(whole)
        rows = xp.concat(parts, axis=0) / self.scale
        if estimator == "unbiased":
            rows = rows - xp.concat(diagonals, axis=0) / self.scale
            self.rows = rows / (n - 2)
            self.total = xp.sum(rows) / ((n - 1) * (n - 2))
        else:
            self.rows = rows / n
            self.total = xp.sum(rows) / (n * n)

    def _block(self, xp: ModuleType, rows: tuple[int, int], columns: tuple[int, int] | None = None) -> Array:
        """One block of the Gram matrix; on the diagonal without ``columns``."""
        a, b = (None if span is None else self.x[span[0] : span[1], :] for span in (rows, columns))
        if not self.linear:
            a, b = xp.astype(a, xp.float64), None if b is None else xp.astype(b, xp.float64)
        return self.kernel(a) if b is None else self.kernel(a, b)

    def centred(self, xp: ModuleType, rows: tuple[int, int], columns: tuple[int, int], estimator: str) -> Array:
        """One block of the centred (unbiased: U-centred) Gram matrix, flattened; exactly 0 for a constant layer."""
        if self.constant:
            size = (rows[1] - rows[0]) * (columns[1] - columns[0])
            return xp.zeros((size,), dtype=self.x.dtype if self.linear else xp.float64, device=self.x.device)
        gram = self._block(xp, rows, None if rows == columns else columns) / self.scale
        on_diagonal = rows == columns and estimator == "unbiased"
        counted = 1 - xp.eye(gram.shape[0], dtype=gram.dtype, device=gram.device) if on_diagonal else 1.0
        gram = gram * counted
        eps = float(xp.finfo(gram.dtype).eps)
        squares = xp.sum(gram * gram, dtype=xp.float64) * (1.0 if rows == columns else 2.0)
        self.floor = self.floor + (NOISE * eps) ** 2 * squares
        shift = self.rows[rows[0] : rows[1], None] + self.rows[None, columns[0] : columns[1]] - self.total
        gram = (gram - xp.astype(shift, gram.dtype)) * counted
        return xp.reshape(gram, (-1,))
