"""Find the layers whose activations a loss compares, and tap them while a network trains."""

from .map_tap import MapTap
from .stages import match_stages, stage_layers
from .tapped_model import TappedModel

__all__ = ["MapTap", "TappedModel", "match_stages", "stage_layers"]
