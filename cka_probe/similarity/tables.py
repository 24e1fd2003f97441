"""Tables of a similarity matrix: all pairs of layers, the best match of each row, and CSV and LaTeX files of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from .text import P_RESOLUTION, csv_cell, latex_escaped, p_text, printable, safe_csv

if TYPE_CHECKING:
    from .matrix import SimilarityMatrix

__all__ = [
    "TABLES",
    "PairTable",
    "axis_index",
    "best_columns",
    "best_table",
    "csv_text",
    "latex_text",
    "pair_table",
    "with_names",
]

TABLES = ("values", "pairs", "best_match")
NAMES = ("row_model", "row", "column_model", "column")


def axis_index(layers: tuple[str, ...], models: tuple[str, ...] | None) -> pd.Index:
    """Index of an axis: layer names, or (model, layer) if there are several models."""
    if models is None:
        return pd.Index(list(layers))
    return pd.MultiIndex.from_arrays([list(models), list(layers)], names=["model", "layer"])


class PairTable(pd.DataFrame):
    """A DataFrame that prints p-values below 1e-16 as "< 1e-16" and control characters of names as escapes.

    Its numbers are plain float64, so it is sorted, filtered and saved like any other DataFrame.
    """

    @property
    def _constructor(self) -> type[PairTable]:
        return PairTable

    def to_string(self, *args: Any, **kwargs: Any) -> Any:
        """As DataFrame.to_string."""
        kwargs["formatters"] = _formatters(self) if kwargs.get("formatters") is None else kwargs["formatters"]
        return super().to_string(*args, **kwargs)

    def to_html(self, *args: Any, **kwargs: Any) -> Any:
        """As DataFrame.to_html."""
        kwargs["formatters"] = _formatters(self) if kwargs.get("formatters") is None else kwargs["formatters"]
        return super().to_html(*args, **kwargs)

    def _repr_html_(self) -> str | None:
        if not pd.get_option("display.notebook_repr_html"):
            return None
        return self.to_html(max_rows=pd.get_option("display.max_rows"), notebook=True)


def _formatters(table: pd.DataFrame) -> dict[Any, Any]:
    """Functions that write names and p-values, for the columns that pandas would write wrong."""

    def name(value: Any) -> str:
        return printable(value) if isinstance(value, str) else str(value)

    def p_value(value: float) -> str:
        return "NaN" if math.isnan(value) else p_text(value)

    writers: dict[Any, Any] = {
        column: name
        for column in NAMES
        if column in table and any(isinstance(text, str) and printable(text) != text for text in table[column])
    }
    if "p_value" in table and (table["p_value"] < P_RESOLUTION).any():
        writers["p_value"] = p_value
    return writers


def pair_table(matrix: SimilarityMatrix, rows: NDArray[Any], columns: NDArray[Any], level: float) -> PairTable:
    """Table of the cells (rows[i], columns[i]); a column index below 0 is a row without a match.

    Parameters
    ----------
    matrix : SimilarityMatrix
        The matrix.
    rows, columns : int array (n,)
        Indices of the cells.
    level : float
        Confidence of the intervals.

    Raises
    ------
    ValueError
        If the matrix has a standard error and ``level`` is not strictly between 0 and 1.
    """
    found = columns >= 0

    def names(of: tuple[str, ...], chosen: NDArray[Any]) -> list[str | None]:
        return [of[i] if i >= 0 else None for i in chosen.tolist()]

    def cells(array: NDArray[np.float64]) -> NDArray[np.float64]:
        picked = np.full(len(rows), np.nan)
        picked[found] = array[rows[found], columns[found]]
        return picked

    table: dict[str, Any] = {}
    if matrix.row_models is not None:
        table["row_model"] = names(matrix.row_models, rows)
    table["row"] = names(matrix.rows, rows)
    if matrix.column_models is not None:
        table["column_model"] = names(matrix.column_models, columns)
    table["column"] = names(matrix.columns, columns)
    table["value"] = cells(matrix.values)
    if matrix.standard_error is not None:
        low, high = matrix.interval(level)
        table |= {"standard_error": cells(matrix.standard_error), "low": cells(low), "high": cells(high)}
    if matrix.p_value is not None:
        table["p_value"] = cells(matrix.p_value)
    if matrix.chance is not None:
        table["chance"] = cells(matrix.chance)
    table |= {name: cells(array) for name, array in matrix.extra.items() if name not in table}
    return PairTable(table)


def best_columns(matrix: SimilarityMatrix, itself: bool) -> tuple[NDArray[np.int64], bool]:
    """Index of the most similar column of each row, -1 where the whole row is undefined.

    Parameters
    ----------
    matrix : SimilarityMatrix
        The matrix.
    itself : bool
        Whether a layer may match itself if the same models are on both sides.

    Returns
    -------
    columns : int array (R,)
        Of equal values the first column.
    left_out : bool
        Whether the diagonal was left out, because each layer is compared with itself there.
    """
    sign = -1 if matrix.is_distance else 1
    compared = np.where(np.isfinite(matrix.values), sign * matrix.values, -np.inf)
    left_out = not itself and is_self_comparison(matrix)
    if left_out:
        np.fill_diagonal(compared, -np.inf)
    if not compared.size:
        return np.full(len(compared), -1), left_out
    best = compared.argmax(axis=1)
    return np.where(np.isfinite(compared.max(axis=1)), best, -1), left_out


def is_self_comparison(matrix: SimilarityMatrix) -> bool:
    """Whether rows and columns are the same layers: equal names, and every layer is equal to itself."""
    if matrix.row_labels != matrix.column_labels:
        return False
    diagonal = np.diag(matrix.values)
    return bool(np.allclose(diagonal[np.isfinite(diagonal)], 0 if matrix.is_distance else 1, atol=1e-6))


def best_table(matrix: SimilarityMatrix, level: float, itself: bool) -> PairTable:
    """The table of :meth:`SimilarityMatrix.best_match`.

    Raises
    ------
    ValueError
        As :func:`pair_table`.
    """
    columns, _ = best_columns(matrix, itself)
    return pair_table(matrix, np.arange(len(columns)), columns, level)


def _chosen(matrix: SimilarityMatrix, table: str, level: float) -> pd.DataFrame:
    """The table of that name.

    Raises
    ------
    ValueError
        If the name is unknown.
    """
    if table == "values":
        return matrix.to_frame()
    if table == "pairs":
        return matrix.pairs(level)
    if table == "best_match":
        return matrix.best_match(level)
    raise ValueError(f"`table` must be one of {', '.join(map(repr, TABLES))}, got {table!r}.")


def with_names(frame: pd.DataFrame, write: Callable[[Any], Any]) -> pd.DataFrame:
    """The table of the values with other names on both axes; ``write`` makes each from the old one."""
    for axis in ("index", "columns"):
        index = getattr(frame, axis)
        if index.nlevels > 1:
            fresh: pd.Index = pd.MultiIndex.from_tuples([tuple(map(write, key)) for key in index], names=index.names)
        else:
            fresh = pd.Index([write(key) for key in index])
        frame = frame.set_axis(fresh, axis=axis)
    return frame


def csv_text(matrix: SimilarityMatrix, table: str, level: float) -> str:
    """Text of :meth:`SimilarityMatrix.to_csv`.

    Raises
    ------
    ValueError
        As :func:`pair_table`, or if ``table`` is unknown.
    """
    frame = _chosen(matrix, table, level)
    return str(with_names(frame, csv_cell).to_csv()) if table == "values" else safe_csv(frame)


def latex_text(matrix: SimilarityMatrix, table: str, digits: int, error: bool, level: float) -> str:
    """Text of :meth:`SimilarityMatrix.to_latex`.

    Raises
    ------
    ValueError
        As :func:`pair_table`; if ``table`` is unknown, ``digits`` is below 0, or ``error=True`` and the matrix has no
        standard error.
    """
    if isinstance(digits, bool) or not isinstance(digits, int) or digits < 0:
        raise ValueError(f"`digits` must be an integer of at least 0, got {digits!r}.")
    if error and matrix.standard_error is None:
        raise ValueError("`error=True` needs a matrix with a standard error; this one has none.")
    if table == "values":
        head, lines = _wide(matrix, digits, error)
        alignment = "l" + "r" * matrix.shape[1]
    else:
        frame = _chosen(matrix, table, level)
        head = ["p-value" if column == "p_value" else column.replace("_", " ") for column in frame.columns]
        lines = [
            [_latex_cell(column, value, digits) for column, value in zip(frame.columns, line, strict=True)]
            for line in frame.itertuples(index=False)
        ]
        alignment = "".join("l" if column in NAMES else "r" for column in frame.columns)
    # A comment ends with its line, and `printable` leaves no line feed in a note.
    return "\n".join(
        [
            *(f"% note: {printable(note)}" for note in matrix.notes),
            rf"\begin{{tabular}}{{{alignment}}}",
            r"\toprule",
            " & ".join(head) + r" \\",
            r"\midrule",
            *(" & ".join(line) + r" \\" for line in lines),
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def _wide(matrix: SimilarityMatrix, digits: int, error: bool) -> tuple[list[str], list[list[str]]]:
    head = ["", *map(latex_escaped, matrix.column_labels)]
    lines = []
    for r, label in enumerate(matrix.row_labels):
        cells = [_number(value, digits) for value in matrix.values[r].tolist()]
        if error and matrix.standard_error is not None:
            errors = matrix.standard_error[r].tolist()
            cells = [
                rf"{cell} $\pm$ {_number(e, digits)}" if math.isfinite(e) and cell != "--" else cell
                for cell, e in zip(cells, errors, strict=True)
            ]
        lines.append([latex_escaped(label), *cells])
    return head, lines


def _latex_cell(column: Any, value: Any, digits: int) -> str:
    if column in NAMES:
        return latex_escaped(value) if isinstance(value, str) else "--"
    if column == "p_value" and math.isfinite(value):
        exponent = round(math.log10(P_RESOLUTION))
        return rf"$< 10^{{{exponent}}}$" if value < P_RESOLUTION else p_text(value)
    return _number(value, digits)


def _number(value: float, digits: int) -> str:
    """Number with a typographic minus, "--" where it is undefined; a value that rounds to 0 has no sign."""
    if not math.isfinite(value):
        return "--"
    text = f"{value:.{digits}f}"
    if text.startswith("-"):
        return f"$-{text[1:]}$" if float(text) else text[1:]
    return text
