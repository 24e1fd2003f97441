"""Figure 6: alignment with and without centring, linear and Gaussian, for the same and for different images."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

import cka_probe as cp
from cka_probe.estimators import MEASURES
from cka_probe.plotting import plot_heatmap_grid
from figures.networks import CACHE, FULL, SHOWN, Budget, images, student, teacher
from figures.saving import FOLDER, save

KERNELS = {"linear": cp.Linear(), "Gaussian, median": cp.RBF(bandwidth="median")}


def make(folder: Path = FOLDER, *, cache: Path = CACHE, budget: Budget = FULL, samples: int = 256) -> pd.DataFrame:
    pixels = images(samples)
    theirs = cp.extract(teacher(budget, cache), pixels, SHOWN, progress=False)
    ours = cp.extract(student("RCKA", 0, budget, cache), pixels, SHOWN, progress=False)
    shuffle = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))
    xs, ys = [x.double() for x in theirs.values()], [y.double() for y in ours.values()]
    rows, panels = [], {}
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
            title = f"{kernel_name}, {'centred' if centred else 'un-centred'}"
            panels[f"{title}\nother images: {np.median(unrelated):.2f} (median)"] = cp.SimilarityMatrix(
                values, list(theirs), list(ours), measure="alignment"
            )
            for i, row in enumerate(theirs):
                for j, column in enumerate(ours):
                    line = {"kernel": kernel_name, "centred": centred, "teacher_layer": row, "student_layer": column}
                    rows.append(line | {"same_images": values[i, j], "different_images": unrelated[i, j]})
    table = pd.DataFrame(rows)
    grid = plot_heatmap_grid(panels, columns=2, vmin=0, vmax=1)
    figure = np.ravel(grid)[0].figure
    for ax in np.ravel(grid):
        ax.title.set_fontsize("medium")
    save(folder, "centring_and_kernels", figure, centring_and_kernels=table)
    plt.close("all")
    return table
