"""Figure 12: how often 95 % intervals contain the true CKA, and how often tests at 5 % reject in null cases."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from figures.saving import BENCHMARKS, FOLDER, measured, save

STYLES = [("#0072B2", "o", "-"), ("#E69F00", "s", "--"), ("#009E73", "^", ":"), ("#CC79A7", "D", "-.")]


def make(folder: Path = FOLDER, *, source: Path = BENCHMARKS / "coverage.csv") -> pd.DataFrame | None:
    table = measured(source)
    if table is None:
        return None
    kinds = [kind for kind in dict.fromkeys(table["what"]) if "interval" in kind]
    tests = table[table["what"].str.contains("rejections") & (table["nominal"].round(3) == 0.05)]
    lines = -(-(len(kinds) + 1) // 3)
    figure, grid = plt.subplots(lines, 3, figsize=(11.5, 3.6 * lines), layout="constrained", squeeze=False)
    axes = list(grid.flat[: len(kinds) + 1])
    for unused in grid.flat[len(kinds) + 1 :]:
        unused.axis("off")
    for ax, kind in zip(axes, kinds, strict=False):
        part = table[(table["what"] == kind) & (table["true_cka"] > 0)]
        for (name, group), style in zip(part.groupby("data", sort=False), STYLES, strict=False):
            rates = group.groupby("samples")["rate"]
            _line(ax, rates.mean(), name, style)
            ax.fill_between(rates.mean().index, rates.min(), rates.max(), color=style[0], alpha=0.15, linewidth=0)
        ax.axhline(0.95, color="black", linewidth=1)
        ax.set(title=f"{kind}\ntrue CKA > 0 (band: least to greatest)", ylabel="intervals that hold the truth")
        ax.set_ylim(min(0.85, part["rate"].min()), 1)
    ax = axes[-1]
    for (name, group), (colour, _, _) in zip(tests.groupby("data", sort=False), STYLES, strict=False):
        for (how, part), (_, marker, dashes) in zip(group.groupby("what", sort=False), STYLES, strict=False):
            label = f"{name}, {how.removeprefix('rejections, ')}"
            _line(ax, part.set_index("samples")["rate"].sort_index(), label, (colour, marker, dashes))
    ax.axhline(0.05, color="black", linewidth=1)
    ax.set(title="tests at 5 %, independent features", ylabel="null cases rejected")
    ax.set_ylim(bottom=0)
    for ax in axes:
        ax.set_xlabel("samples")
        ax.title.set_fontsize("medium")
        ax.legend(frameon=False, fontsize="x-small", loc="lower left", ncols=1)
        ax.spines[["top", "right"]].set_visible(False)
    save(folder, "coverage", figure, coverage=table)
    return table


def _line(ax: plt.Axes, rates: pd.Series, label: str, style: tuple[str, str, str]) -> None:
    colour, marker, dashes = style
    ax.plot(rates.index, rates, color=colour, marker=marker, linestyle=dashes, markersize=4, label=label)
    ax.set_xscale("log", base=2)
    ticks = sorted({*ax.get_lines()[0].get_xdata(), *rates.index})
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
