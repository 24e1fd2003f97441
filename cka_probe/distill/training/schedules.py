"""Learning-rate schedules: functions of the epoch or step, so that a resumed run needs no state."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["CosineDecay", "DenseSchedule", "StepDecay"]


@dataclass(frozen=True)
class StepDecay:
    """Multiply the learning rate by `factor` after each milestone.

    Parameters
    ----------
    milestones : tuple of int or float
        Integers are epochs; numbers below 1 are fractions of the run. The default is the CIFAR-100 recipe of the paper
        (after epochs 150, 180 and 210 of 240), for a run of any length.
    factor : float
        Factor of each milestone.
    warmup : int
        Epochs of linear increase at the start.

    Raises
    ------
    ValueError
        If a milestone is not positive.

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
    warmup: int = 0

    def __post_init__(self) -> None:
        if any(milestone <= 0 for milestone in self.milestones):
            raise ValueError(f"milestones must be positive, got {self.milestones}.")

    def __call__(self, epoch: int, epochs: int) -> float:
        """Factor of the learning rate in `epoch` (counted from 0) of `epochs`."""
        starts = [math.ceil(m * epochs) if m < 1 else m for m in self.milestones]
        return _warm(epoch, self.warmup) * self.factor ** sum(epoch >= start for start in starts)


@dataclass(frozen=True)
class CosineDecay:
    """Decrease the learning rate along half a cosine to `final` times its start.

    Parameters
    ----------
    final : float
        Factor at the end of the curve.
    warmup : int
        Epochs of linear increase at the start.

    References
    ----------
    Loshchilov and Hutter, SGDR, ICLR 2017, equation 5, without restarts.

    Examples
    --------
    >>> [round(CosineDecay()(epoch, epochs=4), 3) for epoch in range(4)]
    [1.0, 0.854, 0.5, 0.146]
    """

    final: float = 0.0
    warmup: int = 0

    def __call__(self, epoch: int, epochs: int) -> float:
        """Factor of the learning rate in `epoch` (counted from 0) of `epochs`."""
        if epoch < self.warmup:
            return _warm(epoch, self.warmup)
        progress = (epoch - self.warmup) / max(1, epochs - self.warmup)
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * progress)) / 2


def _warm(epoch: int, warmup: int) -> float:
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
