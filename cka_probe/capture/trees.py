"""Walk, copy, move and rebuild nested tensors, and pick the tensor that stands for a layer's output.

A tree is a tensor, or a container of trees: a tuple, named tuple, list, mapping (dict, BatchEncoding, ModelOutput) or
dataclass. Every other object is a leaf without tensors.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import fields, is_dataclass
from types import FunctionType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

__all__ = ["alike", "copied", "first_tensor", "leaves", "move", "parts", "samples_first", "shape_text", "tensors"]


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


def shape_text(tensor: torch.Tensor) -> str:
    """Shape of a tensor for a message; a nested tensor may have none.

    Examples
    --------
    >>> shape_text(torch.ones(2, 3))
    '(2, 3)'
    """
    return f"nested, of {tensor.size(0)} samples" if tensor.is_nested else str(tuple(tensor.shape))


def leaves(tree: Any) -> Iterator[Any]:
    """Yield everything in a tree that is not a container, in order."""
    inside = parts(tree)
    if inside is None:
        yield tree
        return
    for part in inside:
        yield from leaves(part)


def move(tree: Any, device: torch.device) -> Any:
    """Copy of a tree with its tensors on ``device`` and containers of the same classes.

    A leaf with a method ``to`` (a graph, a PackedSequence) is moved by ``leaf.to(device)``. The tree itself, and its
    leaves, stay where they are.
    """
    if isinstance(tree, torch.Tensor):
        moved = tree.to(device, non_blocking=device.type == "cuda")  # to the CPU it would return too early
        return moved if moved is tree else _require_grad_as(tree, moved)
    # BatchEncoding.to would change the caller's batch in place, and so would the `to` of a PyG graph.
    if callable(getattr(tree, "to", None)) and not isinstance(tree, Mapping):
        movable: Any = tree if isinstance(tree, tuple) else _shallow(tree)
        return movable.to(device)
    inside = parts(tree)
    return tree if inside is None else alike(tree, [move(part, device) for part in inside])


_Known = dict[int, tuple[Any, Any]]
_Clone = Callable[[torch.Tensor], torch.Tensor]


def copied(tree: Any, *, when_written: bool = False) -> Any:
    """Copy of a tree that shares no memory with it: whoever gets the copy may change it.

    Tensors keep their strides where ``torch.Tensor.clone`` keeps them, and whether they require a gradient; arrays of
    numpy are copied; containers are built anew. An object with a method ``clone`` (a graph) is cloned. Any other
    object is copied if one of its attributes holds a tensor or an array, and is passed on as it is otherwise. What is
    in the tree twice is copied once.

    ``when_written``: a tensor on the CPU takes no memory until one of both is written, where torch can do this. Only
    for a copy that a forward gets: what is written past torch meanwhile (by another process) changes in both.

    Examples
    --------
    >>> batch = {"image": torch.zeros(2), "names": ["a", "b"]}
    >>> own = copied(batch)
    >>> _ = own["image"].add_(1), own["names"].clear()
    >>> batch
    {'image': tensor([0., 0.]), 'names': ['a', 'b']}
    """
    return _copied(tree, {}, _copied_when_written if when_written else torch.clone)


def _copied(tree: Any, known: _Known, clone: _Clone) -> Any:
    """The copy; ``known`` holds what was copied, and its copy, by the identity of the original."""
    if isinstance(tree, str | bytes | int | float | None):
        return tree
    if id(tree) in known:
        return known[id(tree)][1]
    copy_: Any
    if isinstance(tree, torch.Tensor):
        copy_ = _require_grad_as(tree, clone(tree.detach()))
    elif isinstance(tree, np.ndarray):
        copy_ = tree.copy(order="K")
    elif isinstance(tree, PackedSequence):
        sequence: Any = tree
        copy_ = PackedSequence(*[_copied(part, known, clone) for part in sequence])
    elif (inside := parts(tree)) is not None:
        copy_ = alike(tree, [_copied(part, known, clone) for part in inside])
    elif isinstance(tree, type | FunctionType | ModuleType | nn.Module):
        copy_ = tree
    elif callable(getattr(tree, "clone", None)):
        copy_ = tree.clone()
    else:
        return _copied_object(tree, known, clone)
    known[id(tree)] = (tree, copy_)
    return copy_


def _copied_object(leaf: Any, known: _Known, clone: _Clone) -> Any:
    """Copy of an object of the caller's own class whose attributes hold tensors; the object itself if none does."""
    attributes = getattr(leaf, "__dict__", None)
    if not isinstance(attributes, dict):
        return leaf
    known[id(leaf)] = (leaf, leaf)  # an object may refer to itself
    fresh = {name: _copied(value, known, clone) for name, value in attributes.items()}
    if not any(_is_copied(value, fresh[name]) for name, value in attributes.items()):
        return leaf
    same = _shallow(leaf)
    if same is not leaf:
        same.__dict__.update(fresh)
    known[id(leaf)] = (leaf, same)
    return same


def _copied_when_written(tensor: torch.Tensor) -> torch.Tensor:
    """Copy on write, as torch does it. It has no public name there: a plain copy takes its place where it fails."""
    plain = type(tensor) is torch.Tensor and tensor.is_cpu and tensor.layout == torch.strided
    # A part of a larger storage would be copied with all of it.
    if plain and tensor.untyped_storage().nbytes() == tensor.nbytes:
        try:
            return tensor._lazy_clone()
        except (AttributeError, NotImplementedError, RuntimeError):  # an older torch, or memory of another owner
            pass
    return tensor.clone()


def _is_copied(tree: Any, new: Any) -> bool:
    """Whether a leaf of ``tree`` is another object in ``new``, because it is or holds a tensor."""
    inside, fresh = parts(tree), parts(new)
    if inside is None or fresh is None:
        return tree is not new
    return any(_is_copied(one, other) for one, other in zip(inside, fresh, strict=True))


def _shallow(leaf: Any) -> Any:
    """Shallow copy of an object; the object itself if its class allows none."""
    try:
        return copy.copy(leaf)
    except Exception:  # whatever the class of a user raises: such an object is passed on as it is
        return leaf


def _require_grad_as(original: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    return new.requires_grad_() if original.requires_grad else new


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
