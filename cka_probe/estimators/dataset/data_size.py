"""What the routes over a whole data set are weighed by: the sizes of data and layers, and the speed of the machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["DataSize", "Rates"]


@dataclass(frozen=True)
class Rates:
    """How fast the machine is, measured.

    Attributes
    ----------
    forward : float
        Seconds of the forward passes over all samples.
    products, wide_products : float
        Multiply-adds per second in float32 and float64.
    memory : float
        Bytes per second that are read from memory and worked on.
    disk : float
        Bytes per second that are written to the disk, and read from it.
    """

    forward: float = 0.0
    products: float = 3e10
    wide_products: float = 1.5e10
    memory: float = 2e9
    disk: float = 3e8


@dataclass(frozen=True)
class DataSize:
    """The data and layers of a comparison.

    Attributes
    ----------
    samples : int or None
        Number of samples; None when it is not known before the data are read.
    widths_x, widths_y : sequence of int
        Widths of the layers of both networks. Without ``widths_y`` every two layers of the first are compared.
    itemsize : int
        Bytes of a number of the features.
    batch : int
        Number of samples in a batch.
    batches : int or None
        Number of batches.
    again : bool
        Whether the data can be read several times.
    held : bool
        Whether all features are in memory already.
    disk : int
        Bytes that may be written to the disk.
    beside : int
        Bytes that the forward passes take.
    processes : int
        Number of processes that share the samples.
    most : int or None
        Largest number of samples of a process; all of them when left out.
    """

    samples: int | None
    widths_x: Sequence[int]
    widths_y: Sequence[int] | None = None
    itemsize: int = 4
    batch: int = 1
    batches: int | None = None
    again: bool = True
    held: bool = False
    disk: int = 0
    beside: int = 0
    processes: int = 1
    most: int | None = None

    @property
    def widths(self) -> list[int]:
        """Widths of all layers."""
        return [*self.widths_x, *(self.widths_y or ())]

    @property
    def own(self) -> int:
        """Largest number of samples of a process, 0 if it is not known."""
        return self.samples or 0 if self.most is None else self.most

    @property
    def features(self) -> int | None:
        """Bytes of all features."""
        return None if self.samples is None else self.itemsize * self.samples * sum(self.widths)
