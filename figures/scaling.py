"""Figure 10, second part: growth of time and memory with layers, batch, samples and width (benchmarks/scaling.py)."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

from figures.saving import BENCHMARKS, FOLDER, measured, save

# Axis of the benchmark: label of x, column along y, label of y.
PANELS = {
    "layers": ("layers (batches of 64)", "times_floor", "time / forward passes"),
    "batch": ("samples in a batch (50 layers)", "times_floor", "time / forward passes"),
    "samples": ("samples (whole data set, moments)", "seconds", "time (s)"),
    "width": ("features of a layer (8 layers, batch 64)", "milliseconds_above_per_batch", "time of the hooks (ms)"),
}
TIME, MEMORY = "#0072B2", "#D55E00"


def panel(part: pd.DataFrame, axis: str, ax: Axes) -> None:
    label, column, meaning = PANELS[axis]
    part = part.sort_values("value")
    ax.plot(part["value"], part[column], "o-", color=TIME)
    ax.set_xscale("log")
    ax.set_xticks(part["value"], [f"{value:,}" for value in part["value"]], fontsize="small", rotation=30)
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_minor_formatter(NullFormatter())
    if column == "times_floor":
        ax.axhline(1, color="black", linestyle="--", linewidth=1)
        ax.set_ylim(0, 1.08 * part[column].max())
    else:
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_minor_formatter(NullFormatter())
    ax.set_xlabel(label)
    ax.set_ylabel(f"{meaning}  ●", color=TIME)
    beside = ax.twinx()
    beside.plot(part["value"], part["peak_mib"], "s:", color=MEMORY, markerfacecolor="white")
    beside.set_ylim(0, 1.08 * part["peak_mib"].max())
    beside.set_ylabel("peak memory (MiB)  □", color=MEMORY)
    for some in (ax, beside):
        some.spines["top"].set_visible(False)


def make(folder: Path = FOLDER, *, source: Path = BENCHMARKS / "scaling.csv") -> pd.DataFrame | None:
    table = measured(source)
    if table is None:
        return None
    figure, axes = plt.subplots(2, 2, figsize=(10.0, 6.4), layout="constrained")
    for axis, ax in zip(PANELS, axes.flat, strict=True):
        panel(table[table["axis"] == axis], axis, ax)
    save(folder, "scaling", figure, scaling=table)
    return table
