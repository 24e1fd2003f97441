"""Distillation: train a student so that its layers represent the data as the teacher's layers do.

Names are imported when they are first used. Training needs the extra `distill`, detectors need `dense`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
