"""Walk, move and rebuild nested tensors, and pick the tensor that stands for a layer's output.

A tree is a tensor, or a container of trees: a tuple, named tuple, list, mapping (dict, BatchEncoding, ModelOutput) or
dataclass. Every other object is a leaf without tensors.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import nn

__all__ = ["alike", "first_tensor", "move", "parts", "samples_first", "tensors"]


def parts(tree: Any) -> Collection[Any] | None:
    """Direct parts of a container, in order; None for a tensor and any other object."""
    if isinstance(tree, Mapping):
        return tree.values()
    if isinstance(tree, tuple | list):
        return tree
    if is_dataclass(tree) and not isinstance(tree, type):
        return [getattr(tree, field.name) for field in fields(tree)]
    return None


def tensors(tree: Any) -> Iterator[torch.Tensor]:
    """Yield every tensor of a tree, in order.

    Examples
    --------
    >>> [len(x) for x in tensors({"image": torch.ones(3), "boxes": [torch.ones(4), None], "name": "a"})]
    [3, 4]
    """
    if isinstance(tree, torch.Tensor):
        yield tree
        return
    for part in parts(tree) or ():
        yield from tensors(part)


def move(tree: Any, device: torch.device) -> Any:
    """Copy of a tree with its tensors on ``device`` and containers of the same classes.

    A leaf with a method ``to`` (a graph, a PackedSequence) is moved by ``leaf.to(device)``.
    """
    if isinstance(tree, torch.Tensor):
        return tree.to(device, non_blocking=True)
    # BatchEncoding.to would change the caller's batch in place; the other classes return a copy.
    if callable(getattr(tree, "to", None)) and not isinstance(tree, Mapping):
        return tree.to(device)
    inside = parts(tree)
    return tree if inside is None else alike(tree, [move(part, device) for part in inside])


def alike(tree: Any, new: list[Any]) -> Any:
    """Container of the class of ``tree`` whose parts are ``new``, in the same order.

    A mapping that cannot be changed becomes a dict.
    """
    if isinstance(tree, Mapping):
        return _alike_mapping(tree, dict(zip(tree, new, strict=True)))
    if isinstance(tree, tuple | list):
        return type(tree)(*new) if hasattr(tree, "_fields") else type(tree)(new)
    same = copy.copy(tree)
    for field, value in zip(fields(tree), new, strict=True):
        object.__setattr__(same, field.name, value)  # frozen dataclasses too
    return same


def _alike_mapping(mapping: Mapping[Any, Any], values: dict[Any, Any]) -> Mapping[Any, Any]:
    if type(mapping) is dict:
        return values
    try:
        same = copy.copy(mapping)  # a copy keeps the attributes of a BatchEncoding
        for key, value in values.items():
            same[key] = value  # type: ignore[index]
    except (TypeError, AttributeError, ValueError):
        return values
    return same


def first_tensor(output: Any) -> torch.Tensor | None:
    """Tensor that stands for a layer's output; None if the output holds none.

    This is the output itself, or the first tensor in it: the outputs of an LSTM and not its state, the outputs of
    attention and not its weights. In a mapping (a ModelOutput) the last hidden state or else the logits come first.
    """
    if isinstance(output, torch.Tensor):
        return output
    if isinstance(output, Mapping):
        for name in ("last_hidden_state", "logits"):
            if isinstance(output.get(name), torch.Tensor):
                return output[name]
    for part in parts(output) or ():
        tensor = first_tensor(part)
        if tensor is not None:
            return tensor
    return None


def samples_first(module: nn.Module, tensor: torch.Tensor) -> torch.Tensor:
    """Output of ``module`` with samples on axis 0: RNNs and attention may put time there."""
    if tensor.ndim == 3 and isinstance(module, nn.RNNBase | nn.MultiheadAttention) and not module.batch_first:
        return tensor.transpose(0, 1)
    return tensor
