"""The result of minibatch statistics, with notes on layers that are constant or rest on one batch."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from ..estimators.calibration import Calibration
from ..estimators.kernels import RBF, Kernel
from ..estimators.measures.catalogue import MEASURES
from ..estimators.minibatch import MinibatchCKA
from ..estimators.minibatch_mmd import is_quadratic, minibatch_mmd
from ..similarity.matrix import SimilarityMatrix
from .notes import one_batch_notes, undefined_notes

__all__ = ["calibrated", "minibatch_result", "mmd_result"]

ONE_BATCH = 0.5
"""Sum of the squared weights of the batches in a layer above which one batch is said to decide its values.

One batch then has two thirds of the weight or more; the sum is 1 over the number of batches if all weigh alike."""

MANY_BATCHES, MANY_SAMPLES = 6, 8
"""Fewer batches, or fewer samples in each, reach `ONE_BATCH` by chance: the spread of four samples is hardly known."""

CALIBRATED = ("corrected_p_value", "z_score", "score")
"""Attributes of a ``Calibration`` that stand in ``extra`` of a result."""


def minibatch_result(
    statistics: MinibatchCKA,
    rows: Sequence[tuple[str, str]],
    columns: Sequence[tuple[str, str]],
    notes: Sequence[str],
    meta: dict[str, Any],
    *,
    models: bool = False,
    reasons: Mapping[tuple[str, str], str] | None = None,
    far: Collection[tuple[str, str]] = (),
) -> SimilarityMatrix:
    """The result of accumulated statistics, with notes on layers that are constant or rest on one batch.

    Parameters
    ----------
    statistics : MinibatchCKA
        Of at least one batch.
    rows, columns : sequence of (str, str)
        Model and layer of each row and column.
    notes : sequence of str
        Notes so far.
    meta : dict
        Added to ``meta`` of the result.
    models : bool
        Whether the result gives the model of each row and column.
    reasons : mapping of (str, str) to str, optional
        For layers without any spread that are not constant, by model and layer, what they are.
    far : collection of (str, str)
        Layers with a note on one far sample, which need no note on its batch.
    """
    undefined: dict[tuple[str, str], str] = {}  # a layer of a square result is in it once
    one_batch: dict[tuple[str, str], None] = {}
    for side, own, square in ((rows, "self_x", "x2"), (columns, "self_y", "y2")):
        weight = _numpy(statistics.sums[own]).ravel()
        for named, total in zip(side, weight, strict=True):
            if total <= 0:
                undefined[named] = (reasons or {}).get(named, "constant over the samples of every batch")
        if statistics.batches >= MANY_BATCHES and statistics.samples >= MANY_SAMPLES * statistics.batches:
            with np.errstate(divide="ignore", invalid="ignore"):
                share = _numpy(statistics.sums[square]).ravel() / weight / weight
            one_batch |= dict.fromkeys(named for named, part in zip(side, share, strict=True) if ONE_BATCH < part < 1.1)
    notes = [
        *notes,
        *undefined_notes(undefined),
        *one_batch_notes([layer for layer in one_batch if layer not in far], statistics.batches),
    ]
    found = statistics.calibration() if statistics.permutations else None
    p_value = None if found is None else found.p_value
    if found is None and statistics.estimator == "unbiased":
        p_value = statistics.p_value()
    return SimilarityMatrix(
        _numpy(statistics.compute()),
        [layer for _, layer in rows],
        [layer for _, layer in columns],
        standard_error=_numpy(statistics.standard_error()) if statistics.batches > 1 else None,
        p_value=None if p_value is None else _numpy(p_value),
        chance=_numpy(statistics.chance_level()),
        notes=notes,
        measure="cka",
        meta={
            "kernel": repr(statistics.kernel),
            "estimator": statistics.estimator,
            "scope": "minibatch",
            "samples": statistics.samples,
            "batches": statistics.batches,
            "degrees_of_freedom": statistics.batches - 1,
            **({} if found is None else {"permutations": found.permutations}),
            **meta,
        },
        row_models=[model for model, _ in rows] if models else None,
        column_models=[model for model, _ in columns] if models else None,
        extra=calibrated(found),
    )


def calibrated(found: Calibration | None) -> dict[str, np.ndarray]:
    """The arrays of a calibration that stand in ``extra`` of a result."""
    return {} if found is None else {name: _numpy(getattr(found, name)) for name in CALIBRATED}


def mmd_result(cka: SimilarityMatrix, statistics: MinibatchCKA, kernel: Kernel) -> SimilarityMatrix:
    """The squared MMD of all pairs with its error, and beside it its bounds and CKA of the same pass.

    Parameters
    ----------
    cka : SimilarityMatrix
        The result for CKA; its notes, layers and ``meta`` hold for both.
    statistics : MinibatchCKA
        The statistics that ``cka`` was made of, with the sums of ``mmd_sums``.
    kernel : Kernel
        Kernel between the rows of the Gram matrices.
    """
    found = minibatch_mmd(statistics.sums)
    bounded = {"upper": found.upper, "lower": found.lower} if is_quadratic(kernel) else {"upper": found.upper}
    extra = {name: _numpy(bound) for name, bound in bounded.items() if is_quadratic(kernel) or isinstance(kernel, RBF)}
    parts = {"": cka.values, " standard_error": cka.standard_error, " p_value": cka.p_value, " chance": cka.chance}
    extra |= {f"cka{name}": array for name, array in parts.items() if array is not None}
    measure = MEASURES["mmd"]
    options = {"kernel": repr(kernel), "gram_kernel": cka.meta["kernel"], "centred": True}
    return SimilarityMatrix(
        _numpy(found.value),
        cka.rows,
        cka.columns,
        standard_error=None if cka.standard_error is None else _numpy(found.standard_error),
        notes=cka.notes,
        measure="mmd",
        meta={**cka.meta, "kind": measure.kind, "invariances": measure.invariances, "options": options},
        row_models=cka.row_models,
        column_models=cka.column_models,
        extra=extra,
    )


def _numpy(values: Any) -> np.ndarray:
    return values.cpu().numpy()
