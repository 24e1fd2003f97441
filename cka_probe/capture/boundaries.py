"""What a pass knows between two batches: its progress, the way back out of a batch, and the way on of a resumed run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from .own_state import OwnState
from .progress import HasState, OtherDataError, Progress
from .sample_order import SampleOrder
from .state import random_states, random_states_restored, set_random_states

__all__ = ["OTHER_SAMPLES", "Boundaries"]

OTHER_SAMPLES = "was made from other samples, or in another order. Turn shuffling off, or delete the file."


class _Mark(NamedTuple):
    """A pass between two batches."""

    done: int
    used: int
    notes: list[str]
    recorders: list[dict[str, Any]]
    held: list[dict[str, Any]]
    networks: list[dict[str, Any]]
    random: dict[str, Any]


class Boundaries:
    """The part of a ``Pass`` that knows which batches are in its results.

    Parameters
    ----------
    recorders, order, held
        As in ``Pass``.

    Attributes
    ----------
    notes, used, done
        As in ``Pass``.
    networks : list of OwnState
        Set when the pass begins.
    """

    def __init__(self, recorders: Sequence[HasState], order: SampleOrder | None, held: Sequence[HasState]) -> None:
        self._with_state = recorders
        self.order = order
        self.held = held
        self.notes: list[str] = []
        self.used = 0
        self.done = 0
        self.networks: list[OwnState] = []
        self._first_order = ""
        self._random_first: dict[str, Any] = {}
        self._mark = _Mark(0, 0, [], [], [], [], {})

    def progress(self) -> Progress:
        """How far the pass has come: to be read in ``after``, or when ``run`` was interrupted.

        Recorders and held objects are read as they are now. A pass without ``order`` has no progress.
        """
        mark = self._mark
        return Progress(
            done=mark.done,
            used=mark.used,
            first_order=self._first_order,
            order="" if self.order is None else self.order.hexdigest(),
            notes=list(mark.notes),
            recorders=[recorder.state() for recorder in self._with_state],
            networks=mark.networks,
            held=[one.state() for one in self.held],
            changed=[sorted(network.changed) for network in self.networks],
            refused=next((state["refused"] for state in mark.networks if state["refused"]), ""),
            random_first=self._random_first,
            random=mark.random,
        )

    def take_mark(self) -> None:
        """Remember everything as it is between two batches."""
        saves = self.order is not None
        self._mark = _Mark(
            self.done,
            self.used,
            list(self.notes),
            [recorder.state() for recorder in self._with_state],
            [one.state() for one in self.held],
            [network.state() for network in self.networks] if saves and self.done else [],
            self._random() if saves else {},
        )

    def count(self, read: list[Any]) -> None:
        """Add a batch, of which ``SampleOrder.read`` returned ``read``, to the number and the digest of those done."""
        if self.order is not None:
            self.order.add(read)
        self.done += 1
        if self.order is not None and self.done == 1:
            self._first_order = self.order.hexdigest()

    def undo(self) -> None:
        """Forget the batch that was in work."""
        mark = self._mark
        self.done, self.used, self.notes[:] = mark.done, mark.used, mark.notes
        self._give(mark.recorders, mark.held)

    def check_first(self, resumed: Progress | None, read: list[Any]) -> None:
        """Compare the first batch of a resumed run with that of the earlier one. Raise OtherDataError if it differs."""
        if resumed is not None and self.order is not None:
            first = SampleOrder(every_number=self.order.every_number)
            first.add(read)
            if first.hexdigest() != resumed.first_order:
                raise OtherDataError(OTHER_SAMPLES)

    @contextmanager
    def first_batch(self, resumed: Progress | None) -> Iterator[None]:
        """Remember the random generators; in a resumed run, let the block draw what the earlier run drew."""
        if resumed is None:
            self._random_first = self._random() if self.order is not None else {}
            yield
            return
        self._random_first = resumed.random_first
        for network, state in zip(self.networks, resumed.networks, strict=True):
            network.begin_again(state)
        with random_states_restored():
            self._set_random(resumed.random_first)
            yield

    def go_on(self, resumed: Progress) -> None:
        """Go on where an earlier run had come to, after its batches have been read.

        Raises
        ------
        OtherDataError
            If they were others.
        CaptureError
            If the first batch has run other layers.
        """
        if self.order is None or self.order.hexdigest() != resumed.order:
            raise OtherDataError(OTHER_SAMPLES)
        self.used, self.notes[:] = resumed.used, resumed.notes
        self._give(resumed.recorders, resumed.held)
        for network, state in zip(self.networks, resumed.networks, strict=True):
            network.restore(state)
        self._set_random(resumed.random)

    def _give(self, recorders: list[dict[str, Any]], held: list[dict[str, Any]]) -> None:
        for one, state in zip((*self._with_state, *self.held), (*recorders, *held), strict=True):
            one.restore(state)

    def _random(self) -> dict[str, Any]:
        own = [generator.get_state() for network in self.networks for generator in network.generators]
        return {"shared": random_states(), "own": own}

    def _set_random(self, states: dict[str, Any]) -> None:
        set_random_states(states["shared"])
        own = [generator for network in self.networks for generator in network.generators]
        for generator, state in zip(own, states["own"], strict=True):
            generator.set_state(state)
