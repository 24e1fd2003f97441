"""The sides of a comparison over a whole data set, and what is held of their layers: features, or a Gram matrix."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from ..estimators.dataset.layer_parts import WholeGram
from ..estimators.dataset.routes import Slice
from .feature_blocks import FilePart

__all__ = ["Held", "Room", "Side", "Slabs", "StartAgainError", "let_go", "slab_bytes", "some_columns", "whole"]

SLAB = 2**26
"""Most bytes of a slab: above the size from which the allocator takes pages of its own."""


class Side(Protocol):
    """The rows or columns of a comparison: a model that runs (``LayerRecorder``), or stored features."""

    @property
    def name(self) -> str:
        """Its name in messages."""

    @property
    def names(self) -> list[str]:
        """Its layers."""

    @property
    def compared(self) -> list[str]:
        """Its layers without those that were left out after the first batch."""

    def notes(self) -> list[str]:
        """Layers that were left out, with the reasons."""


class StartAgainError(Exception):
    """The pass must begin again: the chosen route needs what was not kept of the batches so far."""


@dataclass(eq=False)
class Held:
    """What is kept of one layer in one batch; layers that return their input share one.

    Attributes
    ----------
    name : str
        The layer.
    width : int
        Number of columns of its features.
    dtype : torch.dtype
        Of its features.
    features : tensor, FilePart or None
        Its features (n, d), or the columns that this pass takes.
    gram : WholeGram or None
        Its Gram matrix, if the batch holds all samples.
    """

    name: str
    width: int
    dtype: torch.dtype
    features: torch.Tensor | FilePart | None = None
    gram: WholeGram | None = None


class Room:
    """Bytes of features that may be in memory at once."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

    def take(self, size: int) -> bool:
        """Reserve ``size`` bytes. Return False if they are too many."""
        if self.used + size > self.limit:
            return False
        self.used += size
        return True


def slab_bytes(memory: int) -> int:
    """Bytes of the pieces of memory that copies of features are in: a small part of what a comparison may take."""
    return min(SLAB, memory // 64)


class Slabs:
    """Copies of features in large pieces of memory.

    One by one between the activations, which come and go, they would keep the heap from shrinking: it grew to 1.5 times
    what was in use.

    Parameters
    ----------
    home : torch.device
        Where the copies are.
    size : int
        Bytes of a piece; one that holds larger features has their size.
    """

    def __init__(self, home: torch.device, size: int) -> None:
        self._home = home
        self._size = size
        self._slab: torch.Tensor | None = None
        self._used = 0

    def _new(self, count: int, dtype: torch.dtype) -> torch.Tensor:
        if self._home.type == "cpu":
            # Pages of its own, which go back to the system with the tensor, whatever the allocator keeps.
            return torch.frombuffer(mmap.mmap(-1, max(1, count) * dtype.itemsize), dtype=dtype)
        return torch.empty(count, dtype=dtype, device=self._home)

    def close(self) -> None:
        """Let the last piece go, which the copies in it keep as long as they are needed."""
        self._slab = None

    def copy(self, features: torch.Tensor) -> torch.Tensor:
        """A copy on the home device that shares its memory with other copies."""
        size = features.numel()
        slab = self._slab
        if slab is None or slab.dtype != features.dtype or self._used + size > slab.numel():
            slab = self._slab = self._new(max(size, self._size // features.dtype.itemsize), features.dtype)
            self._used = 0
        out = slab[self._used : self._used + size].view(features.shape)
        self._used += size
        return out.copy_(features)


def let_go(layers: Sequence[Held | None]) -> None:
    """Drop the features of one batch, because the recorders hold what was kept until the next one."""
    for held in layers:
        if held is not None:
            held.features = held.gram = None


def whole(features: torch.Tensor | FilePart | None) -> torch.Tensor:
    """All features of a layer in one batch, read from the file if they are there."""
    assert features is not None
    return features.read(slice(None), slice(0, features.shape[1])) if isinstance(features, FilePart) else features


def some_columns(features: torch.Tensor | FilePart, part: Slice) -> torch.Tensor | FilePart:
    """The columns that a pass takes of a layer: the features themselves if these are all, else a copy."""
    if features.shape[1] == part.stop - part.start:
        return features
    columns = slice(part.start, part.stop)
    return features.read(slice(None), columns) if isinstance(features, FilePart) else features[:, columns].clone()
