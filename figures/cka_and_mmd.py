"""Figure 16: CKA and the MMD of T3 of all pairs of layers, from one pass over the data, with their bounds."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from torch import nn

import cka_probe as cp
from cka_probe.plotting import house_style, plot_heatmap
from cka_probe.plotting.style import PAGE
from figures.networks import CACHE, FULL, SHOWN, Budget, images, train_seeds, trained
from figures.saving import FOLDER, kept, save

BATCH = 64
QUADRATIC = cp.Polynomial(degree=2, offset=0.0, gamma=1.0)


def make(
    folder: Path = FOLDER, *, cache: Path = CACHE, budget: Budget = FULL, samples: int | None = None
) -> pd.DataFrame:
    table = kept(folder, "cka_and_mmd")
    if table is None:
        train_seeds(2, budget, cache)
        networks = [trained(budget.teacher, seed, budget.teacher_epochs, cache) for seed in (0, 1)]
        table = measured_pairs(networks, samples)
    with house_style():
        save(folder, "cka_and_mmd", draw(table), cka_and_mmd=table)
    return table


def measured_pairs(networks: list[nn.Module], samples: int | None) -> pd.DataFrame:
    """Both measures of every pair of layers of two networks with their errors and bounds, one line for each pair."""
    result = cp.compare(
        *networks,
        images(samples).split(BATCH),
        layers=SHOWN,
        measure="mmd",
        kernel=QUADRATIC,
        scope="minibatch",
        estimator="biased",
        progress=False,
    )
    table = result.pairs()
    return table.rename(columns={"value": "mmd", "standard_error": "mmd standard_error"}).drop(columns=["low", "high"])


def draw(table: pd.DataFrame) -> Figure:
    """Heatmaps of CKA and of MMD, and MMD over CKA with the two bounds."""
    figure, axes = plt.subplots(1, 3, figsize=(PAGE, 2.4), layout="constrained", width_ratios=(1, 1, 0.8))
    layers = [list(dict.fromkeys(sorted(table[side], key=_depth))) for side in ("row", "column")]
    for ax, name, title in ((axes[0], "cka", "CKA"), (axes[1], "mmd", "MMD², quadratic kernel")):
        values = table.pivot(index="row", columns="column", values=name).loc[layers[0], layers[1]].to_numpy()
        meta = {"kind": "distance"} if name == "mmd" else {}
        limits = (float(values.min()), float(values.max()))
        plot_heatmap(
            cp.SimilarityMatrix(values, *layers, measure=name, meta=meta), ax=ax, limits=limits, annotate=False
        )
        ax.set(title=title, xlabel="resnet20, seed 1", ylabel="resnet20, seed 0" if name == "cka" else "")
        if ax is axes[1]:  # the names of the first map are those of this one
            ax.set_yticklabels([])
    ax = axes[2]
    c = np.linspace(table["cka"].min() - 0.03, 1, 200)
    ax.plot(c, 2 * (1 - c**2), color="black", linewidth=0.8)
    ax.plot(c, 4 * (1 - c) ** 2 / (BATCH - 1), color="black", linewidth=0.8)
    ax.text(0.81, 0.85, "upper bound")
    ax.text(c[0] + 0.01, 0.035, "lower bound")
    ax.errorbar(
        table["cka"], table["mmd"], xerr=table["cka standard_error"], yerr=table["mmd standard_error"],
        fmt="o", color="#0072B2", ecolor="#0072B255", markersize=2, elinewidth=0.5,
    )  # fmt: skip
    ax.set(xlabel="CKA, biased", ylabel="MMD²", xlim=(c[0], 1.005), ylim=(0, None), title="bounds (T3)")
    ax.spines[["top", "right"]].set_visible(False)
    return figure


def _depth(layer: str) -> tuple[int, str]:
    """conv1 first, fc last."""
    return (0 if layer.startswith("conv") else 2 if layer == "fc" else 1, layer)
