"""Checked data, axes of a fitting size, and the colours and marks that all figures share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import AutoLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import ArrayLike

from ..similarity.matrix import SimilarityMatrix
from .labels import FULL, shorten
from .style import final_width
from .text import as_shown

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "BAR",
    "DASHES",
    "HATCHES",
    "MARKERS",
    "PALETTE",
    "as_similarity",
    "check_columns",
    "check_fraction",
    "despine",
    "heatmap_size",
    "is_square",
    "names_size",
    "new_axes",
    "number",
    "plain_log",
    "trim_height",
    "whole_ticks",
]

# Okabe and Ito's colours can be told apart with any colour vision; markers, dashes and hatches work in grey as well.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000", "#F0E442")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)))
HATCHES = ("", "///", "...", "xxx", "\\\\\\", "---", "ooo", "+++")

BAR = 0.85
"""Inches of a colour bar with its ticks, its label and the word "chance"."""


def check_columns(table: pd.DataFrame, needed: Sequence[str], name: str) -> None:
    """Raise an error if a table lacks a column or has no rows.

    Parameters
    ----------
    table : DataFrame
        Table to check.
    needed : sequence of str
        Columns that it must have.
    name : str
        Name of the argument, for the message.

    Raises
    ------
    TypeError
        If `table` is not a DataFrame.
    ValueError
        If a column is missing or the table is empty.
    """
    import pandas as pd

    if not isinstance(table, pd.DataFrame):
        raise TypeError(f"`{name}` must be a pandas DataFrame, got {type(table).__name__}.")
    missing = [column for column in needed if column not in table]
    if missing:
        raise ValueError(f"`{name}` lacks the column {missing[0]!r}; it has {', '.join(map(str, table.columns))}.")
    if table.empty:
        raise ValueError(f"There is nothing to draw: `{name}` is empty.")


def check_fraction(name: str, value: float) -> None:
    """Raise an error unless a number lies strictly between 0 and 1.

    Parameters
    ----------
    name : str
        Name of the argument, for the message.
    value : float
        Number to check.

    Raises
    ------
    ValueError
        If ``value <= 0`` or ``value >= 1``, or `value` is NaN.
    """
    if not 0 < value < 1:
        raise ValueError(f"`{name}` must lie strictly between 0 and 1, got {value}.")


def new_axes(size: tuple[float, float]) -> Axes:
    """Axes of a new figure.

    Parameters
    ----------
    size : (width, height)
        Size of the figure in inches.
    """
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=size, layout="constrained")[1]


def trim_height(figure: Figure) -> None:
    """Take away the empty height of a new figure whose axes have a fixed aspect, so that their width limits them.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
        Figure whose axes and texts are drawn, with the constrained layout.
    """
    engine = figure.get_layout_engine()
    if engine is None:
        return
    engine.execute(figure)
    width, height = figure.get_size_inches()
    drawn = figure.get_tightbbox()
    spare = height - drawn.height - 0.1
    if spare > 0.1:
        figure.set_size_inches(width, height - spare)
        engine.execute(figure)


def whole_ticks(axis: Axis, values: Iterable[Any]) -> None:
    """Put ticks at whole numbers only if all values are whole, as epochs are: there is no epoch 2.5.

    Parameters
    ----------
    axis : matplotlib.axis.Axis
        The axis.
    values : iterable
        What is drawn along it.
    """
    # The caller's own ticks, and those of a logarithmic axis, stay.
    automatic = type(axis.get_major_locator()) is AutoLocator
    if automatic and all(isinstance(value, int | np.integer) or float(value).is_integer() for value in values):
        axis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))


def despine(ax: Axes) -> None:
    """Hide the top and right edges of the axes."""
    ax.spines[["top", "right"]].set_visible(False)


def plain_log(ax: Axes, side: str) -> None:
    """Make an axis logarithmic: ticks at 0.5, 1, 2 ... over few decades, at powers of ten over many.

    Parameters
    ----------
    ax : matplotlib.axes.Axes
        Axes whose data are already drawn.
    side : str
        ``"x"`` or ``"y"``.
    """
    axis = ax.xaxis if side == "x" else ax.yaxis
    ax.set(**{f"{side}scale": "log"})
    low, high = axis.get_view_interval()
    decades = np.log10(high / low)
    if decades < 3:
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if decades < 2 else (1.0, 3.0)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def number(value: float) -> str:
    """A number as text: three significant digits, or with thousands separators from 1,000 on.

    Parameters
    ----------
    value : float
        Number to write.

    Examples
    --------
    >>> number(1.2345), number(12345.6)
    ('1.23', '12,346')
    """
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def as_similarity(matrix: SimilarityMatrix | pd.DataFrame | ArrayLike) -> SimilarityMatrix:
    """A SimilarityMatrix of the given values, with their layer names.

    Parameters
    ----------
    matrix : SimilarityMatrix, DataFrame or array (R, C)
        The index and the columns of a DataFrame are layer names, or (model, layer) if they have two levels. The layers
        of an array are numbered from 0.

    Returns
    -------
    SimilarityMatrix
        `matrix` itself if it is a SimilarityMatrix.

    Raises
    ------
    ValueError
        If an array does not have two dimensions.
    """
    if isinstance(matrix, SimilarityMatrix):
        return matrix
    import pandas as pd

    if not isinstance(matrix, pd.DataFrame):
        values = np.asarray(matrix)
        if values.ndim != 2:
            raise ValueError(f"`matrix` must have shape (rows, columns), got {values.shape}.")
        r, c = values.shape
        return SimilarityMatrix(values, [str(i) for i in range(r)], [str(i) for i in range(c)], measure="similarity")
    names: dict[str, Any] = {}
    sides: tuple[tuple[str, pd.Index], ...] = (("row", matrix.index), ("column", matrix.columns))
    for side, index in sides:
        names[f"{side}s"] = [str(item) for item in index.get_level_values(-1)]
        if index.nlevels == 2:
            names[f"{side}_models"] = [str(item) for item in index.get_level_values(0)]
    return SimilarityMatrix(matrix.to_numpy(), measure=matrix.attrs.get("measure", "similarity"), **names)


def heatmap_size(shape: tuple[int, int], beside: float, below: float, *, natural: bool = False) -> tuple[float, float]:
    """Width and height in inches of a figure with one heatmap.

    Parameters
    ----------
    shape : (rows, columns)
        Shape of the matrix.
    beside, below : float
        Inches that the names of the rows and of the columns need.
    natural : bool
        Whether the figure may be wider than a page, because its names are written in full.
    """
    # 0.27 inches hold a number of four characters; from 18 layers on the page has no room for numbers.
    sides = [float(np.interp(count, [1, 18], [0.9, 4.9])) for count in shape]
    if is_square(shape):
        sides = [max(sides) / max(shape) * count for count in shape]
    wanted = max(sides[1], 1.0) + beside + BAR
    width = wanted if natural else final_width(wanted, slack=1.05)
    across = max(width - beside - BAR, 1.0)
    height = across * shape[0] / shape[1] if is_square(shape) else max(sides[0], 1.0)
    if below - 0.25 < across / shape[1]:  # the names fit side by side, without being turned
        below = 0.4
    return width, min(height, 7.5) + below + 0.3


def names_size(names: Sequence[str], *, full: bool = False) -> float:
    """Inches that the layer names and the axis label need beside a heatmap.

    Parameters
    ----------
    names : sequence of str
        Layer names.
    full : bool
        Whether they are written in full.
    """
    written = [as_shown(name, FULL) for name in names] if full else shorten(names)[0]
    return 0.35 + 0.06 * max(map(len, written), default=0)


def is_square(shape: tuple[int, int]) -> bool:
    """Whether cells are drawn square: not if one side is more than three times the other.

    Parameters
    ----------
    shape : (rows, columns)
        Shape of the matrix.
    """
    return max(shape) <= 3 * min(shape)
