"""Results of training: curves of methods, similarity of layers over checkpoints, final accuracies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes

from ..similarity.matrix import SimilarityMatrix
from .canvas import PALETTE, check_columns, check_fraction, despine, new_axes, whole_ticks
from .heatmap import CMAP
from .labels import font_size, label_axis, root_figure, shorten
from .scale import measure_label
from .style import COLUMN, PAGE, in_house_style
from .text import LONG, as_shown, legend_name, plain, set_given, set_plain

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["plot_accuracies", "plot_layer_trends", "plot_training_curves"]


@in_house_style
def plot_training_curves(
    histories: pd.DataFrame,
    *,
    metric: str = "test_accuracy",
    by: str = "method",
    x: str = "epoch",
    errorbar: Any = ("sd", 1),
    ax: Axes | None = None,
    **kwargs: Any,
) -> Axes:
    """Draw one curve for each method: the mean over seeds, with a band for their spread.

    Methods differ in colour (seaborn's colour-blind palette) and in dashes, so a grey print shows which is which.

    Parameters
    ----------
    histories : DataFrame
        Tidy: one row for each method, seed and epoch, with the columns `by`, ``seed``, `x` and `metric`.
    metric : str
        Column to draw.
    by : str
        Column that names the curves.
    x : str
        Column along the horizontal axis.
    errorbar : as in seaborn
        Width of the band: ``("sd", 1)`` is one standard deviation, ``("ci", 95)`` a bootstrap interval of the mean,
        ``("pi", 100)`` the range from the worst to the best seed, None no band.
    ax : matplotlib.axes.Axes, optional
        Axes to draw on; by default those of a new figure.
    **kwargs
        Passed to :func:`seaborn.lineplot`, which passes them to matplotlib.

    Returns
    -------
    matplotlib.axes.Axes
        The legend says over how many seeds the curves are averaged.

    Raises
    ------
    TypeError
        If `histories` is not a DataFrame.
    ValueError
        If a column is missing or the table is empty.

    Examples
    --------
    >>> import matplotlib.pyplot as plt
    >>> import pandas as pd
    >>> history = pd.DataFrame({"method": "KD", "seed": 0, "epoch": [1, 2], "test_accuracy": [0.4, 0.6]})
    >>> ax = plot_training_curves(history)
    >>> ax.get_ylabel()
    'test accuracy'
    >>> plt.close()
    """
    import seaborn as sns
    from pandas.api.types import is_numeric_dtype

    check_columns(histories, (by, x, metric), "histories")
    ax = new_axes((COLUMN, 2.5)) if ax is None else ax
    names = list(dict.fromkeys(histories[by]))
    options = {
        "palette": sns.color_palette("colorblind", len(names)),
        "hue_order": names,
        "style_order": names,
    } | kwargs
    sns.lineplot(histories, x=x, y=metric, hue=by, style=by, errorbar=errorbar, ax=ax, **options)
    if is_numeric_dtype(histories[x]):
        whole_ticks(ax.xaxis, histories[x].dropna())
    ax.set(xlabel=x.replace("_", " "), ylabel=metric.replace("_", " "))
    legend = ax.get_legend()
    if legend is not None:
        legend.set_title(_spread(histories, by, errorbar))
        for text in legend.get_texts():  # seaborn writes the names of the methods
            set_plain(text, as_shown(text.get_text()))
        legend.set_frame_on(False)
    despine(ax)
    return ax


def _spread(histories: pd.DataFrame, by: str, errorbar: Any) -> str:
    """Title of the legend: how the curve and its band are computed, and from how many seeds."""
    if "seed" not in histories:
        return by
    counts = sorted(set(histories.groupby(by, observed=True)["seed"].nunique()))
    seeds = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    if counts[-1] == 1:
        return "1 seed"
    if errorbar is None:
        return f"mean of {seeds} seeds"
    kind, size = (errorbar, None) if isinstance(errorbar, str) or callable(errorbar) else errorbar
    band = {
        "sd": f"± {size or 1:g} sd",
        "se": f"± {size or 1:g} se",
        "ci": f"{size or 95:g} % interval",
        "pi": "range" if size == 100 else f"{size or 95:g} % of the seeds",
    }.get(kind, "band")
    return f"mean and {band}, {seeds} seeds" if kind in ("ci", "pi") else f"mean {band}, {seeds} seeds"


@in_house_style
def plot_layer_trends(
    matrices: Mapping[Any, SimilarityMatrix],
    *,
    pairs: Sequence[tuple[str, str]] | None = None,
    level: float = 0.95,
    xlabel: str = "checkpoint",
    ax: Axes | None = None,
    **kwargs: Any,
) -> Axes:
    """Draw the similarity of pairs of layers at each checkpoint, one line for each pair.

    The colour of a line shows the depth of the layer, dark at the input. If the matrices have standard errors, the band
    is the confidence interval. Where a pair is undefined its line has a gap.

    Parameters
    ----------
    matrices : dict of checkpoint to SimilarityMatrix
        Matrices in order of time. If all checkpoints are numbers (epochs), they are the positions on the axis.
    pairs : sequence of (row, column), optional
        Pairs of layers to follow. By default each row with the column of the same name or, if no names agree, of the
        same position.
    level : float
        Confidence level of the bands.
    xlabel : str
        Label of the horizontal axis.
    ax : matplotlib.axes.Axes, optional
        Axes to draw on; by default those of a new figure.
    **kwargs
        Passed to :meth:`matplotlib.axes.Axes.plot`.

    Returns
    -------
    matplotlib.axes.Axes
        A legend names up to twelve lines; for more, a colour bar names some of them.

    Raises
    ------
    ValueError
        If there are no matrices or no pairs, a layer is missing in a matrix, or layers have no counterparts.

    Examples
    --------
    >>> import matplotlib.pyplot as plt
    >>> steps = {epoch: SimilarityMatrix([[1 - 0.1 * epoch]], ["conv1"], ["conv1"]) for epoch in range(3)}
    >>> ax = plot_layer_trends(steps, xlabel="epoch")
    >>> [float(y.round(1)) for y in ax.lines[0].get_ydata()]
    [1.0, 0.9, 0.8]
    >>> plt.close()
    """
    if not matrices:
        raise ValueError("There is nothing to draw: `matrices` is empty.")
    first = next(iter(matrices.values()))
    pairs = _counterparts(first) if pairs is None else list(pairs)
    if not pairs:
        raise ValueError("There is nothing to draw: `pairs` is empty.")
    cells = [_find(matrix, pairs, name) for name, matrix in matrices.items()]
    values = np.array([[m.values[cell] for cell in found] for m, found in zip(matrices.values(), cells, strict=True)])
    numeric = all(isinstance(name, int | float | np.number) for name in matrices)
    places = np.array(list(matrices), dtype=float) if numeric else np.arange(len(matrices), dtype=float)

    names = _pair_names(pairs)
    ax = new_axes((COLUMN if len(pairs) < 2 else PAGE, 2.6)) if ax is None else ax
    # The light end of the colour map is left out, because it cannot be seen on white.
    colours = mpl.colormaps[CMAP](np.linspace(0.05, 0.85, len(pairs)))
    markers = "os^Dv<>pPX*h"
    for i, (name, colour) in enumerate(zip(names, colours, strict=True)):
        style = {
            "color": colour,
            "marker": markers[i % len(markers)],
            "markersize": 3.5,
            "label": legend_name(name),
        } | kwargs
        ax.plot(places, values[:, i], **style)
    if all(matrix.standard_error is not None for matrix in matrices.values()):
        ends = [matrix.interval(level) for matrix in matrices.values()]
        for i, colour in enumerate(colours):
            low, high = ([end[side][found[i]] for end, found in zip(ends, cells, strict=True)] for side in (0, 1))
            ax.fill_between(places, low, high, color=colour, alpha=0.15, linewidth=0)
    if numeric:
        whole_ticks(ax.xaxis, matrices)
    else:
        label_axis(ax.xaxis, [str(name) for name in matrices], font_size(ax.xaxis))
    set_given(ax.xaxis.label, xlabel)
    set_plain(ax.yaxis.label, as_shown(measure_label(first), LONG))
    if len(pairs) <= 12:
        ax.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    else:
        _name_some(ax, names)
    despine(ax)
    return ax


def _counterparts(matrix: SimilarityMatrix) -> list[tuple[str, str]]:
    shared = [(row, row) for row in matrix.rows if row in set(matrix.columns)]
    if shared:
        return shared
    if len(matrix.rows) != len(matrix.columns):
        raise ValueError(
            f"No layer names agree and the matrix has {len(matrix.rows)} rows and {len(matrix.columns)} columns, so "
            "layers have no counterparts. Say which to follow: pairs=[(row, column), ...]."
        )
    return list(zip(matrix.rows, matrix.columns, strict=True))


def _find(matrix: SimilarityMatrix, pairs: Sequence[tuple[str, str]], checkpoint: Any) -> list[tuple[int, int]]:
    """Row and column index of each pair in this matrix."""
    found = []
    for row, column in pairs:
        for name, names, side in ((row, matrix.rows, "rows"), (column, matrix.columns, "columns")):
            if name not in names:
                raise ValueError(f"Layer {name!r} is not among the {side} of checkpoint {checkpoint!r}.")
        found.append((matrix.rows.index(row), matrix.columns.index(column)))
    return found


def _pair_names(pairs: Sequence[tuple[str, str]]) -> list[str]:
    rows, _ = shorten([row for row, _ in pairs])
    columns, _ = shorten([column for _, column in pairs])
    return [row if row == column else f"{row} × {column}" for row, column in zip(rows, columns, strict=True)]


def _name_some(ax: Axes, names: Sequence[str]) -> None:
    """Draw a colour bar with some of the names, because a legend would be longer than the picture."""
    colours = mpl.colors.ListedColormap(mpl.colormaps[CMAP](np.linspace(0.05, 0.85, 256)))
    scale = mpl.cm.ScalarMappable(mpl.colors.Normalize(0, len(names) - 1), colours)
    bar = root_figure(ax).colorbar(scale, cax=ax.inset_axes((1.03, 0.0, 0.03, 1.0)))
    places = np.linspace(0, len(names) - 1, 6).round().astype(int)
    bar.set_ticks([float(i) for i in places], labels=[plain(names[i]) for i in places])
    bar.ax.tick_params(labelsize="small")


@in_house_style
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
    """Draw a bar for each method: mean over seeds, its confidence interval (Student's t), and every seed.

    The first method is at the top. The text beside a bar is mean ± standard deviation. With one seed there is no
    interval.

    Parameters
    ----------
    table : DataFrame
        Tidy: one row for each method and seed, with the columns `by` and `value`.
    value : str
        Column to draw. If all values lie between 0 and 1, they are written in percent.
    by : str
        Column that names the bars.
    level : float
        Confidence level of the intervals.
    references : dict of str to float, optional
        Values to draw as dashed lines, for example the teacher's accuracy.
    from_zero : bool
        If True, bars that start at 0. If False, points on an axis that spans the data only: small differences can be
        seen, and no bar suggests a wrong proportion.
    ax : matplotlib.axes.Axes, optional
        Axes to draw on; by default those of a new figure.
    **kwargs
        Passed to :meth:`matplotlib.axes.Axes.barh`, or to :meth:`matplotlib.axes.Axes.plot` for points.

    Returns
    -------
    matplotlib.axes.Axes
        The label of the horizontal axis explains bars, lines and circles.

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
    check_fraction("level", level)
    methods = list(dict.fromkeys(table[by]))
    seeds = [table.loc[table[by] == method, value].to_numpy(dtype=float) for method in methods]
    means = [float(values.mean()) for values in seeds]
    ax = new_axes((COLUMN, 0.7 + 0.24 * len(methods))) if ax is None else ax
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
        # Seeds with equal values are drawn at different heights, so that all can be seen.
        offsets = np.linspace(-0.16, 0.16, len(values)) if len(values) > 1 else np.zeros(1)
        ax.plot(values, i + offsets, "o", markersize=3.5, markerfacecolor="white", markeredgecolor="black", zorder=4)
    ax.set_yticks(range(len(methods)), [plain(as_shown(str(method))) for method in methods])
    ax.set_ylim(len(methods) - 0.5, -0.5)
    percent = max(float(values.max()) for values in seeds) <= 1 and min(float(values.min()) for values in seeds) >= 0
    if percent:
        ax.xaxis.set_major_formatter(lambda value, _: f"{round(100 * value, 6):g}%")
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
    for i, (name, reference) in enumerate((references or {}).items()):
        text = f"{legend_name(name)} {scale * reference:.1f}"
        ax.axvline(reference, color="black", linestyle=dashes[i % 3], linewidth=1, label=text)
    if references:
        ax.legend(frameon=False, fontsize="small", loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2)
    shape = "bar" if from_zero else "diamond"
    ax.set_xlabel(f"{value.replace('_', ' ')}\n({shape}: mean, line: {100 * level:g} % interval, circles: seeds)")
    despine(ax)
    return ax
