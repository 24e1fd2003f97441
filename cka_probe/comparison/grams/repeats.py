"""On a CPU: later minibatches of a layer repeat the decision of the first, and a review finds where that was wrong."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ...capture.progress import Resumable
from ...estimators.gram_accuracy import MEAN_LIMIT, over_spread
from ...estimators.layer_grams import FEW, LayerGram, Mode, less_mean, less_row
from .doubts import doubted_layers

__all__ = ["Repeats"]

NEAR_LIMIT = 0.7 * MEAN_LIMIT
"""Above this ``mean_over_spread`` a layer gets a new decision in every minibatch on a CPU."""

LOW = MEAN_LIMIT / 4
"""Above this ``mean_over_spread`` of raw features a later minibatch may well be beyond the limit.

The model then has to run on it again, so the mean of the first minibatch is subtracted from features that are not too
wide."""

WIDEST_MEAN = 4096
"""A wider layer keeps no mean for later minibatches: its 16 KB are little beside its activation."""


class Repeats(Resumable):
    """The linear Gram matrices of layers whose decision was made in an earlier minibatch.

    Taking the mean off costs a product with the features. So the features of the first sample are subtracted instead,
    or the mean of the first minibatch, where ``learn`` saw that this is as accurate.
    """

    lasting = ("_careful", "_float64", "_by_first", "_first_means")

    def __init__(self) -> None:
        self._careful: set[str] = set()  # layers that get a new decision in every minibatch
        self._float64: set[str] = set()  # layers in float32 whose spread is too small for a Gram matrix in float32
        self._by_first: set[str] = set()  # layers from which the first sample is subtracted
        self._first_means: dict[str, torch.Tensor] = {}  # (1, p): what is subtracted from others
        self._mean_squares: dict[str, torch.Tensor | None] = {}

    def in_float64(self, name: str) -> bool:
        """Whether a layer goes straight to ``float64_gram``."""
        return name in self._float64

    def learn(self, name: str, features: torch.Tensor, result: LayerGram, *, first: bool) -> None:
        """Take in a decision about a layer: ``layer_gram`` of these features; ``first`` if it is the first of all."""
        if first and features.shape[1] <= WIDEST_MEAN and _mean_serves(result):
            self._first_means[name] = features.mean(0, keepdim=True)
            return
        if result.over_spread > NEAR_LIMIT:
            self._careful.add(name)  # a decision costs less than another forward when a later minibatch is beyond
        if result.far is not None:
            self._float64.discard(name)  # the far sample is not in every minibatch
        elif result.mean_over_deviation is not None and features.dtype == torch.float32:
            self._float64.add(name)
        if first and _sample_serves(result):
            self._by_first.add(name)

    def gram(self, name: str, features: torch.Tensor, mode: Mode | None) -> LayerGram | None:
        """The Gram matrix of a layer in its mode, for ``review``; None if a new decision is needed."""
        if mode not in ("raw", "shifted") or name in self._careful or len(features) < FEW:
            return None
        square = None
        if (mean := self._first_means.get(name)) is not None and mean.shape[1] == features.shape[1]:
            gram = less_row(features, mean)
        elif mode == "raw":
            gram = features @ features.T
        elif name in self._by_first:
            gram = less_row(features, features[:1])
        else:
            gram, square = less_mean(features)
        self._mean_squares[name] = square
        return LayerGram(gram, 1.0, mode)

    def review(self, kept: Mapping[str, LayerGram]) -> bool:
        """Whether the Gram matrices that ``gram`` returned since the last review are accurate.

        Otherwise the model must run on the batch again. A layer from which the mean of the first minibatch was
        subtracted then loses its own mean; any other layer gets a new decision in every later minibatch. So the number
        of runs is finite.

        Parameters
        ----------
        kept : mapping of str to LayerGram
            The Gram matrices by layer.
        """
        asked, self._mean_squares = self._mean_squares, {}
        doubted = doubted_layers({name: kept[name].gram for name in asked}, asked)
        self._careful.update(name for name in doubted if self._first_means.pop(name, None) is None)
        return not doubted


def _sample_serves(result: LayerGram) -> bool:
    """Whether the features of a sample can be subtracted instead of the mean; other samples may lie farther."""
    return result.mode == "shifted" and result.by_sample < MEAN_LIMIT / 2


def _mean_serves(result: LayerGram) -> bool:
    """Whether the mean of this minibatch can be subtracted from later ones, whose means are other ones."""
    if result.mode == "shifted":
        return result.over_spread < MEAN_LIMIT / 8 and not _sample_serves(result)
    if result.mode != "raw" or result.far is not None or result.over_spread < LOW:
        return False
    size = float(result.gram.diagonal().mean())
    return over_spread(torch, result.gram, size, 0.0)[1] < MEAN_LIMIT / 8
