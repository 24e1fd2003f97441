"""Notice a forward that changes the network itself (a counter, a running estimate, a cache), and set buffers back."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .trees import tensors

__all__ = ["OwnState"]

LISTED = 6
"""Number of parts that a note names."""

PLAIN = (bool, int, float, str, type(None))
CONTAINERS = (list, dict, set, deque, tuple)

# What nn.Module itself keeps in a module: hooks, children, flags.
_INTERNALS = frozenset(vars(nn.Module()))

_Place = tuple[int, str]
"""Number of a module in ``named_modules``, and the name of an attribute or buffer."""


class OwnState:
    """Watch what the forward passes of a network change in it.

    A network whose output depends on the inputs before has no single value to compare: its values depend on the order
    of the batches. Batch norm in eval mode changes nothing. Caches that are filled once, sizes that are remembered and
    outputs that are kept for the user change too, but a second run of the same batch leaves them as they are. So, only
    if the first batch changed anything, it runs a second time: what changes again is state.

    Parameters
    ----------
    model : torch.nn.Module
        The network, in the state before the first batch.
    name : str
        Its name in the note.
    """

    def __init__(self, model: nn.Module, name: str) -> None:
        self.name = name
        self._modules = list(model.named_modules())
        self._values = self._scan()
        self._buffers = {
            (number, key): (buffer, buffer.detach().clone(), _version(buffer))
            for number, (_, module) in enumerate(self._modules)
            for key, buffer in module._buffers.items()
            if buffer is not None and not buffer.is_meta
        }
        self._weights = [(name, weight, _version(weight)) for name, weight in model.named_parameters()]
        self._found: dict[str, None] = {}

    def after_first(self, again: Callable[[], Any]) -> None:
        """Look for state after the first batch.

        Parameters
        ----------
        again : callable
            Runs the same batch once more and returns the output. Called only if the first run changed anything. What it
            changes is undone.
        """
        in_place: list[tuple[Tensor, Tensor]] = []
        for place, (buffer, _, version) in self._buffers.items():
            if self._buffer(place) is buffer and _version(buffer) != version:
                self._note(place, "buffer")
                in_place.append((buffer, buffer.detach().clone()))
        now = self._scan()
        changed = [place for place, value in now.items() if not _same(value, self._values.get(place, _MISSING))]
        if not changed:
            return
        before = {place: _Copied(now[place]) for place in changed}
        try:
            output = again()
            after = self._scan()
            moved = [place for place, copied in before.items() if not copied.same(after.get(place, _MISSING))]
            logs = [place for place in moved if isinstance(after.get(place), _Container)]
            # A list that grows may be a log that nothing reads: then the output stays the same.
            if logs and _equal_results(output, again()):
                moved = [place for place in moved if place not in logs]
            if not moved and all(_holds_tensors(now[place]) for place in changed) and self._matters(changed, again):
                moved = changed
        except Exception:  # the run was not asked for: a cache that is full after the first batch shows itself so
            moved = list(before)
        for place in moved:
            self._note(place, "buffer" if isinstance(now[place], _Buffer) else "attribute")
        for place, copied in before.items():
            self._set(place, copied)
        _put_back(in_place)

    def _matters(self, changed: Iterable[_Place], again: Callable[[], Any]) -> bool:
        """Whether the output depends on what the first batch changed: a tensor that the batch before has left.

        A repeated batch leaves the same tensor again, so the tensor alone does not tell. Not called if a flag has
        changed too: it may say that a cache is filled, hooks are installed, or weights have been divided.
        """
        from .state import random_states_restored

        with random_states_restored():
            after = again()
        for number, key in changed:
            module, value = self._modules[number][1], self._values.get((number, key))
            held = module._buffers if key in module._buffers else vars(module)
            if value is None:
                held.pop(key, None)
            else:
                held[key] = value.tensor if isinstance(value, _Tensor) else value.value
        with random_states_restored():
            before = again()
        return not _equal_results(before, after)

    def finish(self) -> list[str]:
        """Set the changed buffers to what they were, and return a note if the forward has state."""
        touched: set[int] = set()
        with torch.no_grad():
            for place, (buffer, bits, _) in self._buffers.items():
                now = self._buffer(place)
                if not isinstance(now, Tensor) or now.shape != bits.shape or now.dtype != bits.dtype:
                    continue  # a cache that has grown
                if now is buffer and _same_numbers(now, bits):
                    continue
                if not _same_numbers(now, bits):
                    self._note(place, "buffer")
                if not _same_numbers(buffer, bits):
                    buffer.data.copy_(bits)
                self._modules[place[0]][1]._buffers[place[1]] = buffer
                touched.add(place[0])
        # A count beside a running mean belongs to it.
        for (number, key), value in self._values.items():
            if number in touched and isinstance(value, _Number):
                vars(self._modules[number][1])[key] = value.value
        for name, weight, version in self._weights:
            if not weight.is_meta and _version(weight) != version:
                self._found.setdefault(f"the weight {name!r}")
        if not self._found:
            return []
        found = list(self._found)
        listed = ", ".join(found[:LISTED]) + (f" and {len(found) - LISTED} more" if len(found) > LISTED else "")
        back = (
            " Buffers have their values of before again." if any(one.startswith("the buffer") for one in found) else ""
        )
        return [
            f"{self.name}: its forward changes {listed}. So the values depend on the order of the batches, and on what "
            f"the network ran before.{back} To compare the network in one state, stop this change in eval mode"
        ]

    def _note(self, place: _Place, kind: str) -> None:
        path = self._modules[place[0]][0]
        self._found.setdefault(f"the {kind} {f'{path}.{place[1]}' if path else place[1]!r}")

    def _buffer(self, place: _Place) -> Any:
        return self._modules[place[0]][1]._buffers.get(place[1])

    def _set(self, place: _Place, copied: _Copied) -> None:
        module = self._modules[place[0]][1]
        if isinstance(copied.value, _Buffer):
            module._buffers[place[1]] = copied.value.tensor
        else:
            vars(module)[place[1]] = copied.attribute()
        copied.put_back()

    def _scan(self) -> dict[_Place, Any]:
        """Plain attributes, tensors, containers and buffers of all modules."""
        found: dict[_Place, Any] = {}
        for number, (_, module) in enumerate(self._modules):
            for key, value in vars(module).items():
                if key in _INTERNALS:
                    continue
                if isinstance(value, PLAIN):
                    found[number, key] = _Number(value)
                elif isinstance(value, Tensor):
                    found[number, key] = _Tensor(value, _version(value))
                elif isinstance(value, CONTAINERS):
                    found[number, key] = _Container(value, len(value), _inside(value))
            for key, buffer in module._buffers.items():
                if buffer is None or not buffer.is_meta:
                    found[number, key] = _Buffer(buffer, None)
        return found


@dataclass
class _Number:
    value: Any


@dataclass
class _Tensor:
    tensor: Tensor | None
    version: int | None


class _Buffer(_Tensor):
    """A buffer. Changes in place are seen by its version and values; a scan looks whether it was replaced."""


@dataclass
class _Container:
    value: Any
    length: int
    inside: list[Any] = field(default_factory=list)


_MISSING = object()


def _holds_tensors(value: Any) -> bool:
    inside = value.inside if isinstance(value, _Container) else [value]
    return any(isinstance(part, _Tensor) for part in inside)


def _inside(container: Any) -> list[Any]:
    """Values of a small container: tensors with their versions, numbers; others as they are."""
    if len(container) > 64:
        return []
    values = container.values() if isinstance(container, dict) else container
    return [
        _Tensor(v, _version(v)) if isinstance(v, Tensor) else _Number(v)
        for v in values
        if isinstance(v, (Tensor, *PLAIN))
    ]


def _same(a: Any, b: Any) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, _Number):
        return a.value is b.value or (type(a.value) is type(b.value) and a.value == b.value)
    if isinstance(a, _Container):
        return a.length == b.length and len(a.inside) == len(b.inside) and all(map(_same, a.inside, b.inside))
    if a.tensor is b.tensor:
        return a.version == b.version
    if a.tensor is None or b.tensor is None:
        return False
    return _same_numbers(a.tensor, b.tensor)


class _Copied:
    """A value that changed in the first run, with the numbers that it had before the second."""

    def __init__(self, value: Any) -> None:
        self.value = value
        self.numbers: list[tuple[Tensor, Tensor]] = []
        self.items: Any = None
        parts = value.inside if isinstance(value, _Container) else [value]
        for part in parts:
            if isinstance(part, _Tensor) and part.tensor is not None:
                self.numbers.append((part.tensor, part.tensor.detach().clone()))
        if isinstance(value, _Container) and not isinstance(value.value, tuple):  # a tuple itself cannot change
            self.items = value.value.copy()

    def same(self, now: Any) -> bool:
        """Whether the value after the second run has the same numbers."""
        if type(now) is not type(self.value):
            return False
        if isinstance(now, _Number):
            return _same(now, self.value)
        if isinstance(now, _Container) and now.length != self.value.length:
            return False
        found = now.inside if isinstance(now, _Container) else [now]
        held = [part.tensor for part in found if isinstance(part, _Tensor) and part.tensor is not None]
        if len(held) != len(self.numbers) or not all(
            _same_numbers(tensor, copy) for tensor, (_, copy) in zip(held, self.numbers, strict=True)
        ):
            return False
        if isinstance(now, _Container):
            plain = [[p for p in c.inside if isinstance(p, _Number)] for c in (now, self.value)]
            return len(plain[0]) == len(plain[1]) and all(map(_same, *plain))
        return True

    def attribute(self) -> Any:
        """What the attribute held."""
        return self.value.tensor if isinstance(self.value, _Tensor) else self.value.value

    def put_back(self) -> None:
        """Undo what the second run did inside tensors and containers."""
        _put_back(self.numbers)
        if self.items is not None:
            container = self.value.value
            container.clear()
            container.extend(self.items) if isinstance(container, list | deque) else container.update(self.items)


def _put_back(numbers: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Copy into each tensor the numbers beside it, where they differ."""
    with torch.no_grad():
        for tensor, copy in numbers:
            if not _same_numbers(tensor, copy):
                tensor.data.copy_(copy)


def _equal_results(first: Any, second: Any) -> bool:
    a, b = list(tensors(first)), list(tensors(second))
    return len(a) == len(b) and all(map(_same_numbers, a, b))


def _same_numbers(a: Tensor, b: Tensor) -> bool:
    if a is b:
        return True
    if a.shape != b.shape or a.dtype != b.dtype or a.device != b.device or a.layout != b.layout:
        return False
    if a.is_meta or a.is_quantized or a.layout is not torch.strided or a.is_nested:
        return a is b
    return torch.equal(a, b) or bool(((a == b) | ((a != a) & (b != b))).all())  # NaN equals itself here


def _version(tensor: Tensor) -> int | None:
    """Number of changes in place; None in inference mode, where torch does not count them."""
    return None if tensor.is_inference() else tensor._version
