"""Compare neural networks layer by layer with CKA and MMD, and distil one into another with the same estimators.

Names are imported when they are first used: ``import cka_probe`` costs no torch.
"""

import lazy_loader

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
