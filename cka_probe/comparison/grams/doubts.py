"""After a forward on a CPU: the layers whose Gram matrices may be inaccurate, found for all layers together."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch

from ...estimators.gram_accuracy import doubtful, far_from_first

__all__ = ["doubted_layers"]


def doubted_layers(
    grams: Mapping[str, torch.Tensor], mean_squares: Mapping[str, torch.Tensor | None], by_first: Collection[str]
) -> list[str]:
    """Names of layers whose Gram matrices may be inaccurate, by the criteria of ``layer_gram``.

    Parameters
    ----------
    grams : mapping of str to tensor (n, n)
        Linear Gram matrices of layers.
    mean_squares : mapping of str to tensor () or None
        The squared length of the mean that was subtracted from the features of a layer; None if none was.
    by_first : collection of str
        Layers from which the first sample was subtracted. They are named also if one sample lies far from all others:
        the Gram matrix is accurate, but the result needs a note.
    """
    groups: dict[tuple[torch.dtype, bool, bool], list[str]] = {}
    for name, square in mean_squares.items():
        groups.setdefault((grams[name].dtype, square is not None, name in by_first), []).append(name)
    found: list[str] = []
    for (_, less_a_mean, less_a_sample), names in groups.items():
        stack = torch.stack([grams[name] for name in names])
        squares = [square for name in names if (square := mean_squares[name]) is not None]
        doubts = doubtful(stack, torch.stack(squares) if less_a_mean else None)
        if less_a_sample:
            doubts = doubts | far_from_first(stack)
        found += [name for name, doubt in zip(names, doubts.tolist(), strict=True) if doubt]
    return found
