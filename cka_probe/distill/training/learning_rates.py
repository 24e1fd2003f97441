"""Learning rates of a run: a schedule of factors, or an LRScheduler of torch, for each epoch or for each step."""

from __future__ import annotations

import inspect
import io
from collections.abc import Callable
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR, ReduceLROnPlateau

from ...capture.notes import first_line
from .run_identity import extension_refused
from .schedules import PerStep

__all__ = ["LearningRates", "check_schedule", "makes_scheduler"]


class LearningRates:
    """Set the learning rates of the parameter groups of an optimiser during a run.

    A schedule of factors multiplies the rate that each group has at the start, so that groups keep rates of their own.
    An LRScheduler of torch is made here and advanced after each epoch or step; `ReduceLROnPlateau` is advanced after
    each evaluation, with its score.

    Parameters
    ----------
    schedule : callable or PerStep
        ``schedule(epoch, epochs)`` returns the factor of an epoch; or a function of the optimiser that returns an
        LRScheduler. Inside `PerStep` it counts steps.
    optimizer : torch.optim.Optimizer
        Not yet prepared by the accelerator.
    learning_rate : float
        The rate at the start, for `rate`.
    unit : {"epoch", "step"}
        What a schedule outside `PerStep` counts.
    higher_is_better : bool or None
        Whether a higher score is better, for `ReduceLROnPlateau`. None: the student is not scored during the run.

    Raises
    ------
    TypeError
        If the function of the optimiser returns no LRScheduler.
    ValueError
        If `ReduceLROnPlateau` looks for the wrong extreme, stands in `PerStep` or gets no scores, or the state of a
        scheduler cannot be saved.

    Attributes
    ----------
    rate : float
        Learning rate of the latest step: `learning_rate` times the factor; of the first group with an LRScheduler.
    """

    def __init__(
        self,
        schedule: Callable[..., Any] | PerStep,
        optimizer: torch.optim.Optimizer,
        learning_rate: float,
        *,
        unit: str = "epoch",
        higher_is_better: bool | None = True,
    ) -> None:
        check_schedule(schedule)
        self._per_step = unit == "step" or isinstance(schedule, PerStep)
        self._schedule: Callable[..., Any] = schedule.schedule if isinstance(schedule, PerStep) else schedule
        self._optimizer = optimizer
        self._own_rates = [group["lr"] for group in optimizer.param_groups]
        self._start = learning_rate
        self.rate = learning_rate
        self._scheduler: Any = None
        if makes_scheduler(self._schedule):
            self._scheduler = self._schedule(optimizer)
            self._check_scheduler(higher_is_better, isinstance(schedule, PerStep))

    def _check_scheduler(self, higher_is_better: bool | None, wrapped: bool) -> None:
        made = self._scheduler
        if not isinstance(made, LRScheduler):
            raise TypeError(
                f"`schedule` takes one argument, so it was called with the optimiser and must return an LRScheduler "
                f"of torch, but it returned {made!r}. A schedule of factors takes two: (epoch, epochs)."
            )
        if made.optimizer is not self._optimizer:
            raise ValueError("`schedule` returned an LRScheduler of another optimiser than the one it was given.")
        if isinstance(made, ReduceLROnPlateau):
            if wrapped:
                raise ValueError(
                    "`schedule`: ReduceLROnPlateau needs the score of an evaluation, so it is advanced after each one, "
                    "not after each step. Leave out PerStep."
                )
            if higher_is_better is None:
                raise ValueError(
                    "`schedule`: ReduceLROnPlateau needs scores during the run, but the student is not scored. Give "
                    "test data (for detectors and segmenters also `score_every`), or use another schedule."
                )
            mode = "max" if higher_is_better else "min"
            if made.mode != mode:
                raise ValueError(
                    f"`schedule`: ReduceLROnPlateau has mode={made.mode!r}, but the metric of this run is better when "
                    f"it is {'higher' if higher_is_better else 'lower'}. Use mode={mode!r}."
                )
        try:
            torch.load(_saved(made.state_dict()), weights_only=True)
        except Exception as error:  # whatever pickle says about the user's objects
            raise ValueError(
                f"`schedule`: the state of {type(made).__name__} cannot be saved in a checkpoint "
                f"({first_line(error)}). Its state_dict() must hold numbers, texts, tensors, lists and dicts."
            ) from error

    def check_length(self, epochs: int, steps: int) -> None:
        """Raise ValueError if an LRScheduler has another length than the run."""
        if not isinstance(self._scheduler, OneCycleLR):
            return
        unit, calls = ("step", steps) if self._per_step else ("epoch", epochs)
        total = self._scheduler.total_steps
        hint = " Wrap it: PerStep(...)." if not self._per_step and total > epochs else ""
        if total < calls or hint:
            raise ValueError(
                f"`schedule`: OneCycleLR has total_steps={total}, but it is advanced after each {unit}, and the run "
                f"has {calls} {unit}s.{hint or f' Give it total_steps={calls}.'}"
            )

    def begin_step(self, epoch: int, epochs: int, step: int, steps: int) -> None:
        """Set the rates for a step.

        Parameters
        ----------
        epoch, epochs : int
            The epoch, counted from 0, and the length of the run in epochs.
        step, steps : int
            The step, counted from 0 over the whole run, and the length of the run in steps.
        """
        if self._scheduler is not None:
            self.rate = float(self._optimizer.param_groups[0]["lr"])
            return
        factor = self._schedule(step, steps) if self._per_step else self._schedule(epoch, epochs)
        for group, own in zip(self._optimizer.param_groups, self._own_rates, strict=True):
            group["lr"] = factor * own
        self.rate = factor * self._start

    def end_step(self, skipped: bool = False) -> None:
        """Advance an LRScheduler that counts steps, unless mixed precision has skipped the step of the optimiser."""
        if self._per_step and not skipped:
            self._advance()

    def end_epoch(self) -> None:
        """Advance an LRScheduler that counts epochs."""
        if not self._per_step:
            self._advance()

    def _advance(self) -> None:
        if self._scheduler is not None and not isinstance(self._scheduler, ReduceLROnPlateau):
            self._scheduler.step()

    def evaluated(self, score: float) -> None:
        """Give `ReduceLROnPlateau` the score of an evaluation."""
        if isinstance(self._scheduler, ReduceLROnPlateau):
            self._scheduler.step(score)

    def state_dict(self) -> dict[str, Any]:
        """State of the LRScheduler; empty for a schedule of factors, which has none."""
        return {} if self._scheduler is None else self._scheduler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what `state_dict` returned. The rates themselves are in the state of the optimiser."""
        if self._scheduler is not None:
            self._scheduler.load_state_dict(state)

    def extension_refused(
        self, epochs: tuple[int, int], steps: tuple[int, int], finished_epochs: int, finished_steps: int
    ) -> str | None:
        """Reason why a run cannot go on to another length; None if it can.

        It can if the part that is finished would have had the same learning rates. That of an LRScheduler does not
        depend on the length of the run.

        Parameters
        ----------
        epochs, steps : (int, int)
            The length before and now.
        finished_epochs, finished_steps : int
            How many have begun.
        """
        lengths, finished, unit = (
            (steps, finished_steps, "step") if self._per_step else (epochs, finished_epochs, "epoch")
        )
        schedule = self._schedule if self._scheduler is None else lambda _epoch, _epochs: 1.0
        return extension_refused(schedule, *lengths, finished, unit)


def check_schedule(schedule: Any) -> None:
    """Raise TypeError if a schedule has none of the forms that `LearningRates` takes."""
    inner = schedule.schedule if isinstance(schedule, PerStep) else schedule
    if isinstance(inner, LRScheduler):
        kind = type(inner).__name__
        raise TypeError(
            f"`schedule` is a {kind} of another optimiser, but the run makes its own. Pass a function that makes the "
            f"scheduler: schedule=lambda optimizer: {kind}(optimizer, ...)."
        )
    if not callable(inner):
        raise TypeError(
            f"`schedule` must be a schedule such as StepDecay(), a function (epoch, epochs) that returns a factor, or "
            f"a function of the optimiser that returns an LRScheduler of torch, got {inner!r}."
        )
    if not _takes(inner, 1) and (_is_class(inner) or not _takes(inner, 2)):
        raise TypeError(
            f"`schedule` must take (epoch, epochs) or the optimiser alone, but {inner!r} takes "
            f"{inspect.signature(inner)}. Give the other arguments first, for example by functools.partial."
        )


def makes_scheduler(schedule: Callable[..., Any]) -> bool:
    """Whether a function needs one positional argument, the optimiser, and not two, the epoch and the epochs."""
    return _is_class(schedule) or _takes(schedule, 1)


def _is_class(schedule: Any) -> bool:
    """Whether a schedule is a class of torch's schedulers, alone or in `functools.partial`."""
    kind = getattr(schedule, "func", schedule)
    return isinstance(kind, type) and issubclass(kind, LRScheduler)


def _takes(function: Callable[..., Any], count: int) -> bool:
    """Whether a function can be called with ``count`` positional arguments, of which it needs each."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # a function in C that does not say
        return count == 2
    try:
        signature.bind(*range(count))
    except TypeError:
        return False
    if count == 2:
        return True
    first = next(iter(signature.parameters.values()))
    # `lambda *a: ...` and `lambda epoch=0, epochs=1: ...` are schedules of factors.
    return first.kind in (first.POSITIONAL_ONLY, first.POSITIONAL_OR_KEYWORD) and first.default is first.empty


def _saved(state: Any) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return file
