"""What every figure that is not a heatmap starts from: axes, clean edges, and a table that holds what is needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from matplotlib.axes import Axes

if TYPE_CHECKING:
    import pandas as pd


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
