"""Figure 1: two seeds of one network, and whether each layer finds its counterpart (Kornblith's sanity check).

Kornblith et al., Similarity of Neural Network Representations Revisited, ICML 2019, section 6.1: two networks differ in
their initialisation only. Is the most similar layer of the other network the one at the same depth?
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

import cka_probe as cp
from cka_probe.estimators import MEASURES
from cka_probe.plotting import plot_heatmap
from figures.networks import CACHE, FULL, Budget, images, train_seeds, trained
from figures.saving import FOLDER, save

LAYERS = ["conv1", "layer?.?"]
# Measures whose time does not grow with the cube of the thousands of features of a map.
NAMES = (
    *("procrustes", "angular", "nbs", "cca", "cca_r2", "svcca", "pwcca", "linear_regression_r2", "gulp", "rsa"),
    *("mutual_knn", "cknna", "uncentred_alignment", "mmd"),
)
POOLING = {"maps": "flatten", "channel means": "mean"}

Matrix = Callable[[list[torch.Tensor], list[torch.Tensor]], torch.Tensor]


def measures() -> dict[str, tuple[Matrix, int]]:
    """For each measure, its function of two lists of layers and the sign that turns its values into similarities."""
    found: dict[str, tuple[Matrix, int]] = {
        "CKA, linear": (cp.cka_matrix, 1),
        "CKA, linear, biased": (lambda xs, ys: cp.cka_matrix(xs, ys, estimator="biased"), 1),
        "CKA, Gaussian": (lambda xs, ys: cp.cka_matrix(xs, ys, kernel=cp.RBF(bandwidth="median")), 1),
    }
    for name in NAMES:
        measure = MEASURES[name]
        sign = 1 if measure.kind == "similarity" else -1
        found[name] = (lambda xs, ys, measure=measure: measure.matrix(xs, ys).values, sign)
    return found


def found(similarity: np.ndarray) -> float:
    """The fraction of rows whose only largest entry is on the diagonal; a tie does not count."""
    largest = similarity >= similarity.max(axis=1, keepdims=True) - 1e-9
    return float((np.diagonal(largest) & (largest.sum(axis=1) == 1)).mean())


def make(
    folder: Path = FOLDER, *, cache: Path = CACHE, budget: Budget = FULL, seeds: int = 3, samples: int = 256
) -> pd.DataFrame:
    train_seeds(seeds, budget, cache)
    networks = [trained(budget.teacher, seed, budget.teacher_epochs, cache) for seed in range(seeds)]
    pixels = images(samples)
    # Maps have up to 4,096 features, and measures that decompose them take seconds: one pair of seeds only.
    pairs = {"maps": [(0, 1)], "channel means": list(combinations(range(seeds), 2))}
    rows = []
    for features, pooling in POOLING.items():
        layers = [cp.extract(network, pixels, LAYERS, pooling=pooling, progress=False) for network in networks]
        for name, (matrix, sign) in measures().items():
            hits = []
            for one, other in pairs[features]:
                values = sign * np.asarray(matrix(list(layers[one].values()), list(layers[other].values())))
                hits += [found(values), found(values.T)]
            row = {"features": features, "measure": name, "accuracy": np.mean(hits)}
            rows.append(row | {"layers": len(layers[0]), "directions": len(hits), "samples": samples})
    table = pd.DataFrame(rows)

    figure, axes = plt.subplots(1, 3, figsize=(14.5, 5.0), layout="constrained", width_ratios=(1, 1, 1.1))
    batches, maps = pixels.split(128), []
    for ax, other in zip(axes, (0, 1), strict=False):
        result = cp.compare(networks[0], networks[other], batches, layers=LAYERS, progress=False)
        plot_heatmap(result, ax=ax, title=f"seed 0 (rows) × seed {other} (columns)")
        long = result.to_frame().rename_axis("layer").melt(ignore_index=False, var_name="other_layer", value_name="cka")
        maps.append(long.reset_index().assign(other_seed=other))
    pivot = table.pivot(index="measure", columns="features", values="accuracy").loc[list(measures())]
    places = np.arange(len(pivot))
    for i, (name, colour) in enumerate((("maps", "#0072B2"), ("channel means", "#E69F00"))):
        axes[2].barh(places + 0.4 * (i - 0.5), pivot[name], 0.36, color=colour, label=name, hatch=("", "///")[i])
        for place, value in zip(places, pivot[name], strict=True):
            axes[2].text(value + 0.01, place + 0.4 * (i - 0.5), f"{value:.0%}", va="center", fontsize="x-small")
    axes[2].axvline(1 / len(layers[0]), color="black", linestyle="--", linewidth=1, label="chance")
    axes[2].set_yticks(places, list(pivot.index), fontsize="small")
    axes[2].set(xlim=(0, 1.08), xlabel="layers that find their counterpart")
    axes[2].invert_yaxis()
    axes[2].legend(frameon=False, fontsize="small", loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
    axes[2].spines[["top", "right"]].set_visible(False)
    save(folder, "two_seeds", figure, two_seeds=table, two_seeds_maps=pd.concat(maps, ignore_index=True))
    return table
