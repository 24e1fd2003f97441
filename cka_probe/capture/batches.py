"""Batches: what a data loader yields, how a model is called with it, and how small batches are joined."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

Forward = Callable[[nn.Module, Any], Any]


def map_tensors(tree: Any, change: Callable[[torch.Tensor], Any]) -> Any:
    """The same nesting of tuples, lists and mappings with every tensor changed."""
    if isinstance(tree, torch.Tensor):
        return change(tree)
    if isinstance(tree, Mapping):
        return {key: map_tensors(value, change) for key, value in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(map_tensors(part, change) for part in tree))
    if isinstance(tree, tuple | list):
        return type(tree)(map_tensors(part, change) for part in tree)
    return tree


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


def batch_size(batch: Any) -> int | None:
    """The number of samples: axis 0 of the first tensor, or None where there is no tensor to tell."""
    for tensor in tensors(batch):
        if tensor.ndim:
            return int(tensor.shape[0])
    return None


def attention_mask(batch: Any) -> torch.Tensor | None:
    """The (n, t) attention mask of a batch of keywords, or None."""
    if isinstance(batch, tuple | list) and batch:
        batch = batch[0]
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    return mask if isinstance(mask, torch.Tensor) and mask.ndim == 2 else None


def call_model(model: nn.Module, batch: Any) -> Any:
    """Run ``model`` on what data loaders yield.

    A tensor is passed as it is. A mapping (dict, BatchEncoding) becomes keywords; keys that the forward does not take,
    such as labels, are left out. Of a tuple or list the first part counts, (input, target): a tensor, a mapping, or a
    tuple of several inputs.

    Raises
    ------
    TypeError
        If the batch is none of these; pass ``forward=`` then.
    """
    if isinstance(batch, torch.Tensor):
        return model(batch)
    if isinstance(batch, Mapping):
        return model(**accepted(model, batch))
    if isinstance(batch, tuple | list) and batch:
        first = batch[0]
        if isinstance(first, torch.Tensor | Mapping):
            return call_model(model, first)
        if isinstance(first, tuple | list):
            return model(*first)
    raise TypeError(
        f"A batch of type {type(batch).__name__} cannot be passed to {type(model).__name__}. "
        "Pass forward=lambda model, batch: model(...)."
    )


def accepted(model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords of ``batch`` that the forward of ``model`` takes."""
    parameters = inspect.signature(model.forward).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return {key: value for key, value in batch.items() if key not in ("labels", "label")}
    return {key: value for key, value in batch.items() if key in parameters and key not in ("labels", "label")}


def join(first: Any, second: Any) -> Any | None:
    """One batch of the samples of both, or None where their shapes or kinds do not fit."""
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        fits = first.ndim and first.ndim == second.ndim and first.shape[1:] == second.shape[1:]
        return torch.cat([first, second]) if fits and first.dtype == second.dtype else None
    if isinstance(first, Mapping) and isinstance(second, Mapping) and first.keys() == second.keys():
        joined = {key: join(first[key], second[key]) for key in first}
        return None if any(value is None for value in joined.values()) else joined
    if isinstance(first, tuple | list) and isinstance(second, tuple | list) and len(first) == len(second):
        parts: list[Any] = [join(a, b) for a, b in zip(first, second, strict=True)]
        if any(part is None for part in parts):
            return None
        return type(first)(*parts) if hasattr(first, "_fields") else type(first)(parts)
    return None


def joined_batches(data: Iterable[Any], minimum: int, notes: list[str]) -> Iterator[tuple[Any, int]]:
    """Batches of at least ``minimum`` samples, and how many of the loader's own batches each holds.

    Smaller ones are joined to each other until they suffice, or to the neighbour before or behind them. What cannot be
    joined is left out, and ``notes`` says so.
    """
    held: list[tuple[Any, int]] = []  # a batch that is large enough, not yet given out: small ones may join it
    small: list[tuple[Any, int]] = []  # batches too small so far
    for batch in data:
        size = batch_size(batch)
        fresh = (batch, 1)
        if small:
            joined = _joined(small[0], fresh)
            # Two small ones first; a large one takes the small one before it only if the large one before that cannot.
            if joined is not None and (size is not None and size < minimum):
                fresh, small = joined, []
                size = batch_size(fresh[0])
            elif held and (larger := _joined(held[0], small[0])) is not None:
                held, small = [larger], []
            elif joined is not None:
                fresh, small = joined, []
            else:
                notes.append(_dropped(batch_size(small.pop()[0]), minimum))
        if size is not None and size < minimum:
            small = [fresh]
            continue
        yield from held
        held = [fresh]
    if small:
        larger = _joined(held[0], small[0]) if held else None
        if larger is not None:
            held = [larger]
        else:
            notes.append(_dropped(batch_size(small[0][0]), minimum))
    yield from held


def _joined(first: tuple[Any, int], second: tuple[Any, int]) -> tuple[Any, int] | None:
    batch = join(first[0], second[0])
    return None if batch is None else (batch, first[1] + second[1])


def _dropped(size: int | None, minimum: int) -> str:
    return (
        f"a batch of {size} samples was left out: at least {minimum} are needed and it could not be joined to another"
    )
