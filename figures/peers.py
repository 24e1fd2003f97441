"""Figure 10: time and memory beside the peers and the forward passes alone, from benchmarks/results/compare.csv."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from cka_probe.plotting import plot_time_and_memory
from figures.saving import BENCHMARKS, FOLDER, save


def make(folder: Path = FOLDER, *, source: Path = BENCHMARKS / "compare.csv") -> pd.DataFrame | None:
    if not source.is_file():
        print(f"  skipped: {source.name} is not there. `make bench` measures it.", flush=True)
        return None
    table = pd.read_csv(source)
    axes = plot_time_and_memory(table)
    save(folder, "peers", axes[0].figure, peers=table)
    return table
