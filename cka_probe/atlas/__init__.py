"""Signatures of many networks in one folder: similarities, nearest layers, distances between models."""

from .atlas import Atlas
from .jobs import signatures

__all__ = ["Atlas", "signatures"]
