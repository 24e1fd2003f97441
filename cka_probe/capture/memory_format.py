"""Images and filters with their channels last in memory, for the time of a run: a CPU or GPU may be faster so."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from .trees import alike, parts

__all__ = ["channels_last"]

_HINT = (
    "With channels_last=True the channels of activations are last in memory, and this network asks for a view that "
    "needs another order. Leave `channels_last` out, or write .reshape instead of .view in the network."
)


@contextmanager
def channels_last(networks: Sequence[nn.Module], wanted: bool = True) -> Iterator[None]:
    """Inside the block, the filters of the networks and the images they are called with have their channels last.

    Shapes stay the same. Afterwards, also after an exception, every weight lies in its own memory again, with the
    values that it got inside.

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
    changed: list[tuple[Tensor, Tensor]] = []
    handles = []
    try:
        for network in networks:
            for tensor in chain(network.parameters(), network.buffers()):
                if _holds_images(tensor) and not tensor.is_contiguous(memory_format=torch.channels_last):
                    changed.append((tensor, tensor.data))
                    tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
            if not isinstance(network, torch.jit.ScriptModule):  # which takes no such hook; its filters decide
                handles.append(network.register_forward_pre_hook(_convert, prepend=True, with_kwargs=True))
        yield
    except RuntimeError as error:
        if "view size is not compatible" in str(error):
            error.add_note(_HINT)
        raise
    finally:
        for handle in handles:
            handle.remove()
        for tensor, before in changed:
            _give_back(tensor, before)


def _give_back(tensor: Tensor, before: Tensor) -> None:
    """Put a tensor back into its own memory ``before``, which views and other tensors may share."""
    if (tensor.dtype, tensor.device, tensor.shape) != (before.dtype, before.device, before.shape):
        return  # moved, cast or replaced inside: it has new memory anyway
    # An equal tensor is not written: its memory may be read only, that of a file for example.
    if not torch.equal(tensor.data, before):
        before.copy_(tensor.data)
    tensor.data = before


def _convert(_network: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return tuple(_converted(part) for part in inputs), {name: _converted(part) for name, part in options.items()}


def _converted(tree: Any) -> Any:
    if isinstance(tree, Tensor):
        return tree.contiguous(memory_format=torch.channels_last) if _holds_images(tree) else tree
    inside = parts(tree)
    return tree if inside is None else alike(tree, [_converted(part) for part in inside])


def _holds_images(tensor: Tensor) -> bool:
    return (
        tensor.ndim == 4
        and tensor.is_floating_point()
        and tensor.layout == torch.strided
        and not (tensor.is_nested or tensor.is_quantized)
    )
