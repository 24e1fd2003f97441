"""Pictures of similarities, training and theory: functions take data and ``ax=None``, and return the Axes.

Names are imported when they are first used, so matplotlib is not loaded before something is drawn.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
