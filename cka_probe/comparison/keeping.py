"""What the hooks keep in each pass of a comparison over a whole data set, by its route."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..capture.hooks import CaptureError
from ..capture.outputs import not_finite
from ..estimators.dataset.routes import Slice
from .feature_keeper import Keeping
from .held import Room

if TYPE_CHECKING:
    from .dataset_pass import DatasetPass

__all__ = ["keeping_of", "see_batch", "wanted_columns"]


def keeping_of(gathered: DatasetPass) -> Keeping:
    """What the hooks of the coming pass keep."""
    kernel, home, route = gathered.request.kernel, gathered.home, gathered.route
    if gathered.at_once:
        return Keeping("gram", Room(0), kernel, home, gathered.memory)
    if gathered.persists:
        return Keeping("file", Room(0), kernel, home, gathered.memory)
    if route is None and gathered.request.measure == "cka":
        return Keeping("survey", Room(gathered.memory // 2), kernel, home, gathered.memory)
    if route is not None and route.name == "grams":
        keeping = Keeping("chosen", Room(0), kernel, home, gathered.memory)
        keeping.first = keeping.checks = gathered.passes_done == 0
        keeping.wanted = wanted_columns(gathered, route.groups[gathered.passes_done])
        return keeping
    if route is not None and route.name == "disk":
        return Keeping("file", Room(route.room), kernel, home, gathered.memory)
    return Keeping("all", Room(gathered.memory), kernel, home, gathered.memory)


def see_batch(gathered: DatasetPass, index: int) -> None:
    """Take what the hooks have marked in the first batch of this pass, and check batch number ``index``.

    Raises
    ------
    CaptureError
        If a layer gave NaN or infinity, on a device that is asked once a batch.
    """
    keeping, sides = gathered.kept_by, gathered.sides
    if keeping is None:
        return
    if (bad := keeping.not_finite()) is not None:
        raise CaptureError(not_finite(bad[1], sides[bad[0]].name, index, None))
    if keeping.marks:
        gathered.seen = {(sides[side].name, layer): mark for (side, layer), mark in keeping.marks.items()}
        gathered.marks = gathered.marks or gathered.seen
        keeping.marks, keeping.looks_only = None, False


def wanted_columns(gathered: DatasetPass, group: Sequence[Slice]) -> dict[tuple[int, str], tuple[int, int]]:
    """The range of columns that a pass takes of each layer, by side and name."""
    found = {}
    for part in group:
        side, place = gathered.rows[gathered.units[part.place]]
        found[side, gathered.names[side][place]] = part.start, part.stop
    return found
