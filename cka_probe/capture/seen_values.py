"""What an attribute of a module holds: a number, a tensor or a container, compared before and after a forward."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .trees import tensors
from .trial import refill

__all__ = [
    "MISSING",
    "Container",
    "Copied",
    "HeldBuffer",
    "HeldTensor",
    "Number",
    "Seen",
    "equal_results",
    "put_back",
    "same_numbers",
    "same_value",
    "saved_copy",
    "seen",
    "version_of",
]

PLAIN = (bool, int, float, str, type(None))

DEPTH, MOST = 4, 64
"""How deep containers and objects are looked into, and the largest of them."""

MOST_NUMBERS, MOST_PARTS = 10**6, 1000
"""The largest array of numpy that is compared, and the number of values in one attribute that are compared."""


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
    """A container, an array or an object with attributes.

    Attributes
    ----------
    value : any
        The container itself.
    length : int
        Its length.
    inside : list of Number and HeldTensor
        What it holds, nested containers and objects too; of an array a copy.
    contents : list of (any, any)
        Each container, array and dict of attributes in it, with a copy of its contents.
    """

    value: Any
    length: int = 0
    inside: list[Any] = field(default_factory=list)
    contents: list[tuple[Any, Any]] = field(default_factory=list)


MISSING = object()

LIBRARIES = ("torch", "accelerate", "deepspeed")
"""Their objects in attributes (of FSDP, of offloading) move weights; they are not the network's own state."""

Seen = Number | HeldTensor | Container


def seen(value: Any) -> Seen | None:
    """What an attribute holds; None if it is of a kind that is not looked at."""
    if isinstance(value, PLAIN):
        return Number(value)
    if isinstance(value, Tensor):
        return HeldTensor(value, version_of(value))
    parts = _parts(value)
    if parts is None:
        return None
    found = Container(value, len(parts))
    _look_inside(found, value, DEPTH, set())
    return found


def _parts(value: Any) -> list[Any] | None:
    """The values in a container or in the attributes of an object; None for what is not looked into."""
    if isinstance(value, dict):
        return list(value.values())
    if isinstance(value, list | tuple | set | deque):
        return list(value)
    if isinstance(value, np.ndarray):
        fits = value.dtype.kind in "fiub" and value.size <= MOST_NUMBERS and value.flags.writeable
        return [value] if fits else None
    if isinstance(value, nn.Module | type | ModuleType | torch.Generator) or callable(value):
        return None
    if type(value).__module__.partition(".")[0] in LIBRARIES or not hasattr(value, "__dict__"):
        return None
    return list(vars(value).values())


def _look_inside(found: Container, value: Any, depth: int, ancestors: set[int]) -> None:
    if isinstance(value, PLAIN):
        found.inside.append(Number(value))
        return
    if isinstance(value, Tensor):
        found.inside.append(HeldTensor(value, version_of(value)))
        return
    parts = _parts(value)
    if parts is None or id(value) in ancestors or len(found.inside) + len(found.contents) > MOST_PARTS:
        return
    if isinstance(value, np.ndarray):
        found.inside.append(HeldTensor(torch.from_numpy(value.copy()), None))
        found.contents.append((value, value.copy()))
    elif len(parts) <= MOST and depth:
        for part in parts:
            _look_inside(found, part, depth - 1, ancestors | {id(value)})
    holder = value if isinstance(value, list | dict | set | deque) else getattr(value, "__dict__", None)
    if holder is not None:
        found.contents.append((holder, dict(holder) if isinstance(holder, dict) else list(holder)))


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

    def __init__(self, value: Seen) -> None:
        self.value = value
        parts = value.inside if isinstance(value, Container) else [value]
        self.numbers = [
            (part.tensor, part.tensor.detach().clone())
            for part in parts
            if isinstance(part, HeldTensor) and part.tensor is not None
        ]

    def same(self, now: Any) -> bool:
        """Whether the value after the second run has the same numbers."""
        before = self.value
        if type(now) is not type(before):
            return False
        if isinstance(now, Number):
            return same_value(now, before)
        if isinstance(now, Container) and isinstance(before, Container) and now.length != before.length:
            return False
        found = now.inside if isinstance(now, Container) else [now]
        held = [part.tensor for part in found if isinstance(part, HeldTensor) and part.tensor is not None]
        if len(held) != len(self.numbers) or not all(
            same_numbers(tensor, copy) for tensor, (_, copy) in zip(held, self.numbers, strict=True)
        ):
            return False
        if isinstance(now, Container) and isinstance(before, Container):
            plain = [[p for p in c.inside if isinstance(p, Number)] for c in (now, before)]
            return len(plain[0]) == len(plain[1]) and all(map(same_value, *plain))
        return True

    def attribute(self) -> Any:
        """What the attribute held."""
        return self.value.tensor if isinstance(self.value, HeldTensor) else self.value.value

    def put_back(self) -> None:
        """Undo what the second run did inside tensors, containers and objects."""
        put_back(self.numbers)
        for holder, held in self.value.contents if isinstance(self.value, Container) else ():
            if isinstance(holder, np.ndarray):
                holder[...] = held
            else:
                refill(holder, held)


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
