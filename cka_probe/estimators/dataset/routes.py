"""Which way to the CKA of a whole data set is cheapest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ..kernels import RBF, Kernel, Linear

SKETCH_SIZE = 512
"""Random projections of a layer on the sketch route."""


class Route(NamedTuple):
    """A way to compute, and why: "moments", "blocks" or "sketch"."""

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
    """The cheapest exact way that fits into memory, and a sketch where none does.

    Parameters
    ----------
    samples : int or None
        Samples of the data set; None when the data cannot tell.
    widths_x, widths_y : sequence of int
        Widths of the layers of both networks; ``widths_y`` None for all pairs of the first.
    kernel : Kernel, optional
        Linear when left out. Only it has the moment route; only it and a fixed RBF have a sketch.
    memory : int
        Bytes that statistics and kept features may take.

    Returns
    -------
    Route
        Its name and a reason to print.

    Raises
    ------
    ValueError
        If neither fits and the kernel has no sketch.

    References
    ----------
    MATH 2: n D^2 multiply-adds and D^2 numbers by moments; n^2 D + n^2 L^2 / 2 and n D numbers by blocks.

    Examples
    --------
    >>> choose_route(100_000, [64, 128]).name
    'moments'
    >>> choose_route(1_000, [100_352, 200_704]).name
    'blocks'
    """
    kernel = kernel or Linear()
    every = [*widths_x, *(widths_y or ())]
    width, layers = sum(every), len(every)
    square = width**2 if widths_y is None else sum(widths_x) * sum(widths_y) + sum(w * w for w in every)
    moment_bytes, feature_bytes = 16 * square, None if samples is None else 4 * samples * width
    linear = isinstance(kernel, Linear)
    moments_fit = linear and moment_bytes <= memory
    blocks_fit = feature_bytes is not None and feature_bytes <= memory
    if moments_fit and blocks_fit:
        assert samples is not None
        by_moments = 2 * samples * square  # float64 products run at half the speed of float32
        by_blocks = samples**2 * (width + layers**2 / 2)
        if by_blocks < by_moments:
            return Route("blocks", f"{samples} samples are few against a total width of {width}")
    if moments_fit:
        return Route("moments", f"a total width of {width} takes {moment_bytes / 2**20:.0f} MiB, whatever the samples")
    if blocks_fit:
        why = "the kernel is not linear" if not linear else f"a total width of {width} is too much for moments"
        return Route("blocks", f"{why}; the features take {(feature_bytes or 0) / 2**20:.0f} MiB")
    if linear or isinstance(kernel, RBF):
        return Route("sketch", f"neither moments nor features of width {width} fit into {memory / 2**20:.0f} MiB")
    raise ValueError(
        f"The features of {samples or 'an unknown number of'} samples and a total width of {width} do not fit into "
        f"{memory / 2**20:.0f} MiB, and {kernel!r} has no sketch. Use fewer layers or samples, a pooling that narrows "
        'them ("mean"), or scope="minibatch".'
    )
