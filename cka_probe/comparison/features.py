"""compare_features: what ``compare`` says of two networks, of features that were saved before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from ..estimators.kernels import Kernel
from ..similarity.matrix import SimilarityMatrix
from .dataset import DatasetPass
from .request import make_request


@dataclass(frozen=True)
class _Stored:
    """Features of the layers of one model, (n, d) each."""

    name: str
    features: dict[str, torch.Tensor] = field(repr=False)

    @property
    def names(self) -> list[str]:
        return list(self.features)

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
    progress: bool = True,
) -> SimilarityMatrix:
    """The similarity of every layer of one set of features with every layer of another, exact over all samples.

    Parameters
    ----------
    x, y : mapping of str to array (n, ...)
        Features by layer, of the same samples in the same order: what ``extract`` returns, numpy arrays, tensors. ``x``
        with itself when ``y`` is left out. More axes are flattened; tensors stay on their device.
    kernel, estimator, measure, progress
        As ``compare``.
    names : (str, str)
        What the result, its pictures and messages call the two.

    Returns
    -------
    SimilarityMatrix
        As ``compare`` with ``scope="dataset"``.

    Raises
    ------
    TypeError
        If ``x`` or ``y`` is no mapping, or an array is not of real numbers; the message names it.
    ValueError
        If a layer has other samples than the first, too few, or NaN or infinity; and as ``compare``.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> features = {"conv": rng.normal(size=(50, 8)), "fc": rng.normal(size=(50, 3))}
    >>> compare_features(features, progress=False).to_frame().shape
    (2, 2)
    """
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
    request = make_request(
        first,
        kernel=kernel,
        estimator=estimator,
        scope="dataset",
        measure=measure,
        square=False,
        progress=progress,
    )
    gathered = DatasetPass(sides, request, first.device)
    gathered.consume(0, [list(side.features.values()) for side in sides], len(first))
    meta = {"model_x": names[0], "model_y": names[1] if len(sides) == 2 else names[0], "partial": False}
    return gathered.result([], meta, models=False)


def _stored(name: str, features: Mapping[str, Any]) -> _Stored:
    if not isinstance(features, Mapping):
        raise TypeError(f"{name}: the features must be a mapping of layers to arrays, got {type(features).__name__}.")
    if not features:
        raise ValueError(f"{name} holds no features.")
    return _Stored(name, {layer: _checked(f"{name}: {layer!r}", array) for layer, array in features.items()})


def _checked(what: str, array: Any) -> torch.Tensor:
    """A tensor (n, d) of float32 or float64."""
    try:
        tensor = torch.as_tensor(array)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{what} is no array of numbers: {error}") from error
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
