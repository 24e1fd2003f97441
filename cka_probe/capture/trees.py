"""Nested tensors: walk them, move them, pick the one that stands for a layer's output."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

__all__ = ["alike", "first_tensor", "move", "samples_first", "tensors"]


def tensors(tree: Any) -> Iterator[torch.Tensor]:
    """Every tensor in a nesting of tuples, lists and mappings."""
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, Mapping):
        for value in tree.values():
            yield from tensors(value)
    elif isinstance(tree, tuple | list):
        for part in tree:
            yield from tensors(part)


def move(batch: Any, device: torch.device) -> Any:
    """The same batch with its tensors on ``device``, in the same kinds of tuples, lists and mappings.

    Other objects are asked to move themselves where they can (``.to(device)``, as a graph or a PackedSequence).
    """
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return alike(batch, {key: move(value, device) for key, value in batch.items()})
    if isinstance(batch, tuple) and hasattr(batch, "_fields") and not hasattr(batch, "to"):
        return type(batch)(*(move(part, device) for part in batch))
    if isinstance(batch, tuple | list) and not hasattr(batch, "to"):
        return type(batch)(move(part, device) for part in batch)
    return batch.to(device) if callable(getattr(batch, "to", None)) else batch


def alike(mapping: Mapping[str, Any], values: dict[str, Any]) -> Mapping[str, Any]:
    """A mapping of the same class (a BatchEncoding keeps its attributes), or a dict where that cannot be changed."""
    if type(mapping) is dict:
        return values
    try:
        same = copy.copy(mapping)
        for key, value in values.items():
            same[key] = value  # type: ignore[index]
    except (TypeError, AttributeError, ValueError):
        return values
    return same


def first_tensor(output: Any) -> torch.Tensor | None:
    """The tensor that stands for a layer's output: itself, or the first tensor in a tuple, dict or ModelOutput.

    LSTM: the outputs, not the state. Attention: the outputs, not the weights. ModelOutput: the last hidden state or the
    logits, whichever comes first.
    """
    if isinstance(output, torch.Tensor):
        return output
    if isinstance(output, Mapping):
        for name in ("last_hidden_state", "logits"):
            if isinstance(output.get(name), torch.Tensor):
                return output[name]
        output = list(output.values())
    if isinstance(output, tuple | list):
        for part in output:
            tensor = first_tensor(part)
            if tensor is not None:
                return tensor
    return None


def samples_first(module: nn.Module, tensor: torch.Tensor) -> torch.Tensor:
    """The output with samples on axis 0 for the torch modules that can put time there (RNNs, attention)."""
    if tensor.ndim == 3 and isinstance(module, nn.RNNBase | nn.MultiheadAttention) and not module.batch_first:
        return tensor.transpose(0, 1)
    return tensor
