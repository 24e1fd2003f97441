"""CKA as a training loss: of features, logits, patches, class-score maps and hidden states."""

from .cka import FeatureCKALoss, LogitCKALoss, RCKALoss
from .contract import DistillationLoss, Outputs, SumOfLosses
from .hidden_states import HiddenStateCKALoss, match_depths
from .patch_cka import PatchCKALoss
from .score_maps import SegmentationCKALoss
from .weight_schedules import Ramp, ramp, set_progress

__all__ = [
    "DistillationLoss",
    "FeatureCKALoss",
    "HiddenStateCKALoss",
    "LogitCKALoss",
    "Outputs",
    "PatchCKALoss",
    "RCKALoss",
    "Ramp",
    "SegmentationCKALoss",
    "SumOfLosses",
    "match_depths",
    "ramp",
    "set_progress",
]
