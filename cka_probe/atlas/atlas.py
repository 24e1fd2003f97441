"""Signatures of many networks on the same data: which are alike, and which layer of which network is nearest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..capture.nearest import nearest_hint
from ..comparison.signature_files import Signature, SketchedSignature
from ..comparison.signature_pairs import compare_signatures
from ..comparison.signature_vectors import Sketch, sketched
from ..estimators.model_distances import MODEL_DISTANCES
from ..similarity.matrix import SimilarityMatrix
from .search import Shelf
from .squares import distances_between, square_matrix
from .store import SAME, Entry, Store, check_metadata, check_same

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Atlas"]

LARGEST_MATRIX = 5_000
"""Layers of which ``matrix`` holds all pairs: 200 MB for each of a dozen arrays."""

Model = str | Signature | SketchedSignature


class Atlas:
    """A folder of signatures of many networks on the same samples.

    Each model is a file with a sketch of some thousand numbers for each layer, and, if its signature holds the Gram
    matrices, a second file with these. Values come from the Gram matrices where both sides have them, otherwise from
    the sketches. Several processes may add models to one folder at the same time; ``refresh`` finds what others added.

    Parameters
    ----------
    folder : path
        The folder; made if it does not exist.
    sketch : Sketch, optional
        Size and seed of the sketches of a new atlas, by default ``Sketch(size=4096, seed=0)``.

    Raises
    ------
    ValueError
        If the folder holds other files and no atlas, a file in it is damaged, or ``sketch`` differs from that of the
        atlas.
    NotADirectoryError
        If ``folder`` is a file.
    TypeError
        If ``sketch`` is no Sketch.
    OSError
        If the folder cannot be made or read.

    Examples
    --------
    >>> import tempfile, torch
    >>> from cka_probe import signature
    >>> batches = list(torch.randn(3, 16, 8, generator=torch.Generator().manual_seed(0)))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     atlas = Atlas(f"{folder}/atlas")
    ...     for seed in (0, 1):
    ...         _ = torch.manual_seed(seed)
    ...         net = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU())
    ...         atlas.add(signature(net, batches, name=f"seed {seed}", progress=False), metadata={"seed": seed})
    ...     atlas.nearest(("seed 0", "1"), 1)[["model", "layer"]].values.tolist()
    [['seed 1', '1']]
    """

    def __init__(self, folder: str | Path, *, sketch: Sketch | None = None) -> None:
        if not isinstance(sketch, Sketch | None):
            raise TypeError(f"`sketch` must be a Sketch such as Sketch(size=4096), got {sketch!r}.")
        self._store = Store(folder, sketch)
        self._shelf = Shelf(self._store)
        self._entries: dict[str, Entry] = {}
        self.refresh()

    @property
    def folder(self) -> Path:
        """The folder."""
        return self._store.folder

    @property
    def sketch(self) -> Sketch:
        """Size and seed of all sketches."""
        return self._store.sketch

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models, sorted."""
        return tuple(sorted(self._entries))

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[str]:
        return iter(self.models)

    def __contains__(self, model: object) -> bool:
        return model in self._entries

    def __repr__(self) -> str:
        layers = sum(len(entry.layers) for entry in self._entries.values())
        exact = sum(entry.exact for entry in self._entries.values())
        return (
            f"Atlas({str(self.folder)!r}): {len(self):,} models, {layers:,} layers, sketches of {self.sketch.size:,} "
            f"numbers, {exact:,} models with Gram matrices"
        )

    def layers(self, model: str) -> tuple[str, ...]:
        """Layers of a model, in the order of execution.

        Raises
        ------
        KeyError
            If there is no such model; the message gives the nearest names.
        """
        return self._entry(model).layers

    def refresh(self) -> None:
        """Read the folder again: other processes may have added or removed models.

        Raises
        ------
        ValueError
            If a file is damaged, or was made from other samples, kernel or estimator than the first.
        """
        known = {entry.stem: entry for entry in (*self._shelf.entries(), *self._entries.values())}
        found: dict[str, Entry] = {}
        for stem, stamp in self._store.stamps().items():
            entry = known.get(stem)
            if entry is None or entry.stamp != stamp:
                try:
                    entry = self._store.entry(stem, stamp)
                except FileNotFoundError:  # another process has removed it since it was listed
                    continue
            if found:
                check_same(next(iter(found.values())), entry.header, f"The file of {entry.name!r}")
            found[entry.name] = entry
        self._entries = found

    def add(
        self,
        signature: Signature | SketchedSignature,
        *,
        metadata: Mapping[str, Any] | None = None,
        exact: bool = True,
        overwrite: bool = False,
    ) -> None:
        """Add the signature of a model, under its own name.

        Parameters
        ----------
        signature : Signature or SketchedSignature
            Of the same samples, kernel and estimator as all others. A sketch must have the size and seed of the atlas.
        metadata : mapping of str to str, number, bool or None, optional
            Facts about the model, such as ``{"width": 32, "seed": 1}``, for pictures and tables.
        exact : bool
            Whether to keep the Gram matrices too, if the signature holds them: in float16 if it is a half one.
        overwrite : bool
            Whether to replace a model of the same name.

        Raises
        ------
        TypeError
            If it is no signature, or ``metadata`` holds anything else.
        ValueError
            If the atlas has a model of this name, the signature has no layers, or it differs from the others in
            samples, their order or batches, kernel, estimator, or in its sketch.
        OSError
            If a file cannot be written.
        """
        if not isinstance(signature, Signature | SketchedSignature):
            raise TypeError(f"`signature` must be a Signature or a SketchedSignature, got {type(signature).__name__}.")
        about = check_metadata({} if metadata is None else metadata)
        if not signature.layers:
            raise ValueError(f"The signature of {signature.name!r} has no layers.")
        if signature.name in self._entries and not overwrite:
            raise ValueError(
                f"The atlas has a model called {signature.name!r}. Pass overwrite=True to replace it, or give the "
                "signature another name."
            )
        others = [entry for entry in self._entries.values() if entry.name != signature.name]
        if others:
            fields = {key: getattr(signature, key) for key in SAME}
            check_same(others[0], fields, f"The signature of {signature.name!r}")
        self._entries[signature.name] = self._store.write(signature, about, exact=exact)

    def remove(self, model: str) -> None:
        """Delete a model and its files.

        Raises
        ------
        KeyError
            If there is no such model.
        OSError
            If a file cannot be deleted.
        """
        entry = self._entry(model)
        self._store.remove(entry)
        del self._entries[model]

    def signature(self, model: str) -> Signature | SketchedSignature:
        """The signature of a model: with its Gram matrices if they are there, otherwise its sketch.

        Raises
        ------
        KeyError
            If there is no such model.
        ValueError, OSError
            If a file is damaged or gone.
        """
        entry = self._entry(model)
        return self._store.signature_of(entry) if entry.exact else self._store.sketch_of(entry)

    def similarity(self, a: Model, b: Model) -> SimilarityMatrix:
        """CKA of every layer of one model with every layer of another.

        Parameters
        ----------
        a, b : str, Signature or SketchedSignature
            Names of models of the atlas, or signatures that need not be in it.

        Returns
        -------
        SimilarityMatrix
            As ``compare_signatures``: exact if both have their Gram matrices, otherwise from sketches.

        Raises
        ------
        KeyError
            If there is no model of this name.
        TypeError
            If one is neither a name nor a signature.
        ValueError
            If signatures cannot be compared, or a file is damaged.
        """
        left = self._given(a)
        right = left if b is a or b == a else self._given(b)
        if isinstance(left, Signature) != isinstance(right, Signature):
            left, right = sketched(left, self.sketch), sketched(right, self.sketch)
        return compare_signatures(left, right)

    def nearest(self, layer: tuple[Model, str], k: int = 10, *, own: bool = False) -> pd.DataFrame:
        """The layers that are most like one layer, over all models.

        Parameters
        ----------
        layer : (model, layer)
            The model is a name, or a signature that need not be in the atlas.
        k : int
            Number of layers.
        own : bool
            Whether layers of the same model count too.

        Returns
        -------
        pandas.DataFrame (at most k, 5)
            Columns ``model``, ``layer``, ``similarity``, ``standard_error`` (of the sketch; 0 if exact) and ``exact``
            (whether the value comes from the Gram matrices), the most similar first. Undefined layers are left out.

        Raises
        ------
        KeyError
            If there is no such model or layer; the message gives the nearest names.
        TypeError
            If ``layer`` is no pair, or ``k`` no integer.
        ValueError
            If ``k`` is below 1, the layer is undefined, or the signature cannot be compared with those of the atlas.
        """
        if not isinstance(layer, tuple | list) or len(layer) != 2 or not isinstance(layer[1], str):
            raise TypeError(f"`layer` must be a pair (model, layer), got {layer!r}.")
        if isinstance(k, bool) or not isinstance(k, int | np.integer):
            raise TypeError(f"`k` must be an integer, got {k!r}.")
        if k < 1:
            raise ValueError(f"`k` must be at least 1, got {k}.")
        model, name = layer
        signature = self._given(model, exact=False)
        if name not in signature.layers:
            raise KeyError(
                f"{signature.name!r} has no layer {name!r}. {nearest_hint(name, signature.layers, kind='Its layers')}"
            )
        place = signature.layers.index(name)
        query = sketched(signature, self.sketch).vectors[place]
        if not query.any():
            why = signature.undefined.get(name, "constant over the samples of every batch")
            raise ValueError(f"{name!r} of {signature.name!r} is {why}, so nothing is like it or unlike it.")
        entry = self._entries.get(model) if isinstance(model, str) else None
        wanted = 4 * k + 32
        without = None if own else entry
        found = self._shelf.nearest(query, wanted, list(self._entries.values()), without=without)
        if entry is not None and own:
            found = [one for one in found if one.entry is not entry or one.place != place]
        exact = self._shelf.exact_query(signature, entry, place)
        return self._shelf.table(found, exact).head(k)

    def matrix(self, models: Sequence[str] | None = None) -> SimilarityMatrix:
        """CKA of all layers of several models with each other.

        Parameters
        ----------
        models : sequence of str, optional
            Names; all models by default.

        Returns
        -------
        SimilarityMatrix
            Square, with ``row_models``, as ``compare_many`` gives: exact if all models have their Gram matrices,
            otherwise from sketches.

        Raises
        ------
        KeyError
            If there is no such model.
        ValueError
            If no model is chosen, or their layers are more than 5,000.
        """
        entries = self._chosen(models)
        total = sum(len(entry.layers) for entry in entries)
        if total > LARGEST_MATRIX:
            raise ValueError(
                f"The matrix of {total:,} layers would be too large; at most {LARGEST_MATRIX:,} fit. Choose some "
                "`models`, or take `distances`, which holds one number for each pair of models."
            )
        return square_matrix(self._store, entries)

    def distances(self, models: Sequence[str] | None = None, *, how: str = "elastic") -> SimilarityMatrix:
        """Distances between whole models.

        Parameters
        ----------
        models : sequence of str, optional
            Names; all models by default.
        how : "elastic", "best_match" or "frechet"
            From the angles arccos(CKA) between layers: their mean along the best alignment of the two sequences of
            layers; the mean angle of each layer to the nearest one of the other model; the largest angle along the
            best alignment, for which the triangle inequality holds (``cka_probe.estimators.model_distances``).

        Returns
        -------
        SimilarityMatrix
            Square, one row for each model, in radians, with ``meta["kind"] == "distance"``. Undefined layers are left
            out; a model without any other layer has NaN.

        Raises
        ------
        KeyError
            If there is no such model.
        ValueError
            If no model is chosen, or the distance is unknown.
        """
        if how not in MODEL_DISTANCES:
            raise ValueError(f"There is no distance {how!r}. {nearest_hint(str(how), MODEL_DISTANCES)}")
        entries = self._chosen(models)
        return distances_between(self._store, self._shelf, entries, how, most=LARGEST_MATRIX)

    def to_frame(self) -> pd.DataFrame:
        """Table of the models: number of layers, whether their Gram matrices are there, and all metadata.

        Returns
        -------
        pandas.DataFrame
            One row for each model, with its name as index, sorted.
        """
        import pandas as pd

        entries = [self._entries[name] for name in self.models]
        rows = [{"layers": len(e.layers), "exact": e.exact, **e.metadata} for e in entries]
        return pd.DataFrame(rows, index=pd.Index(self.models, name="model"))

    def _entry(self, model: str) -> Entry:
        if model not in self._entries:
            raise KeyError(
                f"The atlas has no model {model!r}. {nearest_hint(str(model), self.models, kind='Its models')}"
            )
        return self._entries[model]

    def _chosen(self, models: Sequence[str] | None) -> list[Entry]:
        if isinstance(models, str):
            raise TypeError(f"`models` must be a list of names, got the text {models!r}.")
        names = self.models if models is None else list(dict.fromkeys(models))
        if not names:
            raise ValueError("The atlas holds no model yet." if models is None else "`models` is empty.")
        return [self._entry(name) for name in names]

    def _given(self, model: Any, *, exact: bool = True) -> Signature | SketchedSignature:
        """The signature that is meant by a name; with ``exact=False`` its sketch, which is smaller."""
        if isinstance(model, str):
            return self.signature(model) if exact else self._store.sketch_of(self._entry(model))
        if not isinstance(model, Signature | SketchedSignature):
            raise TypeError(f"A model is given by its name or by its signature, got {type(model).__name__}.")
        if self._entries:
            fields = {key: getattr(model, key) for key in SAME}
            check_same(next(iter(self._entries.values())), fields, f"The signature of {model.name!r}")
        return model
