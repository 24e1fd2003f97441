"""Signatures of many networks in one folder: similarities, nearest layers, distances between models."""

from .atlas import Atlas

__all__ = ["Atlas"]
