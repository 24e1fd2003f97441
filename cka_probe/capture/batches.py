"""Batches of a data loader: count their samples, and call a model with them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils.data import DataLoader, IterableDataset

from .trees import alike, leaves, parts, tensors

__all__ = [
    "Forward",
    "accepted",
    "as_tensors",
    "attention_mask",
    "batch_count",
    "batch_size",
    "call_model",
    "certain_batch_size",
    "expected_samples",
    "likely_batch_size",
    "passed_part",
]

Forward = Callable[[nn.Module, Any], Any]
"""Runs a model on a batch and returns its output."""


def batch_size(batch: Any, axis: int = 0) -> int | None:
    """Number of samples of a batch that ``call_model`` understands; None without a tensor that has axes.

    Of (input, target) the input is counted. If it has several parts, the number is the length of ``axis`` on which most
    of them agree. A length of 1 counts only if there is no other, because such a part (a time step, position ids) is
    the same for all samples; parts whose name begins with "edge" do not count. If equally many parts agree on two
    lengths, the one with more axes decides, then numbers of a floating dtype, then the first.
    """
    inputs = passed_part(batch)
    size = _agreed(inputs, axis)
    return _agreed(batch, axis) if size is None and inputs is not batch else size


def certain_batch_size(batch: Any, axis: int = 0) -> int | None:
    """Number of samples if ``axis`` of every tensor has this length and no part is a list of tensors; None otherwise.

    For batches that only the caller's ``forward`` understands: in a list of images, axis 0 of an image holds channels.
    """
    if _has_lists(batch):
        return None
    sizes = {length for length, _ in _lengths(batch, axis)}
    return sizes.pop() if len(sizes) == 1 else None


def likely_batch_size(batch: Any, axis: int = 0) -> int | None:
    """As ``certain_batch_size``, but tensors of one number, or with one entry on ``axis``, need not agree."""
    if _has_lists(batch):
        return None
    sizes = {length for length, _ in _lengths(batch, axis)} - {None, 1}
    return sizes.pop() if len(sizes) == 1 else certain_batch_size(batch, axis)


def _has_lists(batch: Any) -> bool:
    if isinstance(batch, PackedSequence):
        return False
    inside = [part for part in parts(batch) or () if not isinstance(part, PackedSequence)]
    return any(isinstance(part, tuple | list) and next(_lengths(part), None) is not None for part in inside)


def _agreed(tree: Any, axis: int) -> int | None:
    votes: dict[int, tuple[int, int, bool]] = {}
    for length, leaf in _lengths(tree, axis):
        if length is not None:
            count, axes, floating = votes.get(length, (0, 0, False))
            votes[length] = (count + 1, max(axes, leaf.ndim), floating or _is_floating(leaf))
    # `max` returns the first of equals.
    return max(votes, key=lambda length: (length != 1, *votes[length]), default=None)


def _lengths(tree: Any, axis: int = 0) -> Iterator[tuple[int | None, torch.Tensor | np.ndarray]]:
    """Each tensor and array of a batch beside its length on ``axis``, or on axis 0 if it has fewer axes.

    The length of a single number is None.
    """
    if isinstance(tree, torch.Tensor) and tree.is_nested:
        yield int(tree.size(0)), tree
    elif isinstance(tree, torch.Tensor) or _is_numbers(tree):
        yield int(tree.shape[axis if axis < tree.ndim else 0]) if tree.ndim else None, tree
    elif isinstance(tree, PackedSequence):
        yield int(tree.batch_sizes[0]), tree.data  # its rows are time steps; `batch_sizes` stays on the CPU
    elif isinstance(tree, Mapping):
        for name, part in tree.items():
            if not str(name).startswith("edge"):
                yield from _lengths(part, axis)
    else:
        for part in parts(tree) or ():
            yield from _lengths(part, axis)


def _is_numbers(leaf: Any) -> bool:
    """Whether a leaf is an array of numbers; arrays of strings and objects are not."""
    return isinstance(leaf, np.ndarray) and leaf.dtype.kind in "biufc"


def _is_floating(leaf: torch.Tensor | np.ndarray) -> bool:
    return leaf.dtype.is_floating_point if isinstance(leaf, torch.Tensor) else leaf.dtype.kind == "f"


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
    if isinstance(data, torch.Tensor | Mapping | np.ndarray):
        return batch_size(data)
    if type(data) is DataLoader and data.batch_size is not None and not isinstance(data.dataset, IterableDataset):
        drawn = _length(data.sampler)  # a sampler may draw a part of the data set
        return drawn if drawn is None or not data.drop_last else drawn - drawn % data.batch_size
    of_dataset = None if type(data) is DataLoader and data.batch_size is None else _length(_dataset(data))
    if of_dataset is not None:
        return of_dataset
    if isinstance(data, list | tuple):
        return sum(batch_size(batch) or 0 for batch in data)
    batches = batch_count(data)
    return None if batches is None or first is None else batches * first


def _dataset(data: Any) -> Any:
    return getattr(data, "dataset", None)


def batch_count(data: Any) -> int | None:
    """Number of batches in ``data`` before it is read; None if that is unknown."""
    if isinstance(data, torch.Tensor | Mapping | np.ndarray):
        return 1
    # Its length is only what the data set says; once asked for it, torch warns if there are more samples.
    return None if isinstance(_dataset(data), IterableDataset) else _length(data)


def _length(data: Any) -> int | None:
    try:
        return len(data)
    except Exception:  # a generator, or a class that has no length yet and raises an error of its own choice
        return None


def attention_mask(batch: Any, key: str = "attention_mask") -> torch.Tensor | None:
    """Mask (n, t) with this key of a batch of keyword arguments; None if it has none."""
    inputs = passed_part(batch)
    mask = inputs.get(key) if isinstance(inputs, Mapping) else None
    return mask if isinstance(mask, torch.Tensor) and mask.ndim == 2 else None


def as_tensors(batch: Any, dtype: torch.dtype | None = None) -> Any:
    """The batch with tensors in place of its numpy arrays; arrays of strings and objects stay.

    Parameters
    ----------
    batch : any
        A batch; it is not changed.
    dtype : torch.dtype, optional
        Arrays of floating numbers become tensors of this dtype.

    Raises
    ------
    TypeError
        If an array has masked entries, which a tensor cannot have.
    """
    if _is_numbers(batch):
        if np.ma.is_masked(batch):
            raise TypeError("An array of the batch has masked entries. Fill them first: array.filled(0).")
        native = np.array(batch, dtype=batch.dtype.newbyteorder("="), order="C")
        tensor = torch.from_numpy(native)
        return tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor
    inside = None if isinstance(batch, PackedSequence) else parts(batch)
    if inside is None or not any(_is_numbers(leaf) for leaf in leaves(batch)):
        return batch
    return alike(batch, [as_tensors(part, dtype) for part in inside])


def passed_part(batch: Any) -> Any:
    """The part of a batch that ``call_model`` passes: the first of a tuple or list, else the batch itself."""
    is_pair = isinstance(batch, tuple | list) and not isinstance(batch, PackedSequence)
    return batch[0] if is_pair and batch else batch


def call_model(model: nn.Module, batch: Any) -> Any:
    """Output of ``model`` on a batch of a data loader.

    A tensor is passed as it is, and so is a PackedSequence. A mapping (dict, BatchEncoding) is passed as keyword
    arguments; keys that the forward does not take, and labels, are left out. A tuple or list is taken as (input,
    target): its first part is passed, which may be a tensor, a mapping, or a tuple of several inputs.

    Raises
    ------
    TypeError
        If the batch is none of these or the forward does not take it. The remedy is ``forward=``.
    """
    inputs = passed_part(batch)
    if isinstance(inputs, torch.Tensor | PackedSequence):
        return _call(model, batch, (inputs,), {})
    if isinstance(inputs, Mapping):
        keywords = accepted(model, inputs)
        if not keywords:
            raise TypeError(
                f"The forward of {type(model).__name__} takes none of the keys {', '.join(map(repr, inputs))} of the "
                f"batch{_names_of(model)}. {_OWN_FORWARD}"
            )
        lists = [key for key, value in keywords.items() if _are_numbers(value)]
        if lists and next(tensors(keywords), None) is None:
            raise TypeError(
                f"The batch holds lists of Python numbers: {', '.join(map(repr, lists))}. Make tensors of them: "
                'torch.tensor(...), or tokenizer(..., return_tensors="pt").'
            )
        return _call(model, batch, (), keywords)
    if isinstance(inputs, tuple | list) and next(tensors(inputs), None) is not None:
        try:
            inspect.signature(model.forward).bind(*inputs)
        except TypeError as error:
            whole = " If it takes the list itself: forward=lambda model, batch: model(batch[0])."
            raise TypeError(
                f"The forward of {type(model).__name__} does not take the {len(inputs)} inputs of the batch ({error}). "
                f"{_OWN_FORWARD}{whole if isinstance(inputs, list) else ''}"
            ) from None
        return model(*inputs)
    raise TypeError(
        f"A batch of type {type(batch).__name__} cannot be passed to {type(model).__name__}. {_remedy(batch)}"
    )


_OWN_FORWARD = "Pass forward=lambda model, batch: model(...)."


def _call(model: nn.Module, batch: Any, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    """Call the model. If its forward needs more than it is given, raise a TypeError that says what and how."""
    try:
        return model(*inputs, **keywords)
    except TypeError:
        missing = _missing(model, inputs, keywords)
        if not missing:
            raise
    listed = ", ".join(missing)
    if keywords:
        raise TypeError(
            f"The forward of {type(model).__name__} also needs {listed}, which the batch, a dict with the keys "
            f"{', '.join(map(repr, passed_part(batch)))}, does not hold under this name. {_OWN_FORWARD}"
        ) from None
    why = ""
    if passed_part(batch) is not batch:
        why = f", because of the {len(batch)} parts of a batch only the first is the input and the others are targets"
    everything = ", ".join([*list(inspect.signature(model.forward).parameters)[: len(inputs)], *missing])
    raise TypeError(
        f"The forward of {type(model).__name__} needs {everything}, but is given only one input{why}. Let each batch "
        f"be (({everything}), target), or a dict with these names, or pass forward=lambda model, batch: model(...)."
    ) from None


def _missing(model: nn.Module, inputs: tuple[Any, ...], keywords: Mapping[str, Any]) -> list[str]:
    """Names of the arguments without default that the forward is not given."""
    try:
        parameters = inspect.signature(model.forward).parameters
    except (TypeError, ValueError):  # not written in Python
        return []
    needed = [p for p in parameters.values() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)][len(inputs) :]
    return [p.name for p in needed if p.default is p.empty and p.name not in keywords]


def _names_of(model: nn.Module) -> str:
    names = list(inspect.signature(model.forward).parameters)
    return f"; its arguments are {', '.join(map(repr, names))}" if names else ""


def _remedy(batch: Any) -> str:
    """What to do about a batch that no model takes."""
    if hasattr(batch, "edge_index") and hasattr(batch, "x"):
        return "A graph needs forward=lambda model, batch: model(batch.x, batch.edge_index)."
    if isinstance(batch, int | float) or _are_numbers(batch):
        return "It holds Python numbers. Make it a tensor: torch.tensor(batch)."
    first = passed_part(batch)
    if type(first).__module__.startswith("PIL."):
        return "It holds a picture. Make tensors of pictures, and batches of those: ToTensor() and a DataLoader."
    if first is not batch and next(tensors(batch), None) is not None:
        return f"Its first part, which is the input, is of type {type(first).__name__}. {_OWN_FORWARD}"
    return _OWN_FORWARD


def _are_numbers(tree: Any) -> bool:
    """Whether a part of a batch is a list, or lists in a list, of Python numbers."""
    found = list(leaves(tree)) if isinstance(tree, list | tuple) else []
    return bool(found) and all(isinstance(leaf, int | float) for leaf in found)


def accepted(model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Any]:
    """Entries of ``batch`` that the forward of ``model`` takes as keyword arguments, without labels."""
    parameters = inspect.signature(model.forward).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return {key: value for key, value in batch.items() if key not in ("labels", "label")}
    return {key: value for key, value in batch.items() if key in parameters and key not in ("labels", "label")}
