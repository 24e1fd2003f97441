"""The statistics, features or Gram matrices of a data set, over one pass or several, and the route that is chosen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..capture.batches import expected_samples
from ..estimators.dataset.data_size import DataSize, Rates
from ..estimators.dataset.gram_stack import GramStack
from ..estimators.dataset.layer_parts import FEW, WholeGram, whole_gram
from ..estimators.dataset.moments import MomentCKA
from ..estimators.dataset.routes import ROUTES, Route, Slice, best_route, plan_routes
from ..similarity.matrix import SimilarityMatrix
from .feature_blocks import FeatureBlocks, FilePart, disk_room
from .feature_keeper import Keeping
from .held import Held, Room, Side, StartAgainError, let_go, some_columns
from .memory import checked_memory
from .request import Request
from .route_choice import PlannedError, check_stack, features_route, first_batch_rates

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
        self, request: Request, home: torch.device, *, again: bool, batches: int | None, held: bool = False
    ) -> None:
        self.request = request
        self.home = home
        self.again = self.can_restart = again
        self.held = held
        self.memory = checked_memory(request.memory, home)
        self.route: Route | None = None
        self.plan: list[Route] = []
        self.size: DataSize | None = None
        self.rates = Rates()
        self.plans_only = False
        """Whether the first batch ends the pass, as soon as the routes are weighed."""
        self.passes_done = 0
        self.samples = self.batches = 0
        self.sizes: list[int] = []
        self.notes: list[str] = []
        self.sides: Sequence[Side] = ()
        self.statistics: Any = None
        self.stack: GramStack | None = None
        self.rows: list[tuple[int, int]] = []
        """For each layer its side and its number there."""
        self.owners: list[int] = []
        """For each layer the one whose output it returns, or itself."""
        self.units: list[int] = []
        """The layers that are their own owners."""
        self.widths: list[int] = []
        self.coarse: dict[tuple[int, str], tuple[float, torch.dtype]] = {}
        self.flat: list[bool] = []
        """Whether each unit is constant in the first batch, for the sketch."""
        self.blocks: dict[int, list[torch.Tensor | FilePart]] = {}
        self._expected_batches = batches
        self._grams: dict[int, WholeGram] = {}
        self._in_parts: dict[int, WholeGram] = {}
        self._keeping: Keeping | None = None
        self._unknown_length = False
        self._planned: int | None = None
        self._at_once = self._is_one_small_batch()
        self.two_sided = False

    def _is_one_small_batch(self) -> bool:
        """Whether the Gram matrices can be computed inside the hooks, because one batch holds all samples."""
        request = self.request
        if self.held or self._expected_batches != 1 or request.measure != "cka" or request.route not in (None, "grams"):
            return False
        samples = self._expected(None)
        return samples is not None and samples <= FEW

    def _expected(self, first: int | None) -> int | None:
        """Number of rows of all batches, given that of the first; None if it is not known."""
        request = self.request
        if self._unknown_length or request.sample_axis != 0:
            return None
        if callable(request.pooling) or request.pooling in ("spatial", "all"):
            return None if first is None or self._expected_batches is None else self._expected_batches * first
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
        may = (not self._at_once and self.request.measure == "cka") if self.route is None else self.route.name == "disk"
        return may and disk_room() > 0

    def keeping(self) -> Keeping:
        """What the hooks of the coming pass keep."""
        kernel, route = self.request.kernel, self.route
        if self._at_once:
            return Keeping("gram", Room(0), kernel, self.home)
        if route is None and self.request.measure == "cka":
            return Keeping("survey", Room(self.memory // 2), kernel, self.home)
        if route is not None and route.name == "grams":
            keeping = Keeping("chosen", Room(0), kernel, self.home)
            keeping.first = keeping.checks = self.passes_done == 0
            keeping.wanted = self._wanted(route.groups[self.passes_done])
            return keeping
        if route is not None and route.name == "disk":
            return Keeping("file", Room(route.room), kernel, self.home)
        return Keeping("all", Room(self.memory), kernel, self.home)

    def _wanted(self, group: Sequence[Slice]) -> dict[tuple[int, str], tuple[int, int]]:
        found = {}
        for part in group:
            side, place = self.rows[self.units[part.place]]
            found[side, self.sides[side].names[place]] = part.start, part.stop
        return found

    def begin(self, sides: Sequence[Side], keeping: Keeping | None = None) -> None:
        """Begin a pass with these recorders."""
        self.sides = sides
        self._keeping = keeping
        self.two_sided = len(sides) == 2 and not self.request.square
        self.samples = self.batches = 0
        self.blocks = {}
        if self.passes_done == 0:
            self.sizes, self.statistics, self._grams = [], None, {}

    def read_once(self, note: str) -> None:
        """Forget all passes, and choose a route that reads the data once."""
        self.again = False
        self.route, self.stack, self.passes_done = None, None, 0
        self._in_parts = {}
        self._at_once = False
        self.notes.append(note)

    def restart(self) -> None:
        """Begin the pass again, with the route that was chosen or is to be chosen."""
        self._at_once = False

    def consume(self, _index: int, kept: list[list[Held | None]], samples: int) -> None:
        """Add one batch: for each side what is held of its layers; None for a layer that was left out since.

        Raises
        ------
        ValueError
            If the width of a layer changes, or no route fits into the memory.
        StartAgainError
            If the pass must begin again.
        """
        layers = [held for side in kept for held in side]
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
                    self._grams[unit] = held.gram
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
        self.rows = [(side, place) for side, held in enumerate(kept) for place in range(len(held))]
        first: dict[int, int] = {}
        self.owners = [first.setdefault(id(held), place) for place, held in enumerate(layers)]
        self.units = [place for place, owner in enumerate(self.owners) if place == owner]
        self.widths = [held.width for place in self.units if (held := layers[place]) is not None]
        keeping = self._keeping
        if keeping is not None:
            keeping.first = False
            self.coarse = keeping.coarse
        if self.route is None:
            self._choose(layers, samples)
        if self.plans_only:
            raise PlannedError
        assert self.route is not None
        name = self.route.name
        if name in ("moments", "sketch"):
            self._start_statistics(layers)
        elif name == "grams" and keeping is not None and not self._at_once:
            keeping.mode, keeping.wanted = "chosen", self._wanted(self.route.groups[0])
            taken = {self.units[part.place]: part for part in self.route.groups[0]}
            for unit in self.units:
                held, part = layers[unit], taken.get(unit)
                if held is not None and held.features is not None:
                    held.features = None if part is None else some_columns(held.features, part)
        elif name == "disk" and keeping is not None:
            keeping.mode, keeping.room.limit = "file", self.route.room
        elif keeping is not None and not self._at_once:
            keeping.mode = "all"
        needed = self.units if name != "grams" else [self.units[part.place] for part in self.route.groups[0]]
        stored = torch.Tensor if name in ("moments", "sketch", "blocks") else torch.Tensor | FilePart
        missing = [
            unit
            for unit in needed
            if (held := layers[unit]) is not None and held.gram is None and not isinstance(held.features, stored)
        ]
        if missing:
            raise StartAgainError

    def _start_statistics(self, layers: list[Held | None]) -> None:
        assert self.route is not None
        if self.route.name == "moments":
            self.statistics = MomentCKA()
            return
        from ..estimators.dataset.sketch import SketchCKA

        self.statistics = SketchCKA(size=self.route.size, kernel=self.request.kernel)
        xs = [held.features for unit in self.units if (held := layers[unit]) is not None]
        self.flat = [isinstance(x, torch.Tensor) and bool((x == x[:1]).all()) for x in xs]

    def _choose(self, layers: list[Held | None], rows: int) -> None:
        """Choose the route by the first batch."""
        request, keeping = self.request, self._keeping
        samples = rows if self.held else self._expected(rows)
        itemsize = max(held.itemsize for held in layers if held is not None)
        if request.measure != "cka":
            size = itemsize * (samples or rows) * sum(self.widths)
            self.route = features_route(request.measure, size, None if self.held else self.memory)
            return
        split = self.split
        data = DataSize(
            samples,
            self.widths[:split],
            None if split is None else self.widths[split:],
            itemsize=itemsize,
            batch=rows,
            batches=1 if self._at_once else None,
            again=self.again,
            held=self.held,
            disk=0 if self.held else disk_room(),
            beside=0 if keeping is None else keeping.meter.most,
        )
        self.rates = first_batch_rates(Rates(), keeping, samples, rows)
        self.size = data
        self.plan = plan_routes(data, self.memory, kernel=request.kernel, estimator=request.estimator, rates=self.rates)
        self._planned = samples
        if self._at_once and not self.plan[ROUTES.index("grams")].fits:
            raise StartAgainError
        if not self.plans_only:
            self.route = best_route(self.plan, "grams" if self._at_once else request.route)

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
        expected = None if self._unknown_length or self.held else self._planned
        if route is None or expected is None or self.samples <= expected:
            return
        self._unknown_length, self._at_once = True, False
        if self.can_restart and route.name not in ("moments", "sketch", "features"):
            self.route, self.passes_done = None, 0
            raise StartAgainError

    def end_pass(self) -> None:
        """Turn the features of this pass into Gram matrices."""
        route = self.route
        assert route is not None
        if route.name in ("grams", "disk"):
            self._end_grams(route)
        self.passes_done += 1

    @property
    def _left_out(self) -> set[int]:
        """Units that were left out after the first batch, of which some samples are missing."""
        kept = [set(side.compared) for side in self.sides]
        return {
            u for u in self.units if self.sides[self.rows[u][0]].names[self.rows[u][1]] not in kept[self.rows[u][0]]
        }

    def _end_grams(self, route: Route) -> None:
        request = self.request
        parts = (
            {self.units[part.place]: part for part in route.groups[self.passes_done]} if route.name == "grams" else {}
        )
        if self.stack is None:
            check_stack(len(self.units), self.samples, request.estimator, self.memory)
            self.stack = GramStack(self.samples, request.estimator)
        left_out = self._left_out
        for unit in self.units:
            if unit in self._grams:
                self.stack.add(unit, self._grams.pop(unit))
            elif unit in self.blocks and unit not in left_out:
                gram = whole_gram(FeatureBlocks(self.blocks.pop(unit), self.home), request.kernel)
                if unit in self._in_parts:
                    gram = self._in_parts.pop(unit) + gram
                width = self.widths[self.units.index(unit)]
                if unit in parts and parts[unit].stop < width:
                    self._in_parts[unit] = gram
                else:
                    self.stack.add(unit, gram)

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
