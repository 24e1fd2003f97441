"""compare_features: the similarity of layers from features that were saved before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from ..estimators.kernels import Kernel
from ..similarity.matrix import SimilarityMatrix
from .checks import check_measure_options
from .dataset_pass import DatasetPass
from .grams.findings import coarse_layers
from .held import Held
from .request import Request

__all__ = ["compare_features"]


@dataclass(frozen=True)
class _Stored:
    """The features (n, d) of each layer of one model."""

    name: str
    features: dict[str, torch.Tensor] = field(repr=False)

    @property
    def names(self) -> list[str]:
        return list(self.features)

    @property
    def compared(self) -> list[str]:
        return self.names

    def notes(self) -> list[str]:
        return []


def compare_features(
    x: Mapping[str, Any],
    y: Mapping[str, Any] | None = None,
    *,
    kernel: Kernel | None = None,
    estimator: str = "unbiased",
    measure: str = "cka",
    names: tuple[str, str] = ("x", "y"),
    memory: int | str | None = None,
    route: str | None = None,
    progress: bool = True,
    **options: Any,
) -> SimilarityMatrix:
    """CKA, or another measure, of every layer in one set of features with every layer in another.

    Parameters
    ----------
    x, y : mapping of str to array (n, ...)
        Features by layer: numpy arrays or tensors, for example from ``extract``. All must hold the same samples in the
        same order. Axes after the first are flattened; tensors stay on their device. If ``y`` is left out, ``x`` is
        compared with itself.
    kernel, estimator, measure, memory, route, progress, **options
        As ``compare``: ``measure="mutual_knn", k=5``.
    names : (str, str)
        Names of ``x`` and ``y`` in the result, its plots and messages.

    Returns
    -------
    SimilarityMatrix
        Exact over all samples, as ``compare`` with ``scope="dataset"``.

    Raises
    ------
    TypeError
        If ``x`` or ``y`` is not a mapping, or an array does not hold real numbers; the message names the layer.
    ValueError
        If the layers differ in their number of samples, have too few samples, or hold NaN or infinity; and as
        ``compare``.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> features = {"conv": rng.normal(size=(50, 8)), "fc": rng.normal(size=(50, 3))}
    >>> compare_features(features, progress=False).to_frame().shape
    (2, 2)
    """
    check_measure_options(compare_features, measure, options)
    if isinstance(names, str) or len(names) != 2:
        raise ValueError(f"`names` must be two, for x and y, got {names!r}.")
    sides = [_stored(names[0], x)]
    if y is not None and y is not x:
        sides.append(_stored(names[1], y))
    first = next(iter(sides[0].features.values()))
    for side in sides:
        for layer, features in side.features.items():
            if len(features) != len(first):
                raise ValueError(
                    f"{side.name}: {layer!r} has {len(features)} samples and {sides[0].names[0]!r} of {names[0]} has "
                    f"{len(first)}. All must hold the same samples in the same order."
                )
    if len({features.dtype for side in sides for features in side.features.values()}) > 1:
        sides = [_Stored(s.name, {layer: features.double() for layer, features in s.features.items()}) for s in sides]
    least = 4 if measure == "cka" and estimator == "unbiased" else 2
    if len(first) < least:
        raise ValueError(f"The features have {len(first)} samples, but this needs at least {least}.")
    request = Request(
        first,
        kernel=kernel,
        estimator=estimator,
        scope="dataset",
        measure=measure,
        memory=memory,
        route=route,
        progress=progress,
        options=options,
    )
    gathered = DatasetPass(request, first.device, again=False, batches=1, held=True)
    gathered.begin(sides)
    kept: list[list[Held | None]] = [
        [Held(name, x.shape[1], x.dtype, x) for name, x in side.features.items()] for side in sides
    ]
    if len(first) >= 4:
        gathered.coarse = {
            (number, layer): found
            for number, side in enumerate(sides)
            for layer, found in coarse_layers(side.names, list(side.features.values())).items()
        }
    gathered.consume(0, kept, len(first))
    gathered.end_pass()
    meta = {"model_x": names[0], "model_y": names[1] if len(sides) == 2 else names[0], "partial": False}
    return gathered.result([], meta)


def _stored(name: str, features: Mapping[str, Any]) -> _Stored:
    if not isinstance(features, Mapping):
        raise TypeError(f"{name}: the features must be a mapping of layers to arrays, got {type(features).__name__}.")
    if not features:
        raise ValueError(f"{name} holds no features.")
    return _Stored(name, {layer: _checked(f"{name}: {layer!r}", array) for layer, array in features.items()})


def _checked(what: str, array: Any) -> torch.Tensor:
    """The array as a tensor (n, d) of float32 or float64; messages call it ``what``."""
    try:
        tensor = torch.as_tensor(array)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{what} is not an array of numbers: {error}") from error
    if tensor.is_complex() or tensor.dtype == torch.bool:
        raise TypeError(f"{what} is of dtype {tensor.dtype}; features are real numbers.")
    if tensor.ndim < 1 or tensor.numel() == 0:
        raise ValueError(f"{what} has shape {tuple(tensor.shape)}; features have shape (samples, ...).")
    tensor = tensor.reshape(len(tensor), -1)
    if not tensor.is_floating_point():
        tensor = tensor.double()
    elif tensor.dtype not in (torch.float32, torch.float64):
        tensor = tensor.float()
    bad = (~torch.isfinite(tensor)).any(1).nonzero()
    if len(bad):
        raise ValueError(f"{what} holds NaN or infinity, first in sample {int(bad[0])}.")
    return tensor
