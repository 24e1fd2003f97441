"""Networks under torch.compile in a run: the network inside, and names of weights without the compiler's prefix."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar, cast

import torch
from torch import nn

from ...capture.wrappers import compiled_parts

__all__ = ["compiled", "is_compiled", "plain_names", "reset_graphs", "uncompiled"]

Value = TypeVar("Value")

PREFIX = "_orig_mod."


def compiled(network: nn.Module, wanted: bool) -> nn.Module:
    """The network as it is called: compiled here if that is wanted and the caller has not done it."""
    if not wanted or is_compiled(network):
        return network
    # A graph for each shape: torch would make one for any shape as soon as it sees a second, and then the bits of a
    # step would depend on the batches before it, which a resumed run has not seen.
    return cast(nn.Module, torch.compile(network, dynamic=False))


def is_compiled(network: nn.Module) -> bool:
    """Whether `torch.compile` wraps the network as a whole, or it was compiled by ``network.compile()``."""
    return network in compiled_parts(network)


def uncompiled(network: nn.Module) -> nn.Module:
    """The network inside the module that `torch.compile` returns. They share weights, mode and hooks."""
    inner = getattr(network, "_orig_mod", None)
    return inner if isinstance(inner, nn.Module) else network


def plain_names(state: Mapping[str, Value]) -> dict[str, Value]:
    """A state dict whose names have no prefix of `torch.compile`, so that it loads into an uncompiled network.

    Examples
    --------
    >>> plain_names({"layer1._orig_mod.weight": 1})
    {'layer1.weight': 1}
    """
    return {name.replace(PREFIX, ""): value for name, value in state.items()}


def reset_graphs(*networks: nn.Module | None) -> None:
    """Drop the graphs of all compiled code if a part of a network is compiled.

    A graph that was made before the taps were set runs no hooks, and torch does not check for new ones.
    """
    if any(network is not None and compiled_parts(network) for network in networks):
        torch.compiler.reset()
