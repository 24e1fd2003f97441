"""Test whether the minibatches of a pass are random subsets of the data, as those of a DataLoader that shuffles."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import torch

from ...capture.progress import Resumable

__all__ = ["DIRECTIONS", "LEVEL", "SHARE", "BatchMeans", "Drift"]

DIRECTIONS = 8
"""Number of random projections of a layer whose means are compared."""

WIDEST = 2**14
"""Largest number of features that are projected; of a wider layer, evenly spaced ones are taken."""

LEVEL = 1e-4
"""Probability of a false alarm in shuffled data, for features with a normal distribution."""

SHARE = 0.05
"""Smallest share of the variance between batches that is reported. Below it, values are hardly affected."""


class Drift(NamedTuple):
    """The share of the variance of ``layer`` that lies between batches; about 0 for random batches."""

    layer: str
    share: float


class BatchMeans(Resumable):
    """Sums for the F-test of the batch means of one layer, on its device: nothing is read until ``drift``.

    If batches are random subsets, the variance of their means is that of the samples over the batch size, whatever the
    distribution. If the data are sorted by class or come from a slow process, it is many times larger.

    The layer is the last one of the first minibatch that varies. The sums start with the second minibatch, when it is
    known.
    """

    lasting = ("layer", "_names", "_shift", "_samples", "_batches", "_sums")

    def __init__(self) -> None:
        self.layer: str | None = None
        self._names: list[str] = []
        self._signs: torch.Tensor | None = None
        self._shift: torch.Tensor | None = None
        self._pending: tuple[int, torch.Tensor, torch.Tensor] | None = None
        self._samples = 0
        self._batches = 0
        self._sums: torch.Tensor | None = None

    def see(self, name: str, features: torch.Tensor) -> None:
        """Project the features (n, d) if this is the layer. A second call for a minibatch replaces the first."""
        if self.layer is None:
            self._names.append(name)
        if name != self.layer:
            return
        x = features[:, :: -(-features.shape[1] // WIDEST)]
        if self._signs is None or len(self._signs) != x.shape[1]:
            generator = torch.Generator().manual_seed(0)
            signs = torch.randint(0, 2, (x.shape[1], DIRECTIONS), generator=generator) * 2 - 1
            dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
            self._signs = signs.to(x.device, dtype, non_blocking=True)  # otherwise the host would wait for a GPU
        y = (x.to(self._signs.dtype) @ self._signs).double()
        if self._shift is None:
            self._shift = y[0]
        y = y - self._shift
        mean = y.mean(0)
        self._pending = len(y), mean, ((y - mean) ** 2).sum(0)

    def end_batch(self, flat: Collection[str] = ()) -> None:
        """Add the last minibatch that was seen; ``flat`` are layers whose features do not vary, or only by rounding."""
        if self.layer is None:
            self.layer = next((name for name in reversed(self._names) if name not in flat), None)
            self._names = []
        if self._pending is None:
            return
        n, mean, within = self._pending
        self._pending = None
        sums = torch.stack([n * mean, n * mean * mean, within])
        self._sums = sums if self._sums is None else self._sums + sums
        self._samples += n
        self._batches += 1

    def drift(self) -> Drift | None:
        """The drift of the minibatches so far; None if random minibatches would differ as much."""
        degrees = self._batches - 1, self._samples - self._batches
        if self._sums is None or self.layer is None or min(degrees) < 1:
            return None
        from scipy.special import fdtrc

        total, squares, within = self._sums.cpu().numpy()
        between = float((squares - total * total / self._samples).sum())
        spread = float(within.sum())
        if not spread > 0:
            return None
        # The sum over directions varies less than a single direction, so the F-test of one direction is conservative.
        ratio = between / degrees[0] / (spread / degrees[1])
        share = (ratio - 1) / (ratio - 1 + self._samples / self._batches)
        if not (share > SHARE and fdtrc(*degrees, ratio) < LEVEL):
            return None
        return Drift(self.layer, share)
