"""From the features of a pass over a whole data set to the Gram matrices of its layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..estimators.dataset.gram_stack import GramStack
from ..estimators.dataset.layer_parts import whole_gram
from ..estimators.dataset.routes import Route
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
        check_stack(len(gathered.units), gathered.samples, request.estimator, gathered.memory)
        gathered.stack = GramStack(gathered.samples, request.estimator)
    without = left_out(gathered)
    for unit in gathered.units:
        if unit in gathered.grams:
            gathered.stack.add(unit, gathered.grams.pop(unit))
        elif unit in gathered.blocks and unit not in without:
            gram = whole_gram(FeatureBlocks(gathered.blocks.pop(unit), gathered.home), request.kernel)
            if unit in gathered.in_parts:
                gram = gathered.in_parts.pop(unit) + gram
            width = gathered.widths[gathered.units.index(unit)]
            if unit in parts and parts[unit].stop < width:
                gathered.in_parts[unit] = gram
            else:
                gathered.stack.add(unit, gram)


def left_out(gathered: DatasetPass) -> set[int]:
    """Units that were left out after the first batch, of which some samples are missing."""
    kept = [set(side.compared) for side in gathered.sides]
    named = {unit: gathered.rows[unit] for unit in gathered.units}
    return {unit for unit, (side, place) in named.items() if gathered.sides[side].names[place] not in kept[side]}
