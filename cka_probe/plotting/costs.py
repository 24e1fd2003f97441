"""Bars of time and memory: each peer beside the others and beside the forward passes alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from .canvas import HATCHES, PALETTE, check_columns, despine, new_axes, number, plain_log
from .style import PAGE, in_house_style
from .text import as_shown, legend_name, plain

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["plot_costs", "plot_time_and_memory"]

_LABELS = {
    "ratio_to_floor": "time / time of the forward passes alone",
    "seconds": "time (s)",
    "peak_mb": "peak memory (MB)",
    "max_error": "largest error",
}


@in_house_style
def plot_costs(
    table: pd.DataFrame,
    *,
    value: str = "ratio_to_floor",
    tolerance: float | None = 1e-3,
    ax: Axes | None = None,
    **kwargs: Any,
) -> Axes:
    """Draw bars of the cost of each peer in each case.

    The text beside a bar gives its number, and says if the result was wrong or if the peer failed (no number). The axis
    is logarithmic if the bars differ by more than a factor of 20. Peers differ in colour and in hatch.

    Parameters
    ----------
    table : DataFrame
        A benchmark table with the columns ``peer``, ``case``, `value` and, to mark wrong results, ``max_error``.
    value : str
        Column to draw: ``"ratio_to_floor"`` (with a line at 1), ``"seconds"``, ``"peak_mb"``.
    tolerance : float or None
        Results with a larger ``max_error`` are marked as wrong; None marks nothing.
    ax : matplotlib.axes.Axes, optional
        Axes to draw on; by default those of a new figure.
    **kwargs
        Passed to :meth:`matplotlib.axes.Axes.barh`.

    Returns
    -------
    matplotlib.axes.Axes
        The cases stand from top to bottom in the order of the table.

    Raises
    ------
    TypeError
        If `table` is not a DataFrame.
    ValueError
        If a column is missing, the table is empty, or a peer appears twice in one case.

    Examples
    --------
    >>> import matplotlib.pyplot as plt
    >>> import pandas as pd
    >>> table = pd.DataFrame({"peer": ["ours", "theirs"], "case": "ResNet-18", "ratio_to_floor": [1.1, 3.0]})
    >>> ax = plot_costs(table)
    >>> [text.get_text() for text in ax.texts]
    ['1.1', '3']
    >>> plt.close()
    """
    check_columns(table, ("peer", "case", value), "table")
    twice = table.duplicated(["peer", "case"])
    if twice.any():
        line = table[twice].iloc[0]
        raise ValueError(f"`table` has {line['peer']!r} twice in the case {line['case']!r}. Choose one of the runs.")
    peers, cases = list(dict.fromkeys(table["peer"])), list(dict.fromkeys(table["case"]))
    ax = new_axes((PAGE, 0.7 + 0.16 * len(table) + 0.14 * len(cases))) if ax is None else ax
    numbers = table[value].to_numpy(dtype=float)
    known = numbers[np.isfinite(numbers) & (numbers > 0)]
    log = bool(known.size and known.max() > 20 * known.min())
    # A logarithmic axis has no 0: bars start at the forward passes (ratio 1), or at a power of ten.
    left = 0.0
    if log:
        left = 1.0 if value == "ratio_to_floor" else 10.0 ** np.floor(np.log10(known.min()) - 0.1)
    height = 0.8 / len(peers)
    for p, peer in enumerate(peers):
        lines = table[table["peer"] == peer]
        colour, hatch = PALETTE[p % len(PALETTE)], HATCHES[p % len(HATCHES)]
        places = [cases.index(case) + (p - (len(peers) - 1) / 2) * height for case in lines["case"]]
        widths = lines[value].to_numpy(dtype=float)
        bars: dict[str, Any] = {
            "color": colour,
            "hatch": hatch,
            "edgecolor": "white",
            "linewidth": 0.0,
            "label": legend_name(peer),
        } | kwargs
        ax.barh(places, widths - left, height=0.92 * height, left=left, **bars)
        for place, width, (_, line) in zip(places, widths, lines.iterrows(), strict=True):
            text = number(width) if np.isfinite(width) else "failed"
            error = line.get("max_error", np.nan)
            if tolerance is not None and np.isfinite(width) and error > tolerance:
                text += f", wrong by {error:.1g}" if np.isfinite(error) else ", values not finite"
            end = (width if np.isfinite(width) else left, place)
            style: dict[str, Any] = {
                "xytext": (3, 0),
                "textcoords": "offset points",
                "va": "center",
                "fontsize": "small",
                "bbox": {"facecolor": "white", "edgecolor": "none", "pad": 0.5},
            }
            ax.annotate(text, end, annotation_clip=False, **style)
    if log:
        ax.set_xlim(min(left, float(known.min())) / 1.1, float(known.max()) * 1.1)
        plain_log(ax, "x")
    else:
        ax.set_xlim(left=0)
    if value == "ratio_to_floor":
        ax.axvline(1.0, color="black", linewidth=1, linestyle="--", zorder=0)
    ax.set_yticks(range(len(cases)), [plain(as_shown(str(case))) for case in cases])
    ax.set_ylim(len(cases) - 0.5, -0.5)
    ax.set_xlabel(_LABELS.get(value, value.replace("_", " ")))
    ax.legend(frameon=False, fontsize="small", loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=min(len(peers), 4))
    despine(ax)
    return ax


@in_house_style
def plot_time_and_memory(
    table: pd.DataFrame, *, axes: Sequence[Axes] | None = None, **kwargs: Any
) -> NDArray[np.object_]:
    """Draw the time over the floor and, beside it, the peak memory.

    Parameters
    ----------
    table : DataFrame
        A benchmark table with the columns ``peer``, ``case``, ``ratio_to_floor``, ``peak_mb`` and, to mark wrong
        results, ``max_error``.
    axes : sequence of two matplotlib.axes.Axes, optional
        Axes to draw on; by default those of a new figure.
    **kwargs
        Passed to :func:`plot_costs`.

    Returns
    -------
    array of two matplotlib.axes.Axes
        Time and memory. The left axes have the legend and the names of the cases.

    Raises
    ------
    TypeError
        If `table` is not a DataFrame.
    ValueError
        If `axes` does not hold two axes, a column is missing, the table is empty, or a peer appears twice in one case.

    Examples
    --------
    >>> import matplotlib.pyplot as plt
    >>> import pandas as pd
    >>> table = pd.DataFrame({"peer": ["ours"], "case": ["ViT"], "ratio_to_floor": [1.1], "peak_mb": [300]})
    >>> [ax.get_xlabel() for ax in plot_time_and_memory(table)]
    ['time / time of the forward passes alone', 'peak memory (MB)']
    >>> plt.close()
    """
    check_columns(table, ("peer", "case", "ratio_to_floor", "peak_mb"), "table")
    if axes is None:
        import matplotlib.pyplot as plt

        size = (PAGE, 0.7 + 0.16 * len(table) + 0.14 * table["case"].nunique())
        flat = plt.subplots(1, 2, figsize=size, layout="constrained")[1]
    else:
        flat = np.array(axes, dtype=object).ravel()
        if len(flat) != 2:
            raise ValueError(f"`axes` must hold two: time and memory; got {len(flat)}.")
    plot_costs(table, value="ratio_to_floor", ax=flat[0], **kwargs)
    # Wrong results are marked once, beside the time.
    plot_costs(table, value="peak_mb", ax=flat[1], **kwargs | {"tolerance": None})
    flat[1].get_legend().remove()
    flat[1].tick_params(labelleft=False)
    return flat
