"""Training of students: `distill`, its files and their resuming, schedules and diagnostics."""

from .callbacks import Moment
from .classification import distill
from .diagnostics import Diagnostics
from .evaluation import Evaluation
from .result import DistillationResult
from .schedules import CosineDecay, DenseSchedule, PerStep, StepDecay

__all__ = [
    "CosineDecay",
    "DenseSchedule",
    "Diagnostics",
    "DistillationResult",
    "Evaluation",
    "Moment",
    "PerStep",
    "StepDecay",
    "distill",
]
