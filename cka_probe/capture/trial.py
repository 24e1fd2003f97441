"""Run a model on a part of a batch, with fewer samples or tokens, to see which axes of its layers follow them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .hooks import CaptureError
from .state import buffers_restored, random_states_restored
from .trees import alike, parts

__all__ = [
    "FEW",
    "ChanceLengths",
    "Shape",
    "ShapesOf",
    "Trial",
    "copies_of_one",
    "loose_lengths",
    "refill",
    "try_fewer_tokens",
    "without_trace",
]

FEW = 2
"""Number of samples of a trial."""

Shape = tuple[int, ...]

ShapesOf = Callable[[Any, int], Mapping[str, Shape]]
"""Runs the model on a batch of that many samples and returns the shape of each call's output."""


@dataclass(frozen=True)
class Trial:
    """The shapes of all layers on a smaller batch.

    Attributes
    ----------
    samples, of : int
        Number of samples of the smaller batch, and of the whole one.
    tokens : int
        Number of its tokens; 0 if it has no mask.
    shapes : dict of str to tuple of int
        Shape of the output of each call.
    """

    samples: int
    of: int
    tokens: int
    shapes: Mapping[str, Shape]

    def keeps_length(self, name: str, shape: Shape) -> bool:
        """Whether axis 0 of a layer has as many entries as the batch has samples, but not with fewer samples."""
        fewer = self.shapes.get(name, ())
        if len(fewer) != len(shape) or not self.samples < self.of == shape[0] or fewer[0] == self.samples:
            return False
        # The smaller batch may hold parts that could not be cut. So this layer or another one must have followed it.
        own = any(a == self.of and b == self.samples for a, b in zip(shape[1:], fewer[1:], strict=True))
        return own or any(one[:1] == (self.samples,) for one in self.shapes.values())


class ChanceLengths:
    """Find layers whose axis 0 has the length of the batch by chance, by a run on a few samples.

    Parameters
    ----------
    sample_axis : int
        Axis of the batch that holds the samples.
    """

    def __init__(self, sample_axis: int = 0) -> None:
        self.sample_axis = sample_axis
        self._ran = False
        self._trial: Trial | None = None
        self._doubtful: dict[str, Shape] = {}

    def run(self, batch: Any, samples: int | None, shapes_of: ShapesOf) -> None:
        """Run the model on a few samples of a batch, if it holds more."""
        self._ran = True
        if samples is not None and samples > FEW:
            smaller = _fewer_samples(batch, samples, FEW, self.sample_axis)
            shapes = _shapes(smaller, FEW, shapes_of)
            self._trial = None if shapes is None else Trial(FEW, samples, 0, shapes)

    def is_chance(self, name: str, shape: Shape) -> bool:
        """Whether axis 0 is known not to follow the samples."""
        return self._trial is not None and self._trial.keeps_length(name, shape)

    def see(self, name: str, shape: Shape) -> None:
        """Take the shape of a layer. It is doubtful if it may be (time, samples, width) with two equal lengths."""
        if len(shape) == 3 and shape[0] == shape[1]:
            self._doubtful[name] = shape

    def found_later(self, batch: Any, samples: int | None, shapes_of: ShapesOf) -> list[tuple[str, int]]:
        """Names and lengths of the doubtful layers that hold no samples. Runs the model if there are doubtful ones."""
        if self._ran or not self._doubtful:
            return []
        self.run(batch, samples, shapes_of)
        return [(name, shape[0]) for name, shape in self._doubtful.items() if self.is_chance(name, shape)]


def loose_lengths(model: nn.Module) -> set[int]:
    """Lengths of the axes of weights and buffers that a network holds itself, outside of layers of ``torch.nn``.

    A layer may run on these weights instead of samples (a hypernetwork on its codes, a graph's learnt nodes).
    """
    found: set[int] = set()
    for module in model.modules():
        base = next(kind for kind in type(module).__mro__ if kind.__module__.startswith("torch.nn"))
        if base is nn.Module:
            for tensor in (*module._parameters.values(), *module._buffers.values()):
                found.update(() if tensor is None else tensor.shape)
    return found


def try_fewer_tokens(
    batch: Any, mask: torch.Tensor, key_sets: Collection[set[str]], shapes_of: ShapesOf
) -> Trial | None:
    """The trial of a batch with a mask; None if the model does not run on fewer tokens.

    Parameters
    ----------
    batch : any
        A mapping, or a tuple that begins with one.
    mask : tensor (n, t)
        The mask.
    key_sets : collection of sets of str
        Keys of the tensors that have one entry for each token, as far as one can tell: the surest set first.
    shapes_of : callable
        Runs the model.
    """
    n, t = mask.shape
    for keys in key_sets:
        for few, tokens in ((FEW, t // 2), (FEW, t - 1), (n, t // 2), (n, t - 1)):
            few = min(few + (few == tokens), n)
            if 0 < tokens < t:
                shapes = _shapes(_shorter(_fewer_samples(batch, n, few), keys, t, tokens), few, shapes_of)
                if shapes is not None:
                    return Trial(few, n, tokens, shapes)
    return None


@contextmanager
def without_trace(model: nn.Module) -> Iterator[None]:
    """Give every module back what it had before: attributes, buffers, hooks, the contents of its lists and dicts.

    Hooks and the attribute that says that they are installed go together: transformers installs its hooks in the first
    forward. The random generators are restored too. What a forward changes in place inside a tensor or array of an
    attribute is not restored. If it changed weights, nothing is put back: the attribute that says so must stay with
    them, or the next forward would change them again (RWKV divides weights in its first forward in eval mode).
    """
    versions = [(weight, _version(weight)) for weight in model.parameters()]
    before = [(module.__dict__, dict(module.__dict__), _contents(module)) for module in model.modules()]
    try:
        with buffers_restored(model), random_states_restored():
            yield
    finally:
        if all(_version(weight) == version for weight, version in versions):
            for attributes, old, contents in before:
                refill(attributes, old)
                for container, held in contents:
                    refill(container, held)


def _version(tensor: torch.Tensor) -> int | None:
    """Number of changes in place; None in inference mode, where torch does not count them."""
    return None if tensor.is_inference() else tensor._version


def _contents(module: nn.Module) -> list[tuple[Any, Any]]:
    """The containers among the attributes of a module, its buffers and hooks too, each with a copy of its contents."""
    return [(one, one.copy()) for one in module.__dict__.values() if isinstance(one, dict | list | set | deque)]


def refill(container: Any, held: Any) -> None:
    """Give a container the contents ``held`` if it has others."""
    now = list(container.items() if isinstance(container, dict) else container)
    then = list(held.items() if isinstance(held, dict) else held)
    if isinstance(container, dict):
        same = len(now) == len(then) and all(a[0] is b[0] and a[1] is b[1] for a, b in zip(now, then, strict=True))
    else:
        same = len(now) == len(then) and all(a is b for a, b in zip(now, then, strict=True))
    if same:
        return
    container.clear()
    container.update(held) if isinstance(container, dict | set) else container.extend(held)


def copies_of_one(tree: Any, samples: int, axis: int = 0) -> Any:
    """Batch of as many samples that are all the first one of ``tree``; what has no axis of that length is copied."""
    if isinstance(tree, torch.Tensor):
        fits = tree.ndim > axis and tree.shape[axis] == samples
        return tree.narrow(axis, 0, 1).expand_as(tree).clone() if fits else tree.clone()
    inside = parts(tree)
    return tree if inside is None else alike(tree, [copies_of_one(part, samples, axis) for part in inside])


def _fewer_samples(tree: Any, samples: int, few: int, axis: int = 0) -> Any:
    """Copy of a batch with the first ``few`` of its samples; what has no axis of that length is kept."""
    if isinstance(tree, torch.Tensor):
        fits = tree.ndim > axis and tree.shape[axis] == samples
        return (tree.narrow(axis, 0, few) if fits else tree).clone()
    inside = parts(tree)
    if inside is None:
        return tree
    if isinstance(tree, list) and len(tree) == samples and not isinstance(tree[0], torch.Tensor):
        return tree[:few]
    return alike(tree, [_fewer_samples(part, samples, few, axis) for part in inside])


def _shapes(batch: Any, few: int, shapes_of: ShapesOf) -> Mapping[str, tuple[int, ...]] | None:
    """Shapes of the layers on a batch of a trial; None if the model does not run on it."""
    try:
        return shapes_of(batch, few) or None
    except CaptureError:
        raise
    except Exception:  # the model has its own demands on a batch, and may raise whatever it likes
        return None


def _shorter(batch: Any, keys: set[str], t: int, tokens: int) -> Any:
    if isinstance(batch, tuple | list):
        return alike(batch, [_shorter(batch[0], keys, t, tokens), *batch[1:]])
    return alike(batch, [_cut(value, name in keys, t, tokens) for name, value in batch.items()])


def _cut(value: Any, has_tokens: bool, t: int, tokens: int) -> Any:
    if has_tokens:
        return value[:, :tokens]
    # A mask of tokens for each token, such as a causal one.
    is_pairs = isinstance(value, torch.Tensor) and value.shape == (t, t)
    return value[:tokens, :tokens] if is_pairs else value
