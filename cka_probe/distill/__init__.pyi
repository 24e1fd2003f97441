from .baselines import ATLoss, CCLoss, CWDLoss, DISTLoss, DKDLoss, FitNetLoss, KDLoss, PKDLoss, RKDLoss, SPLoss
from .data import cifar100, digits, imagenet
from .diagnostics import Diagnostics
from .losses import FeatureCKALoss, LogitCKALoss, RCKALoss
from .result import DistillationResult
from .schedules import CosineDecay, StepDecay
from .stages import match_stages, stage_layers
from .training import distill

__all__ = [
    "ATLoss",
    "CCLoss",
    "CWDLoss",
    "CosineDecay",
    "DISTLoss",
    "DKDLoss",
    "Diagnostics",
    "DistillationResult",
    "FeatureCKALoss",
    "FitNetLoss",
    "KDLoss",
    "LogitCKALoss",
    "PKDLoss",
    "RCKALoss",
    "RKDLoss",
    "SPLoss",
    "StepDecay",
    "cifar100",
    "digits",
    "distill",
    "imagenet",
    "match_stages",
    "stage_layers",
]
