"""What every figure that is not a heatmap starts from: axes, clean edges, and a table that holds what is needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

if TYPE_CHECKING:
    import pandas as pd

# Okabe and Ito's colours, told apart with any kind of colour vision; with marks, dashes or hatches also in grey.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000", "#F0E442")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)))
HATCHES = ("", "///", "...", "xxx", "\\\\\\", "---", "ooo", "+++")


def check_columns(table: pd.DataFrame, needed: Sequence[str], name: str) -> None:
    """Refuse a table that lacks a column or has no lines.

    Parameters
    ----------
    table : DataFrame
        What was given.
    needed : sequence of str
        Its columns.
    name : str
        How the caller knows the table.

    Raises
    ------
    TypeError
        If it is not a DataFrame.
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


def new_axes(size: tuple[float, float]) -> Axes:
    """Axes of a figure of its own.

    Parameters
    ----------
    size : (width, height)
        In inches.
    """
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=size, layout="constrained")[1]


def despine(ax: Axes) -> None:
    """Take the upper and right edges away, which say nothing."""
    ax.spines[["top", "right"]].set_visible(False)


def plain_log(ax: Axes, side: str) -> None:
    """Make an axis logarithmic with ticks that are read at once: 0.5, 1, 2 over few decades, powers of ten over many.

    Parameters
    ----------
    ax : matplotlib.axes.Axes
        With its data already drawn.
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
    """Three digits, and thousands written out.

    Parameters
    ----------
    value : float
        A time, a size, a ratio.

    Examples
    --------
    >>> number(1.2345), number(12345.6)
    ('1.23', '12,346')
    """
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
