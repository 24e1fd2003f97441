"""Figure 13: test accuracy of the students of each method on Fashion-MNIST, from the finished cells of `make study`."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from scipy import stats

from cka_probe.plotting import house_style
from cka_probe.plotting.style import COLUMN, PAGE
from figures.saving import BENCHMARKS, FOLDER, measured, save

TITLES = {"fashion": "Fashion-MNIST", "glyphs": "Characters of fonts"}
COLOURS = {"RCKA": "tab:red", "CE": "black", "KD": "tab:blue", "DIST": "tab:blue"}


def kind(method: str) -> str:
    """The method of a line, without weight and ramp; sums with RCKA are their own kind."""
    return method.split(" ")[0] if "RCKA" not in method or method.startswith("RCKA") else "with RCKA"


def draw(ax: plt.Axes, table: pd.DataFrame, title: str) -> None:
    """A row for each line, the best at the top: mean, 95 % interval of the mean over the seeds, number of seeds."""
    table = table.sort_values("test")
    for row, line in enumerate(table.itertuples()):
        half = stats.t.ppf(0.975, line.seeds - 1) * line.sd / np.sqrt(line.seeds) if line.seeds > 1 else 0.0
        colour = COLOURS.get(kind(line.method), "tab:orange" if "RCKA" in line.method else "grey")
        ax.errorbar(line.test, row, xerr=half, fmt="o", markersize=4, color=colour, elinewidth=1.2)
    names = [f"{line.method} ({line.seeds})" for line in table.itertuples()]
    ax.set_yticks(range(len(table)), names, fontsize=6.5)
    ax.set_ylim(-0.7, len(table) + 0.6)  # room for the names of the two lines
    for rival in ("KD", "DIST"):
        level = table.loc[table["method"] == rival, "test"]
        if len(level):
            ax.axvline(float(level.iloc[0]), color="tab:blue", linewidth=0.7, linestyle=":")
            ax.annotate(rival, (float(level.iloc[0]), 1.0), xycoords=("data", "axes fraction"), rotation=90,
                        va="top", ha="right", fontsize=6.5, color="tab:blue")  # fmt: skip
    # A student that has collapsed would press all others together.
    low = max(table["test"].min(), table["test"].median() - 6)
    ax.set_xlim(low - 0.5, table["test"].max() + 0.9)
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_xlabel("test accuracy in %")
    ax.set_title(title)


def make(
    folder: Path = FOLDER, *, source: Path = BENCHMARKS / "study_table.csv", most: int = 16
) -> pd.DataFrame | None:
    table = measured(source)
    if table is None:
        return None
    # The usual settings and the chosen weights; all others are in the table. Linear probes are another measure.
    students = table[~table["method"].str.endswith(", probe")]
    shown = [
        (
            f"{TITLES[data]},\n{images:,} images",
            part.sort_values(["chosen", "seeds"], ascending=False, kind="stable").head(most),
        )
        for (data, images), part in students.groupby(["data", "images"], sort=False)
    ]
    rows = max(len(part) for _, part in shown)
    with house_style():
        size = (PAGE if len(shown) > 1 else COLUMN, 0.8 + 0.15 * rows)
        figure, axes = plt.subplots(1, len(shown), figsize=size, layout="constrained", squeeze=False)
        for ax, (title, part) in zip(axes[0], shown, strict=True):
            draw(ax, part, title)
        save(folder, "study", figure, study=table)
    return table
