from . import baselines, losses, models
from .data import (
    cifar10,
    cifar100,
    digits,
    fashion_mnist,
    glyphs,
    image_folder,
    imagenet,
    make_glyphs,
    saved_dataset,
    tiny_imagenet,
)
from .dense.detection import distill_detector
from .dense.segmentation import distill_segmenter
from .losses.cka import FeatureCKALoss, LogitCKALoss, RCKALoss
from .losses.contract import Outputs
from .losses.patch_cka import PatchCKALoss
from .losses.score_maps import SegmentationCKALoss
from .losses.signs import SignLoss
from .losses.weight_schedules import ramp, set_progress
from .models.saved_student import load_student
from .recipes.recipe import Recipe
from .taps.stages import match_stages, stage_layers
from .training.classification import distill
from .training.diagnostics import Diagnostics
from .training.evaluation import Evaluation
from .training.result import DistillationResult
from .training.schedules import CosineDecay, PerStep, StepDecay

__all__ = [
    "CosineDecay",
    "Diagnostics",
    "DistillationResult",
    "Evaluation",
    "FeatureCKALoss",
    "LogitCKALoss",
    "Outputs",
    "PatchCKALoss",
    "PerStep",
    "RCKALoss",
    "Recipe",
    "SegmentationCKALoss",
    "SignLoss",
    "StepDecay",
    "baselines",
    "cifar10",
    "cifar100",
    "digits",
    "distill",
    "distill_detector",
    "distill_segmenter",
    "fashion_mnist",
    "glyphs",
    "image_folder",
    "imagenet",
    "load_student",
    "losses",
    "make_glyphs",
    "match_stages",
    "models",
    "ramp",
    "saved_dataset",
    "set_progress",
    "stage_layers",
    "tiny_imagenet",
]
