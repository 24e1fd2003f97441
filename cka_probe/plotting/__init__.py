"""Pictures of similarities, training and theory: data first, ``ax=None`` in, Axes out; no models, no ``show``.

Names are imported when they are first used: no matplotlib until something is drawn.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
