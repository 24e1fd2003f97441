"""The same estimators as training losses: train a student so that its layers see the data as the teacher's do."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
