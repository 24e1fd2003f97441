"""Join batches that are too small to their neighbours, without reading a loader while its batch is in use."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import PackedSequence
from torch.utils.data import DataLoader

from .batches import batch_size
from .trees import alike, copied, parts

__all__ = ["join", "joined_batches", "none_is_small"]


def join(first: Any, second: Any, axis: int = 0) -> Any | None:
    """One batch with the samples of both; None if their shapes, dtypes or types differ.

    The samples are on ``axis``, or on axis 0 of tensors with fewer axes.
    """
    try:
        return _join(first, second, axis)
    except _DoNotFitError:
        return None


class _DoNotFitError(Exception):
    pass


def _join(first: Any, second: Any, axis: int) -> Any:
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        if _fit(first, second, axis):
            return torch.cat([first, second], axis if axis < first.ndim else 0)
    elif isinstance(first, np.ndarray) and isinstance(second, np.ndarray):
        if _fit(first, second, axis):
            return np.concatenate([first, second], axis if axis < first.ndim else 0)
    elif isinstance(first, PackedSequence) or isinstance(second, PackedSequence):
        pass  # its rows are time steps
    elif _holds_leaves(first) and _holds_leaves(second) and first:
        return type(first)([*first, *second])  # names or paths of the samples
    elif (pairs := _paired_parts(first, second)) is not None:
        return alike(first, [_join(a, b, axis) for a, b in pairs])
    elif type(first) is type(second) and isinstance(first, str | int | float | bool | None) and first == second:
        return first
    raise _DoNotFitError


def _fit(first: Any, second: Any, axis: int) -> bool:
    """Whether two tensors or arrays have one dtype and differ only in the length of ``axis``."""
    if not first.ndim or first.ndim != second.ndim or first.dtype != second.dtype:
        return False
    if isinstance(first, torch.Tensor) and (first.is_nested or second.is_nested or first.layout != second.layout):
        return False
    joined = axis if axis < first.ndim else 0
    return all(a == b for place, (a, b) in enumerate(zip(first.shape, second.shape, strict=True)) if place != joined)


def _holds_leaves(tree: Any) -> bool:
    """Whether a list or plain tuple holds neither tensors nor containers."""
    if not isinstance(tree, tuple | list) or hasattr(tree, "_fields"):
        return False
    return not any(isinstance(part, torch.Tensor | np.ndarray) or parts(part) is not None for part in tree)


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
    data: Iterable[Any],
    minimum: int,
    notes: list[str],
    size_of: Callable[[Any], int | None] = batch_size,
    axis: int = 0,
) -> Iterator[tuple[Any, int]]:
    """Yield batches of at least ``minimum`` samples, each with the number of the loader's batches in it.

    Smaller batches are joined to each other until they are large enough, or to the batch before or after them. A batch
    that cannot be joined is left out, and ``notes`` receives a line about it. An empty batch is passed over.

    Whether a batch is yielded as it is depends on the size of the next one, so two batches are in memory at a time. A
    loader may fill the same tensor again for the next batch, so a copy is held, never the loader's own batch. With a
    ``minimum`` of 1 each batch is yielded before the next one is read.
    """
    held: list[tuple[Any, int]] = []  # at most one batch that is large enough; a small one may still join it
    small: list[tuple[Any, int]] = []  # at most one batch that is too small so far
    empty = others = False
    for batch in data:
        size = size_of(batch)
        if size == 0:
            empty = True
            continue
        others = True
        if minimum <= 1:
            yield batch, 1
            continue
        fresh = (copied(batch), 1)
        if small:
            joined = _joined(small[0], fresh, axis)
            # Two small batches join first. Otherwise the small one joins the large batch before it, else the one after.
            if joined is not None and (size is not None and size < minimum):
                fresh, small = joined, []
                size = size_of(fresh[0])
            elif held and (larger := _joined(held[0], small[0], axis)) is not None:
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
        larger = _joined(held[0], small[0], axis) if held else None
        if larger is not None:
            held = [larger]
        else:
            notes.append(_dropped(size_of(small[0][0]), minimum))
    if empty and not others:
        notes.append("every batch is empty")
    yield from held


def _joined(first: tuple[Any, int], second: tuple[Any, int], axis: int) -> tuple[Any, int] | None:
    batch = join(first[0], second[0], axis)
    return None if batch is None else (batch, first[1] + second[1])


def _dropped(size: int | None, minimum: int) -> str:
    return (
        f"a batch of {size} samples was left out: at least {minimum} are needed and it could not be joined to another"
    )
