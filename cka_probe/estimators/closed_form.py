"""Closed forms of HSIC_1 for linear kernels, shared by whole features, streamed moments and sketches.

Notation: n samples; X (n, p) and Y (n, q) centred features with rows x_i and y_i; a_i = |x_i|^2, b_i = |y_i|^2,
C = X'Y (p, q); A and B the U-centred Gram matrices (n, n). See docs/theory.md, section 1.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, NamedTuple

from .validation import Array

__all__ = ["SampleTerms", "unbiased_inner", "unbiased_share", "without_each"]


def unbiased_inner(cross: Array, norms: Array, total_x: Array, total_y: Array, n: Any) -> Array:
    """The inner product <A, B> = n(n-3) HSIC_1.

    ``cross`` is ||C||_F^2, ``norms`` is sum_i a_i b_i, ``total_x`` is sum_i a_i and ``total_y`` is sum_i b_i.
    """
    return cross - n / (n - 2) * norms + total_x * total_y / ((n - 1) * (n - 2))


class SampleTerms(NamedTuple):
    """Terms of sample i: x_i' C y_i, a_i, b_i, sum_j b_j x_j.x_i and sum_j a_j y_j.y_i, each an array (..., n)."""

    products: Array
    a: Array
    b: Array
    x_of_b: Array
    y_of_a: Array


def unbiased_share(sample: SampleTerms, norms: Array, total_x: Array, total_y: Array, n: int) -> Array:
    """The share t_i = sum_j A_ij B_ij (..., n) of each sample in ``unbiased_inner``; ``norms`` and totals as there.

    For j != i, A_ij = x_i.x_j + u_i + a_j/(n-2) with u_i = a_i/(n-2) - sum_j a_j/((n-1)(n-2)). The sum of x_i.x_j over
    j != i is -a_i, so every sum over j has a closed form.
    """
    a, b = sample.a, sample.b
    u, v = (d / (n - 2) - total / ((n - 1) * (n - 2)) for d, total in ((a, total_x), (b, total_y)))
    ab = a * b
    linear = (sample.x_of_b + sample.y_of_a - 2 * ab + u * (total_y - b) + v * (total_x - a)) / (n - 2)
    return sample.products - ab - a * v - b * u + (n - 1) * u * v + linear + (norms - ab) / (n - 2) ** 2


def without_each(total: Array, rows: Array, diagonal: Array | float, n: int, estimator: str) -> Array:
    """The inner product <A, B> of all samples but sample i.

    ``total`` is <A, B> of all n samples, ``rows`` is t_i = sum_j A_ij B_ij, ``diagonal`` is A_ii B_ii. For the biased
    estimator A and B are the centred Gram matrices; the unbiased one does not use ``diagonal``.
    """
    if estimator == "unbiased":
        return total - 2 * (n - 2) / (n - 3) * rows
    return total - 2 * n / (n - 1) * rows + (n / (n - 1)) ** 2 * diagonal


def jackknife_degrees(xp: ModuleType, squares: Array, fourths: Array, n: int) -> Array:
    """Degrees of freedom (...) of the jackknife variance of n samples, for Student's t.

    They follow from the kurtosis k of the leave-one-out values: 2n / (k - 1 + 2/(n - 1)), at most n - 1 (Satterthwaite
    1946). If a few samples hold most of the variance, the error itself is known as badly as from few samples.

    Parameters
    ----------
    xp : module
        Array namespace.
    squares, fourths : array (...)
        Sums of the squared and of the fourth powers of the leave-one-out values about their mean.
    n : int
        Number of samples.
    """
    varied = squares > 0
    kurtosis = n * fourths / xp.where(varied, squares * squares, xp.ones_like(squares))
    degrees = 2 * n / (xp.where(kurtosis > 1, kurtosis, xp.ones_like(kurtosis)) - 1 + 2 / (n - 1))
    return xp.where(varied & (degrees < n - 1), degrees, xp.full_like(squares, n - 1))
