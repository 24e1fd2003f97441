"""Learning-rate schedules: functions of the epoch or step, so that a resumed run needs no state."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["CosineDecay", "DenseSchedule", "PerStep", "StepDecay"]


@dataclass(frozen=True)
class PerStep:
    """Change the learning rate after every step of the optimiser. Without it, `distill` changes it after every epoch.

    The schedule is the same object as for epochs, but it counts steps: ``PerStep(CosineDecay(warmup=500))`` increases
    the rate over the first 500 steps, and decreases it over the rest of the run.

    Parameters
    ----------
    schedule : callable
        A schedule of this module, another function ``schedule(step, steps)`` that returns the factor of a step, or a
        function that takes the optimiser and returns a `torch.optim.lr_scheduler.LRScheduler`.

    Raises
    ------
    TypeError
        If the schedule is not callable, or is a `PerStep` already.

    Examples
    --------
    >>> schedule = PerStep(CosineDecay(warmup=4)).schedule
    >>> [round(schedule(step, 10), 2) for step in range(10)]
    [0.2, 0.4, 0.6, 0.8, 1.0, 0.93, 0.75, 0.5, 0.25, 0.07]
    """

    schedule: Callable[..., Any]

    def __post_init__(self) -> None:
        if not callable(self.schedule) or isinstance(self.schedule, PerStep):
            raise TypeError(f"PerStep needs a schedule, got {self.schedule!r}.")


@dataclass(frozen=True)
class StepDecay:
    """Multiply the learning rate by `factor` after each milestone.

    Parameters
    ----------
    milestones : tuple of int or float
        Integers are epochs (steps inside `PerStep`); numbers below 1 are fractions of the run. The default is the
        CIFAR-100 recipe of the paper (after epochs 150, 180 and 210 of 240), for a run of any length.
    factor : float
        Factor of each milestone.
    warmup : int or float
        Epochs (steps inside `PerStep`) of linear increase at the start; a number below 1 is a fraction of the run.

    Raises
    ------
    ValueError
        If a milestone is not positive, or the warm-up is negative.

    References
    ----------
    Zhou et al., Rethinking Centered Kernel Alignment in Knowledge Distillation, IJCAI 2024, section 4.1.

    Examples
    --------
    >>> [StepDecay((2, 3))(epoch, epochs=4) for epoch in range(4)]
    [1.0, 1.0, 0.1, 0.010000000000000002]
    """

    milestones: tuple[float, ...] = (0.625, 0.75, 0.875)
    factor: float = 0.1
    warmup: float = 0

    def __post_init__(self) -> None:
        if any(milestone <= 0 for milestone in self.milestones):
            raise ValueError(f"milestones must be positive, got {self.milestones}.")
        _check_warmup(self.warmup)

    def __call__(self, epoch: int, epochs: int) -> float:
        """Factor of the learning rate in `epoch` (counted from 0) of `epochs`."""
        starts = [math.ceil(m * epochs) if m < 1 else m for m in self.milestones]
        return _warm(epoch, _count(self.warmup, epochs)) * self.factor ** sum(epoch >= start for start in starts)


@dataclass(frozen=True)
class CosineDecay:
    """Decrease the learning rate along half a cosine to `final` times its start.

    Parameters
    ----------
    final : float
        Factor at the end of the curve.
    warmup : int or float
        Epochs (steps inside `PerStep`) of linear increase at the start; a number below 1 is a fraction of the run.

    Raises
    ------
    ValueError
        If the warm-up is negative.

    References
    ----------
    Loshchilov and Hutter, SGDR, ICLR 2017, equation 5, without restarts.

    Examples
    --------
    >>> [round(CosineDecay()(epoch, epochs=4), 3) for epoch in range(4)]
    [1.0, 0.854, 0.5, 0.146]
    """

    final: float = 0.0
    warmup: float = 0

    def __post_init__(self) -> None:
        _check_warmup(self.warmup)

    def __call__(self, epoch: int, epochs: int) -> float:
        """Factor of the learning rate in `epoch` (counted from 0) of `epochs`."""
        warmup = _count(self.warmup, epochs)
        if epoch < warmup:
            return _warm(epoch, warmup)
        progress = (epoch - warmup) / max(1, epochs - warmup)
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * progress)) / 2


def _check_warmup(warmup: float) -> None:
    if not warmup >= 0:
        raise ValueError(f"warmup must be 0 or more, got {warmup}.")


def _count(warmup: float, length: int) -> float:
    """Number of epochs or steps of the warm-up; a number below 1 is a fraction of the run."""
    return round(warmup * length) if warmup < 1 else warmup


def _warm(epoch: int, warmup: float) -> float:
    return (epoch + 1) / (warmup + 1) if epoch < warmup else 1.0


@dataclass(frozen=True)
class DenseSchedule:
    """Schedule "2x" of detectors: linear warm-up, a tenth after two thirds of the run, a hundredth near the end.

    Parameters
    ----------
    milestones : tuple of float
        Fractions of the run; 16 and 22 of 24 epochs by default.
    factor : float
        Factor of each milestone.
    warmup : float
        Fraction of the run with linear increase.

    Examples
    --------
    >>> [round(DenseSchedule(warmup=0.2)(step, 10), 3) for step in range(10)]
    [0.333, 0.667, 1.0, 1.0, 1.0, 1.0, 1.0, 0.1, 0.1, 0.1]
    """

    milestones: tuple[float, ...] = (16 / 24, 22 / 24)
    factor: float = 0.1
    warmup: float = 0.03

    def __call__(self, step: int, steps: int) -> float:
        """Factor of the learning rate in `step` (counted from 0) of `steps`."""
        rising = round(self.warmup * steps)
        if step < rising:
            return _warm(step, rising)
        return self.factor ** sum(step >= milestone * steps for milestone in self.milestones)
