"""CKA losses for dense prediction: PCKA of feature pyramids, and the alignment of class-score maps."""

from .pyramid import PatchCKALoss
from .score_maps import SegmentationCKALoss

__all__ = ["PatchCKALoss", "SegmentationCKALoss"]
