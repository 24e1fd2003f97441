"""The statistics, features or Gram matrices of a data set, over one pass or several, and the route that is chosen."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..capture.batches import expected_samples
from ..estimators.dataset.data_size import DataSize, Rates
from ..estimators.dataset.gram_stack import GramStack
from ..estimators.dataset.layer_parts import FEW, WholeGram
from ..estimators.dataset.moments import MomentCKA
from ..estimators.dataset.routes import Route
from ..similarity.matrix import SimilarityMatrix
from .dataset_together import begin_sketch, join_statistics
from .feature_blocks import FilePart, disk_room
from .feature_keeper import Keeping
from .gram_pass import end_grams, left_out
from .held import Held, Side, StartAgainError, let_go, some_columns, whole
from .keeping import keeping_of, see_batch, wanted_columns
from .memory import HeapWatch, checked_memory
from .request import Request
from .route_choice import PlannedError, weigh_routes
from .together import Together

__all__ = ["DatasetPass"]


class DatasetPass:
    """Accumulate statistics, features or Gram matrices batch by batch, and compute the similarities at the end.

    The route is chosen after the first batch, because it depends on the widths of the layers.

    Parameters
    ----------
    request : Request
        The options.
    home : torch.device
        Where statistics and features are kept.
    again : bool
        Whether the data can be read several times.
    batches : int or None
        Number of batches, if it is certain.
    held : bool
        Whether the features of all samples are in memory already.
    together : Together, optional
        The processes that compare together, each a shard of the data.

    Attributes
    ----------
    memory : int
        Bytes that it may take.
    route : Route or None
        What was chosen.
    plan : list of Route
        Every route as it was weighed.
    samples, batches : int
        Numbers of rows and of batches of this pass.
    sizes : list of int
        Rows of each batch of the first pass.
    """

    def __init__(
        self,
        request: Request,
        home: torch.device,
        *,
        again: bool,
        batches: int | None,
        held: bool = False,
        together: Together | None = None,
    ) -> None:
        self.request = request
        self.home = home
        self.together = Together(False) if together is None else together
        self.again = again
        self.can_restart = again and not self.together
        self.held = held
        self.memory = checked_memory(request.memory, home)
        if self.together and request.memory is None and home.type == "cpu":
            self.memory //= int(os.environ.get("LOCAL_WORLD_SIZE", self.together.world))
        self.watch = HeapWatch(home, self.memory)
        self.route: Route | None = None
        self.plan: list[Route] = []
        self.size: DataSize | None = None
        self.rates = Rates()
        self.plans_only = False
        """Whether the first batch ends the pass, as soon as the routes are weighed."""
        self.passes_done = 0
        self.samples = self.batches = 0
        self.sizes: list[int] = []
        self.sizes_of: list[list[int]] = []
        """Rows of each batch, by process."""
        self.notes: list[str] = []
        self.sides: Sequence[Side] = ()
        self.statistics: Any = None
        self.stack: GramStack | None = None
        self.names: list[list[str]] = []
        """The layers of each side."""
        self.rows: list[tuple[int, int]] = []
        """For each layer its side and its number there."""
        self.owners: list[int] = []
        """For each layer the one whose output it returns, or itself."""
        self.units: list[int] = []
        """The layers that are their own owners."""
        self.widths: list[int] = []
        self.dtypes: list[torch.dtype] = []
        self.coarse: dict[tuple[int, str], tuple[float, torch.dtype]] = {}
        self.marks: dict[tuple[str, str], tuple[float, float]] = {}
        """Norm and mean of the features of the first batch by model and layer, with ``checkpoint=``."""
        self.seen = self.marks
        """The same of the last pass."""
        self.flat: list[bool] = []
        """Whether each unit is constant in the first batch, for the sketch."""
        self.projections: Any = None  # of a sketch in several processes
        self.blocks: dict[int, list[torch.Tensor | FilePart]] = {}
        self.expected_batches = batches
        self.grams: dict[int, WholeGram] = {}
        self.in_parts: dict[int, WholeGram] = {}
        self.kept_by: Keeping | None = None
        self.unknown_length = self.no_room = False
        self.planned: int | None = None
        self.at_once = self._is_one_small_batch()
        self.two_sided = False

    def _is_one_small_batch(self) -> bool:
        """Whether the Gram matrices can be computed inside the hooks, because one batch holds all samples."""
        request = self.request
        if (
            self.held
            or self.together
            or self.expected_batches != 1
            or request.measure != "cka"
            or request.route not in (None, "grams")
        ):
            return False
        return (self.expected_samples(None) or FEW + 1) <= FEW

    def expected_samples(self, first: int | None) -> int | None:
        """Number of rows of all batches, given that of the first; None if it is not known."""
        request = self.request
        if self.unknown_length or request.sample_axis != 0:
            return None
        if callable(request.pooling) or request.pooling in ("spatial", "all"):
            return None if first is None or self.expected_batches is None else self.expected_batches * first
        return expected_samples(request.data, first)

    @property
    def passes(self) -> int:
        """Number of passes over the data."""
        return 1 if self.route is None else self.route.passes

    @property
    def label(self) -> str:
        """Text of the progress bar."""
        return "compare" if self.passes == 1 else f"compare {self.passes_done + 1}/{self.passes}"

    @property
    def may_write(self) -> bool:
        """Whether the coming pass may write features to the disk."""
        if self.route is not None:
            return self.route.name == "disk" or self.persists
        if self.request.checkpoint is not None:
            return not self.at_once and self.disk > 0
        return not self.at_once and self.request.measure == "cka" and self.disk > 0

    @property
    def disk(self) -> int:
        """Bytes that features may take on the disk."""
        path = self.request.checkpoint
        return disk_room() if path is None else disk_room(Path(path).absolute().parent, any_kind=True)

    @property
    def persists(self) -> bool:
        """Whether all features go to a file that outlasts this process, so that a pass goes on from its middle."""
        route = self.route
        if self.request.checkpoint is None or self.at_once or self.no_room or route is None:
            return False
        return route.name in ("disk", "blocks", "features") or (route.name == "grams" and route.passes == 1)

    @property
    def lasting(self) -> bool:
        """Whether the state inside a pass can be saved."""
        return self.statistics is not None or self.persists

    def keeping(self) -> Keeping:
        """What the hooks of the coming pass keep."""
        keeping = keeping_of(self)
        keeping.watch = self.watch
        if self.request.checkpoint is not None:
            keeping.marks = {}
        return keeping

    def begin(self, sides: Sequence[Side], keeping: Keeping | None = None, *, goes_on: bool = False) -> None:
        """Begin a pass with these recorders, or go on in the middle of one."""
        self.sides = sides
        if self.kept_by is not None:  # of a pass that begins again
            self.kept_by.slabs.close()
        self.kept_by = keeping
        self.two_sided = len(sides) == 2 and not self.request.square
        if goes_on:
            assert keeping is not None
            keeping.first, keeping.looks_only = False, True
            return
        self.samples = self.batches = 0
        self.blocks = {}
        if self.passes_done == 0:
            self.sizes, self.statistics, self.grams = [], None, {}

    def read_once(self, note: str) -> None:
        """Forget all passes, and choose a route that reads the data once."""
        self.again = False
        self.route, self.stack, self.passes_done = None, None, 0
        self.in_parts = {}
        self.at_once = False
        self.notes.append(note)

    def restart(self) -> None:
        """Begin the pass again, with the route that was chosen or is to be chosen."""
        self.at_once = False

    def consume(self, index: int, kept: list[list[Held | None]], samples: int) -> None:
        """Add one batch: for each side what is held of its layers; None for a layer that was left out since.

        Raises
        ------
        ValueError
            If the width of a layer changes, or no route fits into the memory.
        CaptureError
            If a layer gave NaN or infinity, on a device that is asked once a batch.
        StartAgainError
            If the pass must begin again.
        """
        layers = [held for side in kept for held in side]
        see_batch(self, index)
        if self.batches == 0 and self.passes_done == 0:
            try:
                self._first_batch(kept, layers, samples)
            except StartAgainError:
                let_go(layers)
                raise
        self._check(layers)
        owned = [layers[unit] for unit in self.units]
        if self.statistics is not None:
            given = [None if held is None else held.features for held in owned]
            like = next(x for x in given if isinstance(x, torch.Tensor))
            full = [
                x if isinstance(x, torch.Tensor) else like.new_zeros(len(like), width)
                for x, width in zip(given, self.widths, strict=True)
            ]
            self._add_to_statistics(full)
        else:
            for unit, held in zip(self.units, owned, strict=True):
                if held is not None and held.features is not None:
                    self.blocks.setdefault(unit, []).append(held.features)
                elif held is not None and held.gram is not None:
                    self.grams[unit] = held.gram
        let_go(layers)
        self.samples += samples
        self.batches += 1
        if self.passes_done == 0:
            self.sizes.append(samples)
        self._check_length()

    def _add_to_statistics(self, features: list[torch.Tensor]) -> None:
        split = self.split
        self.statistics.update(features[:split], None if split is None else features[split:])

    @property
    def split(self) -> int | None:
        """Number of units of the first side, if there are two."""
        return sum(self.rows[unit][0] == 0 for unit in self.units) if self.two_sided else None

    def _first_batch(self, kept: list[list[Held | None]], layers: list[Held | None], samples: int) -> None:
        """Learn the layers, and choose the route."""
        self.names = [list(side.names) for side in self.sides]
        self.rows = [(side, place) for side, held in enumerate(kept) for place in range(len(held))]
        first: dict[int, int] = {}
        self.owners = [first.setdefault(id(held), place) for place, held in enumerate(layers)]
        self.units = [place for place, owner in enumerate(self.owners) if place == owner]
        of_units = [held for place in self.units if (held := layers[place]) is not None]
        self.widths, self.dtypes = [held.width for held in of_units], [held.dtype for held in of_units]
        keeping = self.kept_by
        if keeping is not None:
            keeping.first = False
            self.coarse = keeping.coarse
        if self.route is None:
            weigh_routes(self, layers, samples)
        if self.plans_only:
            raise PlannedError
        assert self.route is not None
        name = self.route.name
        if self.persists and keeping is not None:
            for held in layers:  # as all later ones
                if held is not None and isinstance(held.features, torch.Tensor):
                    held.features = keeping.written(held.features)
            keeping.mode, keeping.room.limit = "file", 0
        elif name in ("moments", "sketch"):
            xs = [held.features for unit in self.units if (held := layers[unit]) is not None]
            self.flat = [isinstance(x, torch.Tensor) and bool((x == x[:1]).all()) for x in xs]
            self.start_statistics([whole(x) for x in xs] if self.together and name == "sketch" else None)
        elif name == "grams" and keeping is not None and not self.at_once:
            keeping.mode, keeping.wanted = "chosen", wanted_columns(self, self.route.groups[0])
            taken = {self.units[part.place]: part for part in self.route.groups[0]}
            for unit in self.units:
                held, part = layers[unit], taken.get(unit)
                if held is not None and held.features is not None:
                    held.features = None if part is None else some_columns(held.features, part)
        elif name == "disk" and keeping is not None:
            keeping.mode, keeping.room.limit = "file", self.route.room
        elif keeping is not None and not self.at_once:
            keeping.mode = "all"
        needed = self.units if name != "grams" else [self.units[part.place] for part in self.route.groups[0]]
        in_memory = name in ("moments", "sketch", "blocks") and not self.persists
        stored = torch.Tensor if in_memory else torch.Tensor | FilePart
        missing = [
            unit
            for unit in needed
            if (held := layers[unit]) is not None and held.gram is None and not isinstance(held.features, stored)
        ]
        if missing:
            raise StartAgainError

    def start_statistics(self, features: Sequence[torch.Tensor] | None = None) -> None:
        """Make the statistics of the route, without a sample; several processes need the first batch of a sketch."""
        assert self.route is not None
        if self.route.name == "moments":
            self.statistics = MomentCKA(first=self.together.rank, stride=self.together.world)
            return
        from ..estimators.dataset.sketch import SketchCKA

        self.statistics = SketchCKA(size=self.route.size, kernel=self.request.kernel)
        if self.together:
            begin_sketch(self, features)

    def _check(self, layers: list[Held | None]) -> None:
        """Raise ValueError if a layer has another width than before, or no longer returns its input."""
        widths = dict(zip(self.units, self.widths, strict=True))
        for place, held in enumerate(layers):
            if held is None:
                continue
            side, number = self.rows[place]
            what = f"{self.sides[side].name}: layer {self.sides[side].names[number]!r}"
            owner = self.owners[place]
            if held.width != widths[owner]:
                raise ValueError(
                    f"{what} has {held.width} features in batch {self.batches} and {widths[owner]} before. Over a "
                    'whole data set all samples need the same features: choose a pooling such as "mean", or '
                    'scope="minibatch".'
                )
            if owner != place and held is not layers[owner]:
                raise ValueError(f"{what} returns its input in some batches only. Leave it out: exclude=[...].")

    def _check_length(self) -> None:
        """Choose again if the data are longer than their length says, so that they may not fit."""
        route = self.route
        expected = None if self.unknown_length or self.held else self.planned
        if route is None or expected is None or self.samples <= expected:
            return
        self.unknown_length, self.at_once = True, False
        if self.can_restart and route.name not in ("moments", "sketch", "features"):
            self.route, self.passes_done = None, 0
            raise StartAgainError

    def end_pass(self) -> None:
        """Turn the features of this pass into Gram matrices."""
        route = self.route
        assert route is not None
        if self.kept_by is not None:
            self.kept_by.slabs.close()
        if route.name in ("grams", "disk"):
            end_grams(self, route)
        self.passes_done += 1
        if self.together and self.passes_done == self.passes:
            join_statistics(self, left_out(self))

    def result(self, notes: Sequence[str], meta: dict[str, Any]) -> SimilarityMatrix:
        """The similarities over all samples.

        Parameters
        ----------
        notes : sequence of str
            Notes of the passes.
        meta : dict
            Added to ``meta`` of the result.

        Raises
        ------
        ValueError, TypeError
            If the measure or estimator cannot be computed from the samples, for example because they are too few.
        """
        from .dataset_values import dataset_result

        return dataset_result(self, notes, meta)
