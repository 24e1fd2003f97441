"""Figure 2: biased and unbiased CKA of small batches, beside the value of all samples and the chance level."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

import cka_probe as cp
from cka_probe.plotting import house_style
from cka_probe.plotting.style import PAGE
from figures.networks import CACHE, FULL, Budget, images, student, teacher
from figures.saving import FOLDER, kept, save


def make(
    folder: Path = FOLDER,
    *,
    cache: Path = CACHE,
    budget: Budget = FULL,
    sizes: Sequence[int] = (4, 6, 8, 12, 16, 24, 32, 64, 128, 256, 512),
    repeats: int = 60,
    layer: str = "layer3",
) -> pd.DataFrame:
    table = kept(folder, "estimators")
    if table is None:
        table = measured_batches(cache, budget, sizes, repeats, layer)
    with house_style():
        figure, axes = plt.subplots(1, 2, figsize=(PAGE, 2.7), layout="constrained", sharey=True)
        draw(table, layer, axes)
        save(folder, "estimators", figure, estimators=table)
    return table


def measured_batches(cache: Path, budget: Budget, sizes: Sequence[int], repeats: int, layer: str) -> pd.DataFrame:
    """CKA of random batches, biased and unbiased, of the same and of different images."""
    pixels = images()
    pair = (teacher(budget, cache), student("RCKA", 0, budget, cache))
    x, y = (cp.extract(network, pixels, [layer], progress=False)[layer].double() for network in pair)
    random = torch.Generator().manual_seed(0)
    rows = []
    for size in sizes:
        for repeat in range(repeats):
            batch = torch.randperm(len(x), generator=random)[:size]
            other = torch.randperm(len(x), generator=random)[:size]
            for what, chosen in (("same images", batch), ("different images", other)):
                row = {"pairs": what, "batch_size": size, "repeat": repeat}
                for estimator in ("biased", "unbiased"):
                    row[estimator] = float(cp.cka(x[batch], y[chosen], estimator=estimator))
                rows.append(row | {"chance": float(cp.chance_level(x[batch], y[chosen]))})
    table = pd.DataFrame(rows)
    table["all_samples"] = np.where(
        table["pairs"] == "same images", float(cp.cka(x, y)), 0.0
    )  # different images are independent: their true CKA is 0
    return table


def draw(table: pd.DataFrame, layer: str, axes: Sequence[Axes]) -> None:
    for ax, (what, part) in zip(axes, table.groupby("pairs", sort=False), strict=True):
        groups = part.groupby("batch_size")
        for name, colour, marker in (("biased", "#D55E00", "s"), ("unbiased", "#0072B2", "o")):
            mean, spread = groups[name].mean(), groups[name].std()
            ax.plot(mean.index, mean, color=colour, marker=marker, markersize=4, label=f"{name} (band: ± 1 sd)")
            ax.fill_between(mean.index, mean - spread, mean + spread, color=colour, alpha=0.18, linewidth=0)
        chance = groups["chance"].mean()
        ax.plot(chance.index, chance, color="black", linestyle=":", label="chance level of biased")
        truth = part["all_samples"].iloc[0]
        ax.axhline(truth, color="black", linestyle="--", linewidth=1, label="all samples, unbiased" if truth else None)
        ax.set_xscale("log", base=2)
        sizes = sorted(part["batch_size"].unique())[::2]
        ax.set_xticks(sizes, [str(size) for size in sizes])
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set(title=f"{layer} of teacher and student, {what}", xlabel="batch size")
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("CKA of one batch")
    axes[0].legend(frameon=False, fontsize="small", loc="lower right")
