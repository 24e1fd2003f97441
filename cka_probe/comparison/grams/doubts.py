"""After a forward on a CPU: the layers whose Gram matrices may be inaccurate, found for all layers together."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ...estimators.gram_accuracy import doubtful

__all__ = ["doubted_layers"]


def doubted_layers(grams: Mapping[str, torch.Tensor], mean_squares: Mapping[str, torch.Tensor | None]) -> list[str]:
    """Names of layers whose Gram matrices may be inaccurate, or hold a far sample, by the criteria of ``layer_gram``.

    Parameters
    ----------
    grams : mapping of str to tensor (n, n)
        Linear Gram matrices of layers.
    mean_squares : mapping of str to tensor () or None
        The squared length of the mean that was subtracted from the features of a layer; None if none was.
    """
    groups: dict[tuple[torch.dtype, bool], list[str]] = {}
    for name, square in mean_squares.items():
        groups.setdefault((grams[name].dtype, square is not None), []).append(name)
    found: list[str] = []
    for (_, less_a_mean), names in groups.items():
        stack = torch.stack([grams[name] for name in names])
        squares = [square for name in names if (square := mean_squares[name]) is not None]
        doubts = doubtful(stack, torch.stack(squares) if less_a_mean else None)
        found += [name for name, doubt in zip(names, doubts.tolist(), strict=True) if doubt]
    return found
