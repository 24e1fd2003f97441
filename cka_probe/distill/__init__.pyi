from .data import cifar100, digits, imagenet
from .diagnostics import Diagnostics
from .result import DistillationResult
from .schedules import CosineDecay, StepDecay
from .stages import match_stages, stage_layers
from .training import distill

__all__ = [
    "CosineDecay",
    "Diagnostics",
    "DistillationResult",
    "StepDecay",
    "cifar100",
    "digits",
    "distill",
    "imagenet",
    "match_stages",
    "stage_layers",
]
