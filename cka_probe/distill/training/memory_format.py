"""Images and filters with their channels last in memory, for the time of a run: a CPU or GPU may be faster so."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ...capture.trees import alike, parts

__all__ = ["channels_last"]


@contextmanager
def channels_last(networks: Sequence[nn.Module], wanted: bool = True) -> Iterator[None]:
    """Inside the block, the filters of the networks and the images they are called with have their channels last.

    Shapes stay the same. The networks get their own strides back afterwards, also after an exception.

    Parameters
    ----------
    networks : sequence of torch.nn.Module
        On their device.
    wanted : bool
        False changes nothing.
    """
    if not wanted:
        yield
        return
    tensors = [tensor for network in networks for tensor in (*network.parameters(), *network.buffers())]
    before = [(tensor, tensor.stride()) for tensor in tensors if tensor.layout == torch.strided]
    handles = []
    try:
        for network in networks:
            network.to(memory_format=torch.channels_last)
            handles.append(network.register_forward_pre_hook(_convert, prepend=True, with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()
        for tensor, strides in before:
            if tensor.stride() != strides:
                plain = torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype, device=tensor.device)
                tensor.data = plain.copy_(tensor.detach())


def _convert(_network: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return tuple(_converted(part) for part in inputs), {name: _converted(part) for name, part in options.items()}


def _converted(tree: Any) -> Any:
    if isinstance(tree, Tensor):
        images = tree.ndim == 4 and tree.is_floating_point() and tree.layout == torch.strided
        return tree.contiguous(memory_format=torch.channels_last) if images else tree
    inside = parts(tree)
    return tree if inside is None else alike(tree, [_converted(part) for part in inside])
