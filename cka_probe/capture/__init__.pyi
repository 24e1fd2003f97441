from .extraction import extract
from .hooks import CaptureError, Probe
from .layers import select_layers
from .pooling import pool

__all__ = ["CaptureError", "Probe", "extract", "pool", "select_layers"]
