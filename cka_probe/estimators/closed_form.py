"""HSIC_1 of linear kernels from sums over samples: one formula for whole features, streamed moments and sketches.

For centred features a_i = |x_i|^2, b_i = |y_i|^2 and C = X'Y. Arguments may be arrays; n is the number of samples.
"""

from __future__ import annotations

from typing import NamedTuple

from .validation import Array


def unbiased_inner(cross: Array, norms: Array, total_x: Array, total_y: Array, n: int) -> Array:
    """<A, B> = n(n-3) HSIC_1 from ||C||_F^2, sum a_i b_i, sum a_i and sum b_i (MATH 1)."""
    return cross - n / (n - 2) * norms + total_x * total_y / ((n - 1) * (n - 2))


class SampleTerms(NamedTuple):
    """What sample i brings to an inner product: x_i'C y_i, a_i, b_i, sum_j b_j x_j.x_i and sum_j a_j y_j.y_i."""

    products: Array
    a: Array
    b: Array
    x_of_b: Array
    y_of_a: Array


def unbiased_share(sample: SampleTerms, norms: Array, total_x: Array, total_y: Array, n: int) -> Array:
    """t_i = sum_j A_ij B_ij: the share of a sample in ``unbiased_inner``.

    With A_ij = x_i.x_j + u_i + a_j/(n-2), where x_i.x_j sums to -a_i over j != i, every sum over j has closed form.
    """
    a, b = sample.a, sample.b
    u, v = (d / (n - 2) - total / ((n - 1) * (n - 2)) for d, total in ((a, total_x), (b, total_y)))
    ab = a * b
    linear = (sample.x_of_b + sample.y_of_a - 2 * ab + u * (total_y - b) + v * (total_x - a)) / (n - 2)
    return sample.products - ab - a * v - b * u + (n - 1) * u * v + linear + (norms - ab) / (n - 2) ** 2


def without_each(total: Array, rows: Array, diagonal: Array | float, n: int, estimator: str) -> Array:
    """The inner product without each sample, from the whole, the share of the sample and its diagonal product."""
    if estimator == "unbiased":
        return total - 2 * (n - 2) / (n - 3) * rows
    return total - 2 * n / (n - 1) * rows + (n / (n - 1)) ** 2 * diagonal
