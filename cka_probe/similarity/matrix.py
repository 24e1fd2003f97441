"""SimilarityMatrix: values of a comparison with layer names, standard errors, p-values and notes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from ..atomic_write import atomic_write
from .fields import MatrixFields
from .files import check_ending, read_matrix, write_matrix
from .selection import changed, one_cell, renamed, selected

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

__all__ = ["SimilarityMatrix"]


class SimilarityMatrix(MatrixFields):
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
    extra : mapping of str to array (R, C), optional
        More numbers on the same pairs, by name: a second measure, bounds, corrected p-values. See :meth:`other`.

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

    def __getitem__(self, key: tuple[Any, Any]) -> float:
        """Value of a row and a column: ``result["layer1", "layer2"]``.

        Parameters
        ----------
        key : (row, column)
            Two layer names. If there are several models, a name of only one of them, or (model, layer).

        Raises
        ------
        TypeError
            If the key is no pair of names.
        KeyError
            If there is no such layer (the message gives the nearest names), or several models have it.

        Examples
        --------
        >>> SimilarityMatrix([[1.0, 0.5]], ["conv1"], ["stem", "head"])["conv1", "head"]
        0.5
        """
        return one_cell(self, key)

    def select(self, rows: Any = None, columns: Any = None) -> Self:
        """The matrix of some rows and columns, with their errors, p-values and models, and with all notes.

        Parameters
        ----------
        rows, columns : str, (model, layer) or list of these, optional
            Layer names, globs ("layer1.*"; ``*`` stops at dots, ``**`` does not) or regular expressions ("re:conv.*").
            If there are several models, (model, layer) selects in one model, and both parts may be patterns. All rows
            or columns if left out.

        Returns
        -------
        SimilarityMatrix
            Layers in the order of the list; those of one pattern in the order of the matrix.

        Raises
        ------
        TypeError
            If ``rows`` or ``columns`` holds anything else, such as a position.
        ValueError
            If a name or pattern matches nothing; the message gives the nearest names.

        Examples
        --------
        >>> matrix = SimilarityMatrix([[1.0, 0.5], [0.2, 0.9]], ["layer1.0", "fc"], ["stem", "head"])
        >>> matrix.select(rows="layer1.*", columns=["head", "stem"]).values.tolist()
        [[0.5, 1.0]]
        """
        return selected(self, rows, columns)

    def other(self, name: str) -> Self:
        """The matrix whose values are an array of ``extra``, for plots and tables.

        Parameters
        ----------
        name : str
            Name in ``extra``. Arrays "NAME standard_error", "NAME p_value" and "NAME chance" of ``extra`` become those
            of the new matrix.

        Returns
        -------
        SimilarityMatrix
            With the same layers and notes; ``measure`` is the name, and ``meta`` has no ``kind``.

        Raises
        ------
        KeyError
            If ``extra`` has no such array; the message gives the names.

        Examples
        --------
        >>> both = SimilarityMatrix([[0.1]], ["a"], ["b"], measure="mmd", extra={"cka": [[0.9]]})
        >>> both.other("cka")["a", "b"]
        0.9
        """
        if name not in self.extra:
            raise KeyError(f"This matrix has no {name!r} beside it. It has: {', '.join(self.extra) or 'nothing'}.")
        of_it = {part: self.extra.get(f"{name} {part}") for part in ("standard_error", "p_value", "chance")}
        meta = {key: value for key, value in self.meta.items() if key not in ("kind", "options", "invariances")}
        return changed(self, values=self.extra[name], measure=name, meta=meta, extra={}, **of_it)

    def rename(self, rows: Any = None, columns: Any = None) -> Self:
        """The same matrix with other layer names. Notes keep the names that they were written with.

        Parameters
        ----------
        rows, columns : mapping or callable, optional
            New name of each layer that changes, by its old name or by (model, layer); or a function of the old name.

        Raises
        ------
        TypeError
            If a new name is not a string, or ``rows`` or ``columns`` is neither a mapping nor a function.
        ValueError
            If a mapping names an unknown layer, or two layers of a model would get the same name.

        Examples
        --------
        >>> SimilarityMatrix([[1.0]], ["conv1"], ["stem"]).rename(rows={"conv1": "first"}).rows
        ('first',)
        """
        return renamed(self, rows, columns)

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

        from .tables import axis_index

        return pd.DataFrame(
            self.values.copy(),
            index=axis_index(self.rows, self.row_models),
            columns=axis_index(self.columns, self.column_models),
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
        from .tables import pair_table

        r, c = np.indices(self.shape).reshape(2, -1)
        table = pair_table(self, r, c, level)
        return table.sort_values("value", ascending=self.is_distance, kind="stable", ignore_index=True)

    def best_match(self, level: float = 0.95, *, itself: bool = False) -> pd.DataFrame:
        """Table of the most similar column of each row; for a distance the column with the smallest value.

        Parameters
        ----------
        level : float
            Confidence of the interval in the columns ``low`` and ``high``.
        itself : bool
            If the rows and columns are the same layers, whether a layer may match itself.

        Returns
        -------
        pandas.DataFrame (R, ...)
            One line for each row, in the order of the matrix, with the columns of :meth:`pairs`. A row that is
            undefined everywhere has no column and the value NaN. p-values below 1e-16 are printed as "< 1e-16".

        Raises
        ------
        ValueError
            If the matrix has a standard error and ``level`` is not strictly between 0 and 1.

        Examples
        --------
        >>> SimilarityMatrix([[0.5, 1.0]], ["conv1"], ["stem", "head"]).best_match()
             row column  value
        0  conv1   head    1.0
        """
        from .tables import best_table

        return best_table(self, level, itself)

    def to_csv(self, path: str | os.PathLike[str], table: str = "values", level: float = 0.95) -> Path:
        """Write a table to a CSV file, completely or not at all. Notes are not in it: :meth:`save` keeps them.

        Parameters
        ----------
        path : str or path
            Path of the file. An existing file is replaced.
        table : "values", "pairs" or "best_match"
            The table of :meth:`to_frame`, :meth:`pairs` or :meth:`best_match`.
        level : float
            Confidence of the intervals in the last two.

        Returns
        -------
        pathlib.Path
            Path of the file. Control characters of names are escaped. A name that a spreadsheet would run as a formula
            (it starts with =, +, - or @) starts with an apostrophe.

        Raises
        ------
        ValueError
            If ``table`` is unknown, or as :meth:`pairs`.
        OSError
            If the file cannot be written.
        """
        from .tables import csv_text

        atomic_write(path, csv_text(self, table, level))
        return Path(path)

    def to_latex(self, table: str = "values", *, digits: int = 3, error: bool = False, level: float = 0.95) -> str:
        r"""Table as LaTeX with the rules of the package booktabs; the notes are comments above it.

        Parameters
        ----------
        table : "values", "pairs" or "best_match"
            As :meth:`to_csv`.
        digits : int
            Decimals of the numbers.
        error : bool
            Write the standard error beside each of the "values".
        level : float
            Confidence of the intervals in "pairs" and "best_match".

        Raises
        ------
        ValueError
            If an option is unknown or out of range, or ``error=True`` and the matrix has no standard error.

        Examples
        --------
        >>> text = SimilarityMatrix([[0.5]], ["conv_1"], ["50%"]).to_latex()
        >>> print(text.splitlines()[2], text.splitlines()[4])
         & 50\% \\ conv\_1 & 0.500 \\
        """
        from .tables import latex_text

        return latex_text(self, table, digits, error, level)

    def plot(self, ax: Axes | None = None, **kwargs: Any) -> Axes:
        """Axes with a heatmap of the matrix; see :func:`cka_probe.plotting.plot_heatmap` for the keywords."""
        from ..plotting.heatmap import plot_heatmap

        return plot_heatmap(self, ax=ax, **kwargs)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the matrix to a .npz file, completely or not at all.

        Parameters
        ----------
        path : str or path
            Path of the file, with the ending .npz or none; no ending is added. An existing file is replaced.

        Returns
        -------
        pathlib.Path
            Path of the file.

        Raises
        ------
        ValueError
            If the ending belongs to another format; the message says what writes that format.
        OSError
            If the file cannot be written; FileNotFoundError if its folder does not exist.
        """
        path = check_ending(path)
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
        """Heatmap and summary for a notebook, with the values in a table that opens on a click."""
        from .summary import as_html

        return as_html(self)
