"""Compute the similarities of models over a whole data set (``scope="dataset"``)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from ..capture.batches import expected_samples
from ..capture.buffers import FeatureBuffer
from ..capture.recorder import NotFiniteError
from ..capture.state import device_of
from ..estimators.dataset.blocks import blocked_cka
from ..estimators.dataset.moments import MomentCKA
from ..estimators.dataset.routes import SKETCH_SIZE, Route, choose_route
from ..estimators.inference import jackknife_matrix
from ..estimators.kernels import Linear
from ..estimators.permutation import permutation_p
from ..progress_bar import tqdm
from ..similarity.matrix import SimilarityMatrix
from .grams.findings import coarse_layers, coarse_notes, undefined_reason
from .notes import undefined_notes
from .null import sampled_skewness
from .output_answers import Answers
from .places import filled_features, places
from .request import ComparedModel, Request
from .undefined import (
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

__all__ = ["MEMORY", "DatasetPass", "Side", "keep_features", "run_dataset"]

MEMORY = 4 * 2**30
"""Bytes that the statistics and stored features of a data set may take. Beyond that, CKA is estimated by a sketch."""


def run_dataset(models: Sequence[ComparedModel], request: Request, meta: dict[str, Any]) -> SimilarityMatrix:
    """Similarities of the models over all samples, in one pass over the data.

    Parameters
    ----------
    models : sequence of ComparedModel
        One, two, or with ``request.square`` any number.
    request : Request
        The options.
    meta : dict
        Added to ``meta`` of the result.

    Returns
    -------
    SimilarityMatrix
        The first model against the second; all layers against each other for one model or with ``request.square``.

    Raises
    ------
    ValueError, TypeError, CaptureError
        As ``compare``.
    KeyboardInterrupt
        If the user stops before a batch was used.
    """
    recorders = [request.recorder(model, keep_features) for model in models]
    gathered = DatasetPass(recorders, request, device_of(recorders[0].model))
    run = request.make_pass(recorders, 1)
    answers = Answers(recorders, request)
    run.run(request.data, answers.after(run, gathered.consume), data_y=request.data_y)
    run.require_batches()
    meta = {**meta, **answers.found(), "partial": run.interrupted}
    return gathered.result([*run.notes, *answers.notes()], meta)


def keep_features(_name: str, features: torch.Tensor) -> torch.Tensor:
    """A copy of the features, because a later layer may change the activation in place.

    Raises
    ------
    NotFiniteError
        If the features hold NaN or infinity.
    """
    if not bool(torch.isfinite(features).all()):
        raise NotFiniteError
    return features.detach().clone()


class Side(Protocol):
    """The rows or columns of a comparison: a model that runs (``LayerRecorder``), or stored features."""

    @property
    def name(self) -> str:
        """Its name in messages."""

    @property
    def names(self) -> list[str]:
        """Its layers."""

    @property
    def compared(self) -> list[str]:
        """Its layers without those that were left out after the first batch."""

    def notes(self) -> list[str]:
        """Layers that were left out, with the reasons."""


class _Features:
    """The features of one side over all batches, for routes that need them at the end."""

    def __init__(self) -> None:
        self.expected_rows: int | None = None
        self._buffers: list[FeatureBuffer] = []

    def append(self, features: Sequence[torch.Tensor]) -> None:
        if not self._buffers:
            self._buffers = [FeatureBuffer(rows=self.expected_rows) for _ in features]
        for buffer, x in zip(self._buffers, features, strict=True):
            buffer.append(x)

    def arrays(self) -> list[torch.Tensor]:
        return [buffer.rows() for buffer in self._buffers]


@dataclass(frozen=True)
class _Values:
    """Values that a route computed; the other fields are None or empty if the route does not compute them.

    ``reasons`` tells for rows and columns why a layer has no value, as far as its features or sums tell.
    """

    values: torch.Tensor
    standard_error: torch.Tensor | None = None
    degrees_of_freedom: int | None = None
    chance: torch.Tensor | None = None
    skewness: torch.Tensor | None = None
    notes: tuple[str, ...] = ()
    reasons: tuple[Sequence[str | None], Sequence[str | None]] = ((), ())


class DatasetPass:
    """Accumulate statistics or features batch by batch, and compute the similarities at the end.

    The route is chosen after the first batch, because it depends on the widths of the layers.

    Parameters
    ----------
    sides : sequence of Side
        One, two, or with ``request.square`` any number.
    request : Request
        The options.
    home : torch.device
        Where statistics and features are kept.
    """

    def __init__(self, sides: Sequence[Side], request: Request, home: torch.device) -> None:
        self.sides = sides
        self.request = request
        self.home = home
        self.two_sided = len(sides) == 2 and not request.square
        self.route: Route | None = None
        self.samples = 0
        self.batches = 0
        self.statistics: Any = None
        self.left, self.right = _Features(), _Features()
        self._widths: list[list[int]] = []
        self._sizes: list[int] = []
        self._flat: list[bool] = []
        self._coarse: list[dict[str, tuple[float, torch.dtype]]] = []

    def consume(self, _index: int, kept: list[list[torch.Tensor | None]], samples: int) -> None:
        """Add one batch: for each side the features (samples, d) of its layers; None for one that was left out since.

        Raises
        ------
        ValueError
            If the width of a layer changes, or the data need a sketch and ``estimator`` is "biased".
        """
        self._widths = self._widths or [[x.shape[1] for x in side if x is not None] for side in kept]
        full = [filled_features(side, widths) for side, widths in zip(kept, self._widths, strict=True)]
        if not self._coarse and samples >= 4:
            # Once: how coarsely a dtype holds a layer is a property of the network.
            self._coarse = [
                coarse_layers(side.names, features) for side, features in zip(self.sides, full, strict=True)
            ]
        sides = [[x.to(self.home) for x in side] for side in full]
        xs, ys = (sides[0], sides[1]) if self.two_sided else ([x for side in sides for x in side], None)
        if self.route is None:
            self._choose(xs, ys)
        if self.statistics is not None:
            self.statistics.update(xs, ys)
        else:
            self.left.append(xs)
            if ys is not None:
                self.right.append(ys)
        self.samples += samples
        self.batches += 1
        self._sizes.append(samples)

    def _choose(self, xs: list[torch.Tensor], ys: list[torch.Tensor] | None) -> None:
        """Choose the route by the first batch."""
        request, first = self.request, len(xs[0])
        widths_x, widths_y = [x.shape[1] for x in xs], None if ys is None else [y.shape[1] for y in ys]
        expected = expected_samples(request.data, first) if request.sample_axis == 0 else None
        if request.measure != "cka":
            self.route = Route("features", f"{request.measure} needs the features of all samples")
        else:
            self.route = choose_route(expected, widths_x, widths_y, kernel=request.kernel, memory=MEMORY)
        self.left.expected_rows = self.right.expected_rows = expected
        if self.route.name == "moments":
            self.statistics = MomentCKA()
        elif self.route.name == "sketch":
            if request.estimator != "unbiased":
                raise ValueError(
                    f'{self.route.reason}, and the sketch has the unbiased estimator only. Use estimator="unbiased".'
                )
            from ..estimators.dataset.sketch import SketchCKA

            self.statistics = SketchCKA(size=SKETCH_SIZE, kernel=request.kernel)
            self._flat = [bool((x == x[:1]).all()) for x in [*xs, *(ys or [])]]

    def _named_layers(self) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
        """Model and layer of each row, and of each column."""
        sides = [[(side.name, layer) for layer in side.compared] for side in self.sides]
        if self.two_sided:
            return sides[0], sides[1]
        every = [named for side in sides for named in side]
        return every, every

    def result(self, notes: Sequence[str], meta: dict[str, Any]) -> SimilarityMatrix:
        """The similarities over all samples.

        Parameters
        ----------
        notes : sequence of str
            Notes of the pass.
        meta : dict
            Added to ``meta`` of the result.

        Raises
        ------
        ValueError, TypeError
            If the measure or estimator cannot be computed from the samples, for example because they are too few.
        """
        request, route = self.request, self.route
        assert route is not None
        found = self._values(route)
        values = _numpy(found.values)
        rows, columns = self._named_layers()
        notes = [*notes, f"route {route.name}: {route.reason}", *found.notes]
        notes += [note for side in self.sides for note in side.notes()]
        for side, coarse in zip(self.sides, self._coarse, strict=False):
            notes += coarse_notes(side.name, {name: coarse[name] for name in side.compared if name in coarse})
        otherwise = alike(request.kernel, request.measure)
        named = (rows, columns) if self.two_sided else (rows,)
        notes += undefined_notes(undefined_layers(named, found.reasons, np.isnan(values), otherwise))
        unbiased, skewness = request.measure == "cka" and request.estimator == "unbiased", found.skewness
        return SimilarityMatrix(
            values,
            [layer for _, layer in rows],
            [layer for _, layer in columns],
            standard_error=None if found.standard_error is None else _numpy(found.standard_error),
            p_value=None if skewness is None else _numpy(permutation_p(found.values, skewness, self.samples)),
            chance=np.zeros_like(values) if unbiased else None if found.chance is None else _numpy(found.chance),
            notes=notes,
            measure=request.measure,
            meta={
                **_about_measure(request),
                "scope": "dataset",
                "route": route.name,
                "samples": self.samples,
                "batches": self.batches,
                **({} if found.degrees_of_freedom is None else {"degrees_of_freedom": found.degrees_of_freedom}),
                **meta,
            },
            row_models=[model for model, _ in rows] if request.square else None,
            column_models=[model for model, _ in columns] if request.square else None,
        )

    def _spread(self, rows: list[int], columns: list[int]) -> tuple[tuple[Any, ...], list[str]]:
        """Why layers of the sums have no value, by rows and columns, and notes on far samples."""
        if self.samples < 4:
            return ([None] * len(rows), [None] * len(columns)), []
        spread = self.statistics.spread()
        named, places_of = self._named_layers()[0], rows
        by_place = by_spread(spread)
        for place, width in enumerate(getattr(self.statistics, "bandwidths", [])):
            if math.isnan(width):
                flat = f"{CONSTANT_AT_FIRST}, from which the bandwidth is taken"
                why = f"not constant, but {undefined_reason(self.request.kernel)}"
                by_place[place] = flat if self._flat[place] else why
        if self.two_sided:
            split = len(self._widths[0])
            columns = [split + column for column in columns]
            named, places_of = [*named, *self._named_layers()[1]], [*rows, *columns]
        reasons = [by_place[row] for row in rows], [by_place[column] for column in columns]
        return reasons, far_notes(spread, named, places_of, self._sizes)

    def _values(self, route: Route) -> _Values:
        request = self.request
        rows, columns = (places([side]) for side in self.sides) if self.two_sided else (places(self.sides),) * 2
        if route.name == "moments":
            statistics = self.statistics
            values, error = statistics.compute(request.estimator), statistics.standard_error(request.estimator)
            reasons, notes = self._spread(rows, columns)
            values, error = values[rows][:, columns], error[rows][:, columns]
            skewness = statistics.skewness()[rows][:, columns] if request.estimator == "unbiased" else None
            degrees = statistics.degrees_of_freedom
            return _Values(values, error, degrees, skewness=skewness, notes=tuple(notes), reasons=reasons)
        if route.name == "sketch":
            reasons, notes = self._spread(rows, columns)
            return _Values(self.statistics.compute()[rows][:, columns], notes=tuple(notes), reasons=reasons)
        every = self.left.arrays()
        xs = [every[row] for row in rows]
        ys = None
        if self.two_sided:
            every = self.right.arrays()
            ys = [every[column] for column in columns]
        if route.name == "blocks":
            stacks = 8 * self.samples**2 * (len(xs) + len(ys or ()))
            if self.samples >= 5 and stacks <= MEMORY // 8:
                return self._jackknife(xs, ys)

            def bar(blocks: Iterator[Any], total: int) -> Iterator[Any]:
                return iter(tqdm(blocks, desc="blocks", total=total, disable=not request.progress, dynamic_ncols=True))

            return self._blocked(xs, ys, bar)
        from ..estimators.measures.catalogue import MEASURES

        found = MEASURES[request.measure].matrix(xs, ys, **request.options)
        return _Values(found.values, chance=found.chance, reasons=reasons_of(found.values, xs, ys, request.kernel))

    def _blocked(self, xs: list[torch.Tensor], ys: list[torch.Tensor] | None, bar: Callable[..., Any]) -> _Values:
        """CKA block by block; NaN for layers without a median bandwidth, which would end the computation."""
        kernel = self.request.kernel
        good_x, good_y = (
            [place for place, x in enumerate(side or []) if not has_no_bandwidth(some_samples(x), kernel)]
            for side in (xs, ys)
        )
        good_y = good_x if ys is None else good_y
        values = torch.full((len(xs), len(xs if ys is None else ys)), math.nan, dtype=torch.float64, device=self.home)
        if good_x and good_y:
            some_x, some_y = [xs[place] for place in good_x], None if ys is None else [ys[place] for place in good_y]
            part = blocked_cka(some_x, some_y, kernel=kernel, estimator=self.request.estimator, progress=bar)
            values[torch.tensor(good_x)[:, None], torch.tensor(good_y)] = part.to(values.device)
        notes: list[str] = []
        for layers, features in zip(self._named_layers(), (xs, ys or []), strict=True):
            if features and isinstance(kernel, Linear):
                spread = spread_by_features(features)
                notes += far_notes(spread, layers, range(len(features)), self._sizes)
        skewness = sampled_skewness(xs, ys, kernel) if self.request.estimator == "unbiased" else None
        return _Values(values, skewness=skewness, notes=tuple(notes), reasons=reasons_of(values, xs, ys, kernel))

    def _jackknife(self, xs: list[torch.Tensor], ys: list[torch.Tensor] | None) -> _Values:
        """CKA with the exact jackknife over samples, and a note on each layer whose values depend on a few samples.

        The Gram matrices of all layers must fit into memory.
        """
        found = jackknife_matrix(xs, ys, kernel=self.request.kernel, estimator=self.request.estimator)
        named = self._named_layers()
        notes = []
        for outliers in found.outliers:
            model, layer = named[outliers.side][outliers.layer]
            notes.append(f"{model}: {outliers.message(repr(layer))}")
        reasons = reasons_of(found.value, xs, ys, self.request.kernel)
        value, error, degrees = found.value, found.standard_error, self.samples - 1
        return _Values(value, error, degrees, skewness=found.skewness, notes=tuple(notes), reasons=reasons)


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
