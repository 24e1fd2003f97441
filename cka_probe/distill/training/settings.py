"""Settings of a run of `distill`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .averaging import check_decay
from .diagnostics import Diagnostics
from .evaluation import Evaluation
from .learning_rates import check_schedule
from .preparation import LayerNames
from .scoring import check_metric
from .teachers import check_forward

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["Settings"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of a run. `distill` explains each of them and gives the defaults.

    Raises
    ------
    ValueError
        If a setting is out of range.
    TypeError
        If the schedule or the evaluation has none of the known forms.
    """

    student_layers: LayerNames
    teacher_layers: LayerNames | None
    epochs: int
    batch_size: int | None
    learning_rate: float
    schedule: Callable[..., Any]
    optimizer: Callable[..., torch.optim.Optimizer]
    weight_decay: float
    clip_norm: float | None
    ema: float | None
    supervision: Callable[..., Any] | str | None
    ce_weight: float
    metric: Any
    forward: Any
    max_steps: int | None
    evaluation: Evaluation
    accumulation_steps: int
    accumulation: str
    mixed_precision: str
    sync_batchnorm: bool
    channels_last: bool
    compile: bool
    workers: int
    seed: int
    output_dir: Path | str | None
    resume: bool
    checkpoint_steps: int | None
    log_with: Any
    callbacks: Sequence[Any]
    teacher_cache: Path | str | None
    files: Mapping[str, str] | None
    diagnostics: Diagnostics | None
    progress: bool | str
    accelerator: Accelerator | None

    @property
    def run_name(self) -> str:
        """What the progress bar writes before the epoch, such as "rcka, seed 0: "."""
        return f"{self.progress}: " if isinstance(self.progress, str) else ""

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
