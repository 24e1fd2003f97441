"""Settings that the training of detectors and of segmenters share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..training.averaging import check_decay
from ..training.learning_rates import check_schedule
from ..training.schedules import DenseSchedule

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["DenseSettings", "momentum_sgd"]

momentum_sgd = partial(torch.optim.SGD, momentum=0.9)
"""Optimiser of the recipes for detectors and segmenters."""


@dataclass(frozen=True, kw_only=True)
class DenseSettings:
    """Settings of a run. `distill_detector` explains each of them.

    Raises
    ------
    ValueError
        If a setting is out of range.
    TypeError
        If the schedule has none of the known forms.
    """

    steps: int = 1000
    batch_size: int = 8
    learning_rate: float = 0.01
    schedule: Callable[..., Any] = field(default_factory=DenseSchedule)
    optimizer: Callable[..., torch.optim.Optimizer] = momentum_sgd
    weight_decay: float = 1e-4
    clip_norm: float | None = None
    ema: float | None = None
    mixed_precision: str = "no"
    workers: int = 0
    seed: int = 0
    output_dir: Path | str | None = None
    resume: bool = True
    checkpoint_steps: int | None = None
    log_every: int = 50
    score_every: int | None = None
    progress: bool = True
    accelerator: Accelerator | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "log_every", "checkpoint_steps", "score_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}.")
        if not self.learning_rate > 0:
            raise ValueError(f"`learning_rate` must be positive, got {self.learning_rate}.")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(f"`clip_norm` must be positive or None, got {self.clip_norm}.")
        if self.ema is not None:
            check_decay(self.ema)
        check_schedule(self.schedule)
