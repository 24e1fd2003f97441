"""What a comparison over a whole data set keeps of a layer's output inside its hook: features, some columns, a Gram."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Literal

import torch

from ..capture.keeping import NotFiniteError
from ..estimators.dataset.layer_parts import FEW, ArrayFeatures, whole_gram
from ..estimators.kernels import Kernel
from .feature_blocks import FeatureFile, FilePart
from .grams.findings import coarse_layers
from .held import Held, Room, Slabs, StartAgainError, slab_bytes
from .memory import ForwardMeter, HeapWatch

__all__ = ["FeatureKeeper", "Keeping"]

SOME = 2**20
"""Numbers of a layer, evenly spaced in the first batch, that show how coarsely its dtype holds it."""

DEFERS = frozenset({"cuda"})
"""Devices that are asked once a batch whether features hold NaN or infinity, because each answer waits for them."""

Mode = Literal["survey", "all", "chosen", "file", "gram"]


class Keeping:
    """What the keepers of all models of a comparison keep, and what they saw in the first batch.

    Parameters
    ----------
    mode : str
        "survey": features as long as there is room; the rest go to the file if there is one. "file": the same in later
        batches. "all": features. "chosen": the columns in ``wanted``. "gram": the Gram matrix of the batch.
    room : Room
        For features.
    kernel : Kernel
        Of Gram matrices.
    home : torch.device
        Where features are kept.
    memory : int
        Bytes that the comparison may take.

    Attributes
    ----------
    wanted : dict of (int, str) to (int, int)
        Range of columns by the number of the side and the layer.
    file : FeatureFile or None
        Where features go that have no room.
    coarse : dict of (int, str)
        Layers whose spread is near the rounding of their mean, by side and layer, with what ``coarse_layers`` found.
    marks : dict of (int, str), or None
        If not None, the norm of each layer's features and their sum over the root of their number, by side and layer.
    looks_only : bool
        Whether nothing is kept but the marks.
    forward_seconds : float
        Time from the first to the last hook in the first batch, without the hooks.
    """

    def __init__(self, mode: Mode, room: Room, kernel: Kernel, home: torch.device, memory: int) -> None:
        self.mode: Mode = mode
        self.room = room
        self.kernel = kernel
        self.home = home
        self.wanted: Mapping[tuple[int, str], tuple[int, int]] = {}
        self.file: FeatureFile | None = None
        self.open_file: Callable[[], FeatureFile] | None = None
        """Makes the file when the first features need it; None if there is no room on the disk."""
        self.coarse: dict[tuple[int, str], tuple[float, torch.dtype]] = {}
        self.slabs = Slabs(home, slab_bytes(memory))
        self.meter = ForwardMeter(home)
        self.watch: HeapWatch | None = None
        self.marks: dict[tuple[int, str], tuple[float, float]] | None = None
        self.looks_only = False
        self.forward_seconds = 0.0
        self.first = True
        """Whether the first batch is in work."""
        self._sums: list[tuple[int, str, torch.Tensor]] = []
        self.checks = True
        """Whether features may hold NaN or infinity: in the first pass."""

    def written(self, features: torch.Tensor) -> FilePart | None:
        """The features in the file; None if there is none."""
        if self.file is None and self.open_file is not None:
            self.file = self.open_file()
        return None if self.file is None else self.file.write(features)

    def keep(self, side: int, name: str, features: torch.Tensor) -> Held:
        """What is kept of one layer. Raise NotFiniteError if its features hold NaN or infinity."""
        features = features.detach()
        if self.checks and features.device.type in DEFERS and features.dtype == torch.float32:
            # The sum of float32 does not overflow in float64.
            self._sums.append((side, name, features.sum(dtype=torch.float64)))
        # A sum reads the features once and makes no copy. It may overflow where they do not.
        elif self.checks and not math.isfinite(float(features.sum())) and not bool(torch.isfinite(features).all()):
            raise NotFiniteError
        held = Held(name, features.shape[1], features.dtype)
        if self.marks is not None:
            norm, total = torch.linalg.vector_norm(features, dtype=torch.float64), features.sum(dtype=torch.float64)
            self.marks[side, name] = float(norm), float(total) / math.sqrt(max(1, features.numel()))
        if self.looks_only:
            return held
        if self.watch is not None:
            self.watch.see(features.numel() * features.dtype.itemsize)
        if self.first:
            self.meter.see(self.room.used)
            if len(features) >= 4:
                # Once: how coarsely a dtype holds a layer is a property of the network.
                some = features[:, :: max(1, features.numel() // SOME)]
                self.coarse.update(((side, one), found) for one, found in coarse_layers([name], [some]).items())
        if self.mode == "gram":
            if len(features) > FEW:
                raise StartAgainError
            held.gram = whole_gram(ArrayFeatures(features.to(self.home)), self.kernel)
            return held
        if self.mode == "chosen":
            span = self.wanted.get((side, name))
            if span is None:
                return held
            features = features[:, slice(*span)]
        size = features.numel() * features.dtype.itemsize
        if self.mode in ("survey", "file") and not self.room.take(size):
            held.features = self.written(features)
        else:
            if self.mode in ("all", "chosen"):
                self.room.used += size
            # A copy, because a later layer may change the activation in place.
            held.features = self.slabs.copy(features)
        return held

    def not_finite(self) -> tuple[int, str] | None:
        """Side and name of the first layer of this batch that holds NaN or infinity, of those not checked at once."""
        waiting, self._sums = self._sums, []
        if not waiting:
            return None
        finite = torch.stack([total.to(waiting[0][2].device) for *_, total in waiting]).isfinite().tolist()
        return next(((side, name) for (side, name, _), good in zip(waiting, finite, strict=True) if not good), None)


class FeatureKeeper:
    """The ``keep`` of one model's recorder: number ``side`` of the comparison."""

    def __init__(self, keeping: Keeping, side: int) -> None:
        self._keeping = keeping
        self._side = side
        self._last: float | None = None

    def __call__(self, name: str, features: torch.Tensor) -> Held:
        """What is kept of the layer. Raise NotFiniteError if its features hold NaN or infinity."""
        keeping = self._keeping
        now = time.perf_counter()
        if keeping.first and self._last is not None:
            keeping.forward_seconds += now - self._last
        held = keeping.keep(self._side, name, features)
        self._last = time.perf_counter()
        return held
