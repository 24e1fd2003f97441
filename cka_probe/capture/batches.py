"""Batches of a data loader: count their samples, call a model with them, join those that are too small."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from .trees import alike, parts, tensors

__all__ = [
    "Forward",
    "accepted",
    "attention_mask",
    "batch_count",
    "batch_size",
    "call_model",
    "certain_batch_size",
    "expected_samples",
    "join",
    "joined_batches",
    "none_is_small",
    "unused_parts",
]

Forward = Callable[[nn.Module, Any], Any]
"""Runs a model on a batch and returns its output."""


def batch_size(batch: Any) -> int | None:
    """Number of samples: the length of axis 0 of the first tensor that has axes; None without such a tensor."""
    for tensor in tensors(batch):
        if tensor.ndim:
            return int(tensor.shape[0])
    return None


def certain_batch_size(batch: Any) -> int | None:
    """Number of samples if axis 0 of every tensor has this length and no part is a list of tensors; None otherwise.

    For batches that only the caller's ``forward`` understands: in a list of images, axis 0 of an image holds channels.
    """
    for part in parts(batch) or ():
        if isinstance(part, tuple | list) and next(tensors(part), None) is not None:
            return None
    sizes = {int(tensor.shape[0]) if tensor.ndim else None for tensor in tensors(batch)}
    return sizes.pop() if len(sizes) == 1 else None


def expected_samples(data: Any, first: int | None = None) -> int | None:
    """Number of samples in a data set before it is read; None if that is unknown.

    Parameters
    ----------
    data : any
        A DataLoader, a sequence of batches, or a single batch.
    first : int, optional
        Number of samples in the first batch. With it, a sized loader without a data set is taken to hold batches of
        this size.
    """
    if isinstance(data, torch.Tensor | Mapping):
        return batch_size(data)
    of_dataset = _length(getattr(data, "dataset", None))
    if of_dataset is not None:
        return of_dataset
    if isinstance(data, list | tuple):
        return sum(batch_size(batch) or 0 for batch in data)
    batches = batch_count(data)
    return None if batches is None or first is None else batches * first


def batch_count(data: Any) -> int | None:
    """Number of batches in ``data`` before it is read; None if that is unknown."""
    return 1 if isinstance(data, torch.Tensor | Mapping) else _length(data)


def _length(data: Any) -> int | None:
    try:
        return len(data)
    except TypeError:  # a generator; also a DataLoader of an IterableDataset, although it has a method __len__
        return None


def attention_mask(batch: Any, key: str = "attention_mask") -> torch.Tensor | None:
    """Mask (n, t) with this key of a batch of keyword arguments; None if it has none."""
    if isinstance(batch, tuple | list) and batch:
        batch = batch[0]
    mask = batch.get(key) if isinstance(batch, Mapping) else None
    return mask if isinstance(mask, torch.Tensor) and mask.ndim == 2 else None


def call_model(model: nn.Module, batch: Any) -> Any:
    """Output of ``model`` on a batch of a data loader.

    A tensor is passed as it is. A mapping (dict, BatchEncoding) is passed as keyword arguments; keys that the forward
    does not take, and labels, are left out. A tuple or list is taken as (input, target): its first part is passed,
    which may be a tensor, a mapping, or a tuple of several inputs.

    Raises
    ------
    TypeError
        If the batch is none of these or the forward does not take it. The remedy is ``forward=``.
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
    """Number of parts of a tuple that ``call_model`` leaves out, besides the target: 1 for (ids, mask, labels)."""
    return max(len(batch) - 2, 0) if isinstance(batch, tuple | list) else 0


def accepted(model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Any]:
    """Entries of ``batch`` that the forward of ``model`` takes as keyword arguments, without labels."""
    parameters = inspect.signature(model.forward).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return {key: value for key, value in batch.items() if key not in ("labels", "label")}
    return {key: value for key, value in batch.items() if key in parameters and key not in ("labels", "label")}


def join(first: Any, second: Any) -> Any | None:
    """One batch with the samples of both; None if their shapes, dtypes or types differ."""
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
    elif _holds_leaves(first) and _holds_leaves(second) and first:
        return type(first)([*first, *second])  # names or paths of the samples
    elif (pairs := _paired_parts(first, second)) is not None:
        return alike(first, [_join(a, b) for a, b in pairs])
    elif type(first) is type(second) and isinstance(first, str | int | float | bool | None) and first == second:
        return first
    raise _DoNotFitError


def _holds_leaves(tree: Any) -> bool:
    """Whether a list or plain tuple holds neither tensors nor containers."""
    if not isinstance(tree, tuple | list) or hasattr(tree, "_fields"):
        return False
    return not any(isinstance(part, torch.Tensor) or parts(part) is not None for part in tree)


def _paired_parts(first: Any, second: Any) -> Iterable[tuple[Any, Any]] | None:
    """Parts of two containers of one form, side by side; None if their forms differ."""
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        return [(first[key], second[key]) for key in first] if first.keys() == second.keys() else None
    sequences = isinstance(first, tuple | list) and isinstance(second, tuple | list)
    left, right = parts(first), parts(second)
    if left is None or right is None or len(left) != len(right) or not (sequences or type(first) is type(second)):
        return None
    return zip(left, right, strict=True)


def none_is_small(data: Any, minimum: int) -> bool:
    """Whether every batch of ``data`` is known to hold at least ``minimum`` samples, the last one included."""
    # A subclass of DataLoader may yield other batches than its sampler draws.
    if type(data) is not DataLoader or data.batch_size is None or not isinstance(data.sampler, Sized):
        return False
    rest = 0 if data.drop_last else len(data.sampler) % data.batch_size
    return data.batch_size >= minimum and (rest == 0 or rest >= minimum)


def joined_batches(
    data: Iterable[Any], minimum: int, notes: list[str], size_of: Callable[[Any], int | None] = batch_size
) -> Iterator[tuple[Any, int]]:
    """Yield batches of at least ``minimum`` samples, each with the number of the loader's batches in it.

    Smaller batches are joined to each other until they are large enough, or to the batch before or after them. A batch
    that cannot be joined is left out, and ``notes`` receives a line about it. A batch is yielded once the next one is
    read, because that one may be too small: two batches are in memory at a time.
    """
    held: list[tuple[Any, int]] = []  # at most one batch that is large enough; a small one may still join it
    small: list[tuple[Any, int]] = []  # at most one batch that is too small so far
    for batch in data:
        size = size_of(batch)
        fresh = (batch, 1)
        if small:
            joined = _joined(small[0], fresh)
            # Two small batches join first. Otherwise the small one joins the large batch before it, else the one after.
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
