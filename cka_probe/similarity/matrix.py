"""Similarities between layers: the numbers, the names and how sure they are. Knows no torch and no models."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

__all__ = ["SimilarityMatrix"]

_FORMAT = "cka_probe.SimilarityMatrix"
_VERSION = 1
_OPTIONAL_ARRAYS = ("standard_error", "p_value", "chance")


@dataclass(init=False, frozen=True, eq=False, repr=False)
class SimilarityMatrix:
    """Similarity of every layer of one model (rows) to every layer of another (columns).

    The arrays are copied to float64 and made read-only: a result does not change after it was measured.

    Parameters
    ----------
    values : array (R, C)
        The similarities; NaN where the measure is undefined (a dead layer, say). Unbiased CKA may be negative.
    rows, columns : sequence of str
        Layer names, R and C of them.
    standard_error, p_value, chance : array (R, C), optional
        Standard error of each value, p-value against independence, and the value that independent layers would give.
    notes : sequence of str
        What a reader must know: dead layers, joined batches.
    measure : str
        Name of the measure, for example ``"cka"``.
    meta : dict, optional
        How the numbers were made (kernel, estimator, samples ...), kept as JSON: tuples become lists.
    row_models, column_models : sequence of str, optional
        The model to which each row and column belongs, where there are several (``compare_many``).

    Raises
    ------
    TypeError
        If an array is not numeric, a name is not a string, or ``meta`` cannot be written as JSON.
    ValueError
        If shapes and names do not fit each other, an error is negative or a p-value is outside [0, 1].

    Examples
    --------
    >>> import numpy as np
    >>> matrix = SimilarityMatrix(np.array([[1.0, 0.5], [0.25, np.nan]]), ["conv1", "fc"], ["stem", "head"])
    >>> matrix
    SimilarityMatrix: cka, 2 x 2 layers
      values  0.250 to 1.000, median 0.500; 1 of 4 undefined
      conv1   most like stem (1.000)
      fc      most like stem (0.250)
    """

    values: NDArray[np.float64]
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    standard_error: NDArray[np.float64] | None
    p_value: NDArray[np.float64] | None
    chance: NDArray[np.float64] | None
    notes: tuple[str, ...]
    measure: str
    meta: dict[str, Any]
    row_models: tuple[str, ...] | None
    column_models: tuple[str, ...] | None

    def __init__(
        self,
        values: ArrayLike,
        rows: Sequence[str],
        columns: Sequence[str],
        *,
        standard_error: ArrayLike | None = None,
        p_value: ArrayLike | None = None,
        chance: ArrayLike | None = None,
        notes: Sequence[str] = (),
        measure: str = "cka",
        meta: Mapping[str, Any] | None = None,
        row_models: Sequence[str] | None = None,
        column_models: Sequence[str] | None = None,
    ) -> None:
        if not isinstance(measure, str):
            raise TypeError(f"`measure` must be a string such as 'cka', got {type(measure).__name__}.")
        values = _as_matrix(values, "values")
        r, c = values.shape
        arrays = {
            name: None if array is None else _as_matrix(array, name)
            for name, array in zip(_OPTIONAL_ARRAYS, (standard_error, p_value, chance), strict=True)
        }
        for name, array in arrays.items():
            if array is not None and array.shape != values.shape:
                raise ValueError(f"`{name}` must have the shape of `values`, {values.shape}, got {array.shape}.")
        # NaN compares false on both sides and passes: it says "not known here".
        if (error := arrays["standard_error"]) is not None and (error < 0).any():
            raise ValueError("`standard_error` must not be negative.")
        if (p := arrays["p_value"]) is not None and ((p < 0) | (p > 1)).any():
            raise ValueError("`p_value` must lie between 0 and 1.")
        fields = {
            "values": values,
            "rows": _as_names(rows, "rows", r),
            "columns": _as_names(columns, "columns", c),
            **arrays,
            "notes": _as_names(notes, "notes"),
            "measure": measure,
            "meta": _as_json(meta),
            "row_models": None if row_models is None else _as_names(row_models, "row_models", r),
            "column_models": None if column_models is None else _as_names(column_models, "column_models", c),
        }
        for name, value in fields.items():
            object.__setattr__(self, name, value)  # the class is frozen to everyone else

    @property
    def is_distance(self) -> bool:
        """Whether less means more alike (``meta["kind"]`` is "distance")."""
        return self.meta.get("kind") == "distance"

    @property
    def shape(self) -> tuple[int, int]:
        """Number of row layers and of column layers."""
        return (len(self.rows), len(self.columns))

    @property
    def row_labels(self) -> tuple[str, ...]:
        """Name of each row, with its model in front where there are several."""
        return _labels(self.rows, self.row_models)

    @property
    def column_labels(self) -> tuple[str, ...]:
        """Name of each column, with its model in front where there are several."""
        return _labels(self.columns, self.column_models)

    def interval(self, level: float = 0.95) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Lower and upper ends of the confidence interval of each value.

        Student's t with ``meta["degrees_of_freedom"]`` degrees (a number, or one for each cell) where given, the normal
        distribution otherwise. The ends are not clamped: they may pass 1 or fall below 0.

        Parameters
        ----------
        level : float
            Confidence, between 0 and 1.

        Returns
        -------
        low, high : array (R, C)
            NaN where the value or its standard error is undefined.

        Raises
        ------
        ValueError
            If the matrix has no standard error, or ``level`` is not strictly between 0 and 1.

        Examples
        --------
        >>> matrix = SimilarityMatrix([[0.5]], ["a"], ["b"], standard_error=[[0.1]], meta={"degrees_of_freedom": 9})
        >>> low, high = matrix.interval(0.95)
        >>> float(low[0, 0].round(3)), float(high[0, 0].round(3))
        (0.274, 0.726)
        """
        from scipy import stats

        if self.standard_error is None:
            raise ValueError(
                "This matrix has no standard error, so it has no interval. "
                "Compare at least two minibatches, or pass `standard_error=`."
            )
        if not 0 < level < 1:
            raise ValueError(f"`level` must lie strictly between 0 and 1, got {level}.")
        upper_tail = (1 - level) / 2
        degrees = self.meta.get("degrees_of_freedom")
        if degrees is None:
            quantile = stats.norm.isf(upper_tail)
        else:
            # scipy gives NaN for degrees <= 0 (a single batch): an unknown interval, which is the truth.
            quantile = stats.t.isf(upper_tail, np.asarray(degrees, dtype=np.float64))
        margin = quantile * self.standard_error
        return self.values - margin, self.values + margin

    def to_frame(self) -> pd.DataFrame:
        """The values as a DataFrame, layer names on both sides; (model, layer) where there are several models.

        Returns
        -------
        pandas.DataFrame (R, C)
            A copy.

        Examples
        --------
        >>> SimilarityMatrix([[1.0, 0.5]], ["conv1"], ["stem", "head"]).to_frame()
               stem  head
        conv1   1.0   0.5
        """
        import pandas as pd

        return pd.DataFrame(
            self.values.copy(),
            index=_index(self.rows, self.row_models),
            columns=_index(self.columns, self.column_models),
        )

    def pairs(self, level: float = 0.95) -> pd.DataFrame:
        """One line for each pair of layers with all that is known of it, the most alike first, undefined ones last.

        Parameters
        ----------
        level : float
            Confidence of the columns ``low`` and ``high``.

        Returns
        -------
        pandas.DataFrame (R * C, ...)
            Columns row_model, row, column_model, column, value, and those of standard_error, low, high, p_value and
            chance that the matrix holds.

        Examples
        --------
        >>> SimilarityMatrix([[0.5, 1.0]], ["conv1"], ["stem", "head"]).pairs()
             row column  value
        0  conv1   head    1.0
        1  conv1   stem    0.5
        """
        import pandas as pd

        r, c = self.shape
        table: dict[str, Any] = {}
        if self.row_models is not None:
            table["row_model"] = [name for name in self.row_models for _ in range(c)]
        table["row"] = [name for name in self.rows for _ in range(c)]
        if self.column_models is not None:
            table["column_model"] = list(self.column_models) * r
        table["column"] = list(self.columns) * r
        table["value"] = self.values.ravel()
        if self.standard_error is not None:
            low, high = self.interval(level)
            table |= {"standard_error": self.standard_error.ravel(), "low": low.ravel(), "high": high.ravel()}
        if self.p_value is not None:
            table["p_value"] = self.p_value.ravel()
        if self.chance is not None:
            table["chance"] = self.chance.ravel()
        return pd.DataFrame(table).sort_values("value", ascending=self.is_distance, kind="stable", ignore_index=True)

    def plot(self, ax: Axes | None = None, **kwargs: Any) -> Axes:
        """The heatmap of the matrix; see :func:`cka_probe.plotting.plot_heatmap` for the keywords."""
        from ..plotting.heatmap import plot_heatmap

        return plot_heatmap(self, ax=ax, **kwargs)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """The path of the .npz file to which the matrix was written, whole or not at all.

        Parameters
        ----------
        path : str or path
            Taken as it is: no extension is added. An existing file is replaced.

        Returns
        -------
        pathlib.Path
            Where the file lies.

        Raises
        ------
        FileNotFoundError
            If the directory does not exist.
        """
        path = Path(path)
        if not path.parent.is_dir():
            raise FileNotFoundError(f"Cannot save to {path}: there is no directory {path.parent}. Create it first.")
        header = {
            "format": _FORMAT,
            "version": _VERSION,
            "rows": self.rows,
            "columns": self.columns,
            "notes": self.notes,
            "measure": self.measure,
            "meta": self.meta,
            "row_models": self.row_models,
            "column_models": self.column_models,
        }
        arrays = {name: array for name in _OPTIONAL_ARRAYS if (array := getattr(self, name)) is not None}
        # Written beside its place and then moved, so that an interruption leaves the old file and never half a new one.
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with temporary.open("wb") as file:
                np.savez_compressed(file, header=np.array(json.dumps(header)), values=self.values, **arrays)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        return path

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """The matrix that :meth:`save` wrote; nothing in the file is executed (no pickle).

        Parameters
        ----------
        path : str or path
            A file written by :meth:`save`.

        Returns
        -------
        SimilarityMatrix
            Equal to the one saved.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If the file was not written by cka_probe, is damaged, or comes from a newer version.
        """
        path = Path(path)
        with path.open("rb") as file:
            try:
                with np.load(file, allow_pickle=False) as archive:
                    header = json.loads(str(archive["header"]))
                    arrays = {name: archive[name] for name in ("values", *_OPTIONAL_ARRAYS) if name in archive}
                if header.pop("format") != _FORMAT:
                    raise ValueError("another format")
                version = header.pop("version")
                matrix = cls(**arrays, **header) if version == _VERSION else None
            # Damage shows as any of a dozen exceptions of zipfile, zlib, json, numpy and our own checks.
            except Exception as error:
                raise ValueError(
                    f"{path} is not a similarity matrix saved by cka_probe, or the file is damaged "
                    f"({type(error).__name__}: {error}). Save it again with SimilarityMatrix.save."
                ) from error
        if matrix is None:
            raise ValueError(
                f"{path} was saved in version {version} of the format; this cka_probe reads version {_VERSION}. "
                "Update cka_probe to read it."
            )
        return matrix

    def __repr__(self) -> str:
        from .summary import as_text

        return as_text(self)

    def _repr_html_(self) -> str:
        """Notebook view: the summary, and the values in a table that opens on a click."""
        from .summary import as_html

        return as_html(self)


def _as_matrix(array: ArrayLike, name: str) -> NDArray[np.float64]:
    """The array as read-only float64 (R, C)."""
    result = np.asarray(array)
    if result.dtype.kind not in "fiub":
        raise TypeError(f"`{name}` must hold real numbers, got dtype {result.dtype}.")
    if result.ndim != 2:
        raise ValueError(f"`{name}` must have shape (rows, columns), got {result.shape}.")
    result = np.array(result, dtype=np.float64)
    result.flags.writeable = False
    return result


def _as_names(names: Sequence[str], name: str, count: int | None = None) -> tuple[str, ...]:
    if isinstance(names, str):
        raise TypeError(f"`{name}` must be a sequence of strings, got the single string {names!r}. Write [{names!r}].")
    result = tuple(names)
    for item in result:
        if not isinstance(item, str):
            raise TypeError(f"`{name}` must hold strings, got {item!r} of type {type(item).__name__}.")
    if count is not None and len(result) != count:
        axis = "rows" if name.startswith("row") else "columns"
        raise ValueError(f"`values` has {count} {axis}, so `{name}` must hold {count} names; got {len(result)}.")
    return tuple(str(item) for item in result)  # numpy strings too become plain ones


def _as_json(meta: Mapping[str, Any] | None) -> dict[str, Any]:
    """What `meta` will be after saving and loading, so that both are equal."""

    def plain(value: Any) -> Any:
        if isinstance(value, np.generic | np.ndarray):
            return value.tolist()
        raise TypeError(f"{type(value).__name__} {value!r}")

    if meta is None:
        return {}
    if not isinstance(meta, Mapping):
        raise TypeError(f"`meta` must be a dict, got {type(meta).__name__}.")
    result = {}
    for key, value in meta.items():
        try:
            result[str(key)] = json.loads(json.dumps(value, default=plain))
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"`meta[{key!r}]` cannot be saved as JSON ({error}). Pass numbers, strings, lists or dicts."
            ) from error
    return result


def _labels(layers: tuple[str, ...], models: tuple[str, ...] | None) -> tuple[str, ...]:
    if models is None:
        return layers
    return tuple(f"{model}: {layer}" for model, layer in zip(models, layers, strict=True))


def _index(layers: tuple[str, ...], models: tuple[str, ...] | None) -> pd.Index:
    import pandas as pd

    if models is None:
        return pd.Index(list(layers))
    return pd.MultiIndex.from_arrays([list(models), list(layers)], names=["model", "layer"])
