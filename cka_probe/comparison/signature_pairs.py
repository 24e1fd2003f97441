"""Compare signatures: exactly from their Gram matrices, or by their sketches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ..estimators.count_sketch import cosine_error
from ..estimators.kernels import kernel_from_name
from ..estimators.minibatch import MinibatchCKA
from ..similarity.matrix import SimilarityMatrix
from .minibatch_result import minibatch_result
from .notes import undefined_notes
from .signature_files import Signature, SketchedSignature
from .signature_vectors import Sketch, sketched

__all__ = ["check_comparable", "compare_all_signatures", "compare_signatures", "cosines", "sketch_notes"]


def compare_signatures(x: Signature | SketchedSignature, y: Signature | SketchedSignature) -> SimilarityMatrix:
    """CKA of every layer of one model with every layer of another, from their signatures on the same data.

    Parameters
    ----------
    x, y : Signature or SketchedSignature
        Rows and columns of the result. If one is a sketch, the other is sketched in the same way.

    Returns
    -------
    SimilarityMatrix
        From two signatures: equal to the result of ``compare`` up to float32 rounding. From sketches: cosines of
        sketches, whose ``standard_error`` is the error of the sketch alone, ``(1 - CKA^2) / sqrt(size)``, and without
        p-values.

    Raises
    ------
    TypeError
        If one is no signature.
    ValueError
        If the signatures differ in kernel or estimator, in their samples, in the order or batches of the samples, or
        in the size or seed of their sketches.

    References
    ----------
    docs/theory.md, section 3.

    Examples
    --------
    >>> from torch import nn
    >>> from cka_probe import signature
    >>> net = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
    >>> left = signature(net, torch.eye(8), progress=False)
    >>> compare_signatures(left, left).shape
    (2, 2)
    """
    for side in (x, y):
        if not isinstance(side, Signature | SketchedSignature):
            raise TypeError(f"`compare_signatures` takes two signatures, got {type(side).__name__}.")
    check_comparable(x, y)
    if isinstance(x, SketchedSignature) or isinstance(y, SketchedSignature):
        return _compare_sketches(x, y)
    return _compare_exactly(x, y)


def check_comparable(x: Signature | SketchedSignature, y: Signature | SketchedSignature) -> None:
    """Raise ValueError if two signatures differ in kernel, estimator, or samples."""
    for what in ("kernel", "estimator"):
        if getattr(x, what) != getattr(y, what):
            raise ValueError(
                f"The signatures were made with different settings: {what} {getattr(x, what)} of {x.name!r} and "
                f"{getattr(y, what)} of {y.name!r}."
            )
    if x.order != y.order or x.samples != y.samples:
        raise ValueError(
            f"The signatures of {x.name!r} and {y.name!r} differ in their samples, their order or their batch size. "
            "Make both from the same data without shuffling."
        )


def cosines(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Cosine of every row of ``x`` with every row of ``y``, in float64; NaN for a row of zeros."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    norm_x, norm_y = np.linalg.norm(x, axis=1), np.linalg.norm(y, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (x / norm_x[:, None]) @ (y / norm_y[:, None]).T


def _compare_sketches(x: Signature | SketchedSignature, y: Signature | SketchedSignature) -> SimilarityMatrix:
    given = x if isinstance(x, SketchedSignature) else y
    assert isinstance(given, SketchedSignature)
    same, sketch = y is x, Sketch(given.size, given.seed)
    x, y = sketched(x, sketch), sketched(y, sketch)
    values = cosines(x.vectors, y.vectors)
    notes = sketch_notes((x,) if same else (x, y))
    return SimilarityMatrix(
        values,
        x.layers,
        y.layers,
        standard_error=None if given.exact else cosine_error(values, given.size),
        chance=np.where(np.isnan(values), np.nan, 0.0) if x.estimator == "unbiased" else None,
        notes=notes,
        meta={
            "kernel": x.kernel,
            "estimator": x.estimator,
            "scope": "minibatch",
            "samples": sum(x.samples),
            "batches": len(x.samples),
            "pooling": x.pooling,
            "model_x": x.name,
            "model_y": y.name,
            "partial": False,
            "sketch": None if given.exact else {"size": given.size, "seed": given.seed},
        },
    )


def sketch_notes(sides: Sequence[SketchedSignature]) -> list[str]:
    """Notes on values of sketches: those of the models, on the error of the sketch, and on undefined layers."""
    notes = [f"{one.name}: {note}" for one in sides for note in one.notes]
    if not sides[0].exact:
        notes.append(
            f"values of sketches of {sides[0].size:,} numbers: standard_error is the error of the sketch, at most "
            f"{sides[0].largest_error:.2g}, and holds no error from the choice of samples"
        )
    reasons = {
        (one.name, layer): one.undefined.get(layer, "constant over the samples of every batch")
        for one in sides
        for layer, row in zip(one.layers, one.vectors, strict=True)
        if not row.any()
    }
    return [*notes, *undefined_notes(reasons)]


def compare_all_signatures(signatures: Sequence[Signature]) -> SimilarityMatrix:
    """CKA of all layers of several models, from their signatures: one square matrix as ``compare_many`` gives.

    Parameters
    ----------
    signatures : sequence of Signature
        Comparable with each other (``check_comparable``).
    """
    statistics = MinibatchCKA(kernel=kernel_from_name(signatures[0].kernel), estimator=signatures[0].estimator)
    for batch, samples in enumerate(signatures[0].samples):
        rows = torch.cat([_unpack(one.grams[batch], samples) for one in signatures])
        scales = torch.from_numpy(np.concatenate([one.scales[batch] for one in signatures]))
        statistics.update_rows(rows, scales, rows, scales, samples)
    side = [(one.name, layer) for one in signatures for layer in one.layers]
    notes = [f"{one.name}: {note}" for one in signatures for note in one.notes]
    reasons = {(one.name, layer): why for one in signatures for layer, why in one.undefined.items()}
    meta = {"pooling": signatures[0].pooling, "partial": False}
    return minibatch_result(statistics, side, side, notes, meta, models=True, reasons=reasons)


def _compare_exactly(x: Signature, y: Signature) -> SimilarityMatrix:
    statistics = MinibatchCKA(kernel=kernel_from_name(x.kernel), estimator=x.estimator)
    same = y is x
    for batch, samples in enumerate(x.samples):
        rows_x = _unpack(x.grams[batch], samples)
        rows_y = rows_x if same else _unpack(y.grams[batch], samples)
        scale_x = torch.from_numpy(x.scales[batch])
        scale_y = scale_x if same else torch.from_numpy(y.scales[batch])
        statistics.update_rows(rows_x, scale_x, rows_y, scale_y, samples)
    sides: Sequence[list[tuple[str, str]]] = [[(s.name, layer) for layer in s.layers] for s in (x, y)]
    notes = [f"{s.name}: {note}" for s in ((x,) if same else (x, y)) for note in s.notes]
    meta = {"pooling": x.pooling, "model_x": x.name, "model_y": y.name, "partial": False}
    reasons = {(s.name, layer): why for s in (x, y) for layer, why in s.undefined.items()}
    return minibatch_result(statistics, sides[0], sides[1], notes, meta, reasons=reasons)


def _unpack(triangles: np.ndarray, samples: int) -> torch.Tensor:
    """Flattened symmetric matrices (layers, samples * samples) from their upper triangles."""
    full = np.zeros((triangles.shape[0], samples, samples), dtype=np.float32)
    rows, columns = np.triu_indices(samples)
    full[:, rows, columns] = triangles
    full[:, columns, rows] = triangles
    return torch.from_numpy(full.reshape(triangles.shape[0], -1))
