"""From the features of a pass over a whole data set to the Gram matrices of its layers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING

from ..estimators.dataset.gram_stack import GramStack
from ..estimators.dataset.layer_parts import whole_gram
from ..estimators.dataset.routes import Route, Slice
from .dataset_together import exchanged, owner
from .feature_blocks import FeatureBlocks
from .route_choice import check_stack

if TYPE_CHECKING:
    from .dataset_pass import DatasetPass

__all__ = ["end_grams", "left_out"]


def end_grams(gathered: DatasetPass, route: Route) -> None:
    """Add the Gram matrices of the layers of this pass to the stack, and let their features go.

    Raises
    ------
    ValueError
        If they do not fit into the memory, because the data are longer than they said.
    """
    request = gathered.request
    parts = (
        {gathered.units[part.place]: part for part in route.groups[gathered.passes_done]}
        if route.name == "grams"
        else {}
    )
    if gathered.stack is None:
        samples = sum(map(sum, gathered.sizes_of)) if gathered.together else gathered.samples
        check_stack(len(gathered.units), samples, request.estimator, gathered.memory)
        gathered.stack = GramStack(samples, request.estimator)
    without = left_out(gathered)
    if gathered.together:
        _end_together(gathered, [unit for unit in parts or gathered.units if unit not in without], parts)
        return
    for unit in gathered.units:
        if unit in gathered.grams:
            gathered.stack.add(unit, gathered.grams.pop(unit))
        elif unit in gathered.blocks and unit not in without:
            _add(gathered, unit, FeatureBlocks(gathered.blocks.pop(unit), gathered.home), parts)


def _add(gathered: DatasetPass, unit: int, features: FeatureBlocks, parts: dict[int, Slice]) -> None:
    """Add the Gram matrix of the columns of a unit that this pass has taken."""
    assert gathered.stack is not None
    gathered.watch.see(features.shape[0] * (8 * features.shape[0] + 4 * features.shape[1]))
    gram = whole_gram(features, gathered.request.kernel)
    if unit in gathered.in_parts:
        gram = gathered.in_parts.pop(unit) + gram
    width = gathered.widths[gathered.units.index(unit)]
    if unit in parts and parts[unit].stop < width:
        gathered.in_parts[unit] = gram
    else:
        gathered.stack.add(unit, gram)


def _end_together(gathered: DatasetPass, units: Sequence[int], parts: dict[int, Slice]) -> None:
    """Deal the units out to the processes, and send each the features of all samples, one unit at a time."""
    widths = dict(zip(gathered.units, gathered.widths, strict=True))
    columns = {unit: parts[unit].stop - parts[unit].start if unit in parts else widths[unit] for unit in units}
    queues: list[list[int]] = [[] for _ in range(gathered.together.world)]
    for unit in units:
        queues[owner(gathered, unit)].append(unit)
    for wanted in zip_longest(*queues):
        features = exchanged(gathered, wanted, columns)
        own = wanted[gathered.together.rank]
        if features is not None and own is not None:
            _add(gathered, own, features, parts)
    gathered.blocks = {}


def left_out(gathered: DatasetPass) -> set[int]:
    """Units that were left out after the first batch, of which some samples are missing."""
    kept = [set(side.compared) for side in gathered.sides]
    named = {unit: gathered.rows[unit] for unit in gathered.units}
    return {unit for unit, (side, place) in named.items() if gathered.sides[side].names[place] not in kept[side]}
