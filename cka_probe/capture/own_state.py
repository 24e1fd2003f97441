"""Notice a forward that changes the network itself (a counter, a running estimate, a cache), and set buffers back."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from .seen_values import (
    MISSING,
    Container,
    Copied,
    HeldBuffer,
    Number,
    Seen,
    equal_results,
    put_back,
    same_numbers,
    same_value,
    saved_copy,
    seen,
    version_of,
)
from .state import random_states_restored
from .trial import without_trace

__all__ = ["OwnState", "Runs"]

LISTED = 6
"""Number of parts that a note names."""

# What nn.Module itself keeps in a module: hooks, children, flags.
_INTERNALS = frozenset(vars(nn.Module()))

Runs = Callable[[], AbstractContextManager[Callable[..., Any]]]

_Place = tuple[int, str]
"""Number of a module in ``named_modules``, and the name of an attribute or buffer."""


class OwnState:
    """Watch what the forward passes of a network change in it.

    A network whose output depends on the inputs before has no single value to compare: its values depend on the order
    of the batches. Batch norm in eval mode changes nothing. Caches that are filled once, sizes that are remembered and
    outputs that are kept for the user change too, but a second run of the same batch leaves them as they are. So, only
    if the first batch changed anything, it runs a second time: what changes again is state. What the batch before has
    left comes back in a repeated batch. So it runs once more after another batch: if its output differs, the network
    remembers that batch.

    Parameters
    ----------
    model : torch.nn.Module
        The network, in the state before the first batch.
    name : str
        Its name in the note.

    Attributes
    ----------
    generators : list of torch.Generator
        The generators in the attributes of its modules.
    changed : set of str
        Attributes, buffers and weights that forwards have set, by their paths.
    """

    def __init__(self, model: nn.Module, name: str) -> None:
        self.name = name
        self._model = model
        self._modules = list(model.named_modules())
        found = (one for _, module in self._modules for one in vars(module).values())
        self.generators = list({id(one): one for one in found if isinstance(one, torch.Generator)}.values())
        self.changed: set[str] = set()
        self._objects = self._identities()
        self._values = self._scan()
        self._buffers = {
            (number, key): (buffer, buffer.detach().clone(), version_of(buffer))
            for number, (_, module) in enumerate(self._modules)
            for key, buffer in module._buffers.items()
            if buffer is not None and not buffer.is_meta
        }
        self._weights = [(name, weight, version_of(weight)) for name, weight in model.named_parameters()]
        self._found: dict[str, None] = {}
        self._moving: dict[_Place, None] = {}
        """Where the forward goes on changing something."""
        self._slots = [((number, key), self._modules[number][1]._buffers, key) for number, key in self._buffers]
        self._settled: tuple[list[Any], list[int | None]] | None = None
        """The buffers after the first batch, with their versions."""
        self._settled_weights: list[int | None] = []

    def after_first(self, runs: Runs, first: Any, other: Any = None) -> None:
        """Look for state after the first batch. If the network has changed, it runs again, which is undone.

        Parameters
        ----------
        runs : callable
            Returns a context in which the network runs unrecorded: its value is called with a batch, or without one for
            the first batch, and returns the output.
        first : any
            Output of the first run.
        other : any
            Another batch that the network understands; None if there is none.
        """
        in_place: list[tuple[Tensor, Tensor]] = []
        for place, (buffer, _, version) in self._buffers.items():
            if self._buffer(place) is buffer and version_of(buffer) != version:
                self._note(place, "buffer")
                in_place.append((buffer, buffer.detach().clone()))
        now = self._scan()
        changed = [place for place, value in now.items() if not same_value(value, self._values.get(place, MISSING))]
        objects = [place for place, one in self._identities().items() if self._objects.get(place) != one]
        self.changed.update(map(self._path, (*changed, *objects)))
        if not changed and not objects:
            return
        before = {place: Copied(now[place]) for place in changed}
        with runs() as run:
            try:
                output = run()
                after = self._scan()
                moved = [place for place, copied in before.items() if not copied.same(after.get(place, MISSING))]
                logs = [place for place in moved if isinstance(after.get(place), Container)]
                # A list that grows may be a log that nothing reads: then the output stays the same.
                if logs and equal_results(output, run()):
                    moved = [place for place in moved if place not in logs]
                if equal_results(first, output):
                    self._settle_weights(run)
            except Exception:  # the run was not asked for: a cache that is full after the first batch shows itself so
                moved = list(before)
            if not moved and other is not None and self._remembers(run, other):
                moved = changed or objects
        for place in moved:
            self._note(place, "buffer" if isinstance(now.get(place), HeldBuffer) else "attribute")
        for place, copied in before.items():
            self._set(place, copied)
        put_back(in_place)

    def _settle_weights(self, run: Callable[..., Any]) -> None:
        """Let the weights count as unchanged if the first batch alone has changed them: RWKV divides its weights once.

        Called if the first batch gave the same output twice.
        """
        versions = [version_of(weight) for _, weight, _ in self._weights]
        if versions == [version for _, _, version in self._weights]:
            return
        run()
        if versions == [version_of(weight) for _, weight, _ in self._weights]:
            self._weights = [(*one[:2], version) for one, version in zip(self._weights, versions, strict=True)]

    def _remembers(self, run: Callable[..., Any], other: Any) -> bool:
        """Whether the output of the first batch is another one after another batch."""

        def output(*batch: Any) -> Any:
            own = [generator.get_state() for generator in self.generators]
            try:
                with random_states_restored():
                    return run(*batch)
            finally:
                for generator, state in zip(self.generators, own, strict=True):
                    generator.set_state(state)

        try:
            with without_trace(self._model):
                before = output(), output()
                output(other)
                after = output()
        except Exception:  # these runs were not asked for
            return False
        # Where the output differs from run to run, nothing can be said.
        return equal_results(*before) and not equal_results(before[1], after)

    def state(self) -> dict[str, Any]:
        """What the forwards have changed in the network so far and go on changing; to be called after each batch.

        Returns
        -------
        dict
            "values": copies by place, for ``restore``. "initial": numbers before the first batch by place, for
            ``begin_again``. "refused": why the changes cannot be saved; empty if they can.
        """
        buffers = [held.get(key) for _, held, key in self._slots]
        versions = [None if one is None or one.is_inference() else one._version for one in buffers]
        if self._settled is None:
            self._settled = buffers, versions
            self._settled_weights = [version_of(weight) for _, weight, _ in self._weights]
            pairs = zip(self._weights, self._settled_weights, strict=True)
            self.changed.update(name for (name, _, before), now in pairs if now != before)
        if versions != self._settled[1] or any(a is not b for a, b in zip(buffers, self._settled[0], strict=True)):
            for (place, _, _), *one in zip(self._slots, buffers, versions, *self._settled, strict=True):
                if one[0] is not one[2] or one[1] != one[3]:
                    self._moving.setdefault(place)
        if not self._moving:
            return {"values": {}, "initial": self._initial(), "refused": self._refused("")}
        self.changed.update(map(self._path, self._moving))
        values, refused = {}, ""
        for number, key in self._moving:
            module = self._modules[number][1]
            try:
                values[f"{number} {key}"] = saved_copy(module._buffers.get(key, vars(module).get(key)))
            except TypeError as error:
                refused = f"its forward changes {self._path((number, key))!r}, which holds {error}"
        return {"values": values, "initial": self._initial(), "refused": self._refused(refused)}

    def _initial(self) -> dict[str, Any]:
        """The numbers and texts of before in the attributes that forwards set."""
        if not self.changed:
            return {}
        return {
            f"{place[0]} {place[1]}": value.value
            for place, value in self._values.items()
            if isinstance(value, Number) and self._path(place) in self.changed
        }

    def _refused(self, reason: str) -> str:
        for (name, weight, _), before in zip(self._weights, self._settled_weights, strict=True):
            if version_of(weight) != before:
                reason = f"its forward goes on changing the weight {name!r}"
        return reason and f"{self.name}: {reason}"

    def begin_again(self, state: dict[str, Any]) -> None:
        """Set the numbers that forwards change to those before the first batch, which is to run again."""
        for place, value in state["initial"].items():
            number, _, key = place.partition(" ")
            vars(self._modules[int(number)][1])[key] = value

    def restore(self, state: dict[str, Any]) -> None:
        """Put the values of ``state`` back into the network, after a later process has run the first batch."""
        for place, value in state["values"].items():
            number, _, key = place.partition(" ")
            module = self._modules[int(number)][1]
            held: dict[str, Any] = module._buffers if key in module._buffers else vars(module)
            now = held.get(key)
            if isinstance(value, Tensor) and isinstance(now, Tensor):
                if now.shape == value.shape and now.dtype == value.dtype:
                    now.data.copy_(value)
                else:
                    held[key] = value.to(now.device)
            elif isinstance(now, list | dict | set | deque) and type(now) is type(value):
                container: Any = now
                container.clear()
                container.extend(value) if isinstance(now, list | deque) else container.update(value)
            else:
                held[key] = value
            self._moving.setdefault((int(number), key))

    def finish(self) -> list[str]:
        """Set the changed buffers to what they were, and return a note if the forward has state."""
        touched: set[int] = set()
        with torch.no_grad():
            for place, (buffer, bits, _) in self._buffers.items():
                now = self._buffer(place)
                if not isinstance(now, Tensor) or now.shape != bits.shape or now.dtype != bits.dtype:
                    continue  # a cache that has grown
                if now is buffer and same_numbers(now, bits):
                    continue
                if not same_numbers(now, bits):
                    self._note(place, "buffer")
                if not same_numbers(buffer, bits):
                    buffer.data.copy_(bits)
                self._modules[place[0]][1]._buffers[place[1]] = buffer
                touched.add(place[0])
        # A count beside a running mean belongs to it.
        for (number, key), value in self._values.items():
            if number in touched and isinstance(value, Number):
                vars(self._modules[number][1])[key] = value.value
        for name, weight, version in self._weights:
            if not weight.is_meta and version_of(weight) != version:
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
        self._moving.setdefault(place)
        self._found.setdefault(f"the {kind} {self._path(place)!r}")

    def _path(self, place: _Place) -> str:
        path = self._modules[place[0]][0]
        return f"{path}.{place[1]}" if path else place[1]

    def _identities(self) -> dict[_Place, int]:
        """The objects in the attributes of all modules, of any kind, by their identity."""
        return {
            (number, key): id(value)
            for number, (_, module) in enumerate(self._modules)
            for key, value in vars(module).items()
            if key not in _INTERNALS
        }

    def _buffer(self, place: _Place) -> Any:
        return self._modules[place[0]][1]._buffers.get(place[1])

    def _set(self, place: _Place, copied: Copied) -> None:
        module = self._modules[place[0]][1]
        if isinstance(copied.value, HeldBuffer):
            module._buffers[place[1]] = copied.value.tensor
        else:
            vars(module)[place[1]] = copied.attribute()
        copied.put_back()

    def _scan(self) -> dict[_Place, Seen]:
        """What the attributes and buffers of all modules hold."""
        found: dict[_Place, Seen] = {}
        shared: set[int] = set()  # a configuration is an attribute of many modules
        for number, (_, module) in enumerate(self._modules):
            for key, value in vars(module).items():
                if key in _INTERNALS:
                    continue
                if id(value) not in shared and (one := seen(value)) is not None:
                    found[number, key] = one
                    if isinstance(one, Container):
                        shared.add(id(value))
            for key, buffer in module._buffers.items():
                if buffer is None or not buffer.is_meta:
                    found[number, key] = HeldBuffer(buffer, None)
        return found
