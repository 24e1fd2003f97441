"""distill(): the training run, its files, and what resumes it."""

from .classification import distill
from .diagnostics import Diagnostics
from .result import DistillationResult
from .schedules import CosineDecay, StepDecay

__all__ = ["CosineDecay", "Diagnostics", "DistillationResult", "StepDecay", "distill"]
