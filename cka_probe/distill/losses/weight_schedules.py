"""Weights of loss terms that change in the course of a run: `ramp`, or any function of the progress."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

__all__ = ["Ramp", "Weight", "checked_weight", "ramp", "set_progress", "value_at"]

Weight = float | Callable[[float], float]
"""A number, or a function from the progress of a run, in [0, 1], to a number."""

SHAPES = ("linear", "cosine")


@dataclass(frozen=True, repr=False)
class Ramp:
    """A weight that goes from one number to another; made by `ramp`."""

    to: float
    until: float = 1.0
    start: float = 0.0
    shape: str = "linear"

    def __call__(self, progress: float) -> float:
        """The weight at this progress, in [0, 1]."""
        share = min(progress / self.until, 1.0)
        if self.shape == "cosine":
            share = (1 - math.cos(math.pi * share)) / 2
        return self.to if share == 1 else self.start + (self.to - self.start) * share

    def __repr__(self) -> str:
        start = f", start={self.start:g}" if self.start else ""
        return f"ramp({self.to:g}, until={self.until:g}{start}, shape={self.shape!r})"


def ramp(to: float, until: float = 1.0, start: float = 0.0, shape: str = "linear") -> Ramp:
    """A weight that goes from ``start`` to ``to`` in the first part of a run, and then stays.

    Every weight of a loss may be a ramp: ``RCKALoss(intra_weight=ramp(15, until=0.5))``. `distill` tells the loss how
    much of the run is finished. In a loop of your own, set ``loss.progress`` before each step.

    Parameters
    ----------
    to : float
        The weight from ``until`` on.
    until : float
        Fraction of the run, in (0, 1], after which the weight is ``to``. 20 of 240 epochs are 20 / 240.
    start : float
        The weight at the beginning.
    shape : "linear" or "cosine"
        "cosine" starts and ends slowly: half a period of a cosine.

    Returns
    -------
    Ramp
        A function of the progress.

    Raises
    ------
    TypeError
        If a number is none.
    ValueError
        If a weight is negative or not finite, ``until`` outside (0, 1], or the shape unknown.

    Examples
    --------
    >>> weight = ramp(15, until=0.5)
    >>> [weight(progress) for progress in (0, 0.25, 0.5, 1)]
    [0.0, 7.5, 15.0, 15.0]
    """
    for name, value in (("to", to), ("until", until), ("start", start)):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"`{name}` of a ramp must be a number, got {value!r}.")
    for name, value in (("to", to), ("start", start)):
        if not 0 <= value < math.inf:
            raise ValueError(f"`{name}` of a ramp must not be negative, and finite, got {value!r}.")
    if not 0 < until <= 1:
        raise ValueError(
            f"`until` of a ramp is a fraction of the run, above 0 and at most 1, got {until!r}. 20 of 240 epochs are "
            "until=20 / 240."
        )
    if shape not in SHAPES:
        raise ValueError(f'`shape` of a ramp must be "linear" or "cosine", got {shape!r}.')
    return Ramp(float(to), float(until), float(start), shape)


def set_progress(loss: Any, progress: float) -> None:
    """Tell a loss, and every loss in it, how much of the run is finished.

    Parameters
    ----------
    loss : module, callable or None
        Whatever has an attribute ``progress`` gets it; nothing else is changed.
    progress : float
        Finished steps over all steps, in [0, 1].

    Raises
    ------
    ValueError
        If the progress is outside [0, 1], or a schedule gives no weight for it.

    Examples
    --------
    >>> from cka_probe.distill import RCKALoss
    >>> loss = RCKALoss(intra_weight=ramp(15, until=0.5))
    >>> set_progress(loss, 0.25)
    >>> loss.progress
    0.25
    """
    for part in loss.modules() if isinstance(loss, nn.Module) else [loss]:
        if hasattr(part, "progress"):
            part.progress = progress


def checked_weight(name: str, weight: Any, progress: float = 0.0) -> Weight:
    """A weight as a float, or its schedule, once it has given a weight for ``progress``.

    Parameters
    ----------
    name : str
        Name of the argument, for the messages.
    weight : float or callable
        The argument.
    progress : float
        Where a schedule is tried.

    Raises
    ------
    TypeError
        If it is neither a number nor a function that returns one.
    ValueError
        If a weight is negative or NaN.
    """
    if isinstance(weight, type) or not (callable(weight) or isinstance(weight, int | float) or _is_scalar(weight)):
        raise TypeError(
            f"`{name}` must be a number, or a function of the progress such as ramp({name}, until=0.5), got {weight!r}."
        )
    if not callable(weight):
        if not weight >= 0:
            raise ValueError(f"`{name}` must not be negative, got {weight!r}.")
        return float(weight)
    value_at(name, weight, progress)
    return weight


def value_at(name: str, schedule: Callable[[float], float], progress: float) -> float:
    """The weight that a schedule gives for this progress. Raises as `checked_weight`."""
    try:
        value = schedule(progress)
    except Exception as error:  # of the user's function
        raise TypeError(
            f"`{name}`: {schedule!r} is called with the progress in [0, 1], and fails for {progress:g}: {error}."
        ) from error
    if not (isinstance(value, int | float) or _is_scalar(value)):
        raise TypeError(
            f"`{name}`: {schedule!r} must return a number for every progress in [0, 1], but returned {value!r} for "
            f"{progress:g}."
        )
    if not 0 <= value < math.inf:
        raise ValueError(
            f"`{name}`: {schedule!r} must return weights that are finite and not negative, but returned {value!r} for "
            f"{progress:g}."
        )
    return float(value)


def _is_scalar(value: Any) -> bool:
    """Whether it is a number of numpy or a tensor with one entry."""
    return getattr(value, "ndim", None) == 0 and hasattr(value, "item")
