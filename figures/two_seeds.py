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
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

import cka_probe as cp
from cka_probe.estimators import MEASURES
from cka_probe.plotting import house_style, plot_heatmap_grid
from cka_probe.plotting.style import PAGE
from figures.networks import CACHE, FULL, Budget, images, train_seeds, trained
from figures.saving import FOLDER, kept, save

LAYERS = ["conv1", "layer?.?"]
# Measures whose time does not grow with the cube of the thousands of features of a map.
NAMES = (
    *("procrustes", "angular", "nbs", "cca", "cca_r2", "svcca", "pwcca", "linear_regression_r2", "gulp", "rsa"),
    *("mutual_knn", "cknna", "uncentred_alignment", "mmd"),
)
POOLING = {"maps": "flatten", "channel means": "mean"}

FEATURES = (("maps", "#0072B2", "o"), ("channel means", "#D55E00", "s"))
READABLE = {
    "procrustes": "Procrustes",
    "angular": "angular (shape metric)",
    "nbs": "NBS (Bures)",
    "cca": "mean CCA",
    "cca_r2": "mean squared CCA",
    "svcca": "SVCCA",
    "pwcca": "PWCCA",
    "linear_regression_r2": "linear regression",
    "gulp": "GULP",
    "rsa": "RSA",
    "mutual_knn": "mutual k-NN",
    "cknna": "CKNNA",
    "uncentred_alignment": "alignment, un-centred",
    "mmd": "MMD of layers",
}

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
    table, maps = kept(folder, "two_seeds"), kept(folder, "two_seeds_maps")
    if table is None or maps is None:
        table, maps = measured_tables(cache, budget, seeds, samples)
    with house_style():
        figure = draw(table, maps, budget.teacher)
        save(folder, "two_seeds", figure, two_seeds=table, two_seeds_maps=maps)
    return table


def measured_tables(cache: Path, budget: Budget, seeds: int, samples: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Share of layers that find their counterpart by measure, and the maps of CKA."""
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
    batches, maps = pixels.split(128), []
    for other in (0, 1):
        result = cp.compare(networks[0], networks[other], batches, layers=LAYERS, progress=False)
        long = result.to_frame().rename_axis("layer").melt(ignore_index=False, var_name="other_layer", value_name="cka")
        maps.append(long.reset_index().assign(other_seed=other))
    return pd.DataFrame(rows), pd.concat(maps, ignore_index=True)


def draw(table: pd.DataFrame, maps: pd.DataFrame, network: str) -> Figure:
    """Two maps on one scale, and the share of layers that find their counterpart, with 95 % intervals."""
    figure = plt.figure(figsize=(PAGE, 6.2), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(2.9, 3.3))
    matrices = {}
    for other, part in maps.groupby("other_seed"):
        layers = list(dict.fromkeys(part["layer"]))
        wide = part.pivot(index="layer", columns="other_layer", values="cka").loc[layers, layers]
        meta = {"model_x": f"{network}, seed 0", "model_y": f"{network}, seed {other}", "estimator": "unbiased"}
        matrices[f"seed 0 with seed {other}"] = cp.SimilarityMatrix(wide.to_numpy(), layers, layers, meta=meta)
    low = np.floor(10 * maps["cka"].min()) / 10
    plot_heatmap_grid(matrices, axes=top.subplots(1, 2), limits=(low, 1.0), annotate=False)
    ax = bottom.subplots()
    counts = table["layers"] * table["directions"]
    ends = wilson(table["accuracy"], counts)
    order = table.groupby("measure")["accuracy"].mean().sort_values().index
    for shift, (features, colour, marker) in ((-0.18, FEATURES[0]), (0.18, FEATURES[1])):
        part = table[table["features"] == features].set_index("measure")
        low_end, high_end = (ends[side][table["features"] == features] for side in (0, 1))
        places = order.get_indexer(part.index) + shift
        error = np.clip(
            np.stack([part["accuracy"] - low_end.to_numpy(), high_end.to_numpy() - part["accuracy"]]), 0, None
        )
        layers_tested = int(part["layers"].iloc[0] * part["directions"].iloc[0])
        ax.errorbar(
            part["accuracy"], places, xerr=error, fmt=marker, color=colour, capsize=0, elinewidth=0.8,
            label=f"{features} ({layers_tested} layers)",
        )  # fmt: skip
    ax.axvline(1 / table["layers"].iloc[0], color="black", linestyle="--", linewidth=0.8, label="chance")
    ax.set_yticks(range(len(order)), [READABLE.get(name, name) for name in order])
    ax.xaxis.set_major_formatter(PercentFormatter(1.0))
    ax.set(
        xlim=(-0.02, 1),
        xlabel="layers whose most similar layer of the other seed has the same depth (line: 95 % interval)",
    )
    ax.legend(frameon=False, loc="lower right")
    ax.spines[["top", "right"]].set_visible(False)
    return figure


def wilson(rate: pd.Series, count: pd.Series) -> tuple[pd.Series, pd.Series]:
    """95 % interval of a proportion (Wilson)."""
    z = 1.96
    middle = (rate + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z * np.sqrt(rate * (1 - rate) / count + z**2 / (4 * count**2)) / (1 + z**2 / count)
    return middle - half, middle + half
