"""Activations of a network while it trains: which layers, and how they reach a loss."""

from .map_tap import MapTap
from .stages import match_stages, stage_layers
from .tapped_model import TappedModel

__all__ = ["MapTap", "TappedModel", "match_stages", "stage_layers"]
