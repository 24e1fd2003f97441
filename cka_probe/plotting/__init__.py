"""Pictures of similarities, training and theory: data first, ``ax=None`` in, Axes out; no models, no ``show``."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submod_attrs={
        "heatmap": ["plot_heatmap"],
    },
)
