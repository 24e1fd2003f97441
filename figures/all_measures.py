"""Figure 14: all measures on one pair of networks, clustered by how they order the pairs of layers.

Each measure gives one value for each pair of layers of two seeds of one network. Two measures agree if they order these
pairs alike: Spearman's rank correlation between their values, distances with the opposite sign.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy import stats
from scipy.cluster.hierarchy import dendrogram, leaves_list, linkage
from scipy.spatial.distance import squareform
from torch import nn

import cka_probe as cp
from cka_probe.estimators import MEASURES
from cka_probe.plotting import house_style
from cka_probe.plotting.style import PAGE, SMALLEST
from figures.networks import CACHE, FULL, Budget, images, train_seeds, trained
from figures.saving import FOLDER, kept, save

LAYERS = ["conv1", "layer?.?"]
# A quarter of the samples if that is less.
NEIGHBOURS = 10


def values_of(xs: dict, ys: dict) -> dict[str, np.ndarray]:
    """The values of every measure for all pairs of layers (pairs,), as similarities."""
    found = {
        "CKA": cp.cka_matrix(list(xs.values()), list(ys.values())),
        "CKA, Gaussian": cp.cka_matrix(list(xs.values()), list(ys.values()), kernel=cp.RBF()),
    }
    for name, measure in MEASURES.items():
        options = {"k": min(NEIGHBOURS, len(next(iter(xs.values()))) // 4)} if "k" in measure.options else {}
        values = measure.matrix(list(xs.values()), list(ys.values()), **options).values
        found[name] = values if measure.kind == "similarity" else -values
    return {name: np.asarray(values).ravel() for name, values in found.items()}


def make(folder: Path = FOLDER, *, cache: Path = CACHE, budget: Budget = FULL, samples: int = 128) -> pd.DataFrame:
    table = kept(folder, "all_measures")
    if table is None:
        train_seeds(2, budget, cache)
        table = measured_agreement(
            [trained(budget.teacher, seed, budget.teacher_epochs, cache) for seed in (0, 1)], samples
        )
    with house_style():
        save(folder, "all_measures", draw(table), all_measures=table)
    return table


def measured_agreement(networks: list[nn.Module], samples: int) -> pd.DataFrame:
    """Spearman's rank correlation of every two measures over the pairs of layers, clustered."""
    pixels = images(samples)
    xs, ys = (
        {name: x.double() for name, x in cp.extract(net, pixels, LAYERS, pooling="mean", progress=False).items()}
        for net in networks
    )
    values = values_of(xs, ys)
    names = list(values)
    agreement = np.array([[stats.spearmanr(values[a], values[b])[0] for b in names] for a in names])
    agreement = (agreement + agreement.T) / 2
    np.fill_diagonal(agreement, 1)
    order = leaves_list(tree_of(agreement))
    labels = [names[i] for i in order]
    return pd.DataFrame(agreement[np.ix_(order, order)], labels, labels).rename_axis("measure").reset_index()


def tree_of(agreement: np.ndarray) -> np.ndarray:
    """Average linkage of the measures (n - 1, 4); its leaves are in an order that puts like beside like."""
    return linkage(squareform(1 - agreement, checks=False), method="average", optimal_ordering=True)


def draw(table: pd.DataFrame) -> Figure:
    """The tree of the measures beside their agreement."""
    labels, agreement = list(table["measure"]), table.drop(columns="measure").to_numpy()
    tree = tree_of(agreement)
    order = leaves_list(tree)
    labels, agreement = [labels[i] for i in order], agreement[np.ix_(order, order)]
    figure, (left, ax) = plt.subplots(1, 2, figsize=(PAGE, 5.6), layout="constrained", width_ratios=(1, 7))
    dendrogram(tree, orientation="left", ax=left, no_labels=True, color_threshold=0, above_threshold_color="#444444")
    left.invert_yaxis()
    left.set_xlabel("1 − ρ")
    left.spines[["top", "left", "right"]].set_visible(False)
    image = ax.imshow(agreement, cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
    ax.set_xticks(range(len(labels)), labels, rotation=90, fontsize=SMALLEST)
    ax.set_yticks(range(len(labels)), labels, fontsize=SMALLEST)
    figure.colorbar(image, ax=ax, label="Spearman's ρ over the pairs of layers", shrink=0.6, pad=0.02)
    return figure
