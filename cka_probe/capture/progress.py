"""The state of a pass between two batches: what decides how it goes on, in this process or in a later one."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

__all__ = ["HasState", "OtherDataError", "Progress", "Resumable"]


class HasState(Protocol):
    """Anything whose state can be read and given back."""

    def state(self) -> dict[str, Any]:
        """The state as it is now; later batches do not change what this returned."""

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state."""


class OtherDataError(ValueError):
    """A resumed run is given other data than the earlier run; the text follows the name of its file."""


class Resumable:
    """An object whose state can be read between two batches, and given back to it or to its like in a later process.

    A state holds texts, numbers, containers and tensors. Tensors are not copied: a subclass replaces them instead of
    changing them in place.

    Attributes
    ----------
    lasting : tuple of str
        Attributes that decide what the object makes of later batches. All others are settings, are set anew in each
        batch, or are set by the first batch.
    parts : tuple of str
        Attributes that are resumable themselves. What is not resumable is passed over.
    """

    lasting: ClassVar[tuple[str, ...]] = ()
    parts: ClassVar[tuple[str, ...]] = ()

    def state(self) -> dict[str, Any]:
        """The lasting attributes and those of the parts. Containers are copied."""
        own = {name: _copied(getattr(self, name)) for name in self.lasting}
        return own | {name: part.state() for name in self.parts if isinstance(part := getattr(self, name), Resumable)}

    def restore(self, state: dict[str, Any]) -> None:
        """Set the lasting attributes, and those of the parts, to what ``state`` returned."""
        for name in self.lasting:
            setattr(self, name, _copied(state[name]))
        for name in self.parts:
            part = getattr(self, name)
            if isinstance(part, Resumable) and name in state:
                part.restore(state[name])


def _copied(value: Any) -> Any:
    return value.copy() if isinstance(value, dict | list | set | deque) else value


@dataclass(frozen=True)
class Progress:
    """How far a pass has come.

    Attributes
    ----------
    done, used : int
        Number of batches that were read, and of those that are in the result.
    first_order, order : str
        Digest of the samples of the first batch, and of all batches so far, from ``SampleOrder``.
    notes : list of str
        Notes of the pass so far.
    recorders, networks, held : list of dict
        States of the recorders, of what the forwards go on changing in the networks, and of the objects that ``Pass``
        was told to hold.
    changed : list of list of str
        For each network the attributes that its forward sets, which are therefore no settings.
    refused : str
        Why the pass cannot be resumed: a forward changes the network in a way that cannot be saved. Empty if it can.
    random_first, random : dict
        States of the random generators when the first batch ran, and now.
    """

    done: int
    used: int
    first_order: str
    order: str
    notes: list[str]
    recorders: list[dict[str, Any]]
    networks: list[dict[str, Any]]
    held: list[dict[str, Any]]
    changed: list[list[str]]
    refused: str
    random_first: dict[str, Any]
    random: dict[str, Any]
