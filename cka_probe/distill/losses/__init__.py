"""CKA as a training loss: of features, logits, patches, class-score maps and hidden states; the signs of logits."""

from .cka import FeatureCKALoss, LogitCKALoss, RCKALoss
from .contract import DistillationLoss, Outputs, SumOfLosses
from .hidden_states import HiddenStateCKALoss, match_depths
from .patch_cka import PatchCKALoss
from .score_maps import SegmentationCKALoss
from .signs import SignLoss
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
    "SignLoss",
    "SumOfLosses",
    "match_depths",
    "ramp",
    "set_progress",
]
