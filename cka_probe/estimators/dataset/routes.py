"""Choose the cheapest way to compute CKA over a whole data set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ..kernels import RBF, Kernel, Linear, given_kernel

__all__ = ["SKETCH_SIZE", "Route", "choose_route"]

SKETCH_SIZE = 512
"""Number of random projections of each layer on the sketch route."""


class Route(NamedTuple):
    """Name of the route ("moments", "blocks" or "sketch") and the reason for it."""

    name: str
    reason: str


def choose_route(
    samples: int | None,
    widths_x: Sequence[int],
    widths_y: Sequence[int] | None = None,
    *,
    kernel: Kernel | None = None,
    memory: int = 4 * 2**30,
) -> Route:
    """The cheapest exact route that fits into memory, or a sketch if none does.

    Parameters
    ----------
    samples : int or None
        Number of samples of the data set; None when it is not known.
    widths_x, widths_y : sequence of int
        Widths of the layers of both networks. Without ``widths_y`` every two layers of the first are compared.
    kernel : Kernel, optional
        Linear when left out. Moments need the linear kernel; a sketch needs the linear or the RBF kernel.
    memory : int
        Limit in bytes, for the statistics or for the features.

    Returns
    -------
    Route
        Name of the route and a reason that can be printed.

    Raises
    ------
    ValueError
        If no exact route fits into memory and the kernel has no sketch.

    References
    ----------
    docs/theory.md, section 2: for l layers with a total width of D, moments take n D^2 multiply-adds and D^2 numbers,
    blocks n^2 D + n^2 l^2 / 2 multiply-adds and n D numbers.

    Examples
    --------
    >>> choose_route(100_000, [64, 128]).name
    'moments'
    >>> choose_route(1_000, [100_352, 200_704]).name
    'blocks'
    """
    kernel = given_kernel(kernel)
    every = [*widths_x, *(widths_y or ())]
    width, layers = sum(every), len(every)
    square = width**2 if widths_y is None else sum(widths_x) * sum(widths_y) + sum(w * w for w in every)
    moment_bytes, feature_bytes = 16 * square, None if samples is None else 4 * samples * width
    linear = isinstance(kernel, Linear)
    moments_fit = linear and moment_bytes <= memory
    blocks_fit = feature_bytes is not None and feature_bytes <= memory
    if moments_fit and blocks_fit:
        assert samples is not None
        by_moments = 2 * samples * square  # twice, because float64 products take twice the time of float32
        by_blocks = samples**2 * (width + layers**2 / 2)
        if by_blocks < by_moments:
            return Route("blocks", f"{samples} samples are few against a total width of {width}")
    if moments_fit:
        return Route(
            "moments", f"a total width of {width} takes {moment_bytes / 2**20:.0f} MiB for any number of samples"
        )
    if blocks_fit:
        why = "the kernel is not linear" if not linear else f"moments of a total width of {width} do not fit"
        return Route("blocks", f"{why}; the features take {(feature_bytes or 0) / 2**20:.0f} MiB")
    if linear or isinstance(kernel, RBF):
        return Route("sketch", f"neither moments nor features of width {width} fit into {memory / 2**20:.0f} MiB")
    raise ValueError(
        f"The features of {samples or 'an unknown number of'} samples and a total width of {width} do not fit into "
        f"{memory / 2**20:.0f} MiB, and {kernel!r} has no sketch. Use fewer layers or samples, a pooling that narrows "
        'them ("mean"), or scope="minibatch".'
    )
