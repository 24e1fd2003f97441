"""Compute a measure for all pairs of layers: the statistics of each layer once, then the value of every pair."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from array_api_compat import array_namespace

from ..validation import Array, check_features, check_layer_lists

__all__ = ["Pair", "Prepare", "all_pairs", "pair_matrix", "prepare_layers"]

Prepare = Callable[[Array], Any]
Pair = Callable[[Any, Any], Array]


def _checked(layers: Sequence[Array], name: str, minimum: int) -> dict[str, Array]:
    """Checked features by the name of their argument and place, such as "xs[0]"."""
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
    """Statistics of all layers of both networks; None for the second network when ``ys`` is None.

    Raises
    ------
    TypeError, ValueError
        If features are invalid (the message names the layer by its place), or the numbers of samples differ.
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
    """Values of ``pair`` for every two layers (len(left), len(right)).

    Without ``right``, a symmetric measure is computed for one half of the matrix only.
    """
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
    """Matrix (len(xs), len(ys)) of ``pair`` for every two layers, with ``prepare`` called once for each layer."""
    left, right = prepare_layers(xs, ys, prepare, minimum=minimum)
    return all_pairs(left, right, pair, symmetric=symmetric)
