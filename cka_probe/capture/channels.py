"""Find the axis of an activation that holds its channels.

Maps are (n, c, h, w) or (n, h, w, c), and sequences (n, c, t) or (n, t, c); the shape does not say which.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.pooling import (
    _AdaptiveAvgPoolNd,
    _AdaptiveMaxPoolNd,
    _AvgPoolNd,
    _MaxPoolNd,
)

from .notes import listed
from .progress import Resumable
from .trees import first_tensor, samples_first
from .wrappers import named_layers

__all__ = ["ChannelAxes", "known_channels"]

_POOLS = (_AdaptiveAvgPoolNd, _AdaptiveMaxPoolNd, _AvgPoolNd, _MaxPoolNd, nn.Upsample, nn.PixelShuffle)
_SEQUENCES = (nn.RNNBase, nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)


def known_channels(module: nn.Module, output: torch.Tensor) -> int | None:
    """Axis of the channels, 1 or -1, in the output of a module whose class says it; None for every other module.

    Convolutions, batch and group norms and poolings have them on axis 1; linear layers, embeddings, layer norms,
    recurrent layers and attention on the last axis. A class derived from these may turn its output (a layer norm over
    maps). Therefore the number of channels must be found on that axis.
    """
    if output.ndim < 3:
        return None
    axis, count = _expected(module)
    if axis is None or count is None:
        return axis
    fits = [place for place in (1, -1) if output.shape[place] == count]
    if len(fits) == 2:
        return None if isinstance(module, nn.LayerNorm) and type(module) is not nn.LayerNorm else axis
    return fits[0] if fits else None


def _expected(module: nn.Module) -> tuple[int | None, int | None]:
    """Axis of the channels by the class of the module, and their number if the module has it."""
    if isinstance(module, _ConvNd):
        return 1, module.out_channels
    if isinstance(module, _NormBase):
        return 1, module.num_features
    if isinstance(module, nn.GroupNorm):
        return 1, module.num_channels
    if isinstance(module, _POOLS):
        return 1, None
    if isinstance(module, nn.Linear):
        return -1, module.out_features
    if isinstance(module, nn.Embedding):
        return -1, module.embedding_dim
    if isinstance(module, nn.LayerNorm) and len(module.normalized_shape) == 1:
        return -1, module.normalized_shape[0]
    return (-1, None) if isinstance(module, _SEQUENCES) else (None, None)


class ChannelAxes(Resumable):
    """Axis of the channels of each layer, from what ran in the network's first pass.

    An activation function, a dropout or a block does not know its axes, but the layers that ran before it or in it do.
    For such a module counts, in this order: the layers inside it whose outputs have its shape, if they agree; the
    latest layer before it with an output of this shape, or else of this shape but for the channels; the latest layer of
    all, by its number of channels, if its output is only reshaped or turned.

    Parameters
    ----------
    model : torch.nn.Module
        The network.
    paths : sequence of str
        The layers whose axes will be asked for.
    """

    lasting = ("_decided", "_ambiguous")

    def __init__(self, model: nn.Module, paths: Sequence[str]) -> None:
        self.model = model
        self.paths = paths
        self._decided: dict[str, int | None] = {}
        self._ambiguous: list[str] = []
        self._ran: list[tuple[tuple[int, ...], int]] = []
        """Shape and axis of each output whose module knows its axis, in the order of execution."""
        self._begun: dict[int, list[int]] = {}
        """For each block that is running: how many entries ``_ran`` had when it began."""

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Watch a pass of the network; a later one is not watched, because the axes are known.

        The hooks that ask for axes must have been registered before.
        """
        if self._decided:
            yield
            return
        self.restart()
        layers = named_layers(self.model)
        blocks = [layers[path] for path in self.paths if next(layers[path].children(), None) is not None]
        knowing = [module for module in self.model.modules() if _expected(module)[0] is not None]
        # Before the hooks of the layers themselves, which ask for the axis.
        handles: list[Any] = [module.register_forward_hook(self._see, prepend=True) for module in knowing]
        handles += [block.register_forward_pre_hook(self._begin) for block in blocks]
        handles += [block.register_forward_hook(self._end, always_call=True) for block in blocks]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self.restart()

    def restart(self) -> None:
        """Forget what ran before this pass; the axes that are known stay."""
        self._ran, self._begun = [], {}

    def _see(self, module: nn.Module, _inputs: Any, output: Any) -> None:
        tensor = first_tensor(output)
        if tensor is not None and tensor.ndim >= 3 and not tensor.is_nested:
            tensor = samples_first(module, tensor)
            axis = known_channels(module, tensor)
            if axis is not None:
                self._ran.append((tuple(tensor.shape), axis))

    def _begin(self, module: nn.Module, _inputs: Any) -> None:
        self._begun.setdefault(id(module), []).append(len(self._ran))

    def _end(self, module: nn.Module, _inputs: Any, _output: Any) -> None:
        self._begun[id(module)].pop()

    def of(self, name: str, module: nn.Module, output: torch.Tensor) -> int | None:
        """Axis of the channels, 1 or -1, in the output of a call; None if nothing says it.

        The first answer for a name, inside ``watched``, holds for all later batches.
        """
        if name not in self._decided:
            self._decided[name] = self._decide(name, module, output)
        return self._decided[name]

    def notes(self, names: Collection[str]) -> list[str]:
        """A sentence about those of ``names`` whose axes contradict each other; none if there are none."""
        doubtful = [name for name in self._ambiguous if name in names]
        if not doubtful:
            return []
        return [
            f"{listed(doubtful)} may have the channels on axis 1 or on the last axis, which have one length; give "
            "inputs of another size, or pass a pooling function"
        ]

    def _decide(self, name: str, module: nn.Module, output: torch.Tensor) -> int | None:
        if output.ndim < 3:
            return None
        own = known_channels(module, output)
        if own is not None:
            return own
        shape = tuple(output.shape)
        begun = self._begun.get(id(module)) or [len(self._ran)]
        inside = [axis for size, axis in self._ran[begun[-1] :] if size == shape]
        before = [axis for size, axis in self._ran[: begun[-1]] if size == shape]
        if len(set(inside)) == 1:
            return inside[0]
        if before:
            return before[-1]
        if inside:
            self._ambiguous.append(name)
            return None
        for size, axis in reversed(self._ran):
            if len(size) == len(shape) and _but(size, axis) == _but(shape, axis):
                return axis  # half of the channels, of a gated unit
        if not self._ran:
            return None
        size, axis = self._ran[-1]
        if prod(size) != output.numel():
            return None
        fits = [place for place in (1, -1) if shape[place] == size[axis]]
        return fits[0] if len(fits) == 1 else None


def _but(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    """The shape without one axis."""
    place = axis % len(shape)
    return shape[:place] + shape[place + 1 :]
