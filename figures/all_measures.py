"""Figure 14: all measures on one pair of networks, clustered by how they order the pairs of layers.

Each measure gives one value for each pair of layers of two seeds of one network. Two measures agree if they order these
pairs alike: Spearman's rank correlation between their values, distances with the opposite sign.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from scipy import stats
from scipy.cluster.hierarchy import dendrogram, leaves_list, linkage
from scipy.spatial.distance import squareform

import cka_probe as cp
from cka_probe.estimators import MEASURES
from figures.networks import CACHE, FULL, Budget, images, train_seeds, trained
from figures.saving import FOLDER, save

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
    train_seeds(2, budget, cache)
    networks = [trained(budget.teacher, seed, budget.teacher_epochs, cache) for seed in range(2)]
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
    tree = linkage(squareform(1 - agreement, checks=False), method="average", optimal_ordering=True)
    order = leaves_list(tree)
    shown = agreement[np.ix_(order, order)]
    labels = [names[i] for i in order]

    figure, (left, ax) = plt.subplots(1, 2, figsize=(9.6, 8.0), layout="constrained", width_ratios=(1, 7))
    dendrogram(tree, orientation="left", ax=left, no_labels=True, color_threshold=0, above_threshold_color="#444444")
    left.invert_yaxis()
    left.set_xlabel("1 − ρ")
    left.spines[["top", "left", "right"]].set_visible(False)
    image = ax.imshow(shown, cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
    ax.set_xticks(range(len(labels)), labels, rotation=90, fontsize="small")
    ax.set_yticks(range(len(labels)), labels, fontsize="small")
    ax.set_title(f"Agreement of measures on {len(xs)} × {len(ys)} layers of two seeds of {budget.teacher}")
    ax.title.set_fontsize("medium")
    figure.colorbar(image, ax=ax, label="Spearman's ρ over the pairs of layers", shrink=0.6, pad=0.02)
    table = pd.DataFrame(shown, index=labels, columns=labels).rename_axis("measure").reset_index()
    save(folder, "all_measures", figure, all_measures=table)
    return table
