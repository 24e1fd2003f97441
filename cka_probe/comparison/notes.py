"""Notes of a result on layers whose values are undefined or rest on few batches, one line for each kind and model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..capture.notes import listed
from ..capture.pooling import Pooling
from .grams.drift import Drift

__all__ = ["drift_notes", "one_batch_notes", "rows_are_samples", "undefined_notes"]


def undefined_notes(undefined: Mapping[tuple[str, str], str]) -> list[str]:
    """One note for each model and reason.

    Parameters
    ----------
    undefined : mapping of (str, str) to str
        For each model and layer what the layer is, to follow "is" or "are".

    Examples
    --------
    >>> undefined_notes({("net", "a"): "constant", ("net", "b"): "constant"})
    ["net: 2 layers are constant, so their similarity is undefined: 'a', 'b'"]
    """
    groups: dict[tuple[str, str], list[str]] = {}
    for (model, layer), why in undefined.items():
        groups.setdefault((model, why), []).append(layer)
    return [
        f"{model}: {layers[0]!r} is {why}, so its similarity is undefined"
        if len(layers) == 1
        else f"{model}: {len(layers)} layers are {why}, so their similarity is undefined: {listed(layers)}"
        for (model, why), layers in groups.items()
    ]


def one_batch_notes(layers: Sequence[tuple[str, str]], batches: int) -> list[str]:
    """One note for each model on its layers (model, layer) whose values are those of one of several batches."""
    groups: dict[str, list[str]] = {}
    for model, layer in layers:
        groups.setdefault(model, []).append(layer)
    return [
        f"{model}: one of the {batches} batches has more than half of the weight in the values of {listed(names)}, "
        "because the layers vary far more in it. Their standard errors are too small. Look for samples of another scale"
        for model, names in groups.items()
    ]


def rows_are_samples(pooling: Pooling) -> bool:
    """Whether a pooling gives one row of features for each sample; positions of one sample are not independent."""
    return isinstance(pooling, str) and pooling not in ("spatial", "all")


def drift_notes(drifts: Sequence[tuple[str, Drift | None]]) -> list[str]:
    """A note on batches that are no random subsets of the data, from the drift of each model."""
    found = [(drift.share, model, drift.layer) for model, drift in drifts if drift is not None]
    if not found:
        return []
    share, model, layer = max(found)
    return [
        f"the batches differ more than random ones: {share:.0%} of the variance of {layer!r} of {model} lies between "
        "batches, as in data sorted by class. Each batch then shows a part of the variety only, and minibatch values "
        "are not those of shuffled data. Shuffle the data once before batching (DataLoader(..., shuffle=True)), or use "
        'scope="dataset"'
    ]
