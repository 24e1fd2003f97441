"""All pairs of layers under one measure: the statistics of each layer once, then every pair."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from array_api_compat import array_namespace

from ..validation import Array, check_features, check_layer_lists

Prepare = Callable[[Array], Any]
Pair = Callable[[Any, Any], Array]


def _checked(layers: Sequence[Array], name: str, minimum: int) -> dict[str, Array]:
    checked = {}
    for i, x in enumerate(layers):
        _, x = check_features(x, f"{name}[{i}]", minimum=minimum)
        if x.ndim != 2:
            raise ValueError(f"`{name}[{i}]` must have shape (n, p), got {tuple(x.shape)}.")
        checked[f"{name}[{i}]"] = x
    return checked


def prepare_layers(
    xs: Sequence[Array], ys: Sequence[Array] | None, prepare: Prepare, *, minimum: int = 2
) -> tuple[list[Any], list[Any] | None]:
    """The statistics of all layers of both networks; None for the second when there is none.

    Raises
    ------
    TypeError, ValueError
        For bad features, named by their place, and for layers of different numbers of samples.
    """
    check_layer_lists(xs, ys)
    left, right = _checked(xs, "xs", minimum), {} if ys is None else _checked(ys, "ys", minimum)
    n = left["xs[0]"].shape[0]
    for name, x in (left | right).items():
        if x.shape[0] != n:
            raise ValueError(
                f"`xs[0]` has {n} samples and `{name}` has {x.shape[0]}. "
                "All layers must hold the same samples in the same order."
            )
    return [prepare(x) for x in left.values()], None if ys is None else [prepare(y) for y in right.values()]


def all_pairs(left: list[Any], right: list[Any] | None, pair: Pair, *, symmetric: bool = True) -> Array:
    """``pair`` of every two layers (len(left), len(right)); one half only of a symmetric measure of one network."""
    if right is None and symmetric:
        upper = {(i, j): pair(a, left[j]) for i, a in enumerate(left) for j in range(i, len(left))}
        rows = [[upper[min(i, j), max(i, j)] for j in range(len(left))] for i in range(len(left))]
    else:
        rows = [[pair(a, b) for b in (left if right is None else right)] for a in left]
    xp = array_namespace(rows[0][0])
    return xp.stack([xp.stack([xp.asarray(value) for value in row]) for row in rows])


def pair_matrix(
    xs: Sequence[Array],
    ys: Sequence[Array] | None,
    prepare: Prepare,
    pair: Pair,
    *,
    symmetric: bool = True,
    minimum: int = 2,
) -> Array:
    """``prepare`` of every layer once and ``pair`` of every two, as a matrix (len(xs), len(ys))."""
    left, right = prepare_layers(xs, ys, prepare, minimum=minimum)
    return all_pairs(left, right, pair, symmetric=symmetric)
