"""Batches: what a data loader yields, how a model is called with it, and how small batches are joined."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from .trees import alike, tensors

Forward = Callable[[nn.Module, Any], Any]


def batch_size(batch: Any) -> int | None:
    """The number of samples: axis 0 of the first tensor, or None where there is no tensor to tell."""
    for tensor in tensors(batch):
        if tensor.ndim:
            return int(tensor.shape[0])
    return None


def certain_batch_size(batch: Any) -> int | None:
    """The number of samples if every tensor agrees on it, else None.

    For batches that only the caller's own ``forward`` understands: a list of images has its channels on axis 0.
    """
    if isinstance(batch, tuple | list) and any(isinstance(part, tuple | list) for part in batch):
        return None
    sizes = {int(tensor.shape[0]) if tensor.ndim else None for tensor in tensors(batch)}
    return sizes.pop() if len(sizes) == 1 else None


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
        If the batch is none of these, or the forward does not take it; pass ``forward=`` then.
    """
    whole = batch
    if isinstance(batch, tuple | list) and batch:
        batch = batch[0]
    if isinstance(batch, torch.Tensor):
        return model(batch)
    if isinstance(batch, Mapping):
        keywords = accepted(model, batch)
        if not keywords:
            raise TypeError(
                f"The forward of {type(model).__name__} takes none of the keys {', '.join(map(repr, batch))} of the "
                "batch. Pass forward=lambda model, batch: model(...)."
            )
        return model(**keywords)
    if isinstance(batch, tuple | list) and batch:
        try:
            inspect.signature(model.forward).bind(*batch)
        except TypeError as error:
            raise TypeError(
                f"The forward of {type(model).__name__} does not take the {len(batch)} inputs of the batch ({error}). "
                "Pass forward=lambda model, batch: model(...)."
            ) from None
        return model(*batch)
    raise TypeError(
        f"A batch of type {type(whole).__name__} cannot be passed to {type(model).__name__}. "
        "Pass forward=lambda model, batch: model(...)."
    )


def unused_parts(batch: Any) -> int:
    """How many parts of a tuple ``call_model`` leaves out beyond the target: 1 of (ids, mask, labels)."""
    return max(len(batch) - 2, 0) if isinstance(batch, tuple | list) else 0


def accepted(model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords of ``batch`` that the forward of ``model`` takes."""
    parameters = inspect.signature(model.forward).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return {key: value for key, value in batch.items() if key not in ("labels", "label")}
    return {key: value for key, value in batch.items() if key in parameters and key not in ("labels", "label")}


def join(first: Any, second: Any) -> Any | None:
    """One batch of the samples of both, or None where their shapes or kinds do not fit."""
    try:
        return _join(first, second)
    except _DoNotFitError:
        return None


class _DoNotFitError(Exception):
    pass


def _join(first: Any, second: Any) -> Any:
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        fits = first.ndim and first.ndim == second.ndim and first.shape[1:] == second.shape[1:]
        if fits and first.dtype == second.dtype:
            return torch.cat([first, second])
    elif isinstance(first, Mapping) and isinstance(second, Mapping) and first.keys() == second.keys():
        return alike(first, {key: _join(first[key], second[key]) for key in first})
    elif isinstance(first, tuple | list) and isinstance(second, tuple | list):
        if first and not any(isinstance(part, torch.Tensor | Mapping | tuple | list) for part in (*first, *second)):
            return type(first)([*first, *second])  # names or paths of the samples
        if len(first) == len(second):
            parts = [_join(a, b) for a, b in zip(first, second, strict=True)]
            return type(first)(*parts) if hasattr(first, "_fields") else type(first)(parts)
    elif type(first) is type(second) and isinstance(first, str | int | float | bool | None) and first == second:
        return first
    raise _DoNotFitError


def none_is_small(data: Any, minimum: int) -> bool:
    """Whether a DataLoader says that all its batches, the last too, hold at least ``minimum`` samples."""
    # Subclasses may yield something else than their sampler says.
    if type(data) is not DataLoader or data.batch_size is None or not isinstance(data.sampler, Sized):
        return False
    rest = 0 if data.drop_last else len(data.sampler) % data.batch_size
    return data.batch_size >= minimum and (rest == 0 or rest >= minimum)


def joined_batches(
    data: Iterable[Any], minimum: int, notes: list[str], size_of: Callable[[Any], int | None] = batch_size
) -> Iterator[tuple[Any, int]]:
    """Batches of at least ``minimum`` samples, and how many of the loader's own batches each holds.

    Smaller ones are joined to each other until they suffice, or to the neighbour before or behind them. What cannot be
    joined is left out, and ``notes`` says so. Each is given out when the next is there, which may be small: two batches
    are in memory at a time.
    """
    held: list[tuple[Any, int]] = []  # a batch that is large enough, not yet given out: small ones may join it
    small: list[tuple[Any, int]] = []  # batches too small so far
    for batch in data:
        size = size_of(batch)
        fresh = (batch, 1)
        if small:
            joined = _joined(small[0], fresh)
            # Two small ones first; a large one takes the small one before it only if the large one before that cannot.
            if joined is not None and (size is not None and size < minimum):
                fresh, small = joined, []
                size = size_of(fresh[0])
            elif held and (larger := _joined(held[0], small[0])) is not None:
                held, small = [larger], []
            elif joined is not None:
                fresh, small = joined, []
            else:
                notes.append(_dropped(size_of(small.pop()[0]), minimum))
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
            notes.append(_dropped(size_of(small[0][0]), minimum))
    yield from held


def _joined(first: tuple[Any, int], second: tuple[Any, int]) -> tuple[Any, int] | None:
    batch = join(first[0], second[0])
    return None if batch is None else (batch, first[1] + second[1])


def _dropped(size: int | None, minimum: int) -> str:
    return (
        f"a batch of {size} samples was left out: at least {minimum} are needed and it could not be joined to another"
    )
