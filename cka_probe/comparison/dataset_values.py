"""From the statistics, features or Gram matrices of a whole data set to its result."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..estimators.any_measure import calibrate
from ..estimators.calibration import Calibration
from ..estimators.dataset.blocks import blocked_cka
from ..estimators.kernels import Linear
from ..estimators.null_moments import NullShape
from ..estimators.permutation import permutation_p
from ..estimators.validation import check_estimator
from ..progress_bar import tqdm
from ..similarity.matrix import SimilarityMatrix
from .dataset_together import block_share
from .feature_blocks import FeatureBlocks
from .grams.findings import coarse_notes, undefined_reason
from .memory import memory_text
from .minibatch_result import calibrated
from .notes import undefined_notes
from .null import sampled_shape
from .places import places
from .request import Request
from .undefined import (
    CONSTANT,
    CONSTANT_AT_FIRST,
    alike,
    by_spread,
    far_notes,
    has_no_bandwidth,
    reasons_of,
    some_samples,
    spread_by_features,
    undefined_layers,
)

if TYPE_CHECKING:
    from .dataset_pass import DatasetPass

__all__ = ["dataset_result"]


@dataclass(frozen=True)
class _Values:
    """Values that a route computed; the other fields are None or empty if the route does not compute them.

    ``reasons`` tells for rows and columns why a layer has no value, as far as its features or sums tell.
    """

    values: torch.Tensor
    standard_error: torch.Tensor | None = None
    degrees_of_freedom: int | torch.Tensor | None = None
    chance: torch.Tensor | None = None
    calibration: Calibration | None = None
    null: NullShape | None = None
    notes: tuple[str, ...] = ()
    reasons: tuple[Sequence[str | None], Sequence[str | None]] = ((), ())


def dataset_result(gathered: DatasetPass, notes: Sequence[str], meta: dict[str, Any]) -> SimilarityMatrix:
    """The result of all passes; see ``DatasetPass.result``."""
    request, route = gathered.request, gathered.route
    assert route is not None
    computed = _Computed(gathered)
    found = computed.values()
    values = _numpy(found.values)
    rows, columns = computed.layers
    notes = [*notes, *gathered.notes, f"route {route.name}: {route.reason}", *found.notes]
    notes += [note for side in gathered.sides for note in side.notes()]
    for number, side in enumerate(gathered.sides):
        coarse = {name: gathered.coarse[number, name] for name in side.compared if (number, name) in gathered.coarse}
        notes += coarse_notes(side.name, coarse)
    otherwise = alike(request.kernel, request.measure)
    named = (rows, columns) if gathered.two_sided else (rows,)
    notes += undefined_notes(undefined_layers(named, found.reasons, np.isnan(values), otherwise))
    unbiased = request.measure == "cka" and request.estimator == "unbiased"
    samples = sum(gathered.sizes)
    return SimilarityMatrix(
        values,
        [layer for _, layer in rows],
        [layer for _, layer in columns],
        standard_error=None if found.standard_error is None else _numpy(found.standard_error),
        p_value=_p_value(found, samples),
        chance=np.zeros_like(values) if unbiased else None if found.chance is None else _numpy(found.chance),
        notes=notes,
        measure=request.measure,
        meta={
            **_about_measure(request),
            "scope": "dataset",
            "route": route.name,
            "passes": route.passes,
            "memory": memory_text(gathered.memory),
            "samples": samples,
            "batches": len(gathered.sizes),
            **_degrees(found.degrees_of_freedom, samples),
            **({} if found.calibration is None else {"permutations": found.calibration.permutations}),
            **meta,
        },
        row_models=[model for model, _ in rows] if request.square else None,
        column_models=[model for model, _ in columns] if request.square else None,
        extra=calibrated(found.calibration),
    )


def _p_value(found: _Values, samples: int) -> np.ndarray | None:
    if found.calibration is not None:
        return _numpy(found.calibration.p_value)
    return None if found.null is None else _numpy(permutation_p(found.values, found.null, samples))


def _degrees(degrees: int | torch.Tensor | None, samples: int) -> dict[str, Any]:
    """Degrees of freedom for ``meta``: one number, or one for each pair if some are fewer than samples - 1."""
    if isinstance(degrees, torch.Tensor):
        found = np.where(np.isnan(full := _numpy(degrees)), samples - 1, full)
        degrees = samples - 1 if (found >= samples - 1).all() else found.round(2).tolist()
    return {} if degrees is None else {"degrees_of_freedom": degrees}


class _Computed:
    """The values of the layers of a result from those of the units of a ``DatasetPass``."""

    def __init__(self, gathered: DatasetPass) -> None:
        self.gathered = gathered
        self.request = gathered.request
        self.samples = sum(gathered.sizes)
        sides = gathered.sides
        of_rows, of_columns = (places([side]) for side in sides) if gathered.two_sided else (places(sides),) * 2
        if gathered.two_sided:
            of_columns = [len(sides[0].names) + place for place in of_columns]
        self.rows = [gathered.owners[place] for place in of_rows]
        self.columns = [gathered.owners[place] for place in of_columns]
        every = [[(side.name, layer) for layer in side.compared] for side in sides]
        joined = [named for side in every for named in side]
        self.layers = (every[0], every[1]) if gathered.two_sided else (joined, joined)
        self._number = {unit: number for number, unit in enumerate(gathered.units)}

    def values(self) -> _Values:
        """By the route that was taken."""
        route = self.gathered.route
        assert route is not None
        if route.name in ("moments", "sketch"):
            return self._of_statistics(route.name)
        if route.name in ("grams", "disk"):
            return self._of_grams()
        if route.name == "blocks":
            return self._blocked()
        return self._measured()

    def _of_statistics(self, name: str) -> _Values:
        statistics, estimator, split = self.gathered.statistics, self.request.estimator, self.gathered.split
        rows = [self._number[unit] for unit in self.rows]
        columns = [self._number[unit] - (split or 0) for unit in self.columns]
        reasons, notes = self._spread()
        null = None
        if name == "sketch":
            value, error = statistics.compute(), statistics.projection_error()
            notes = [
                *notes,
                "the values are estimates of exact CKA; the standard errors are those of the sketch alone, not of the "
                "choice of samples",
            ]
        else:
            value, error = statistics.compute(estimator), statistics.standard_error(estimator)
            if estimator == "unbiased":
                null = NullShape(*(part[rows][:, columns] for part in statistics.null_shape()))
        value, error = value[rows][:, columns], error[rows][:, columns]
        degrees = statistics.degrees_of_freedom
        return _Values(value, error, degrees, null=null, notes=tuple(notes), reasons=reasons)

    def _spread(self) -> tuple[tuple[Any, ...], list[str]]:
        """Why layers of the sums have no value, by rows and columns, and notes on far samples."""
        if self.samples < 4:
            return ([None] * len(self.rows), [None] * len(self.columns)), []
        gathered = self.gathered
        spread = gathered.statistics.spread()
        by_unit = by_spread(spread)
        for number, width in enumerate(getattr(gathered.statistics, "bandwidths", [])):
            if math.isnan(width):
                flat = f"{CONSTANT_AT_FIRST}, from which the bandwidth is taken"
                why = f"not constant, but {undefined_reason(self.request.kernel)}"
                by_unit[number] = flat if gathered.flat[number] else why
        reasons = tuple([by_unit[self._number[unit]] for unit in side] for side in (self.rows, self.columns))
        named, units = self.layers[0], self.rows
        if gathered.two_sided:
            named, units = [*named, *self.layers[1]], [*units, *self.columns]
        return reasons, far_notes(spread, named, [self._number[unit] for unit in units], gathered.sizes)

    def _of_grams(self) -> _Values:
        stack, estimator = self.gathered.stack, self.request.estimator
        assert stack is not None
        minimum = check_estimator(estimator)
        if self.samples < minimum:
            raise ValueError(
                f"The data have {self.samples} samples, but the {estimator} estimator needs at least {minimum}."
            )
        left = [unit for unit in dict.fromkeys(self.rows) if unit in stack.rows]
        right = [unit for unit in dict.fromkeys(self.columns) if unit in stack.rows]
        reasons = [self._reason(unit) for unit in self.rows], [self._reason(unit) for unit in self.columns]
        if not left or not right:  # the user stopped before a layer of the other side was reached
            return _Values(self._filled(torch.empty(0, 0, device=self.gathered.home), {}, {}), reasons=reasons)
        value, error, degrees, notes = stack.cka(left, right), None, None, []
        if self.samples > minimum:
            error, degrees, outliers = stack.jackknife(left, right)
            for found in outliers:
                unit = (left, right)[found.side][found.layer]
                side = zip(self.layers[found.side], (self.rows, self.columns)[found.side], strict=True)
                notes += [f"{model}: {found.message(repr(layer))}" for (model, layer), own in side if own == unit]
        at_left, at_right = ({unit: place for place, unit in enumerate(side)} for side in (left, right))
        full = self._filled(value, at_left, at_right)
        full_error = None if error is None else self._filled(error, at_left, at_right)
        full_degrees = None if degrees is None else self._filled(degrees, at_left, at_right)
        null = None
        if estimator == "unbiased":
            null = NullShape(*(self._filled(part, at_left, at_right) for part in stack.null_shape(left, right)))
        return _Values(full, full_error, full_degrees, null=null, notes=tuple(notes), reasons=reasons)

    def _filled(self, values: torch.Tensor, rows: dict[int, int], columns: dict[int, int]) -> torch.Tensor:
        """Values of all rows and columns; NaN for units that were not reached before the user stopped."""
        shape = len(self.rows), len(self.columns)
        full = torch.full(shape, math.nan, dtype=torch.float64, device=values.device)
        i = [place for place, unit in enumerate(self.rows) if unit in rows]
        j = [place for place, unit in enumerate(self.columns) if unit in columns]
        if i and j:
            of_i = torch.tensor([rows[self.rows[place]] for place in i], device=values.device)
            of_j = torch.tensor([columns[self.columns[place]] for place in j], device=values.device)
            part = values[of_i][:, of_j]
            full[torch.tensor(i, device=values.device)[:, None], torch.tensor(j, device=values.device)] = part
        return full

    def _reason(self, unit: int) -> str | None:
        stack = self.gathered.stack
        assert stack is not None
        if unit not in stack.rows:
            return "not reached before the user stopped"
        kinds = {"constant": CONSTANT, "undefined": f"not constant, but {undefined_reason(self.request.kernel)}"}
        found = stack.reasons.get(unit)
        return None if found is None else kinds.get(found)

    def _features(self, units: Sequence[int]) -> list[torch.Tensor]:
        """Features (n, d) of units; each is joined once, and its blocks are let go."""
        gathered = self.gathered
        joined: dict[int, torch.Tensor] = {}
        for unit in dict.fromkeys(units):
            blocks = gathered.blocks[unit]
            gathered.watch.see(sum(block.shape[0] for block in blocks) * blocks[0].shape[1] * 8)
            joined[unit] = FeatureBlocks(blocks, gathered.home).columns(0, blocks[0].shape[1])
            gathered.blocks[unit] = [joined[unit]]
        return [joined[unit] for unit in units]

    def _measured(self) -> _Values:
        from ..estimators.measures.catalogue import MEASURES

        request = self.request
        xs = self._features(self.rows)
        ys = self._features(self.columns) if self.gathered.two_sided else None
        found = MEASURES[request.measure].matrix(xs, ys, **request.options)
        reasons = reasons_of(found.values, xs, ys, request.kernel)
        if request.permutations is None:
            return _Values(found.values, chance=found.chance, reasons=reasons)
        null = calibrate(
            request.measure,
            xs,
            ys,
            permutations=request.permutations,
            progress=partial(tqdm, desc="permutations", disable=not request.progress, dynamic_ncols=True),
            **request.options,
        )
        chance = null.mean if found.chance is None else found.chance
        return _Values(found.values, chance=chance, calibration=null, reasons=reasons)

    def _blocked(self) -> _Values:
        """CKA block by block; NaN for layers without a median bandwidth, which would end the computation."""
        kernel, home = self.request.kernel, self.gathered.home

        def bar(blocks: Iterator[Any], total: int) -> Iterator[Any]:
            shown = tqdm(blocks, desc="blocks", total=total, disable=not self.request.progress, dynamic_ncols=True)
            return iter(shown)

        xs = self._features(self.rows)
        ys = self._features(self.columns) if self.gathered.two_sided else None
        good_x, good_y = (
            [place for place, x in enumerate(side or []) if not has_no_bandwidth(some_samples(x), kernel)]
            for side in (xs, ys)
        )
        good_y = good_x if ys is None else good_y
        values = torch.full((len(xs), len(xs if ys is None else ys)), math.nan, dtype=torch.float64, device=home)
        if good_x and good_y:
            some_x, some_y = [xs[place] for place in good_x], None if ys is None else [ys[place] for place in good_y]
            progress: Callable[..., Any] = bar
            blocked = partial(blocked_cka, kernel=kernel, progress=progress, share=block_share(self.gathered))
            part = blocked(some_x, some_y, estimator=self.request.estimator)
            values[torch.tensor(good_x)[:, None], torch.tensor(good_y)] = part.to(values.device)
        notes: list[str] = []
        for layers, features in zip(self.layers, (xs, ys or []), strict=True):
            if features and isinstance(kernel, Linear):
                spread = spread_by_features(features)
                notes += far_notes(spread, layers, range(len(features)), self.gathered.sizes)
        null = sampled_shape(xs, ys, kernel) if self.request.estimator == "unbiased" else None
        return _Values(values, null=null, notes=tuple(notes), reasons=reasons_of(values, xs, ys, kernel))


def _about_measure(request: Request) -> dict[str, Any]:
    """Settings for ``meta``: kernel and estimator of CKA; for other measures kind, invariances and all options."""
    if request.measure == "cka":
        return {"kernel": repr(request.kernel), "estimator": request.estimator}
    from ..estimators.measures.catalogue import MEASURES

    measure = MEASURES[request.measure]
    options = {name: value for name, value in {**measure.options, **request.options}.items() if value is not None}
    return {
        "kind": measure.kind,
        "invariances": measure.invariances,
        "options": {name: _plain(value) for name, value in options.items()},
    }


def _plain(value: Any) -> str | bool | int | float:
    """The value of an option as JSON holds it: a kernel becomes the text that makes it."""
    if isinstance(value, np.generic):
        value = value.item()
    return value if isinstance(value, str | bool | int | float) else repr(value)


def _numpy(values: torch.Tensor) -> np.ndarray:
    return values.cpu().numpy()
