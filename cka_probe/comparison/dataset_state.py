"""What a comparison over a whole data set goes on from after an interruption, between two batches or two passes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ..capture.trees import move
from ..estimators.dataset.gram_stack import GramStack
from ..estimators.dataset.layer_parts import WholeGram
from .feature_blocks import FeatureFile, FilePart

if TYPE_CHECKING:
    from .dataset_pass import DatasetPass

__all__ = ["pass_state", "restore_pass"]

PLAIN = (
    "again",
    "batches",
    "coarse",
    "flat",
    "marks",
    "names",
    "no_room",
    "notes",
    "owners",
    "passes_done",
    "planned",
    "route",
    "rows",
    "samples",
    "sizes",
    "units",
    "unknown_length",
    "widths",
)
"""Attributes of a ``DatasetPass`` that are numbers, texts and containers of them."""


def pass_state(gathered: DatasetPass) -> dict[str, Any]:
    """The state between two batches or passes, whose tensors are not copied: to be written at once."""
    stack = gathered.stack
    return {
        **{name: getattr(gathered, name) for name in PLAIN},
        "statistics": None if gathered.statistics is None else gathered.statistics.state_dict(live=True),
        "stack": None if stack is None else {name: getattr(stack, name) for name in STACK},
        "in_parts": {unit: dict(vars(gram)) for unit, gram in gathered.in_parts.items()},
        "blocks": _places(gathered) if gathered.persists else None,
    }


STACK = ("samples", "rows", "null_sums", "reasons")


def restore_pass(gathered: DatasetPass, state: dict[str, Any], file: FeatureFile | None) -> None:
    """Go on from a state. ``file`` holds the features, if the state has places in it."""
    for name in PLAIN:
        setattr(gathered, name, state[name])
    gathered.at_once = False
    if state["statistics"] is not None:
        gathered.start_statistics()
        gathered.statistics.load_state_dict(move(state["statistics"], gathered.home), live=True)
    if state["stack"] is not None:
        gathered.stack = GramStack(state["stack"]["samples"], gathered.request.estimator)
        for name in STACK:
            setattr(gathered.stack, name, move(state["stack"][name], gathered.home))
    gathered.in_parts = {unit: WholeGram(**move(gram, gathered.home)) for unit, gram in state["in_parts"].items()}
    if state["blocks"] is not None and file is not None:
        gathered.blocks = _blocks(gathered, state["blocks"], file)


def _places(gathered: DatasetPass) -> dict[str, Any]:
    """Where the features of each batch and unit begin in the file, in one tensor; -1 for a unit that was left out."""
    starts = torch.full((len(gathered.units), gathered.batches), -1, dtype=torch.int64)
    dtypes = []
    for place, unit in enumerate(gathered.units):
        parts = [part for part in gathered.blocks.get(unit, ()) if isinstance(part, FilePart)]
        starts[place, : len(parts)] = torch.tensor([part.start for part in parts], dtype=torch.int64)
        dtypes.append(parts[0].dtype if parts else torch.float32)
    return {"starts": starts, "dtypes": dtypes}


def _blocks(gathered: DatasetPass, places: dict[str, Any], file: FeatureFile) -> dict[int, list[Any]]:
    return {
        unit: [
            FilePart(file, start, (rows, width), dtype)
            for start, rows in zip(starts, gathered.sizes, strict=True)
            if start >= 0
        ]
        for unit, width, dtype, starts in zip(
            gathered.units, gathered.widths, places["dtypes"], places["starts"].tolist(), strict=True
        )
    }
