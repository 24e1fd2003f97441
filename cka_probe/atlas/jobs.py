"""Signatures of many models, one job each, by joblib: on the cores of one machine, or on a cluster of dask or Ray."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import nn

from ..capture.extras import require
from ..capture.nearest import nearest_hint
from ..capture.notes import first_line
from ..comparison.request import Request
from ..comparison.signature_files import Signature, SketchedSignature, load_signature
from ..comparison.signature_pairs import check_comparable
from ..comparison.signature_vectors import as_sketch
from ..comparison.signatures import signature
from ..estimators.kernels import Linear
from .atlas import Atlas
from .store import model_stem

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["signatures"]

COLUMNS = ("model", "state", "layers", "seconds", "error")


class _Done(NamedTuple):
    """What a job returns."""

    place: int
    name: str
    found: Signature | SketchedSignature | None
    seconds: float
    error: str


def signatures(
    models: Mapping[str, Any] | Iterable[tuple[str, Any]],
    data: Iterable[Any] | Callable[[], Iterable[Any]],
    into: Atlas | str | Path,
    *,
    n_jobs: int | None = None,
    **options: Any,
) -> pd.DataFrame:
    """Signatures of many models, in parallel; what is there already is not made again.

    Each signature is stored as soon as it is made. After an interruption the same call makes the missing ones. A model
    that fails is a row of the table with its error; the others go on. A stored signature of another kernel, estimator,
    pooling or form is such a row too. Other layers and other weights under one name cannot be noticed.

    Parameters
    ----------
    models : mapping or iterable of (str, model)
        Names and models. A model is a network, or a function without arguments that loads one: it runs inside the job,
        so that no more networks are in memory than jobs. A generator is read as jobs become free.
    data : iterable, or callable
        As ``signature``; or a function without arguments that returns it, which runs inside each job. Every model must
        get the same batches.
    into : Atlas or path
        Where the signatures go: into an atlas, or as .npz files into a folder, which is made if it does not exist.
    n_jobs : int, optional
        Number of jobs at a time, as in joblib: None is 1, or what ``joblib.parallel_config`` says. Inside
        ``with joblib.parallel_config("dask")`` or ``"ray"`` the jobs run on that cluster.
    **options
        Those of ``signature``: layers, kernel, estimator, pooling, form ...

    Returns
    -------
    pandas.DataFrame
        One row for each model, in their order: ``model``, ``state`` ("made", "there" or "failed"), ``layers`` (their
        number), ``seconds`` and ``error`` ("" without one).

    Raises
    ------
    TypeError
        If an option is unknown, or ``models`` are no pairs.
    ValueError
        If ``form`` is unknown.
    ModuleNotFoundError
        If joblib is not installed.
    KeyboardInterrupt
        If the user stops it. What was made is kept.

    Examples
    --------
    >>> import tempfile, torch
    >>> nets = {"good": nn.Linear(4, 3), "bad": nn.Linear(5, 3)}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     signatures(nets, [torch.eye(4)], folder)["state"].tolist()
    ['made', 'failed']
    """
    require("joblib", "atlas", "signatures()")
    ours = ("model", "data", "name", "progress")
    known = [name for name in inspect.signature(signature).parameters if name not in ours]
    for option in options:
        if option not in known:
            raise TypeError(f"`signatures` has no option {option!r}. {nearest_hint(option, known, kind='Its options')}")
    as_sketch(options.get("form", "exact"))
    target = _AtlasTarget(into, options) if isinstance(into, Atlas) else _FolderTarget(Path(into), options)
    rows: dict[int, tuple[Any, ...]] = {}
    pairs = models.items() if isinstance(models, Mapping) else models

    def missing() -> Iterator[tuple[int, str, Any]]:
        seen: set[str] = set()
        for place, pair in enumerate(pairs):
            if not isinstance(pair, tuple | list) or len(pair) != 2 or not isinstance(pair[0], str):
                raise TypeError(f"`models` must be a mapping or pairs (name, model), got {pair!r}.")
            name, model = pair
            if name in seen:
                rows[place] = (name, "failed", 0, 0.0, f"ValueError: there are two models called {name!r}")
                continue
            seen.add(name)
            try:
                layers = target.there(name)
            except ValueError as error:
                rows[place] = (name, "failed", 0, 0.0, _text(error))
                continue
            if layers is not None:
                rows[place] = (name, "there", layers, 0.0, "")
            else:
                yield place, name, model

    for done in _run(missing(), data, options, n_jobs):
        error, layers = done.error, 0
        if done.found is not None:
            layers = len(done.found.layers)
            try:
                target.put(done.found)
            except ValueError as problem:
                error = _text(problem)
        rows[done.place] = (done.name, "failed" if error else "made", layers, done.seconds, error)
    import pandas as pd

    return pd.DataFrame([rows[place] for place in sorted(rows)], columns=list(COLUMNS))


def _run(
    todo: Iterator[tuple[int, str, Any]], data: Any, options: dict[str, Any], n_jobs: int | None
) -> Iterator[_Done]:
    """Results as they come; in groups on an engine of joblib that returns all at once."""
    from joblib import Parallel, delayed

    job = delayed(_one)
    try:
        parallel = Parallel(n_jobs=n_jobs, return_as="generator_unordered", batch_size=1)
    except ValueError:
        parallel = Parallel(n_jobs=n_jobs, batch_size=1)
        while group := list(islice(todo, 4 * parallel._effective_n_jobs())):
            yield from parallel(job(*one, data, options) for one in group)
        return
    yield from parallel(job(*one, data, options) for one in todo)


def _one(place: int, name: str, model: Any, data: Any, options: dict[str, Any]) -> _Done:
    """One job."""
    start = time.perf_counter()
    try:
        network = model if isinstance(model, nn.Module) or not callable(model) else model()
        batches = data() if callable(data) and not hasattr(data, "__iter__") else data
        found = signature(network, batches, name=name, progress=False, **options)
    except Exception as error:
        return _Done(place, name, None, time.perf_counter() - start, _text(error))
    return _Done(place, name, found, time.perf_counter() - start, "")


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {first_line(error)}"


class _AtlasTarget:
    """An atlas that gets the signatures."""

    def __init__(self, atlas: Atlas, options: dict[str, Any]) -> None:
        self.atlas, self.options = atlas, options
        atlas.refresh()

    def there(self, name: str) -> int | None:
        """Number of layers of a model that need not be made; ValueError if it was made otherwise."""
        if name not in self.atlas:
            return None
        header = self.atlas._entry(name).header  # the signature itself may be large
        _check_made(name, {key: header[key] for key in ("kernel", "estimator", "pooling")}, self.options)
        return len(self.atlas.layers(name))

    def put(self, found: Signature | SketchedSignature) -> None:
        """Store a signature; ValueError if it cannot be compared with the others."""
        self.atlas.add(found)


class _FolderTarget:
    """A folder of files that gets the signatures."""

    def __init__(self, folder: Path, options: dict[str, Any]) -> None:
        self.folder, self.options = folder, options
        self.first: Signature | SketchedSignature | None = None
        folder.mkdir(parents=True, exist_ok=True)

    def there(self, name: str) -> int | None:
        """Number of layers of a model that need not be made; ValueError if it was made otherwise."""
        path = self._path(name)
        if not path.is_file():
            return None
        found = load_signature(path)
        sketch = f"Sketch(size={found.size}, seed={found.seed})" if isinstance(found, SketchedSignature) else "exact"
        own = {"kernel": found.kernel, "estimator": found.estimator, "pooling": found.pooling, "form": sketch}
        _check_made(name, own, self.options)
        self.first = self.first or found
        return len(found.layers)

    def put(self, found: Signature | SketchedSignature) -> None:
        """Store a signature; ValueError if it cannot be compared with the others."""
        if self.first is not None:
            check_comparable(self.first, found)
        self.first = self.first or found
        found.save(self._path(found.name))

    def _path(self, name: str) -> Path:
        return self.folder / f"{model_stem(name)}.npz"


def _check_made(name: str, own: dict[str, str], options: dict[str, Any]) -> None:
    """Raise ValueError if a stored signature was made with other settings than those of this call."""
    sketch = as_sketch(options.get("form", "exact"))
    wanted = {
        "kernel": repr(options.get("kernel") or Linear()),
        "estimator": options.get("estimator", "unbiased"),
        "pooling": Request((), pooling=options.get("pooling", "auto")).pooling_name,
        "form": "exact" if sketch is None else repr(sketch),
    }
    for key, value in own.items():
        if wanted[key] != value:
            raise ValueError(
                f"the stored signature of {name!r} has {key} {value}, not {wanted[key]}: choose another place"
            )
