"""Settings of a run of `distill`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .averaging import check_decay
from .diagnostics import Diagnostics
from .evaluation import Evaluation
from .learning_rates import check_schedule
from .preparation import LayerNames
from .schedules import StepDecay
from .scoring import check_metric
from .teachers import check_forward

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["Settings"]


momentum_sgd = partial(torch.optim.SGD, momentum=0.9)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of a run. `distill` explains each of them.

    Raises
    ------
    ValueError
        If a setting is out of range.
    TypeError
        If the schedule or the evaluation has none of the known forms.
    """

    student_layers: LayerNames = "auto"
    teacher_layers: LayerNames | None = None
    epochs: int = 240
    batch_size: int | None = None
    learning_rate: float = 0.05
    schedule: Callable[..., Any] = field(default_factory=StepDecay)
    optimizer: Callable[..., torch.optim.Optimizer] = momentum_sgd
    weight_decay: float = 5e-4
    clip_norm: float | None = None
    ema: float | None = None
    supervision: Callable[..., Any] | str | None = "cross_entropy"
    ce_weight: float = 1.0
    metric: Any = None
    forward: Any = None
    max_steps: int | None = None
    evaluation: Evaluation = field(default_factory=Evaluation)
    accumulation_steps: int = 1
    accumulation: str = "exact"
    mixed_precision: str = "no"
    sync_batchnorm: bool = False
    channels_last: bool = False
    compile: bool = False
    workers: int = 0
    seed: int = 0
    output_dir: Path | str | None = None
    resume: bool = True
    checkpoint_steps: int | None = None
    log_with: Any = None
    callbacks: Sequence[Any] = ()
    teacher_cache: Path | str | None = None
    files: Mapping[str, str] | None = None
    diagnostics: Diagnostics | None = None
    progress: bool = True
    accelerator: Accelerator | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "max_steps", "accumulation_steps", "checkpoint_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}.")
        if not self.learning_rate > 0:
            raise ValueError(f"`learning_rate` must be positive, got {self.learning_rate}.")
        check_schedule(self.schedule)
        check_metric(self.metric)
        check_forward(self.forward)
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(f"`clip_norm` must be positive or None, got {self.clip_norm}.")
        if self.ema is not None:
            check_decay(self.ema)
        if self.accumulation not in ("exact", "mean"):
            raise ValueError(f'`accumulation` must be "exact" or "mean", got {self.accumulation!r}.')
        if not isinstance(self.evaluation, Evaluation):
            raise TypeError(f"`evaluation` is an Evaluation(...), got {self.evaluation!r}.")
        if self.diagnostics is not None and self.diagnostics.heatmap_every and self.output_dir is None:
            raise ValueError("`diagnostics` with heatmap_every needs an `output_dir` to save the pictures in.")
