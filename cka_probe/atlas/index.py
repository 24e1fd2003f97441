"""An index over the sketches of many layers: a coarse search by FAISS, whose files hold plain arrays and no code."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from ..atomic_write import atomic_write
from ..comparison.signature_files import SHARED
from ..estimators.count_sketch import folded
from ..safe_read import read_npy
from .store import Entry, Store, check_metadata

__all__ = ["LayerIndex", "can_index"]

COARSE = 512
"""Numbers of a layer in the coarse search, in float16: 1 KB."""

CELLS = 64
"""Cells that a search visits."""

BLOCK = 8192
"""Layers that are read at once."""

UNFINISHED_S = 86_400
"""Seconds after which an index that lacks its catalogue is one that a crash left."""

FIELDS = ("stem", "header", "metadata", "exact", "stamp")


def can_index(store: Store) -> bool:
    """Whether FAISS is installed and the folder of the atlas may be written."""
    return find_spec("faiss") is not None and os.access(store.folder, os.W_OK)


class LayerIndex:
    """Sketches of all layers in one file, and cells of similar layers.

    Search visits the cells nearest to the query and compares the layers in them by smaller sketches (``folded``). The
    best are compared by their whole sketches, which stay on the disk. The index is a copy of what the files of the
    models hold: it may be deleted at any time, and is built again.

    Attributes
    ----------
    entries : dict of str to Entry
        The models in the index, by stem.
    """

    def __init__(self, folder: Path, entries: Sequence[Entry], arrays: dict[str, np.ndarray]) -> None:
        self.folder = folder
        self.entries = {entry.stem: entry for entry in entries}
        ends = np.cumsum([0, *(len(entry.layers) for entry in entries)])
        self._ranges = {e.stem: (int(ends[i]), int(ends[i + 1])) for i, e in enumerate(entries)}
        self._ends = ends[1:]
        self._order = list(entries)
        self._sketches, self._arrays = arrays["sketches"], arrays
        self._faiss: Any = None

    def holds(self, entry: Entry) -> bool:
        """Whether the index holds the model as its file is now."""
        own = self.entries.get(entry.stem)
        return own is not None and own.stamp == entry.stamp

    def rows(self, entry: Entry) -> np.ndarray:
        """Sketches of the layers of a model, as they lie on the disk."""
        start, stop = self._ranges[entry.stem]
        return self._sketches[start:stop]

    def nearest(self, query: np.ndarray, count: int, without: Entry | None) -> list[tuple[Entry, int, float]]:
        """The layers with the largest cosines that the cells visited hold: model, place of the layer, cosine."""
        import faiss

        index = self._loaded()
        options: dict[str, Any] = {"nprobe": min(CELLS, index.nlist)}
        keep: list[Any] = []  # FAISS holds no references to these
        if without is not None and without.stem in self._ranges:
            keep = [faiss.IDSelectorRange(*self._ranges[without.stem])]
            keep.append(faiss.IDSelectorNot(keep[0]))
            options["sel"] = keep[1]
        unit = query.astype(np.float32)[None] / np.float32(np.linalg.norm(query.astype(np.float64)))
        coarse = _unit(folded(unit, self._arrays["coarse"].shape[1]))
        _, found = index.search(coarse, max(COARSE, 4 * count), params=faiss.SearchParametersIVF(**options))
        places = np.sort(found[0][found[0] >= 0])
        scores = _unit(self._sketches[places].astype(np.float32)) @ unit[0]
        best = np.argsort(-scores, kind="stable")[:count]
        owners = np.searchsorted(self._ends, places[best], side="right")
        return [
            (self._order[owner], int(places[b] - self._ranges[self._order[owner].stem][0]), float(scores[b]))
            for owner, b in zip(owners.tolist(), best.tolist(), strict=True)
        ]

    def _loaded(self) -> Any:
        """The index of FAISS, from our own arrays: its own files are not safe to read."""
        if self._faiss is None:
            import faiss

            centres, cells, coarse = (self._arrays[name] for name in ("centres", "cells", "coarse"))
            quantizer = faiss.IndexFlatIP(centres.shape[1])
            quantizer.add(np.ascontiguousarray(centres, dtype=np.float32))
            index = faiss.IndexIVFScalarQuantizer(
                quantizer,
                centres.shape[1],
                len(centres),
                faiss.ScalarQuantizer.QT_fp16,
                faiss.METRIC_INNER_PRODUCT,
                False,
            )
            index.is_trained = True
            for start in range(0, len(cells), BLOCK):
                own = np.ascontiguousarray(cells[start : start + BLOCK], dtype=np.int64)
                places = np.flatnonzero(own >= 0).astype(np.int64) + start
                vectors = np.ascontiguousarray(coarse[places], dtype=np.float32)
                own = np.ascontiguousarray(own[own >= 0])
                index.add_core(len(places), faiss.swig_ptr(vectors), faiss.swig_ptr(places), faiss.swig_ptr(own))
            self._faiss, self._quantizer = index, quantizer
        return self._faiss

    @classmethod
    def build(cls, store: Store, entries: Sequence[Entry], rows: Callable[[Entry], np.ndarray]) -> LayerIndex:
        """Build the index of these models and write it into the atlas. The one before is deleted.

        Raises
        ------
        OSError
            If it cannot be written.
        """
        total = sum(len(entry.layers) for entry in entries)
        width = rows(entries[0]).shape[1]
        store.cache.mkdir(exist_ok=True)
        name = secrets.token_hex(8)
        folder = store.cache / name
        folder.mkdir()
        try:
            size = min(COARSE, width)
            sketches = _new(folder / "sketches.npy", (total, width), np.float16)
            coarse = _new(folder / "coarse.npy", (total, size), np.float16)
            start = 0
            for entry in entries:
                own = np.asarray(rows(entry))
                sketches[start : start + len(own)] = own
                coarse[start : start + len(own)] = _unit(folded(own.astype(np.float32), size))
                start += len(own)
            sketches.flush()
            coarse.flush()
            centres, cells = _cells(coarse)
            np.save(folder / "centres.npy", centres)
            np.save(folder / "cells.npy", cells)
            # Opened before the catalogue makes it an old one to other processes, which delete those.
            found = cls(folder, entries, _read_arrays(folder))
            catalogue = [{field: getattr(entry, field) for field in FIELDS} for entry in entries]
            atomic_write(folder / "catalogue.json", json.dumps(catalogue))
            atomic_write(store.cache / "current", name)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        for other in store.cache.iterdir():
            if other.is_dir() and other != folder and _is_old(other):
                shutil.rmtree(other, ignore_errors=True)  # open files stay readable where the system allows it
        return found

    @classmethod
    def open(cls, store: Store) -> LayerIndex | None:
        """The index of the atlas; None if there is none, or it is damaged: then it is built again when it is needed."""
        try:
            name = (store.cache / "current").read_text(encoding="utf-8")
            if not name.isalnum():
                return None
            folder = store.cache / name
            catalogue = json.loads((folder / "catalogue.json").read_text(encoding="utf-8"))
            entries = [_entry(one) for one in catalogue]
            arrays = _read_arrays(folder)
            _check(arrays, sum(len(entry.layers) for entry in entries))
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None
        return cls(folder, entries, arrays)


def _read_arrays(folder: Path) -> dict[str, np.ndarray]:
    return {part: read_npy(folder / f"{part}.npy", mapped=True) for part in ("sketches", "coarse", "centres", "cells")}


def _is_old(folder: Path) -> bool:
    """Whether an index is finished, or was begun so long ago that nobody builds it any more."""
    try:
        return (folder / "catalogue.json").is_file() or time.time() - folder.stat().st_mtime > UNFINISHED_S
    except FileNotFoundError:  # another process has deleted it
        return False


def _check(arrays: dict[str, np.ndarray], total: int) -> None:
    """Raise ValueError unless the arrays fit together: FAISS would read beyond them."""
    width = arrays["coarse"].shape[1]
    ok = (
        len(arrays["sketches"]) == len(arrays["coarse"]) == len(arrays["cells"]) == total
        and arrays["centres"].ndim == 2
        and arrays["centres"].shape[1] == width
        and len(arrays["centres"]) > 0
        and arrays["cells"].dtype == np.int32
        and all(arrays[part].dtype.kind == "f" for part in ("sketches", "coarse", "centres"))
        and int(arrays["cells"].max(initial=-1)) < len(arrays["centres"])
    )
    if not ok:
        raise ValueError("the arrays of the index do not fit together")


def _entry(one: dict[str, Any]) -> Entry:
    header = {key: tuple(value) if isinstance(value, list) else value for key, value in one["header"].items()}
    if not set(SHARED) <= set(header):
        raise ValueError("its headers are not whole")
    if not isinstance(header["name"], str) or not all(isinstance(layer, str) for layer in header["layers"]):
        raise ValueError("its names are no texts")
    size, time = one["stamp"]
    return Entry(str(one["stem"]), header, check_metadata(one["metadata"]), bool(one["exact"]), (size, time))


def _new(path: Path, shape: tuple[int, int], dtype: Any) -> np.memmap:
    return np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)


def _unit(rows: np.ndarray) -> np.ndarray:
    """Rows of norm 1 in float32; rows of zeros stay zeros."""
    norms = np.sqrt(np.einsum("ij,ij->i", rows, rows))
    return np.ascontiguousarray(rows / np.where(norms > 0, norms, 1.0)[:, None], dtype=np.float32)


def _cells(coarse: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centres of the cells (cells, size), and the cell of each layer; -1 for a layer of zeros."""
    import faiss

    total, size = coarse.shape
    count = int(np.clip(4 * np.sqrt(total), 1, max(1, total // 40)))
    chosen = np.sort(np.random.default_rng(0).choice(total, min(total, 64 * count), replace=False))
    sample = np.ascontiguousarray(coarse[chosen], dtype=np.float32)
    sample = sample[np.any(sample != 0, axis=1)]
    kmeans = faiss.Kmeans(
        size, min(count, max(1, len(sample))), niter=8, spherical=True, seed=0, min_points_per_centroid=1
    )
    kmeans.train(sample)
    centres = np.array(kmeans.centroids, dtype=np.float32)
    quantizer = faiss.IndexFlatIP(size)
    quantizer.add(centres)
    cells = np.empty(total, np.int32)
    for start in range(0, total, BLOCK):
        block = np.ascontiguousarray(coarse[start : start + BLOCK], dtype=np.float32)
        cells[start : start + BLOCK] = quantizer.search(block, 1)[1][:, 0]
        cells[start : start + BLOCK][~block.any(axis=1)] = -1
    return centres, cells
