"""Exact similarities of a whole data set: by moments, by blocks of Gram matrices, by a sketch, or another measure."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence, Sized
from typing import Any, Protocol

import numpy as np
import torch
from tqdm.auto import tqdm

from ..capture.batches import batch_size
from ..capture.buffers import FeatureBuffer
from ..capture.recorder import LayerRecorder, NotFiniteError
from ..capture.state import device_of
from ..estimators.dataset.blocks import blocked_cka
from ..estimators.dataset.moments import MomentCKA
from ..estimators.dataset.routes import SKETCH_SIZE, Route, choose_route
from ..estimators.inference import OutlierWarning, cka_matrix_with_error
from ..similarity.matrix import SimilarityMatrix
from .request import Request

MEMORY = 4 * 2**30
"""Bytes that statistics and kept features of a data set may take before a sketch takes over."""


def keep_features(_name: str, features: torch.Tensor) -> torch.Tensor:
    """A copy of the features: the activation itself may be changed in place by what follows.

    Raises
    ------
    NotFiniteError
        If they hold NaN or infinity.
    """
    if not bool(torch.isfinite(features).all()):
        raise NotFiniteError
    return features.detach().clone()


class _Kept:
    """Features of one side over all batches, for the block route and for measures other than CKA."""

    def __init__(self, rows: int | None) -> None:
        self.rows = rows
        self.buffers: list[FeatureBuffer] = []

    def append(self, features: Sequence[torch.Tensor]) -> None:
        if not self.buffers:
            self.buffers = [FeatureBuffer(rows=self.rows) for _ in features]
        for buffer, x in zip(self.buffers, features, strict=True):
            buffer.append(x)

    def arrays(self) -> list[torch.Tensor]:
        return [buffer.rows() for buffer in self.buffers]


class Side(Protocol):
    """A model that runs (`LayerRecorder`), or the features that one has left."""

    @property
    def name(self) -> str:
        """What messages call it."""

    @property
    def names(self) -> list[str]:
        """Its layers."""

    def notes(self) -> list[str]:
        """What was left out and why."""


class DatasetPass:
    """Gathers exact statistics while a pass runs; the route is chosen when the first batch shows the widths."""

    def __init__(self, sides: Sequence[Side], request: Request, home: torch.device) -> None:
        self.sides = sides
        self.request = request
        self.home = home
        self.two_sided = len(sides) == 2 and not request.square
        self.route: Route | None = None
        self.samples = 0
        self.batches = 0
        self.statistics: Any = None
        self.outliers: list[str] = []
        self.left, self.right = _Kept(None), _Kept(None)

    def consume(self, _index: int, kept: list[list[torch.Tensor]], samples: int) -> None:
        """Add one batch of features."""
        sides = [[x.to(self.home) for x in side] for side in kept]
        xs, ys = (sides[0], sides[1]) if self.two_sided else ([x for side in sides for x in side], None)
        if self.route is None:
            self._choose(samples, [x.shape[1] for x in xs], None if ys is None else [y.shape[1] for y in ys])
        if self.statistics is not None:
            self.statistics.update(xs, ys)
        else:
            self.left.append(xs)
            if ys is not None:
                self.right.append(ys)
        self.samples += samples
        self.batches += 1

    def _choose(self, first: int, widths_x: list[int], widths_y: list[int] | None) -> None:
        request = self.request
        expected = _expected_samples(request.data, first)
        if request.measure != "cka":
            self.route = Route("features", f"{request.measure} needs the features of all samples")
        else:
            self.route = choose_route(expected, widths_x, widths_y, kernel=request.kernel, memory=MEMORY)
        self.left.rows = self.right.rows = expected
        if self.route.name == "moments":
            self.statistics = MomentCKA()
        elif self.route.name == "sketch":
            if request.estimator != "unbiased":
                raise ValueError(
                    f'{self.route.reason}, and the sketch has the unbiased estimator only. Use estimator="unbiased".'
                )
            from ..estimators.dataset.sketch import SketchCKA

            self.statistics = SketchCKA(size=SKETCH_SIZE, kernel=request.kernel)

    def result(self, notes: Sequence[str], meta: dict[str, Any], *, models: bool) -> SimilarityMatrix:
        """The similarities over all samples."""
        request, route = self.request, self.route
        assert route is not None
        values, error, degrees, chance = self._values(route)
        rows = [(s.name, layer) for s in (self.sides[:1] if self.two_sided else self.sides) for layer in s.names]
        columns = [(s.name, layer) for s in self.sides[1:] for layer in s.names] if self.two_sided else rows
        notes = [*notes, f"route {route.name}: {route.reason}", *self.outliers]
        notes += [note for s in self.sides for note in s.notes()]
        for side, axis in ((rows, 1),) if not self.two_sided else ((rows, 1), (columns, 0)):
            notes += [
                f"{model}: {layer!r} is constant over all samples, so its similarity is undefined"
                for (model, layer), dead in zip(side, np.isnan(values).all(axis=axis), strict=True)
                if dead
            ]
        made = {"kernel": repr(request.kernel), "estimator": request.estimator} if request.measure == "cka" else {}
        unbiased = request.measure == "cka" and request.estimator == "unbiased"
        return SimilarityMatrix(
            values,
            [layer for _, layer in rows],
            [layer for _, layer in columns],
            standard_error=error,
            p_value=_p_value(values, self.samples) if unbiased and route.name != "sketch" else None,
            chance=np.zeros_like(values) if unbiased else chance,
            notes=notes,
            measure=request.measure,
            meta={
                **made,
                "scope": "dataset",
                "route": route.name,
                "samples": self.samples,
                "batches": self.batches,
                **({} if degrees is None else {"degrees_of_freedom": degrees}),
                **_kind(request.measure),
                **meta,
            },
            row_models=[model for model, _ in rows] if models else None,
            column_models=[model for model, _ in columns] if models else None,
        )

    def _values(self, route: Route) -> tuple[np.ndarray, np.ndarray | None, int | None, np.ndarray | None]:
        """Values, standard errors, their degrees of freedom, and chance levels where a measure has them."""
        request = self.request
        if route.name == "moments":
            values, error = (
                f(request.estimator).cpu().numpy() for f in (self.statistics.compute, self.statistics.standard_error)
            )
            return values, error, self.statistics.degrees_of_freedom, None
        if route.name == "sketch":
            return self.statistics.compute().cpu().numpy(), None, None, None
        xs = self.left.arrays()
        ys = self.right.arrays() if self.two_sided else None
        if route.name == "blocks":
            stacks = 8 * self.samples**2 * (len(xs) + len(ys or ()))
            if self.samples >= 5 and stacks <= MEMORY // 8:
                return (*self._with_jackknife(xs, ys), None)

            def bar(blocks: Iterator[Any], total: int) -> Iterator[Any]:
                return iter(tqdm(blocks, desc="blocks", total=total, disable=not request.progress, dynamic_ncols=True))

            values = blocked_cka(xs, ys, kernel=request.kernel, estimator=request.estimator, progress=bar)
            return values.cpu().numpy(), None, None, None
        from ..estimators.measures.catalogue import MEASURES

        found = MEASURES[request.measure].matrix(xs, ys)
        return found.values.cpu().numpy(), None, None, None if found.chance is None else found.chance.cpu().numpy()

    def _with_jackknife(
        self, xs: list[torch.Tensor], ys: list[torch.Tensor] | None
    ) -> tuple[np.ndarray, np.ndarray, int]:
        """Whole Gram matrices fit: the exact jackknife over samples, and what it says of outliers as notes."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = cka_matrix_with_error(xs, ys, kernel=self.request.kernel, estimator=self.request.estimator)
        for warning in caught:
            if issubclass(warning.category, OutlierWarning):
                self.outliers.append(str(warning.message))
            else:
                warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
        return found.value.cpu().numpy(), found.standard_error.cpu().numpy(), self.samples - 1


def run_dataset(
    recorders: list[LayerRecorder], request: Request, meta: dict[str, Any], *, models: bool = False
) -> SimilarityMatrix:
    """One pass over the data, then the similarities over all samples.

    Raises
    ------
    ValueError
        If a checkpoint or several processes are asked for: they are for the minibatch scope.
    """
    for name, given in (("checkpoint", request.checkpoint is not None), ("distributed", request.distributed)):
        if given:
            raise ValueError(f'`{name}` is for scope="minibatch"; the data set scope runs in one go in one process.')
    gathered = DatasetPass(recorders, request, device_of(recorders[0].model))
    run = request.make_pass(recorders, 1)
    run.run(request.data, gathered.consume, data_y=request.data_y)
    run.require_batches()
    return gathered.result(run.notes, {**meta, "partial": run.interrupted}, models=models)


def _kind(measure: str) -> dict[str, str]:
    """What a reader of the result must know of another measure: whether more means more alike."""
    if measure == "cka":
        return {}
    from ..estimators.measures.catalogue import MEASURES

    return {"kind": MEASURES[measure].kind, "invariances": MEASURES[measure].invariances}


def _p_value(values: np.ndarray, samples: int) -> np.ndarray:
    from scipy import stats

    # The permutation variance of unbiased CKA is 2 / (n(n-3)) for any data (MATH 4).
    return stats.norm.sf(values * np.sqrt(samples * (samples - 3) / 2))


def _expected_samples(data: Any, first: int) -> int | None:
    """The number of samples, as far as the data can tell after a first batch of ``first``."""
    if isinstance(data, torch.Tensor):
        return len(data)
    dataset = getattr(data, "dataset", None)
    if isinstance(dataset, Sized):
        return len(dataset)
    if isinstance(data, list | tuple):
        sizes = [batch_size(batch) for batch in data]
        return sum(size for size in sizes if size is not None)
    return len(data) * first if isinstance(data, Sized) else None
