"""Callbacks: objects of the user's that a run calls after each step and after each row of the history."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from ...capture.state import modes_restored, random_states_restored

__all__ = ["Callbacks", "Moment"]


@dataclass(frozen=True)
class Moment:
    """What a callback is told.

    Parameters
    ----------
    epoch : int
        The epoch, counted from 1.
    step : int
        Number of finished steps since the start of the run.
    steps : int
        Steps of the whole run.
    learning_rate : float
        Of the latest step.
    student : torch.nn.Module
        The network as it is trained; with `ema` its average is in ``averaged``.
    terms : mapping of str to Tensor
        The weighted terms of the latest step, detached. Reading a number from them waits for the GPU.
    row : mapping of str to float
        For ``on_epoch``: the row that the history has got. Empty for ``on_step``.
    averaged : torch.nn.Module, optional
        The average of the student's weights.
    """

    epoch: int
    step: int
    steps: int
    learning_rate: float
    student: nn.Module
    terms: Mapping[str, Tensor] = field(default_factory=dict)
    row: Mapping[str, float] = field(default_factory=dict)
    averaged: nn.Module | None = None


class Callbacks:
    """The callbacks of a run.

    A callback may have a method ``on_step``, called after each step of the optimiser, and a method ``on_epoch``, called
    after each row of the history. Both get a `Moment`. If one returns True, the run ends after that step. If a callback
    has ``state_dict`` and ``load_state_dict``, as modules of torch have, its state is in the checkpoints. Random states
    and the modes of the student are as before after each call.

    Parameters
    ----------
    callbacks : sequence of objects
        Called in this order.

    Raises
    ------
    TypeError
        If `callbacks` is no list, or one of them has neither method.
    """

    def __init__(self, callbacks: Sequence[Any] = ()) -> None:
        if not isinstance(callbacks, list | tuple):
            raise TypeError(f"`callbacks` is a list of objects, got {type(callbacks).__name__}. Write callbacks=[...].")
        for number, callback in enumerate(callbacks):
            known = [name for name in ("on_step", "on_epoch") if callable(getattr(callback, name, None))]
            if not known or isinstance(callback, type):
                made = " It is a class: make an object of it." if isinstance(callback, type) else ""
                raise TypeError(
                    f"`callbacks`[{number}] needs a method on_step(moment) or on_epoch(moment), but "
                    f"{callback!r} has none.{made}"
                )
        self._all = tuple(callbacks)

    def on_step(self, moment: Moment) -> bool:
        """Call the callbacks after a step; return whether the run ends here."""
        return self._call("on_step", moment)

    def on_epoch(self, moment: Moment) -> bool:
        """Call the callbacks after a row of the history; return whether the run ends here."""
        return self._call("on_epoch", moment)

    def _call(self, name: str, moment: Moment) -> bool:
        methods = [method for one in self._all if callable(method := getattr(one, name, None))]
        if not methods:
            return False
        with random_states_restored(), modes_restored(moment.student):
            # All of them are called, also if the first one ends the run.
            return any([method(moment) is True for method in methods])

    def has(self, name: str) -> bool:
        """Whether a callback has a method of this name."""
        return any(callable(getattr(one, name, None)) for one in self._all)

    def state_dict(self) -> list[Any]:
        """The state of each callback; None of those that have none."""
        return [one.state_dict() if callable(getattr(one, "state_dict", None)) else None for one in self._all]

    def load_state_dict(self, states: Sequence[Any]) -> None:
        """Give each callback its state, if they are as many as before."""
        if len(states) == len(self._all):
            for one, state in zip(self._all, states, strict=True):
                if state is not None and callable(getattr(one, "load_state_dict", None)):
                    one.load_state_dict(state)
