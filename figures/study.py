"""Figure 13: test accuracy of the students of each method on each data set, from the finished cells of `make study`."""

from __future__ import annotations

import re
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
    """The method of a line, without weight and ramp; everything that changes the paper's RCKA is a kind of its own."""
    changed = "RCKA" in method and not re.fullmatch(r"RCKA [\d/]+(, ramp)?", method)
    return "with RCKA" if changed else method.split(" ")[0]


def in_order(tables: list[pd.DataFrame]) -> list[str]:
    """The methods, the best last: by their accuracy minus that of KD (or of the median), averaged over the tables."""
    gains = []
    for table in tables:
        accuracy = table.set_index("method")["test"]
        gains.append(accuracy - accuracy.get("KD", accuracy.median()))
    return list(pd.concat(gains, axis=1).mean(axis=1).sort_values(kind="stable").index)


def draw(ax: plt.Axes, table: pd.DataFrame, title: str, order: list[str]) -> None:
    """A row for each method in ``order``: mean and 95 % interval of the mean over the seeds; hollow if it is one."""
    reach = (stats.t.ppf(0.975, table["seeds"] - 1) * table["sd"] / np.sqrt(table["seeds"])).fillna(0.0)
    for line, half in zip(table.itertuples(), reach, strict=True):
        colour = COLOURS.get(kind(line.method), "tab:orange" if "RCKA" in line.method else "grey")
        face = colour if line.seeds > 1 else "white"
        ax.errorbar(line.test, order.index(line.method), xerr=half, fmt="o", markersize=4, color=colour,
                    markerfacecolor=face, elinewidth=1.2)  # fmt: skip
    ax.set_ylim(-0.7, len(order) + 0.9)  # room for the names of the two lines
    levels = {rival: float(table.loc[table["method"] == rival, "test"].mean()) for rival in ("KD", "DIST")}
    for rival, level in levels.items():
        if np.isfinite(level):
            ax.axvline(level, color="tab:blue", linewidth=0.7, linestyle=":")
            side = "left" if level == np.nanmax(list(levels.values())) else "right"  # the lines may be close
            ax.annotate(f" {rival} ", (level, 1.0), xycoords=("data", "axes fraction"), va="top", ha=side, fontsize=6.5,
                        color="tab:blue")  # fmt: skip
    # A student that has collapsed, or two seeds with a wide interval, would press all others together.
    low, high = max(table["test"].min(), table["test"].median() - 6), table["test"].max()
    room = 0.12 * (high - low) + 0.1
    left, right = (table["test"] - reach).min(), (table["test"] + reach).max()
    ax.set_xlim(max(min(low, left), low - 4 * room) - room, min(max(high, right), high + 4 * room) + room)
    ax.grid(axis="y", linewidth=0.3, color="0.85")
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_xlabel("test accuracy in %")
    ax.set_title(title)


def make(
    folder: Path = FOLDER, *, source: Path = BENCHMARKS / "study_table.csv", most: int = 28
) -> pd.DataFrame | None:
    table = measured(source)
    if table is None:
        return None
    # Linear probes are another measure. Weights that have run with one seed only are in the table, unless they are the
    # chosen ones, or nothing has run with more.
    students = table[~table["method"].str.endswith(", probe")]
    students = students[(students["seeds"] > 1) | students["chosen"] | (students["seeds"].max() == 1)]
    shown = {
        f"{TITLES[data]},\n{images:,} images": part.sort_values(
            ["chosen", "seeds"], ascending=False, kind="stable"
        ).head(most)
        for (data, images), part in students.groupby(["data", "images"], sort=False)
    }
    order = in_order(list(shown.values()))
    with house_style():
        size = (PAGE if len(shown) > 1 else COLUMN, 0.9 + 0.17 * len(order))
        figure, axes = plt.subplots(1, len(shown), figsize=size, layout="constrained", squeeze=False, sharey=True)
        for ax, (title, part) in zip(axes[0], shown.items(), strict=True):
            least, most_seeds = part["seeds"].min(), part["seeds"].max()
            seeds = most_seeds if least == most_seeds else f"{least} to {most_seeds}"
            draw(ax, part, f"{title}, {seeds} seeds", order)
        axes[0, 0].set_yticks(range(len(order)), order, fontsize=6.5)
        save(folder, "study", figure, study=table)
    return table
