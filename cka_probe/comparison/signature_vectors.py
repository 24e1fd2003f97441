"""Each layer of a signature as one vector, so that CKA is the cosine between two of them; and sketches of these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from ..estimators.count_sketch import RowSketch
from ..estimators.hsic import normalizer
from .signature_files import Signature, SketchedSignature, header_of, packed_columns

__all__ = ["Sketch", "as_sketch", "batch_columns", "from_vectors", "sketch_of", "sketched", "vectors_of", "weighted"]


@dataclass(frozen=True)
class Sketch:
    """How signatures are sketched. All signatures that are to be compared need the same sketch.

    Parameters
    ----------
    size : int
        Numbers for each layer, from 64 to 4,194,304: 2 bytes each. The standard error of CKA is
        (1 - CKA^2) / sqrt(size), 0.016 at most for 4,096. Powers of two are best for ``Atlas.nearest``.
    seed : int
        Of the random signs and bins.

    Raises
    ------
    TypeError, ValueError
        If ``size`` or ``seed`` is no integer, or out of range.

    Examples
    --------
    >>> Sketch(1024)
    Sketch(size=1024, seed=0)
    """

    size: int = 4096
    seed: int = 0

    def __post_init__(self) -> None:
        RowSketch(self.size, self.seed)


def as_sketch(form: Any) -> Sketch | None:
    """The sketch that ``form`` asks for; None for "exact" and "half".

    Raises
    ------
    ValueError, TypeError
        If it is nothing of these.
    """
    if isinstance(form, Sketch):
        return form
    if not isinstance(form, str):
        raise TypeError(f'`form` must be "exact", "half", "sketch" or a Sketch, got {form!r}.')
    if form not in ("exact", "half", "sketch"):
        raise ValueError(f'`form` must be "exact", "half", "sketch" or a Sketch, got {form!r}.')
    return Sketch() if form == "sketch" else None


def weighted(triangles: np.ndarray, scales: np.ndarray, samples: int, estimator: str) -> np.ndarray:
    """Part of the layers' vectors that one minibatch gives, in float64.

    The inner product of two such parts is the term of the minibatch in the ratio of means (docs/theory.md, section 1):
    the number of samples times HSIC, up to a factor that all share.

    Parameters
    ----------
    triangles : array (layers, n (n + 1) / 2)
        Upper triangles of the centred Gram matrices, with the diagonal.
    scales : array (layers,)
        Their divisors.
    samples : int
        n.
    estimator : str
        "unbiased" leaves out the diagonal, which is 0. "biased" counts it once, the rest twice.
    """
    rows = triangles.astype(np.float64) * (scales * np.sqrt(samples / normalizer(samples, estimator)))[:, None]
    diagonal = _diagonal(samples)
    if estimator == "unbiased":
        return rows[:, ~diagonal]
    return np.where(diagonal, rows, np.sqrt(2.0) * rows)


def vectors_of(signature: Signature) -> np.ndarray:
    """Vectors of all layers, of norm 1, in float32; zeros for layers without any spread."""
    parts = [
        weighted(gram, scale, samples, signature.estimator)
        for gram, scale, samples in zip(signature.grams, signature.scales, signature.samples, strict=True)
    ]
    norms = np.sqrt(sum(np.sum(part * part, axis=1) for part in parts))
    norms = np.where(norms > 0, norms, 1.0)
    return np.concatenate([(part / norms[:, None]).astype(np.float32) for part in parts], axis=1)


def from_vectors(vectors: np.ndarray, header: dict[str, Any]) -> Signature:
    """The signature with these vectors; each layer has lost the common factor of its Gram matrices."""
    grams: list[np.ndarray] = []
    scales: list[np.ndarray] = []
    samples, estimator = header["samples"], header["estimator"]
    for n, (start, stop) in zip(samples, batch_columns(samples, estimator), strict=True):
        part = vectors[:, start:stop].astype(np.float64) / np.sqrt(n / normalizer(n, estimator))
        diagonal = _diagonal(n)
        if estimator == "unbiased":
            gram = np.zeros((len(part), len(diagonal)))
            gram[:, ~diagonal] = part
        else:
            gram = np.where(diagonal, part, part / np.sqrt(2.0))
        size = np.max(np.abs(gram), axis=1)
        size = np.where(size > 0, size, 1.0)
        grams.append((gram / size[:, None]).astype(np.float32))
        scales.append(size)
    return Signature(**header, grams=tuple(grams), scales=tuple(scales))


def batch_columns(samples: Sequence[int], estimator: str) -> list[tuple[int, int]]:
    """First column of each minibatch in the vectors, and the one after its last."""
    ends = np.cumsum([0, *(packed_columns((n,), estimator) for n in samples)]).tolist()
    return list(pairwise(ends))


def sketched(signature: Signature | SketchedSignature, sketch: Sketch) -> SketchedSignature:
    """The sketch of a signature.

    Raises
    ------
    ValueError
        If the signature is a sketch already, of another size or seed.
    """
    if isinstance(signature, SketchedSignature):
        if (signature.size, signature.seed) != (sketch.size, sketch.seed):
            raise ValueError(
                f"The sketch of {signature.name!r} has size={signature.size} and seed={signature.seed}, not "
                f"size={sketch.size} and seed={sketch.seed}. A sketch cannot be sketched anew: make it from the model."
            )
        return signature
    rows = RowSketch(sketch.size, sketch.seed)
    for gram, scale, samples in zip(signature.grams, signature.scales, signature.samples, strict=True):
        rows.add(weighted(gram, scale, samples, signature.estimator))
    return sketch_of(rows, header_of(signature))


def sketch_of(
    rows: RowSketch, header: dict[str, Any], layers: Sequence[int] | slice = slice(None)
) -> SketchedSignature:
    """The sketched signature of ``layers`` (places) from their sketched rows."""
    vectors = rows.result()[layers]
    fields: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in header.items()}
    return SketchedSignature(**fields, size=rows.size, seed=rows.seed, vectors=vectors.astype(np.float16))


def _diagonal(samples: int) -> np.ndarray:
    """Which entries of an upper triangle, row by row, lie on the diagonal."""
    rows, columns = np.triu_indices(samples)
    return rows == columns
