"""Square tables of an atlas: all layers of several models, and distances between whole models."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..comparison.signature_pairs import compare_all_signatures, cosines, sketch_notes
from ..estimators.count_sketch import cosine_error
from ..estimators.model_distances import row_of_distances
from ..similarity.matrix import SimilarityMatrix
from .search import Shelf
from .store import Entry, Store

__all__ = ["distances_between", "square_matrix"]


def square_matrix(store: Store, entries: Sequence[Entry]) -> SimilarityMatrix:
    """CKA of all layers of several models: exact if all have their Gram matrices, otherwise from sketches."""
    if all(entry.exact for entry in entries):
        return compare_all_signatures([store.signature_of(entry) for entry in entries])
    sides = [store.sketch_of(entry) for entry in entries]
    vectors = np.concatenate([side.vectors for side in sides])
    values = cosines(vectors, vectors)
    one = sides[0]
    layers = [layer for side in sides for layer in side.layers]
    models = [side.name for side in sides for _ in side.layers]
    return SimilarityMatrix(
        (values + values.T) / 2,
        layers,
        layers,
        standard_error=None if one.exact else cosine_error(values, one.size),
        notes=sketch_notes(sides),
        meta={
            "kernel": one.kernel,
            "estimator": one.estimator,
            "scope": "minibatch",
            "samples": sum(one.samples),
            "batches": len(one.samples),
            "pooling": one.pooling,
            "sketch": None if one.exact else {"size": one.size, "seed": one.seed},
        },
        row_models=models,
        column_models=models,
    )


def distances_between(store: Store, shelf: Shelf, entries: Sequence[Entry], how: str, *, most: int) -> SimilarityMatrix:
    """Distances between whole models, from their Gram matrices if all have them and at most ``most`` layers."""
    sizes = [len(entry.layers) for entry in entries]
    exact = all(entry.exact for entry in entries) and sum(sizes) <= most
    if exact:
        whole = square_matrix(store, entries).values
    else:
        vectors = np.concatenate([shelf.rows(entry) for entry in entries]).astype(np.float32)
    values = np.zeros((len(entries), len(entries)))
    start = 0
    for i, size in enumerate(sizes):
        rows = slice(start, start + size)
        block = whole[rows] if exact else cosines(vectors[rows], vectors)
        values[i, i:] = values[i:, i] = row_of_distances(block, sizes, how, first=i)[i:]
        start += size
    # arccos(1 - 1e-16) is 1e-8: a model has no distance to itself.
    values[np.diag_indices(len(entries))] *= 0.0
    names = [entry.name for entry in entries]
    about = "the Gram matrices" if exact else f"sketches of {store.sketch.size:,} numbers"
    return SimilarityMatrix(
        values,
        names,
        names,
        notes=[f"distances in radians from {about}"],
        measure=f"{how} distance",
        meta={"kind": "distance", **{key: entries[0].header[key] for key in ("kernel", "estimator")}},
    )
