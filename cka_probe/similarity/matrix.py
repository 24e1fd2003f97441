"""SimilarityMatrix: values of a comparison with layer names, standard errors, p-values and notes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .checks import as_json, as_matrix, as_names
from .files import read_matrix, write_matrix

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

__all__ = ["SimilarityMatrix"]


@dataclass(init=False, frozen=True, eq=False, repr=False)
class SimilarityMatrix:
    """Similarity of every layer of one model (rows) to every layer of another (columns).

    The arrays are read-only copies in float64.

    Parameters
    ----------
    values : array (R, C)
        Similarities; NaN where the measure is undefined (a constant layer). Unbiased CKA may be negative.
    rows, columns : sequence of str
        R and C layer names.
    standard_error, p_value, chance : array (R, C), optional
        Standard error of each value, p-value against independence, and expected value for independent layers.
    notes : sequence of str
        Facts that a reader of the result must know: constant layers, batches that were joined or left out.
    measure : str
        Name of the measure, for example ``"cka"``.
    meta : dict, optional
        How the values were computed (kernel, estimator, samples ...). It is kept as JSON: tuples become lists.
    row_models, column_models : sequence of str, optional
        Model of each row and column, if there are several models (``compare_many``).

    Raises
    ------
    TypeError
        If an array is not numeric, a name is not a string, or ``meta`` cannot be written as JSON.
    ValueError
        If shapes or numbers of names do not match, a standard error is negative, or a p-value is outside [0, 1].

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
        values = as_matrix(values, "values")
        r, c = values.shape
        arrays = {
            name: None if array is None else as_matrix(array, name)
            for name, array in (("standard_error", standard_error), ("p_value", p_value), ("chance", chance))
        }
        for name, array in arrays.items():
            if array is not None and array.shape != values.shape:
                raise ValueError(f"`{name}` must have the shape of `values`, {values.shape}, got {array.shape}.")
        # NaN, an unknown entry, is valid: its comparisons are false.
        if (error := arrays["standard_error"]) is not None and (error < 0).any():
            raise ValueError("`standard_error` must not be negative.")
        if (p := arrays["p_value"]) is not None and ((p < 0) | (p > 1)).any():
            raise ValueError("`p_value` must lie between 0 and 1.")
        fields = {
            "values": values,
            "rows": as_names(rows, "rows", r),
            "columns": as_names(columns, "columns", c),
            **arrays,
            "notes": as_names(notes, "notes"),
            "measure": measure,
            "meta": as_json(meta),
            "row_models": None if row_models is None else as_names(row_models, "row_models", r),
            "column_models": None if column_models is None else as_names(column_models, "column_models", c),
        }
        for name, value in fields.items():
            object.__setattr__(self, name, value)  # the dataclass is frozen

    @property
    def is_distance(self) -> bool:
        """Whether a smaller value means more alike (``meta["kind"]`` is "distance")."""
        return self.meta.get("kind") == "distance"

    @property
    def shape(self) -> tuple[int, int]:
        """Number of row layers and of column layers."""
        return (len(self.rows), len(self.columns))

    @property
    def row_labels(self) -> tuple[str, ...]:
        """Name of each row: "layer", or "model: layer" if there are several models."""
        return _labels(self.rows, self.row_models)

    @property
    def column_labels(self) -> tuple[str, ...]:
        """Name of each column: "layer", or "model: layer" if there are several models."""
        return _labels(self.columns, self.column_models)

    def interval(self, level: float = 0.95) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Lower and upper ends of the confidence interval of each value.

        The interval is that of Student's t with ``meta["degrees_of_freedom"]`` degrees (one number, or one for each
        cell), or of the normal distribution if none are given. Its ends may lie above 1 or below 0.

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
            # scipy returns NaN for 0 degrees (a single batch), which is right: the interval is unknown.
            quantile = stats.t.isf(upper_tail, np.asarray(degrees, dtype=np.float64))
        margin = quantile * self.standard_error
        return self.values - margin, self.values + margin

    def to_frame(self) -> pd.DataFrame:
        """Values as a DataFrame with layer names as index and columns.

        Returns
        -------
        pandas.DataFrame (R, C)
            A copy. Index and columns are (model, layer) if there are several models.

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
        """Table of all pairs of layers, the most alike first, pairs with an undefined value last.

        Parameters
        ----------
        level : float
            Confidence of the interval in the columns ``low`` and ``high``.

        Returns
        -------
        pandas.DataFrame (R * C, ...)
            Columns row_model, row, column_model, column, value, standard_error, low, high, p_value and chance. Columns
            for which the matrix has no data are left out.

        Raises
        ------
        ValueError
            If the matrix has a standard error and ``level`` is not strictly between 0 and 1.

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
        """Axes with a heatmap of the matrix; see :func:`cka_probe.plotting.plot_heatmap` for the keywords."""
        from ..plotting.heatmap import plot_heatmap

        return plot_heatmap(self, ax=ax, **kwargs)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the matrix to a .npz file, completely or not at all.

        Parameters
        ----------
        path : str or path
            Path of the file. No extension is added. An existing file is replaced.

        Returns
        -------
        pathlib.Path
            Path of the file.

        Raises
        ------
        OSError
            If the file cannot be written; FileNotFoundError if its folder does not exist.
        """
        path = Path(path)
        write_matrix(self, path)
        return path

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a matrix from a file that :meth:`save` wrote. Nothing in the file is executed (no pickle).

        Parameters
        ----------
        path : str or path
            A file written by :meth:`save`.

        Returns
        -------
        SimilarityMatrix
            Equal to the saved matrix.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If the file was not written by cka_probe, is damaged, or comes from a newer version.
        """
        return read_matrix(Path(path), cls)

    def __repr__(self) -> str:
        from .summary import as_text

        return as_text(self)

    def _repr_html_(self) -> str:
        """Summary for a notebook, with the values in a table that opens on a click."""
        from .summary import as_html

        return as_html(self)


def _labels(layers: tuple[str, ...], models: tuple[str, ...] | None) -> tuple[str, ...]:
    if models is None:
        return layers
    return tuple(f"{model}: {layer}" for model, layer in zip(models, layers, strict=True))


def _index(layers: tuple[str, ...], models: tuple[str, ...] | None) -> pd.Index:
    import pandas as pd

    if models is None:
        return pd.Index(list(layers))
    return pd.MultiIndex.from_arrays([list(models), list(layers)], names=["model", "layer"])
