"""Training of students: `distill`, its files and their resuming, schedules and diagnostics."""

from .classification import distill
from .diagnostics import Diagnostics
from .result import DistillationResult
from .schedules import CosineDecay, DenseSchedule, PerStep, StepDecay

__all__ = ["CosineDecay", "DenseSchedule", "Diagnostics", "DistillationResult", "PerStep", "StepDecay", "distill"]
