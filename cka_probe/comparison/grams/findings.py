"""What the minibatches of one model showed about its layers, as notes: constant layers, far samples, rounding."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

import torch

from ...capture.notes import listed
from ...capture.progress import Resumable
from ...estimators.gram_accuracy import resolution
from ...estimators.kernels import MEDIAN_ZERO, Kernel, Linear
from ...estimators.layer_grams import LayerGram

__all__ = [
    "COARSE",
    "FEW_CONSTANT",
    "FarSample",
    "Findings",
    "coarse_layers",
    "coarse_notes",
    "coarseness",
    "undefined_note",
    "undefined_reason",
]

COARSE = 0.05
"""A note is given if the rounding of the means is above this part of the spread. It costs CKA up to about 3e-4."""

FEW_CONSTANT = 0.5
"""With the linear kernel, a layer that is constant in this part of the minibatches or fewer has no note."""


def coarseness(features: torch.Tensor, dtype: torch.dtype, mean_over_deviation: float | None = None) -> float:
    """``resolution`` of features (n, d) that were computed in ``dtype``; 0 if it is too small for a note.

    The coarser half precision is a choice of the user: only a spread that is mostly rounding counts there. The features
    are read if ``mean_over_deviation``, the resolution over the rounding unit, is None.
    """
    eps = torch.finfo(dtype).eps
    found = float(resolution(features, eps)) if mean_over_deviation is None else eps * mean_over_deviation
    limit = COARSE if dtype in (torch.float32, torch.float64) else 10 * COARSE
    return found if limit < found < math.inf else 0.0


def coarse_layers(names: Sequence[str], features: Sequence[torch.Tensor]) -> dict[str, tuple[float, torch.dtype]]:
    """The ``coarseness`` and dtype of the layers for which it is not 0."""
    found = {name: (coarseness(x, x.dtype), x.dtype) for name, x in zip(names, features, strict=True)}
    return {name: part for name, part in found.items() if part[0]}


def coarse_notes(model: str, coarse: dict[str, tuple[float, torch.dtype]]) -> list[str]:
    """One note on the layers whose spread is near the rounding of their mean, by their ``coarseness`` and dtype."""
    if not coarse:
        return []
    worst, dtype = max(coarse.values(), key=lambda found: found[0])
    name = str(dtype).removeprefix("torch.")
    wider = "float64: model.double(), data in float64" if dtype == torch.float32 else "a wider dtype"
    return [
        f"{model}: the spread of {listed(list(coarse))} is so small beside the mean that one step of {name} is up to "
        f"{worst:.0%} of it. The values of these layers, and of layers that are computed from them, hold this "
        f"rounding. Compare the model in {wider}."
    ]


def undefined_reason(kernel: Kernel) -> str:
    """Why a kernel gives NaN or infinity for finite features."""
    if getattr(kernel, "bandwidth", None) == "median":
        example = f"{type(kernel).__name__}(bandwidth=1.0)"
        return f"the median distance is 0: {MEDIAN_ZERO}. Pass a number, such as {example}"
    return f"{kernel!r} gives NaN or infinity for their features. Scale the features, or choose another kernel"


def undefined_note(model: str, layers: Sequence[str], reason: str) -> str:
    """A note on layers whose values are NaN because of the kernel."""
    return f"{model}: the similarity of {listed(layers)} is undefined, because in some batches {reason}"


class FarSample(NamedTuple):
    """One sample far from all others: its minibatch, its index in it, and its distance over the usual one.

    ``error`` is the rounding error of CKA that it causes; empty if the Gram matrix is exact.
    """

    batch: int
    sample: int
    distance: float
    error: str = ""


class Findings(Resumable):
    """Layers of one model, by what their features or Gram matrices showed.

    Parameters
    ----------
    kernel : Kernel
        The kernel of the Gram matrices.

    Attributes
    ----------
    far : dict of str to FarSample
        Layers with one sample far from all others; the farthest of each layer.
    undefined : set of str
        Layers whose Gram matrix was not finite though their features were.
    """

    lasting = ("far", "undefined", "_coarse", "_constant", "_batches", "_alike", "_zero")

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.far: dict[str, FarSample] = {}
        self.undefined: set[str] = set()
        self._coarse: dict[str, tuple[float, torch.dtype]] = {}
        self._constant: torch.Tensor | None = None
        self._batches = 0
        self._alike: set[str] = set()
        self._zero: set[str] = set()
        self._differ: dict[str, torch.Tensor] = {}

    def look(
        self, name: str, features: torch.Tensor, dtype: torch.dtype, mean_over_deviation: float | None = None
    ) -> None:
        """Note how coarsely ``dtype`` holds the features (n, d) of a layer. This reads a number from the device.

        The arguments are those of ``coarseness``.
        """
        found = coarseness(features, dtype, mean_over_deviation)
        if found > self._coarse.get(name, (0.0, dtype))[0]:
            self._coarse[name] = found, dtype

    @property
    def flat(self) -> set[str]:
        """Layers whose features did not vary in the first minibatch, or varied by rounding only."""
        return self._zero | self._coarse.keys()

    def far_sample(self, name: str, batch: int, sample: int, distance: float, error: str = "") -> None:
        """Keep the farthest sample of a layer; the arguments are those of ``FarSample``."""
        if name not in self.far or distance > self.far[name].distance:
            self.far[name] = FarSample(batch, sample, distance, error)

    def first(self, name: str, features: torch.Tensor) -> None:
        """For a kernel that is not linear: keep whether the samples differ in the first minibatch."""
        if self._batches == 0:
            self._differ[name] = (features != features[:1]).any()

    def observe(self, names: Sequence[str], grams: Sequence[LayerGram], rows: torch.Tensor) -> None:
        """Count the layers whose centred Gram matrices ``rows`` (layers, n * n) are zero.

        A layer is called constant in the result only if it is so in every minibatch, hence in the first. So the first
        one tells why: its samples are equal, or all pairs of them are equally similar. Later ones read nothing.
        """
        zero = ~rows.any(1)
        if self._batches == 0:
            for place in zero.nonzero()[:, 0].tolist():
                self._zero.add(names[place])
                if self._samples_differ(names[place], grams[place].gram):
                    self._alike.add(names[place])
            self._differ = {}
        self._constant = zero.long() if self._constant is None else self._constant + zero
        self._batches += 1

    def _samples_differ(self, name: str, gram: torch.Tensor) -> bool:
        if name in self._differ:
            return bool(self._differ[name])
        n = len(gram)
        diagonal = gram.diagonal().double()
        # Half the mean squared distance of two samples.
        apart = float(diagonal.mean() - (gram.double().sum() - diagonal.sum()) / (n * (n - 1)))
        return apart > 1e-3 * float(diagonal.abs().max())

    def reasons(self) -> dict[str, str]:
        """Why the similarity of a layer is undefined, for layers that are not constant: the end of a sentence."""
        if isinstance(self.kernel, Linear):
            why = (
                "not constant, but all pairs of its samples are equally similar in every batch, as one-hot features are"
            )
        else:
            why = (
                f"not constant, but {self.kernel!r} is the same for all pairs of samples in every batch (choose "
                "parameters that fit the scale of the features)"
            )
        return dict.fromkeys(self._alike, why)

    def notes(self, model: str, names: Sequence[str], compared: Collection[str]) -> list[str]:
        """One note for each kind, on those of the layers that are ``compared``."""
        notes = coarse_notes(model, {name: self._coarse[name] for name in names if name in self._coarse})
        lost = [name for name in names if name in self.undefined and name in compared]
        if lost:
            notes.append(undefined_note(model, lost, undefined_reason(self.kernel)))
        return [*notes, *self._far_notes(model, names, compared), *self._constant_notes(model, names, compared)]

    def _far_notes(self, model: str, names: Sequence[str], compared: Collection[str]) -> Iterable[str]:
        by_sample: dict[tuple[int, int, bool], list[str]] = {}
        for name in names:
            if name in self.far and name in compared:
                found = self.far[name]
                by_sample.setdefault((found.batch, found.sample, found.error == ""), []).append(name)
        for (batch, sample, exact), layers in by_sample.items():
            distance = max(self.far[name].distance for name in layers)
            times = f"up to {distance:.0e} times as far out as" if distance < math.inf else "far out beside"
            rest = "so the values of these layers are those of this one sample. Check it, or leave it out"
            if not exact:
                error = self.far[layers[0]].error
                rest = (
                    f"and the rounding error of the values of these layers is {error}. Check this sample, leave it "
                    "out, or compare on the CPU, which then computes in float64"
                )
            yield f"{model}: sample {sample} of batch {batch} lies {times} the others in {listed(layers)}, {rest}"

    def _constant_notes(self, model: str, names: Sequence[str], compared: Collection[str]) -> Iterable[str]:
        if self._constant is None:
            return
        by_count: dict[int, list[str]] = {}
        for name, count in zip(names, self._constant.tolist(), strict=True):
            few = FEW_CONSTANT * self._batches if isinstance(self.kernel, Linear) else 0
            if few < count < self._batches and name in compared and name not in self.undefined:
                by_count.setdefault(count, []).append(name)
        for count, layers in by_count.items():
            are = "is" if len(layers) == 1 else "are"
            yield (
                f"{model}: {listed(layers)} {are} constant over the samples of {count} of {self._batches} batches; "
                "these batches have no weight in the values"
            )
