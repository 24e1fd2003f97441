from . import baselines, losses, models
from .data import cifar100, digits, imagenet
from .dense import PatchCKALoss, SegmentationCKALoss
from .detection import distill_detector
from .diagnostics import Diagnostics
from .losses import FeatureCKALoss, LogitCKALoss, RCKALoss
from .recipe import Recipe
from .result import DistillationResult
from .schedules import CosineDecay, StepDecay
from .segmentation import distill_segmenter
from .stages import match_stages, stage_layers
from .training import distill

__all__ = [
    "CosineDecay",
    "Diagnostics",
    "DistillationResult",
    "FeatureCKALoss",
    "LogitCKALoss",
    "PatchCKALoss",
    "RCKALoss",
    "SegmentationCKALoss",
    "Recipe",
    "StepDecay",
    "baselines",
    "cifar100",
    "digits",
    "distill",
    "distill_detector",
    "distill_segmenter",
    "imagenet",
    "losses",
    "match_stages",
    "models",
    "stage_layers",
]
