"""Figure 10, second part: growth of time and memory with layers, batch, samples and width (benchmarks/scaling.py)."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from cka_probe.plotting import house_style
from cka_probe.plotting.canvas import despine, plain_log
from cka_probe.plotting.style import PAGE
from figures.saving import BENCHMARKS, FOLDER, measured, save

# Axis of the benchmark: label of x, column along y, label of y.
PANELS = {
    "layers": ("layers\n(batches of 64)", "times_floor", "time / forward passes"),
    "batch": ("samples in a batch\n(50 layers)", "times_floor", "time / forward passes"),
    "samples": ("samples\n(data set, moments)", "seconds", "time (s)"),
    "width": ("features of a layer\n(8 layers, batch 64)", "milliseconds_above_per_batch", "time of the hooks (ms)"),
}
TIME, MEMORY = "#0072B2", "#D55E00"


def panel(part: pd.DataFrame, column: str, label: str, colour: str, ax: Axes) -> None:
    part = part.sort_values("value")
    ax.plot(part["value"], part[column], "o-", color=colour)
    ax.set_xscale("log")
    ends = part["value"].to_numpy()
    shown = ends[sorted({0, len(ends) // 2, len(ends) - 1})]
    ax.set_xticks(shown, [f"{value:,}" for value in shown])
    ax.xaxis.set_minor_locator(NullLocator())
    if column == "times_floor":
        ax.axhline(1, color="black", linestyle="--", linewidth=0.8)
    if column in ("times_floor", "peak_mib"):
        ax.set_ylim(0, 1.1 * part[column].max())
    else:
        plain_log(ax, "y")
    ax.set_ylabel(label)
    despine(ax)


def make(folder: Path = FOLDER, *, source: Path = BENCHMARKS / "scaling.csv") -> pd.DataFrame | None:
    table = measured(source)
    if table is None:
        return None
    with house_style():
        figure, axes = plt.subplots(2, len(PANELS), figsize=(PAGE, 3.3), layout="constrained")
        for i, (axis, (label, column, meaning)) in enumerate(PANELS.items()):
            part = table[table["axis"] == axis]
            panel(part, column, meaning, TIME, axes[0, i])
            panel(part, "peak_mib", "peak memory (MiB)" if i == 0 else "", MEMORY, axes[1, i])
            axes[1, i].set_xlabel(label)
            axes[0, i].tick_params(labelbottom=False)
        save(folder, "scaling", figure, scaling=table)
    return table
