"""What the caller gives as `data`: check it before any model runs, cut one large batch, pair two loaders."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils.data import Dataset, IterableDataset, RandomSampler

from .batches import batch_size
from .trees import alike, copied, parts

__all__ = ["PIECE", "ROWS", "checked_samples", "cut", "is_one_batch", "one_batch", "paired", "smaller_batches"]

ROWS = 512
"""Largest number of samples of a single tensor that is one minibatch; a larger one is cut."""

PIECE = 256
"""Largest number of samples of the minibatches that a batch of a loader with more than ``ROWS`` samples is cut into.

The Gram matrices of all layers cost as much for each sample as the batch has samples; smaller batches make the network
slower on a GPU."""

_END = object()


def is_one_batch(data: Any) -> bool:
    """Whether ``data`` is a single batch and not an iterable of batches.

    A tensor, an array, a mapping, a PackedSequence and a graph (an object with ``to`` and ``clone``) are. So is a tuple
    of tensors of equally many samples that differ in their number of axes or dtype: an input and its target.
    """
    if isinstance(data, torch.Tensor | Mapping | np.ndarray | PackedSequence):
        return True
    if type(data) is tuple and len(data) > 1 and all(isinstance(part, torch.Tensor | np.ndarray) for part in data):
        kinds = {(part.ndim, str(part.dtype)) for part in data}
        return len(kinds) > 1 and len({part.shape[:1] for part in data}) == 1
    return callable(getattr(data, "to", None)) and callable(getattr(data, "clone", None))


def one_batch(data: Any, name: str = "data") -> Iterable[Any]:
    """Iterable of batches: ``data`` itself, or ``[data]`` if it is a single batch.

    Raises
    ------
    TypeError
        If ``data`` is a network, a text, a table, a function or a class, is a Dataset, whose items are single samples,
        or cannot be iterated.
    """
    if (problem := _problem(data)) is not None:
        raise TypeError(f"`{name}` {problem}")
    return [data] if is_one_batch(data) else data


def _problem(data: Any) -> str | None:
    """Why no batches can be read from ``data``, as the rest of a sentence; None if they can."""
    kind = type(data).__name__
    if isinstance(data, nn.Module):
        return f"is a network ({kind}). The batches come after the two networks: compare(model_x, model_y, data)."
    if isinstance(data, str | bytes):
        return f"is a text, {data[:40]!r}. Give an iterable of batches, such as a DataLoader."
    if isinstance(data, type):
        return f"is the class {data.__name__}. Give an object of it."
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        return f"is a Dataset, whose items are single samples. {_WRAP}"
    if type(data).__module__.split(".")[0] == "datasets" and hasattr(data, "with_format"):
        return f'is a Dataset, whose items are single samples. Wrap it: DataLoader(data.with_format("torch"), {_SIZE}).'
    if type(data).__module__.split(".")[0] in ("pandas", "polars"):
        return f"is a {kind}. Give its numbers: torch.tensor(data.to_numpy())."
    if isinstance(data, torch.Tensor | np.ndarray) and not data.ndim:
        return "is a single number. A batch has samples on axis 0."
    if is_one_batch(data) or isinstance(data, Iterable):
        return None
    if hasattr(data, "__getitem__"):
        return f"is a {kind} that cannot be iterated; its items are taken for single samples. {_WRAP}"
    if callable(data):
        return "is a function. Call it: give the batches that it returns."
    return f"must be an iterable of batches, such as a DataLoader, got {kind}."


_CHANNELS = (1, 3, 4)
_SIZE = "batch_size=64"
_WRAP = f"Wrap it: torch.utils.data.DataLoader(data, {_SIZE})."


def checked_samples(batches: Iterable[Any], notes: list[str]) -> Iterator[Any]:
    """Yield the batches, after a look at the first: a single sample with its label is not a batch.

    Raises
    ------
    TypeError
        If the first item is one image (c, h, w) or one vector with one number as its label.
    """
    for index, batch in enumerate(batches):
        if index == 0 and (shape := _shape_beside_one_label(batch)) is not None:
            pair = f"an input of shape {tuple(shape)} beside a single number as its label"
            is_image = len(shape) == 3 and (shape[0] in _CHANNELS or (shape[2] in _CHANNELS and shape[0] == shape[1]))
            if len(shape) == 1 or is_image:
                raise TypeError(f"Item 0 of `data` looks like one sample, not like a batch: {pair}. {_WRAP}")
            notes.append(
                f"item 0 of the data is {pair}; it was taken as a batch of {shape[0]} samples. If it is one sample, "
                f"wrap the data: torch.utils.data.DataLoader(data, {_SIZE})"
            )
        yield batch


def _shape_beside_one_label(batch: Any) -> tuple[int, ...] | None:
    """Shape of the input if its label is one number and it has one to three axes, of which axis 0 is longer than 1."""
    if isinstance(batch, Mapping):
        inputs = [part for part in batch.values() if isinstance(part, torch.Tensor | np.ndarray) and part.ndim]
        labels = [part for name, part in batch.items() if name in ("label", "labels", "target", "targets")]
    elif isinstance(batch, tuple | list) and len(batch) == 2 and not isinstance(batch, PackedSequence):
        inputs, labels = [part for part in batch[:1] if isinstance(part, torch.Tensor | np.ndarray)], list(batch[1:])
    else:
        return None
    if not inputs or not labels or not all(_is_one_number(label) for label in labels):
        return None
    shape = tuple(max(inputs, key=lambda part: part.ndim).shape)
    if len(shape) == 3 and shape[0] == 1:
        return shape
    return shape if 1 <= len(shape) <= 3 and shape[0] > 1 else None


def _is_one_number(label: Any) -> bool:
    if isinstance(label, torch.Tensor | np.ndarray):
        return label.ndim == 0
    return isinstance(label, int | float | np.number) and not isinstance(label, bool)


def cut(batch: Any, rows: int = ROWS) -> list[Any]:
    """Minibatches of nearly equal size, at most ``rows`` samples, of one large batch; ``[batch]`` if it is not large.

    The batch stays whole unless it is certain what its parts for single samples are: every tensor is dense and has the
    samples on axis 0, and no other axis has this length (an adjacency matrix has).
    """
    samples = batch_size(batch)
    if samples is None or samples <= rows or not _can_be_cut(batch, samples):
        return [batch]
    return _cut(batch, samples, -(-samples // rows))


def smaller_batches(batches: Iterable[tuple[Any, int]], notes: list[str]) -> Iterator[tuple[Any, int]]:
    """Yield batches with the number of items in each; ``cut`` those of more than ``ROWS`` samples, with one note."""
    noted = False
    for batch, items in batches:
        samples = batch_size(batch)
        pieces = cut(batch, PIECE) if samples is not None and samples > ROWS else [batch]
        if len(pieces) > 1 and not noted:
            noted = True
            notes.append(
                f"batches of more than {ROWS} samples were cut into minibatches of at most {PIECE}, because the Gram "
                "matrices of the layers grow with the square of the batch. The unbiased value stays the same on "
                "average. To keep the batches whole, pass forward=lambda model, batch: model(batch)"
            )
        for piece in pieces:
            yield piece, items


def _can_be_cut(tree: Any, samples: int) -> bool:
    if isinstance(tree, torch.Tensor) and (tree.is_nested or tree.layout is not torch.strided):
        return False
    if isinstance(tree, torch.Tensor | np.ndarray):
        return not tree.ndim or (tree.shape[0] == samples and samples not in tree.shape[1:])
    if isinstance(tree, PackedSequence):
        return False
    inside = parts(tree)
    if inside is None:
        return isinstance(tree, str | int | float | bool | None)
    if _are_leaves(tree):
        return len(inside) == samples
    return all(_can_be_cut(part, samples) for part in inside)


def _are_leaves(tree: Any) -> bool:
    """Whether a list holds one text or number for each sample."""
    return isinstance(tree, list) and all(isinstance(part, str | int | float | bool | None) for part in tree)


def _cut(tree: Any, samples: int, pieces: int) -> list[Any]:
    if isinstance(tree, torch.Tensor):
        return list(tree.tensor_split(pieces)) if tree.ndim else [tree] * pieces
    if isinstance(tree, np.ndarray):
        return list(np.array_split(tree, pieces)) if tree.ndim else [tree] * pieces
    inside = parts(tree)
    if inside is None:
        return [tree] * pieces
    if _are_leaves(tree):
        return [[tree[i] for i in places] for places in np.array_split(np.arange(samples), pieces)]
    columns = [_cut(part, samples, pieces) for part in inside]
    return [alike(tree, [column[i] for column in columns]) for i in range(pieces)]


def paired(
    data: Iterable[Any], data_y: Iterable[Any], size_of: Callable[[Any], int | None] = batch_size
) -> Iterator[tuple[Any, Any]]:
    """Yield the batches of both loaders in pairs. Those of the first are copied before the second loader is read.

    Raises
    ------
    ValueError
        If one loader ends before the other, two batches differ in their number of samples, or a loader shuffles
        without a generator of its own.
    """
    for name, loader in (("`data`", data), ("`data_y`", data_y)):
        sampler = getattr(loader, "sampler", None)
        if isinstance(sampler, RandomSampler) and sampler.generator is None:
            raise ValueError(
                f"{name} shuffles, so its samples are not in the order of the other. Turn shuffling off in both, or "
                "give both loaders generators with the same seed."
            )
    left, right = iter(data), iter(data_y)
    for index in count():
        x = copied(next(left, _END))  # both loaders may fill the same tensor
        y = next(right, _END)
        if x is _END and y is _END:
            return
        if x is _END or y is _END:
            short, long = ("`data`", "`data_y`") if x is _END else ("`data_y`", "`data`")
            raise ValueError(
                f"{short} ended after {index} batches, but {long} goes on. Both must hold the same samples."
            )
        sizes = size_of(x), size_of(y)
        if None not in sizes and sizes[0] != sizes[1]:
            raise ValueError(
                f"Batch {index} holds {sizes[0]} samples in `data` and {sizes[1]} in `data_y`. "
                "Both must hold the same samples in the same order."
            )
        yield x, y
