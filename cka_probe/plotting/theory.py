"""Pictures of the bounds between CKA and MMD (docs/theory.md, section 7): corridor, slack, bounds along training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes

from .canvas import DASHES, MARKERS, PALETTE, check_columns, despine, new_axes, plain_log
from .style import COLUMN, in_house_style
from .text import legend_name

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["plot_bound_slack", "plot_bounds_along_training", "plot_corridor"]


@in_house_style
def plot_corridor(
    table: pd.DataFrame,
    *,
    x: str = "cka",
    y: str = "mmd_squared",
    by: str = "source",
    rank: float | None = None,
    log: bool = False,
    ax: Axes | None = None,
    **kwargs: Any,
) -> Axes:
    """Draw MMD² against CKA, one point for each pair of features, and the two curves of T3.

    For the quadratic kernel on the rows of the centred, normalised Gram matrices, T3 says
    4(1 − c)²/r ≤ MMD² ≤ 2(1 − c²), where c is CKA and r the rank of the difference of the Gram matrices. The lower
    curve is drawn for the largest rank, so that it holds for all points.

    Parameters
    ----------
    table : DataFrame
        Columns `x` (CKA), `y` (MMD² with the quadratic kernel) and, if known, `by` (kind of point: random, adversarial,
        training) and ``rank``.
    x, y, by : str
        Names of columns.
    rank : float, optional
        Rank for the lower curve; by default the largest in the column ``rank``. Without either there is no lower curve.
    log : bool
        Draw MMD² against 1 − c on logarithmic axes: layers of trained networks crowd at c = 1, where both curves meet.
        Points with c = 1 or MMD = 0 have no place there; the title says how many.
    ax : matplotlib.axes.Axes, optional
        Axes to draw on; by default those of a new figure.
    **kwargs
        Passed to :meth:`matplotlib.axes.Axes.scatter`.

    Returns
    -------
    matplotlib.axes.Axes
        If points lie outside the corridor, the title says how many.

    Raises
    ------
    TypeError
        If `table` is not a DataFrame.
    ValueError
        If a column is missing or the table is empty.

    References
    ----------
    Zhou et al., Rethinking Centered Kernel Alignment in Knowledge Distillation, arXiv 2401.11824 (CKA and MMD); T3
    (docs/theory.md, section 7).

    Examples
    --------
    >>> import matplotlib.pyplot as plt
    >>> import pandas as pd
    >>> ax = plot_corridor(pd.DataFrame({"cka": [0.5], "mmd_squared": [0.6], "rank": [4]}))
    >>> [line.get_label() for line in ax.lines]
    ['2(1 − c²)', '4(1 − c)² / 4']
    >>> plt.close()
    """
    check_columns(table, (x, y), "table")
    if rank is None and "rank" in table:
        rank = float(table["rank"].max())
    ax = new_axes((COLUMN, 2.6)) if ax is None else ax
    alignment, squared = table[x].to_numpy(dtype=float), table[y].to_numpy(dtype=float)
    curve = np.linspace(min(0.0, float(np.nanmin(alignment))), 1, 400)
    gone = (alignment >= 1) | (squared <= 0) if log else np.zeros(len(table), dtype=bool)
    if log:
        nearest = float(np.min(1 - alignment[~gone], initial=0.1))
        curve = 1 - np.geomspace(nearest / 1.5, max(1.0, float(np.max(1 - alignment))), 400)
    places, where = (1 - alignment, 1 - curve) if log else (alignment, curve)
    upper = 2 * (1 - curve**2)
    ax.plot(where, upper, color="black", linewidth=1.4, label="2(1 − c²)")
    lower = np.zeros_like(curve)
    if rank is not None:
        lower = 4 * (1 - curve) ** 2 / rank
        ax.plot(where, lower, color="black", linewidth=1.4, linestyle="--", label=f"4(1 − c)² / {rank:g}")
    ax.fill_between(where, lower, upper, color="0.93", zorder=0)
    sources = list(dict.fromkeys(table[by])) if by in table else [None]
    for i, source in enumerate(sources):
        chosen = ~gone if source is None else (table[by] == source).to_numpy() & ~gone
        style: dict[str, Any] = {"s": 14, "linewidths": 0.4, "edgecolors": "white"}
        style |= {"marker": MARKERS[i % len(MARKERS)], "facecolors": PALETTE[i % len(PALETTE)]}
        style["label"] = None if source is None else legend_name(source)
        ax.scatter(places[chosen], squared[chosen], **style | kwargs)
    ranks = table["rank"].to_numpy(dtype=float) if "rank" in table else np.full(len(table), rank or np.inf)
    # 1e-9 allows for float64 rounding. At rank 0 the Gram matrices are equal: c = 1 and MMD = 0.
    above = squared > 2 * (1 - alignment**2) + 1e-9
    below = squared < 4 * (1 - alignment) ** 2 / np.maximum(ranks, 1) - 1e-9
    outside = int((above | below).sum())
    title = [f"{outside} of {len(table)} points outside"] if outside else []
    title += [f"{gone.sum()} points with c = 1 not shown"] if gone.any() else []
    if title:
        ax.set_title("; ".join(title))
    ax.set(xlabel="1 − c, where c is CKA" if log else "CKA, c", ylabel="MMD² (quadratic kernel)")
    if log:
        plain_log(ax, "x")
        plain_log(ax, "y")
    ax.legend(frameon=False, fontsize="small", loc="lower right" if log else "best")
    despine(ax)
    return ax


@in_house_style
def plot_bound_slack(
    table: pd.DataFrame,
    *,
    x: str = "tau_squared",
    slack: str = "slack",
    by: str = "bound",
    ax: Axes | None = None,
    **kwargs: Any,
) -> Axes:
    """Draw the slack of each bound, the bound divided by MMD², against the bandwidth; both axes are logarithmic.

    Parameters
    ----------
    table : DataFrame
        Tidy: columns `x` (τ²), `slack` (bound divided by MMD², at least 1 where the bound holds) and `by` (name of the
        bound: T1, T4, conjecture ...). If a bandwidth has several rows (pairs of layers, seeds), their median is drawn
        with a band from the smallest to the largest.
    x, slack, by : str
        Names of columns.
    ax : matplotlib.axes.Axes, optional
        Axes to draw on; by default those of a new figure.
    **kwargs
        Passed to :meth:`matplotlib.axes.Axes.plot`.

    Returns
    -------
    matplotlib.axes.Axes
        The horizontal line at 1 shows equality; a point below it would violate the bound.

    Raises
    ------
    TypeError
        If `table` is not a DataFrame.
    ValueError
        If a column is missing, the table is empty, or a number is not positive.

    Examples
    --------
    >>> import matplotlib.pyplot as plt
    >>> import pandas as pd
    >>> ax = plot_bound_slack(pd.DataFrame({"tau_squared": [1, 2], "slack": [1.5, 3.0], "bound": "T1"}))
    >>> ax.get_xscale(), ax.get_yscale()
    ('log', 'log')
    >>> plt.close()
    """
    check_columns(table, (x, slack, by), "table")
    for column in (x, slack):
        if not (table[column] > 0).all():
            raise ValueError(
                f"`{column}` must be positive for a logarithmic axis; its smallest is {table[column].min()}."
            )
    ax = new_axes((COLUMN, 2.5)) if ax is None else ax
    for i, name in enumerate(dict.fromkeys(table[by])):
        groups = table[table[by] == name].groupby(x)[slack]
        middle, low, high = groups.median(), groups.min(), groups.max()
        style = {
            "color": PALETTE[i % len(PALETTE)],
            "linestyle": DASHES[i % len(DASHES)],
            "label": legend_name(name),
        } | kwargs
        ax.plot(middle.index, middle.to_numpy(), **style)
        if (groups.size() > 1).any():
            ax.fill_between(middle.index, low, high, color=PALETTE[i % len(PALETTE)], alpha=0.18, linewidth=0)
    ax.axhline(1.0, color="0.4", linewidth=0.8)
    ax.set(xlabel="bandwidth τ²", ylabel="bound / MMD²")
    plain_log(ax, "x")
    plain_log(ax, "y")
    ax.legend(frameon=False, fontsize="small")
    despine(ax)
    return ax


@in_house_style
def plot_bounds_along_training(
    table: pd.DataFrame,
    *,
    bounds: Sequence[str],
    x: str = "epoch",
    measured: str = "mmd_squared",
    ax: Axes | None = None,
    **kwargs: Any,
) -> Axes:
    """Draw MMD² along a training run (solid) and its upper bounds (dashed), on a logarithmic scale.

    Parameters
    ----------
    table : DataFrame
        One row for each epoch with the columns `x`, `measured` and `bounds`; several rows for one epoch (seeds) are
        averaged.
    bounds : sequence of str
        Columns of upper bounds; the legend writes underscores as spaces.
    x, measured : str
        Names of columns.
    ax : matplotlib.axes.Axes, optional
        Axes to draw on; by default those of a new figure.
    **kwargs
        Passed to :meth:`matplotlib.axes.Axes.plot`.

    Returns
    -------
    matplotlib.axes.Axes
        Values of 0 or below have no place on a logarithmic scale: they are gaps, and the title says how many.

    Raises
    ------
    TypeError
        If `table` is not a DataFrame.
    ValueError
        If a column is missing or the table is empty.

    Examples
    --------
    >>> import matplotlib.pyplot as plt
    >>> import pandas as pd
    >>> run = pd.DataFrame({"epoch": [1, 2], "mmd_squared": [0.2, 0.1], "T1": [0.5, 0.3]})
    >>> ax = plot_bounds_along_training(run, bounds=["T1"])
    >>> [line.get_label() for line in ax.lines]
    ['MMD²', 'T1']
    >>> plt.close()
    """
    check_columns(table, (x, measured, *bounds), "table")
    columns = [measured, *bounds]
    means = table.groupby(x)[columns].mean()
    positive = means.where(means > 0)
    ax = new_axes((COLUMN, 2.5)) if ax is None else ax
    for i, column in enumerate(columns):
        name = "MMD²" if column == "mmd_squared" else column.replace("_", " ")
        style: dict[str, Any] = {"color": "black", "linewidth": 2.0, "linestyle": "-", "label": legend_name(name)}
        if i:
            dashes = DASHES[1 + (i - 1) % (len(DASHES) - 1)]
            style |= {"color": PALETTE[(i - 1) % len(PALETTE)], "linewidth": 1.4, "linestyle": dashes}
        ax.plot(positive.index, positive[column].to_numpy(), **style | kwargs)
    gaps = int((means <= 0).to_numpy().sum())
    if gaps:
        ax.set_title(f"{gaps} values ≤ 0 not shown")
    plain_log(ax, "y")
    ax.set(xlabel=x.replace("_", " "), ylabel="MMD² and its upper bounds")
    ax.legend(frameon=False, fontsize="small")
    despine(ax)
    return ax
