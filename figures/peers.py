"""Figure 10: time and memory beside other tools and the forward passes alone, from benchmarks/results/compare.csv."""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from cka_probe.plotting import house_style
from cka_probe.plotting.canvas import MARKERS, PALETTE, despine, plain_log
from cka_probe.plotting.style import PAGE
from figures.saving import BENCHMARKS, FOLDER, measured, save

COLUMNS = {"times_floor": "time / time of the forward passes", "peak_mib": "peak memory (MiB)"}
NAMES = {"channels_last": "cka_probe, channels_last"}


def make(folder: Path = FOLDER, *, source: Path = BENCHMARKS / "compare.csv") -> pd.DataFrame | None:
    table = measured(source)
    if table is None:
        return None
    tools = [tool for tool in dict.fromkeys(table["tool"]) if tool != "forward alone"]
    cases = list(dict.fromkeys(table["case"]))
    with house_style():
        figure, axes = plt.subplots(1, 2, figsize=(PAGE, 0.9 + 0.82 * len(cases)), layout="constrained", sharey=True)
        for ax, (column, label) in zip(axes, COLUMNS.items(), strict=True):
            for i, tool in enumerate(tools):
                part = table[table["tool"] == tool].set_index("case").reindex(cases)
                places = np.arange(len(cases)) + 0.13 * (i - (len(tools) - 1) / 2)
                values = part[column].to_numpy(dtype=float)
                style = {"color": PALETTE[i % len(PALETTE)], "marker": MARKERS[i % len(MARKERS)], "linestyle": "none"}
                ax.plot(values, places, label=NAMES.get(tool, tool), **style)
                for place, value, (_, line) in zip(places, values, part.iterrows(), strict=True):
                    wrong = bool(line["largest_error"] > 1e-3)
                    asked = tool != "channels_last" or np.isfinite(value)  # it is for images only
                    if column == "times_floor" and asked and (wrong or not np.isfinite(value)):
                        text = _verdict(tool, value, line["largest_error"])
                        ax.annotate(text, (value if np.isfinite(value) else 1.0, place), (5, 0), va="center",
                                    textcoords="offset points", fontsize="small", color=style["color"])  # fmt: skip
            plain_log(ax, "x")
            ax.set(xlabel=label, ylim=(len(cases) - 0.5, -0.5))
            for line in np.arange(len(cases) - 1) + 0.5:
                ax.axhline(line, color="0.85", linewidth=0.6)
            despine(ax)
        axes[0].axvline(1, color="black", linestyle="--", linewidth=0.8)
        axes[0].set_xlim(right=10 * table["times_floor"].max())  # room for the words beside the last dot
        names = [re.sub(" with (itself|themselves)", "", case).replace(", ", "\n") for case in cases]
        axes[0].set_yticks(range(len(cases)), names)
        figure.legend(*axes[1].get_legend_handles_labels(), loc="outside upper center", ncols=len(tools), frameon=False)
        save(folder, "peers", figure, peers=table)
    return table


def _verdict(tool: str, value: float, error: float) -> str:
    if not np.isfinite(value):
        return f"{tool}: failed"
    return f"wrong by {error:.1g}" if np.isfinite(error) else "values not finite"
