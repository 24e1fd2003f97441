"""Take a collated batch apart: inputs, targets, number of samples, some of the samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...capture.trees import tensors

__all__ = ["part_of", "samples_in", "split_batch"]


def split_batch(batch: Any, labelled: bool = True) -> tuple[Any, Any]:
    """Model inputs and targets of a collated batch.

    Parameters
    ----------
    batch : tensor, mapping or sequence
        A pair (input, target), a triple (input, target, index of the sample), or a mapping with "labels". Without
        targets also the input alone.
    labelled : bool
        Whether there must be targets.

    Returns
    -------
    inputs : any
        What the networks are called with.
    target : Tensor or None
        None for an input alone.

    Raises
    ------
    TypeError
        If the batch has none of these forms. The message shows the remedy.
    """
    if isinstance(batch, Mapping):
        names = [name for name in ("labels", "label") if isinstance(batch.get(name), Tensor)]
        if names:
            return {key: value for key, value in batch.items() if key != names[0]}, batch[names[0]]
        if not labelled:
            return dict(batch), None
    elif isinstance(batch, Sequence) and not isinstance(batch, str):
        if len(batch) == 2 and isinstance(batch[1], Tensor):
            return batch[0], batch[1]
        if len(batch) == 3 and isinstance(batch[1], Tensor) and _are_indices(batch[2], batch[1]):
            return batch[0], batch[1]
        if len(batch) == 1 and not labelled:
            return batch[0], None
    elif isinstance(batch, Tensor) and not labelled:
        return batch, None
    shown = f"a {type(batch).__name__}{f' of {len(batch)}' if isinstance(batch, Sequence | Mapping) else ''}"
    if isinstance(batch, Mapping):
        shown += f" with the keys {', '.join(map(repr, batch))}"
    without = "" if not labelled else " Data without targets need supervision=None."
    raise TypeError(
        f'Batches must be (input, target) pairs or dicts with "labels", got {shown}. Several inputs belong into the '
        f"first part: ((a, b), target).{without}"
    )


def samples_in(inputs: Any, target: Any = None) -> int:
    """Number of samples of a batch: of its targets, or of the first tensor of its inputs."""
    if isinstance(target, Tensor):
        return len(target)
    first = next(tensors(inputs), None)
    if first is None or not first.ndim:
        raise TypeError(f"The inputs of a batch hold no tensor of samples: {type(inputs).__name__}.")
    return len(first)


def _are_indices(part: Any, target: Tensor) -> bool:
    """Whether the third part of a batch numbers its samples: whole numbers (B,), beside labels (B,) or all different.

    Beside other second parts, a mask (B, T) for example, it may be the label itself, and labels are repeated.
    """
    if not isinstance(part, Tensor) or part.ndim != 1 or part.is_floating_point() or part.dtype is torch.bool:
        return False
    return target.ndim == 1 or len(part.unique()) == len(part)


def part_of(inputs: Any, start: int, stop: int) -> Any:
    """The samples from ``start`` to ``stop`` of nested tensors."""
    if isinstance(inputs, Mapping):
        return {key: part_of(value, start, stop) for key, value in inputs.items()}
    if isinstance(inputs, (tuple, list)):
        return [part_of(value, start, stop) for value in inputs]
    return inputs[start:stop] if isinstance(inputs, Tensor) else inputs
