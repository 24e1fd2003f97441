"""How far the means of layers lie above their spreads: gathered on the device batch by batch, read now and then."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch

from ...capture.hooks import CaptureError
from ...capture.progress import Resumable

__all__ = ["FAR_WEIGHT", "Above", "Measures"]

FAR_WEIGHT = 1 / 3
"""Squares in the row of one far sample over the mean squares in the other rows, over the number of samples; about 1 for
a sample that is far from all others, and 1 / n where the mean lies above the spread of all."""


class Above(NamedTuple):
    """The minibatches in which a layer's ``mean_over_spread`` was too large: their number, and the worst of them.

    ``far`` tells whether its cause was one far sample, number ``sample``.
    """

    number: int
    measure: float
    batch: int
    sample: int
    far: bool


class Measures(Resumable):
    """The ``mean_over_spread`` of all layers of one model in all minibatches.

    Attributes
    ----------
    above : dict of str to Above
        The layers for which it was too large in some minibatch.
    batches : int
        Number of minibatches that ``read`` has read.
    """

    lasting = ("above", "batches", "_numbers", "_waiting")

    def __init__(self) -> None:
        self.above: dict[str, Above] = {}
        self.batches = 0
        self._numbers: list[int] = []
        self._waiting: list[torch.Tensor] = []

    def add(self, batch: int, found: torch.Tensor) -> None:
        """Add minibatch number ``batch``: measure, heaviest sample and its weight of each layer, (3, layers)."""
        self._numbers.append(batch)
        self._waiting.append(found)

    def read(self, model: str, limits: Mapping[str, float]) -> None:
        """Read from the device what was added since the last call.

        Parameters
        ----------
        model : str
            Its name in messages.
        limits : mapping of str to float
            For each layer, in order, the largest measure that is good.

        Raises
        ------
        CaptureError
            If a measure is NaN: the layer gave NaN or infinity. The message names model, layer and minibatch.
        """
        if not self._waiting:
            return
        names = list(limits)
        measures, samples, weights = torch.stack(self._waiting, 1).cpu()
        numbers, self._numbers, self._waiting = self._numbers, [], []
        bad = measures.isnan().nonzero()
        if len(bad):
            batch, layer = bad[0].tolist()
            raise CaptureError(
                f"Layer {names[layer]!r} of {model} gave NaN or infinity in batch {numbers[batch]}, or numbers whose "
                "squares are infinite. Check the input and weights; half precision may have overflowed."
            )
        self.batches += len(numbers)
        for layer, (name, limit) in enumerate(limits.items()):
            places = (measures[:, layer] > limit).nonzero()[:, 0].tolist()
            if places:
                worst = max(places, key=lambda place: float(measures[place, layer]))
                measure, sample, weight = (float(x[worst, layer]) for x in (measures, samples, weights))
                self._add(name, Above(len(places), measure, numbers[worst], int(sample), weight > FAR_WEIGHT))

    def _add(self, name: str, now: Above) -> None:
        before = self.above.get(name)
        if before is not None:
            worst = now if now.measure > before.measure else before
            now = worst._replace(number=before.number + now.number)
        self.above[name] = now
