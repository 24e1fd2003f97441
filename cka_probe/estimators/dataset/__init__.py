"""CKA over a whole data set: from sums of moments, from blocks of Gram matrices, or from a random sketch."""

from .blocks import blocked_cka
from .moments import MomentCKA
from .routes import Route, choose_route
from .sketch import SketchCKA

__all__ = ["MomentCKA", "Route", "SketchCKA", "blocked_cka", "choose_route"]
