"""The same estimators as training losses: train a student so that its layers see the data as the teacher's do."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["baselines", "data", "losses", "models", "schedules", "stages", "training"],
    submod_attrs={
        "losses": ["FeatureCKALoss", "LogitCKALoss", "PatchCKALoss", "RCKALoss", "SegmentationCKALoss"],
        "recipe": ["Recipe"],
        "result": ["DistillationResult"],
        "schedules": ["CosineDecay", "StepDecay"],
        "training": ["distill"],
    },
)
