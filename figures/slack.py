"""Figure 4: slack of T1, T4 and the conjecture (the bound divided by the Gaussian MMD²) against the bandwidth."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

import cka_probe as cp
from cka_probe.plotting import house_style, plot_bound_slack
from cka_probe.plotting.style import PAGE
from figures.corridor import random_pairs
from figures.networks import CACHE, FULL, STAGES, Budget, images, student, teacher
from figures.saving import FOLDER, kept, save

BOUNDS = {"T1": "t1_bound", "T4": "t4_bound", "conjecture (not proved)": "conjectured_bound"}


def make(
    folder: Path = FOLDER,
    *,
    cache: Path = CACHE,
    budget: Budget = FULL,
    samples: int = 64,
    count: int = 8,
    bandwidths: int = 11,
) -> pd.DataFrame:
    table = kept(folder, "slack")
    if table is None:
        table = measured_slack(cache, budget, samples, count, bandwidths)
    with house_style():
        figure, axes = plt.subplots(1, 2, figsize=(PAGE, 2.8), layout="constrained", sharey=True)
        for ax, (source, part) in zip(axes, table.groupby("source", sort=False), strict=True):
            plot_bound_slack(part, ax=ax)
            ax.axvline(2.25, color="0.6", linewidth=0.8, linestyle=":")
            ax.annotate("2.25", (2.25, 1), (2, 4), xycoords=("data", "axes fraction"), textcoords="offset points",
                        fontsize="small", color="0.4")  # fmt: skip
            ax.set_title(f"{source} ({part['pair'].nunique()} pairs)", pad=13)
        axes[1].set_ylabel("")
        axes[1].get_legend().remove()
        save(folder, "slack", figure, slack=table)
    return table


def measured_slack(cache: Path, budget: Budget, samples: int, count: int, bandwidths: int) -> pd.DataFrame:
    """Every bound divided by MMD², of pairs of layers and of random features."""
    pixels = images(samples)
    layers = [*STAGES, "fc"]
    theirs = cp.extract(teacher(budget, cache), pixels, layers, progress=False)
    ours = cp.extract(student("RCKA", 0, budget, cache), pixels, layers, progress=False)
    pairs = {
        "teacher and student": [(theirs[name].double(), ours[name].double()) for name in layers],
        "random features": list(zip(*random_pairs(count, samples, 4, torch.Generator().manual_seed(0)), strict=True)),
    }
    rows = []
    for source, some in pairs.items():
        for number, (x, y) in enumerate(some):
            for tau_squared in np.geomspace(0.1, 100, bandwidths):
                terms = cp.cka_mmd_bounds(x, y, tau=float(np.sqrt(tau_squared)))
                for name, attribute in BOUNDS.items():
                    row = {"source": source, "pair": number, "cka": float(terms.cka), "tau_squared": tau_squared}
                    bound, mmd = float(getattr(terms, attribute)), float(terms.gaussian_mmd_squared)
                    rows.append(row | {"bound": name, "mmd_squared": mmd, "slack": bound / mmd})
    return pd.DataFrame(rows)
