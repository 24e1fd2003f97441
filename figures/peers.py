"""Figure 10: time and memory beside other tools and the forward passes alone, from benchmarks/results/compare.csv."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from cka_probe.plotting import plot_time_and_memory
from figures.saving import BENCHMARKS, FOLDER, measured, save


def make(folder: Path = FOLDER, *, source: Path = BENCHMARKS / "compare.csv") -> pd.DataFrame | None:
    table = measured(source)
    if table is None:
        return None
    drawn = table[table["tool"] != "forward alone"].rename(
        columns={"tool": "peer", "times_floor": "ratio_to_floor", "largest_error": "max_error"}
    )
    drawn = drawn[drawn.groupby("peer")["seconds"].transform("count") > 0].copy()  # tools that ran in at least one case
    drawn["peak_mb"] = drawn["peak_mib"] * 2**20 / 1e6
    drawn["case"] = drawn["case"].str.replace(", ", "\n")
    height = 1.2 + 1.6 * drawn["case"].nunique()
    _, axes = plt.subplots(1, 2, figsize=(10.5, height), layout="constrained", width_ratios=(3, 2))
    plot_time_and_memory(drawn, axes=axes)
    save(folder, "peers", axes[0].figure, peers=table)
    return table
