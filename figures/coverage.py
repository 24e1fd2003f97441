"""Figure 12: how often 95 % intervals contain the true CKA, and how often tests at 5 % reject in null cases."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from cka_probe.plotting import house_style
from cka_probe.plotting.style import PAGE
from figures.saving import BENCHMARKS, FOLDER, measured, save

STYLES = [("#0072B2", "o", "-"), ("#E69F00", "s", "--"), ("#009E73", "^", ":"), ("#CC79A7", "D", "-.")]


def make(folder: Path = FOLDER, *, source: Path = BENCHMARKS / "coverage.csv") -> pd.DataFrame | None:
    table = measured(source)
    if table is None:
        return None
    # Intervals from 16 and from 64 of many features share a panel.
    table["kind"] = table["what"].str.replace(r"\d+ of many", "some of many", regex=True)
    kinds = [kind for kind in dict.fromkeys(table["kind"]) if "interval" in kind]
    tests = table[table["what"].str.contains("rejections") & (table["nominal"].round(3) == 0.05)]
    with house_style():
        figure, axes = plt.subplots(1, len(kinds) + 1, figsize=(PAGE, 3.1), layout="constrained")
        for ax, kind in zip(axes, kinds, strict=False):
            part = table[(table["kind"] == kind) & (table["true_cka"] > 0)]
            for (name, group), style in zip(part.groupby("data", sort=False), STYLES, strict=False):
                rates = group.groupby("samples")["rate"]
                _line(ax, rates.mean(), name, style)
                ax.fill_between(rates.mean().index, rates.min(), rates.max(), color=style[0], alpha=0.15, linewidth=0)
            ax.axhline(0.95, color="black", linewidth=0.8)
            ax.set(title=kind.replace("95 % interval, ", "intervals of 95 %:\n"), ylim=(0.86, 1.0))
        axes[0].set_ylabel("intervals that hold the true CKA (> 0)")
        _below(figure, axes[0], "band: least to greatest", len(STYLES))
        ax = axes[-1]
        for (name, group), (colour, _, _) in zip(tests.groupby("data", sort=False), STYLES, strict=False):
            for (how, part), (_, marker, dashes) in zip(group.groupby("what", sort=False), STYLES, strict=False):
                rates = part.set_index("samples")["rate"].sort_index()
                _line(ax, rates, f"{name}, {how.removeprefix('rejections, ')}", (colour, marker, dashes))
        ax.axhline(0.05, color="black", linewidth=0.8)
        ax.set(title="tests at 5 %:\nnothing in common", ylabel="null cases rejected", ylim=(0, 0.105))
        hows = list(dict.fromkeys(tests["what"]))
        handles = [
            Line2D(
                [], [], color="0.3", marker=STYLES[i][1], linestyle=STYLES[i][2], label=how.removeprefix("rejections, ")
            )
            for i, how in enumerate(hows)
        ]
        ax.legend(handles=handles, frameon=False, loc="lower left")
        for ax in axes:
            ax.set_xlabel("samples")
            ax.spines[["top", "right"]].set_visible(False)
        save(folder, "coverage", figure, coverage=table.drop(columns="kind"))
    return table


def _below(figure: Figure, ax: Axes, title: str, columns: int) -> None:
    """One legend for all panels, above them."""
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles, labels, title=f"data ({title})", loc="outside upper center", ncols=columns, frameon=False)


def _line(ax: Axes, rates: pd.Series, label: str, style: tuple[str, str, str]) -> None:
    colour, marker, dashes = style
    ax.plot(rates.index, rates, color=colour, marker=marker, linestyle=dashes, markersize=3, label=label)
    ax.set_xscale("log", base=2)
    ticks = sorted({*ax.get_lines()[0].get_xdata(), *rates.index})
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.xaxis.set_minor_locator(NullLocator())
