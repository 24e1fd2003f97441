"""What an attribute of a module holds: a number, a tensor or a container, compared before and after a forward."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .trees import tensors

__all__ = [
    "CONTAINERS",
    "MISSING",
    "PLAIN",
    "Container",
    "Copied",
    "HeldBuffer",
    "HeldTensor",
    "Number",
    "equal_results",
    "holds_tensors",
    "inside_of",
    "put_back",
    "same_numbers",
    "same_value",
    "saved_copy",
    "version_of",
]

PLAIN = (bool, int, float, str, type(None))
CONTAINERS = (list, dict, set, deque, tuple)


@dataclass
class Number:
    """A number, a text or None."""

    value: Any


@dataclass
class HeldTensor:
    """A tensor, and how often it was changed in place."""

    tensor: Tensor | None
    version: int | None


class HeldBuffer(HeldTensor):
    """A buffer. Changes in place are seen by its version and values; a scan looks whether it was replaced."""


@dataclass
class Container:
    """A container, its length and, of a small one, what it holds."""

    value: Any
    length: int
    inside: list[Any] = field(default_factory=list)


MISSING = object()


def holds_tensors(value: Any) -> bool:
    """Whether a seen value is a tensor or a container with one."""
    inside = value.inside if isinstance(value, Container) else [value]
    return any(isinstance(part, HeldTensor) for part in inside)


def inside_of(container: Any) -> list[Any]:
    """Values of a small container: tensors with their versions, numbers; others as they are."""
    if len(container) > 64:
        return []
    values = container.values() if isinstance(container, dict) else container
    return [
        HeldTensor(v, version_of(v)) if isinstance(v, Tensor) else Number(v)
        for v in values
        if isinstance(v, (Tensor, *PLAIN))
    ]


def same_value(a: Any, b: Any) -> bool:
    """Whether two seen values are equal, as far as versions and objects tell."""
    if type(a) is not type(b):
        return False
    if isinstance(a, Number):
        return a.value is b.value or (type(a.value) is type(b.value) and a.value == b.value)
    if isinstance(a, Container):
        return a.length == b.length and len(a.inside) == len(b.inside) and all(map(same_value, a.inside, b.inside))
    if a.tensor is b.tensor:
        return a.version == b.version
    if a.tensor is None or b.tensor is None:
        return False
    return same_numbers(a.tensor, b.tensor)


class Copied:
    """A value that changed in the first run, with the numbers that it had before the second."""

    def __init__(self, value: Any) -> None:
        self.value = value
        self.numbers: list[tuple[Tensor, Tensor]] = []
        self.items: Any = None
        parts = value.inside if isinstance(value, Container) else [value]
        for part in parts:
            if isinstance(part, HeldTensor) and part.tensor is not None:
                self.numbers.append((part.tensor, part.tensor.detach().clone()))
        if isinstance(value, Container) and not isinstance(value.value, tuple):  # a tuple itself cannot change
            self.items = value.value.copy()

    def same(self, now: Any) -> bool:
        """Whether the value after the second run has the same numbers."""
        if type(now) is not type(self.value):
            return False
        if isinstance(now, Number):
            return same_value(now, self.value)
        if isinstance(now, Container) and now.length != self.value.length:
            return False
        found = now.inside if isinstance(now, Container) else [now]
        held = [part.tensor for part in found if isinstance(part, HeldTensor) and part.tensor is not None]
        if len(held) != len(self.numbers) or not all(
            same_numbers(tensor, copy) for tensor, (_, copy) in zip(held, self.numbers, strict=True)
        ):
            return False
        if isinstance(now, Container):
            plain = [[p for p in c.inside if isinstance(p, Number)] for c in (now, self.value)]
            return len(plain[0]) == len(plain[1]) and all(map(same_value, *plain))
        return True

    def attribute(self) -> Any:
        """What the attribute held."""
        return self.value.tensor if isinstance(self.value, HeldTensor) else self.value.value

    def put_back(self) -> None:
        """Undo what the second run did inside tensors and containers."""
        put_back(self.numbers)
        if self.items is not None:
            container = self.value.value
            container.clear()
            container.extend(self.items) if isinstance(container, list | deque) else container.update(self.items)


def saved_copy(value: Any) -> Any:
    """Copy of a number, a text, a tensor, or a container of these. Raise TypeError if it holds anything else."""
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, Tensor):
        return value.detach().clone()
    if type(value) is dict:
        return {key: saved_copy(part) for key, part in value.items()}
    if type(value) in (list, tuple, set, deque):
        return type(value)(saved_copy(part) for part in value)
    raise TypeError(f"an object of the class {type(value).__name__}")


def put_back(numbers: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Copy into each tensor the numbers beside it, where they differ."""
    with torch.no_grad():
        for tensor, copy in numbers:
            if not same_numbers(tensor, copy):
                tensor.data.copy_(copy)


def equal_results(first: Any, second: Any) -> bool:
    """Whether two outputs hold the same numbers."""
    a, b = list(tensors(first)), list(tensors(second))
    return len(a) == len(b) and all(map(same_numbers, a, b))


def same_numbers(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors have one shape, dtype and device, and the same numbers; NaN equals itself."""
    if a is b:
        return True
    if a.shape != b.shape or a.dtype != b.dtype or a.device != b.device or a.layout != b.layout:
        return False
    if a.is_meta or a.is_quantized or a.layout is not torch.strided or a.is_nested:
        return a is b
    return torch.equal(a, b) or bool(((a == b) | ((a != a) & (b != b))).all())  # NaN equals itself here


def version_of(tensor: Tensor) -> int | None:
    """Number of changes in place; None in inference mode, where torch does not count them."""
    return None if tensor.is_inference() else tensor._version
