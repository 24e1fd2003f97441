"""Distillation of detectors and segmenters: losses, training, networks and data in one import."""

from ..losses.patch_cka import PatchCKALoss
from ..losses.score_maps import SegmentationCKALoss
from ..training.result import DenseResult
from ..training.schedules import DenseSchedule
from .data import CITYSCAPES_TRAIN_IDS, CocoBoxes, LabelMaps
from .detection import PAPER_ROWS, average_precision, distill_detector
from .networks import DETECTORS, SEGMENTERS, SmallResNet, detector, segmenter, small_pyramid
from .scenes import SceneFolders, make_scenes
from .segmentation import distill_segmenter, mean_iou

__all__ = [
    "CITYSCAPES_TRAIN_IDS",
    "DETECTORS",
    "PAPER_ROWS",
    "SEGMENTERS",
    "CocoBoxes",
    "DenseResult",
    "DenseSchedule",
    "LabelMaps",
    "PatchCKALoss",
    "SceneFolders",
    "SegmentationCKALoss",
    "SmallResNet",
    "average_precision",
    "detector",
    "distill_detector",
    "distill_segmenter",
    "make_scenes",
    "mean_iou",
    "segmenter",
    "small_pyramid",
]
