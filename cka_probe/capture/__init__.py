"""Torch modules in, features out."""

from .hooks import CaptureError, Probe
from .layers import select_layers
from .pooling import pool

__all__ = ["CaptureError", "Probe", "pool", "select_layers"]
