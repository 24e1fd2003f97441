"""The fields of a similarity matrix, checked, and what follows from them alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .checks import as_json, as_matrix, as_names

__all__ = ["MatrixFields"]


@dataclass(init=False, frozen=True, eq=False, repr=False)
class MatrixFields:
    """The fields of :class:`cka_probe.SimilarityMatrix`; that class documents them and adds the rest."""

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
    extra: dict[str, NDArray[np.float64]]

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
        extra: Mapping[str, ArrayLike] | None = None,
    ) -> None:
        if not isinstance(measure, str):
            raise TypeError(f"`measure` must be a string such as 'cka', got {type(measure).__name__}.")
        values = as_matrix(values, "values")
        r, c = values.shape
        arrays = {
            name: None if array is None else as_matrix(array, name)
            for name, array in (("standard_error", standard_error), ("p_value", p_value), ("chance", chance))
        }
        others = {name: as_matrix(array, f"extra[{name!r}]") for name, array in (extra or {}).items()}
        as_names(list(others), "extra")
        for name, array in [*arrays.items(), *((f"extra[{name!r}]", array) for name, array in others.items())]:
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
            "extra": others,
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

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.rows)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """The values: a matrix has a length and items, so numpy would try to read it as a sequence."""
        return np.array(self.values, dtype=dtype, copy=copy)

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
        >>> from cka_probe import SimilarityMatrix
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


def _labels(layers: tuple[str, ...], models: tuple[str, ...] | None) -> tuple[str, ...]:
    if models is None:
        return layers
    return tuple(f"{model}: {layer}" for model, layer in zip(models, layers, strict=True))
