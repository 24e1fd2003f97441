"""Find the layers whose sketches are nearest to one sketch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..comparison.signature_files import Signature, SketchedSignature, packed_columns
from ..comparison.signature_pairs import cosines
from ..comparison.signature_vectors import vectors_of
from ..estimators.count_sketch import cosine_error
from .index import LayerIndex, can_index
from .store import Entry, Store

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Candidate", "Shelf"]

AT_ONCE = 4096
"""Layers whose sketches are compared in one product: 64 MB in float32."""

EXACT = 5_000
"""Layers up to which all are compared: 80 MB of sketches in float32."""


class Candidate(NamedTuple):
    """A layer that may be near: its model, its place among the model's layers, and the cosine of the sketches."""

    entry: Entry
    place: int
    similarity: float


class Shelf:
    """Sketches of the layers of an atlas. They are read from the files when they are first needed.

    Parameters
    ----------
    store : Store
        Files of the atlas.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._rows: dict[str, tuple[tuple[int, int], np.ndarray]] = {}
        self._index: LayerIndex | None = None

    def entries(self) -> list[Entry]:
        """Models that the index knows, whose files need not be read again."""
        self._index = self._index or LayerIndex.open(self._store)
        return [] if self._index is None else list(self._index.entries.values())

    def rows(self, entry: Entry) -> np.ndarray:
        """Sketches of the layers of a model (layers, m) in float16.

        Raises
        ------
        FileNotFoundError, ValueError
            If its file is gone or damaged.
        """
        if self._index is not None and self._index.holds(entry):
            return self._index.rows(entry)
        if not self._kept(entry):
            self._rows[entry.stem] = entry.stamp, self._store.sketch_of(entry).vectors
        return self._rows[entry.stem][1]

    def _kept(self, entry: Entry) -> bool:
        return entry.stem in self._rows and self._rows[entry.stem][0] == entry.stamp

    def _passing(self, entry: Entry) -> np.ndarray:
        """As ``rows``, but what is read is not kept: an index is built from more than fits into memory."""
        held = self._index is not None and self._index.holds(entry)
        return self.rows(entry) if held or self._kept(entry) else self._store.sketch_of(entry).vectors

    def nearest(
        self, query: np.ndarray, count: int, entries: Sequence[Entry], *, without: Entry | None = None
    ) -> list[Candidate]:
        """The layers with the largest cosines, the largest first.

        Up to ``EXACT`` layers are all compared. Above, an index is built when it is first needed, and again when many
        models have come since; the few that it does not hold are all compared. Without FAISS, or in a folder that
        cannot be written, all layers are compared, which takes seconds for a million.

        Parameters
        ----------
        query : array (m,)
            A sketch that is not zero.
        count : int
            At most so many layers.
        entries : sequence of Entry
            All models. Layers without any spread are left out.
        without : Entry, optional
            A model that is not searched.
        """
        missing = [entry for entry in entries if self._index is None or not self._index.holds(entry)]
        outside = sum(len(entry.layers) for entry in missing)
        known = sum(len(entry.layers) for entry in entries) - outside
        if outside > max(EXACT, known / 4) and can_index(self._store):
            self._index = LayerIndex.build(self._store, entries, self._passing)
            self._rows.clear()
            missing, known = [], outside + known
        by_index = self._index is not None and known > 0 and find_spec("faiss") is not None
        if not by_index:
            missing = list(entries)
        found = self._best(self._scores(query, [e for e in missing if e is not without]), count)
        if self._index is not None and by_index:
            now = {entry.stem: entry for entry in entries}
            for old, place, cosine in self._index.nearest(query, count, without):
                if (entry := now.get(old.stem)) is not None and self._index.holds(entry):
                    found.append(Candidate(entry, place, cosine))
            found.sort(key=lambda one: -one.similarity)
        return found[:count]

    def exact_query(
        self, signature: Signature | SketchedSignature, entry: Entry | None, place: int
    ) -> np.ndarray | None:
        """The exact vector (1, columns) of a layer of the signature, or of the entry if it is one; None without any."""
        if entry is not None:
            return np.array(self._store.exact_vectors(entry)[place : place + 1]) if entry.exact else None
        return vectors_of(signature)[place : place + 1] if isinstance(signature, Signature) else None

    def table(self, found: Sequence[Candidate], exact: np.ndarray | None) -> pd.DataFrame:
        """The candidates, the most similar first, by their exact vectors where both sides have them."""
        import pandas as pd

        rows = [self._row(one, exact) for one in found]
        rows.sort(key=lambda row: -row[2])
        return pd.DataFrame(rows, columns=["model", "layer", "similarity", "standard_error", "exact"])

    def _row(self, one: Candidate, exact: np.ndarray | None) -> tuple[str, str, float, float, bool]:
        layer = one.entry.layers[one.place]
        if exact is not None and one.entry.exact:
            vectors = self._store.exact_vectors(one.entry)[one.place : one.place + 1]
            return one.entry.name, layer, float(cosines(exact, vectors)[0, 0]), 0.0, True
        size = self._store.sketch.size
        whole = packed_columns(one.entry.header["samples"], one.entry.header["estimator"]) <= size
        error = 0.0 if whole else float(cosine_error(one.similarity, size))
        return one.entry.name, layer, one.similarity, error, whole

    def _scores(self, query: np.ndarray, entries: Sequence[Entry]) -> Iterable[tuple[Entry, np.ndarray]]:
        """For each model the cosines of its layers with the query; NaN for undefined layers."""
        unit = query.astype(np.float32) / np.linalg.norm(query.astype(np.float64)).astype(np.float32)
        for group in _groups(entries):
            rows = np.concatenate([self.rows(entry) for entry in group]).astype(np.float32)
            norms = np.sqrt(np.einsum("ij,ij->i", rows, rows))
            with np.errstate(invalid="ignore"):
                scores = (rows @ unit) / norms
            yield from zip(group, np.split(scores, np.cumsum([len(e.layers) for e in group])[:-1]), strict=True)

    @staticmethod
    def _best(scores: Iterable[tuple[Entry, np.ndarray]], count: int) -> list[Candidate]:
        owners, parts = [], []
        for entry, part in scores:
            owners.append(entry)
            parts.append(part)
        if not parts:
            return []
        together = np.concatenate(parts)
        places = np.flatnonzero(~np.isnan(together))
        if len(places) > count:
            places = places[np.argpartition(-together[places], count)[:count]]
        places = places[np.argsort(-together[places], kind="stable")]
        ends = np.cumsum([len(part) for part in parts])
        found = []
        for place in places.tolist():
            owner = int(np.searchsorted(ends, place, side="right"))
            start = ends[owner] - len(parts[owner])
            found.append(Candidate(owners[owner], int(place - start), float(together[place])))
        return found


def _groups(entries: Sequence[Entry]) -> Iterable[list[Entry]]:
    """The models in groups of some thousand layers."""
    group: list[Entry] = []
    layers = 0
    for entry in entries:
        group.append(entry)
        layers += len(entry.layers)
        if layers >= AT_ONCE:
            yield group
            group, layers = [], 0
    if group:
        yield group
