"""Figure 6: alignment with and without centring, linear and Gaussian, for the same and for different images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch

import cka_probe as cp
from cka_probe.estimators import MEASURES
from cka_probe.plotting import plot_heatmap_grid
from figures.networks import CACHE, FULL, SHOWN, Budget, images, student, teacher
from figures.saving import FOLDER, kept, save

KERNELS = {"linear": cp.Linear(), "Gaussian, median": cp.RBF(bandwidth="median")}


def make(folder: Path = FOLDER, *, cache: Path = CACHE, budget: Budget = FULL, samples: int = 256) -> pd.DataFrame:
    table = kept(folder, "centring_and_kernels")
    if table is None:
        table = measured_alignment(cache, budget, samples)
    rows, columns = (list(dict.fromkeys(table[side])) for side in ("teacher_layer", "student_layer"))
    panels = {}
    for (kernel, centred), part in table.groupby(["kernel", "centred"], sort=False):
        title = f"{kernel.split(',')[0]}\n{'centred' if centred else 'un-centred'}"
        values = part.pivot(index="teacher_layer", columns="student_layer", values="same_images").loc[rows, columns]
        meta = {"model_x": f"teacher ({budget.teacher})", "model_y": "student (resnet8)"}
        panels[f"{title}\nother images {part['different_images'].median():.2f}"] = cp.SimilarityMatrix(
            values.to_numpy(), rows, columns, measure="alignment", meta=meta
        )
    grid = plot_heatmap_grid(panels, columns=4, limits=(0, 1), annotate=False)
    save(folder, "centring_and_kernels", np.ravel(grid)[0].figure, centring_and_kernels=table)
    return table


def measured_alignment(cache: Path, budget: Budget, samples: int) -> pd.DataFrame:
    """Alignment of every pair of layers, for the same and for different images."""
    pixels = images(samples)
    theirs = cp.extract(teacher(budget, cache), pixels, SHOWN, progress=False)
    ours = cp.extract(student("RCKA", 0, budget, cache), pixels, SHOWN, progress=False)
    shuffle = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))
    xs, ys = [x.double() for x in theirs.values()], [y.double() for y in ours.values()]
    rows = []
    for kernel_name, kernel in KERNELS.items():
        for centred in (True, False):
            if centred:
                both = [
                    cp.cka_matrix(xs, zs, kernel=kernel, estimator="biased") for zs in (ys, [y[shuffle] for y in ys])
                ]
            else:
                measure = MEASURES["uncentred_alignment"]
                both = [measure.matrix(xs, zs, kernel=kernel).values for zs in (ys, [y[shuffle] for y in ys])]
            values, unrelated = (np.asarray(part) for part in both)
            for i, row in enumerate(theirs):
                for j, column in enumerate(ours):
                    line = {"kernel": kernel_name, "centred": centred, "teacher_layer": row, "student_layer": column}
                    rows.append(line | {"same_images": values[i, j], "different_images": unrelated[i, j]})
    return pd.DataFrame(rows)
