"""What the methods reached: accuracies with their uncertainty over seeds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from cka_probe.plotting.canvas import PALETTE, check_columns, despine, new_axes

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["plot_accuracies"]


def plot_accuracies(
    table: pd.DataFrame,
    *,
    value: str = "accuracy",
    by: str = "method",
    level: float = 0.95,
    references: Mapping[str, float] | None = None,
    from_zero: bool = True,
    ax: Axes | None = None,
    **kwargs: Any,
) -> Axes:
    """The axes with a bar for each method: mean over seeds, its confidence interval (Student's t), and every seed.

    The first method stands at the top. The number beside a bar is mean ± standard deviation. One seed has no interval.

    Parameters
    ----------
    table : DataFrame
        Tidy: one line for each method and seed, with the columns `by` and `value`.
    value : str
        Column to draw. Numbers from 0 to 1 are written in percent.
    by : str
        Column that names the bars.
    level : float
        Confidence of the intervals.
    references : dict of str to float, optional
        Values that are no competitors, the teacher's for example: dashed lines.
    from_zero : bool
        Bars from 0. If False, points instead of bars and an axis that spans the data: differences show, and no bar
        lies about proportions.
    ax : matplotlib.axes.Axes, optional
        Where to draw; by default a new figure.
    **kwargs
        To :meth:`matplotlib.axes.Axes.barh`, or to :meth:`matplotlib.axes.Axes.plot` for points.

    Returns
    -------
    matplotlib.axes.Axes
        The label of its horizontal axis says what bars, lines and circles are.

    Raises
    ------
    TypeError
        If `table` is not a DataFrame.
    ValueError
        If a column is missing, the table is empty, or `level` is not strictly between 0 and 1.

    Examples
    --------
    >>> import matplotlib.pyplot as plt
    >>> import pandas as pd
    >>> table = pd.DataFrame({"method": ["KD", "KD", "RCKA"], "accuracy": [0.70, 0.72, 0.74]})
    >>> ax = plot_accuracies(table)
    >>> [label.get_text() for label in ax.get_yticklabels()]
    ['KD', 'RCKA']
    >>> plt.close()
    """
    from scipy import stats

    check_columns(table, (by, value), "table")
    if not 0 < level < 1:
        raise ValueError(f"`level` must lie strictly between 0 and 1, got {level}.")
    methods = list(dict.fromkeys(table[by]))
    seeds = [table.loc[table[by] == method, value].to_numpy(dtype=float) for method in methods]
    means = [float(values.mean()) for values in seeds]
    ax = new_axes((5.2, 0.8 + 0.42 * len(methods))) if ax is None else ax
    for i, (values, mean) in enumerate(zip(seeds, means, strict=True)):
        if from_zero:
            bar: dict[str, Any] = {"height": 0.62, "color": PALETTE[0], "alpha": 0.45}
            ax.barh(i, mean, **bar | kwargs)
        else:
            point: dict[str, Any] = {"marker": "D", "color": PALETTE[0], "linestyle": "none"}
            ax.plot(mean, i, **point | kwargs)
        if len(values) > 1:
            half = stats.t.isf((1 - level) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
            ax.errorbar(mean, i, xerr=half, color="black", capsize=3, linewidth=1.2, zorder=3)
        # Spread out, so that equal seeds do not hide one another.
        offsets = np.linspace(-0.16, 0.16, len(values)) if len(values) > 1 else np.zeros(1)
        ax.plot(values, i + offsets, "o", markersize=3.5, markerfacecolor="white", markeredgecolor="black", zorder=4)
    ax.set_yticks(range(len(methods)), [str(method) for method in methods])
    ax.set_ylim(len(methods) - 0.5, -0.5)
    percent = max(float(values.max()) for values in seeds) <= 1 and min(float(values.min()) for values in seeds) >= 0
    if percent:
        ax.xaxis.set_major_formatter(PercentFormatter(1.0))
    scale = 100 if percent else 1
    for i, (values, mean) in enumerate(zip(seeds, means, strict=True)):
        spread = f" ± {scale * values.std(ddof=1):.1f}" if len(values) > 1 else " (1 seed)"
        ax.annotate(
            f"{scale * mean:.1f}{spread}",
            (1.02, i),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize="small",
            annotation_clip=False,
        )
    dashes = ("--", ":", "-.")
    for i, (name, level_of) in enumerate((references or {}).items()):
        ax.axvline(
            level_of, color="black", linestyle=dashes[i % 3], linewidth=1, label=f"{name} {scale * level_of:.1f}"
        )
    if references:
        ax.legend(frameon=False, fontsize="small", loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2)
    shape = "bar" if from_zero else "diamond"
    ax.set_xlabel(f"{value.replace('_', ' ')} ({shape}: mean, line: {100 * level:g} % interval, circles: seeds)")
    despine(ax)
    return ax
