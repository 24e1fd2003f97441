"""Why the similarity of a layer over a whole data set is undefined, or rests on one sample."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch

from ..capture.notes import listed
from ..estimators.dataset.far_samples import Spread
from ..estimators.kernels import Kernel, Linear
from .grams.findings import undefined_reason

__all__ = [
    "CONSTANT",
    "CONSTANT_AT_FIRST",
    "alike",
    "by_features",
    "by_spread",
    "far_notes",
    "has_no_bandwidth",
    "reasons_of",
    "some_samples",
    "spread_by_features",
    "undefined_layers",
]

CONSTANT = "constant over all samples"

CONSTANT_AT_FIRST = "constant over the samples of the first batch"

LOST = "lost in rounding beside one sample"
"""Of a layer about which ``far_notes`` says more."""

MOST = 0.5
"""Part of the squared distances of a layer that gives a note if one sample has it, among ``ENOUGH`` samples or more."""

ENOUGH = 32

ROUNDING = 1e-6
"""Rounding error of a self term that gives a note."""


def some_samples(x: torch.Tensor, block: int = 512) -> torch.Tensor:
    """At most ``block`` evenly spaced samples, from which ``blocked_cka`` takes a median bandwidth."""
    return x[:: -(-len(x) // block)]


def has_no_bandwidth(x: torch.Tensor, kernel: Kernel) -> bool:
    """Whether the samples differ, but their median distance is 0, and the kernel needs it."""
    if getattr(kernel, "bandwidth", None) != "median" or bool((x == x[:1]).all()):
        return False
    return math.isnan(float(kernel.width(x)))  # type: ignore[attr-defined]


def by_features(x: torch.Tensor, kernel: Kernel) -> str | None:
    """What a layer without a value is, from its features (n, d), to follow "is"; None if they do not tell."""
    if bool((x == x[:1]).all()):
        return CONSTANT
    if has_no_bandwidth(x, kernel) or has_no_bandwidth(some_samples(x), kernel):
        return f"not constant, but {undefined_reason(kernel)}"
    return None


def reasons_of(
    values: torch.Tensor, xs: Sequence[torch.Tensor], ys: Sequence[torch.Tensor] | None, kernel: Kernel
) -> tuple[list[str | None], list[str | None]]:
    """What the rows and columns without any value are, from their features; None for all others."""
    rows, columns = (values.isnan().all(axis).tolist() for axis in (1, 0))
    of_rows = [by_features(x, kernel) if gone else None for x, gone in zip(xs, rows, strict=True)]
    if ys is None:
        return of_rows, of_rows
    return of_rows, [by_features(y, kernel) if gone else None for y, gone in zip(ys, columns, strict=True)]


def undefined_layers(
    sides: Sequence[Sequence[tuple[str, str]]],
    reasons: tuple[Sequence[str | None], Sequence[str | None]],
    empty: np.ndarray,
    otherwise: str,
) -> dict[tuple[str, str], str]:
    """What the layers without any value are, by model and layer.

    Parameters
    ----------
    sides : sequence of sequences of (str, str)
        Layers of the rows, and of the columns if these are others.
    reasons : two sequences
        What the layers of rows and columns are, as far as it is known.
    empty : array of bool
        The places of NaN in the values.
    otherwise : str
        What a layer without a known reason is.
    """
    found: dict[tuple[str, str], str] = {}
    for axis, layers in enumerate(sides):
        for layer, why, gone in zip(layers, reasons[axis], np.atleast_1d(empty.all(1 - axis)), strict=True):
            # If every layer of the other side is without a value of its own, this one may be in order.
            if gone and why != LOST and (why is not None or len(sides) == 1 or None in reasons[1 - axis]):
                found[layer] = why or otherwise
    return found


def by_spread(spread: Spread) -> list[str | None]:
    """What the layers are whose sums of moments give no value, to follow "is"; None for layers that have a value."""
    reasons: list[str | None] = []
    for total, share, rounding in zip(
        *(x.tolist() for x in (spread.total, spread.share, spread.rounding)), strict=True
    ):
        if total == 0:
            reasons.append(CONSTANT)
        elif math.isfinite(rounding):
            reasons.append(None)
        elif share > MOST:
            reasons.append(LOST)
        else:
            reasons.append(alike(Linear()))
    return reasons


def alike(kernel: Kernel, measure: str = "cka") -> str:
    """What a layer is that has no value though its samples differ."""
    if measure != "cka":
        return f"not constant, but {measure} is not defined for these samples"
    if isinstance(kernel, Linear):
        return "not constant, but all pairs of its samples are equally similar, as one-hot features are"
    return f"not constant, but {kernel!r} is the same for all pairs of its samples, or not finite"


def spread_by_features(features: Sequence[torch.Tensor]) -> Spread:
    """The spread of layers from their features (n, d); its rounding is 0."""
    totals, shares, samples = [], [], []
    for x in features:
        x = x.double() - x.double().mean(0)
        squares = (x / x.abs().max().clamp(min=1e-300)).square().sum(1)
        total = squares.sum()
        totals.append(total)
        shares.append(squares.max() / total.clamp(min=1e-300))
        samples.append(squares.argmax())
    total = torch.stack(totals)
    return Spread(total, torch.stack(shares), torch.stack(samples), torch.zeros_like(total))


def far_notes(
    spread: Spread, layers: Sequence[tuple[str, str]], places: Sequence[int], sizes: Sequence[int]
) -> list[str]:
    """A note for each model and sample on the layers that rest on this one sample.

    Parameters
    ----------
    spread : Spread
        Of all layers.
    layers : sequence of (str, str)
        Model and name of each layer of the result.
    places : sequence of int
        Their places in ``spread``.
    sizes : sequence of int
        Number of samples of each batch.
    """
    starts = [0]
    for size in sizes:
        starts.append(starts[-1] + size)
    groups: dict[tuple[str, int], list[tuple[str, float]]] = {}
    for (model, name), place in zip(layers, places, strict=True):
        share, rounding = float(spread.share[place]), float(spread.rounding[place])
        if share > MOST and (starts[-1] >= ENOUGH or rounding > ROUNDING):
            groups.setdefault((model, int(spread.sample[place])), []).append((name, rounding))
    notes = []
    for (model, sample), found in groups.items():
        batch = next(i for i, (start, stop) in enumerate(pairwise(starts)) if start <= sample < stop)
        worst = max(rounding for _, rounding in found)
        error = "their values are lost" if math.isinf(worst) else f"their error is up to {worst:.0e}"
        more = f"; in the rounding of sums over a whole data set {error}" if worst > ROUNDING else ""
        notes.append(
            f"{model}: sample {sample - starts[batch]} of batch {batch} has more than half of the squared distances "
            f"from the mean in {listed([name for name, _ in found])}, so the values of these layers rest on this one "
            f'sample{more}. Check it, leave it out, or use scope="minibatch"'
        )
    return notes
