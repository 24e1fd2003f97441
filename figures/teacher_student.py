"""Figure 7: CKA of teacher and student trained with labels alone (CE), logits (KD) or RCKA."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

import cka_probe as cp
from cka_probe.plotting import plot_heatmap_grid
from figures.networks import CACHE, FULL, SHOWN, Budget, images, student, teacher, train_all, untrained_student
from figures.saving import FOLDER, save

METHODS = ["untrained", "CE", "KD", "RCKA"]
COUNTERPARTS = {"layer1.2": "layer1.0", "layer2.2": "layer2.0", "layer3.2": "layer3.0", "fc": "fc"}


def make(
    folder: Path = FOLDER, *, cache: Path = CACHE, budget: Budget = FULL, seeds: int = 5, samples: int = 384
) -> pd.DataFrame:
    train_all([method for method in METHODS if method != "untrained"], seeds, budget, cache)
    batches = images(samples).split(128)
    master = teacher(budget, cache)
    rows, panels = [], {}
    for method in METHODS:
        maps = []
        for seed in range(seeds):
            pupil = untrained_student(seed) if method == "untrained" else student(method, seed, budget, cache)
            names = ("teacher (resnet20)", "student (resnet8)")
            result = cp.compare(master, pupil, batches, layers=SHOWN, names=names, progress=False)
            maps.append(result)
            frame = result.to_frame()
            for theirs in result.rows:
                for ours in result.columns:
                    line = {"method": method, "seed": seed, "teacher_layer": theirs, "student_layer": ours}
                    rows.append(line | {"cka": frame.loc[theirs, ours], "pair": COUNTERPARTS.get(theirs) == ours})
        mean = np.mean([one.values for one in maps], axis=0)
        panels[method] = cp.SimilarityMatrix(mean, result.rows, result.columns, chance=result.chance, meta=result.meta)
    table = pd.DataFrame(rows)
    fc = table[(table["teacher_layer"] == "fc") & (table["student_layer"] == "fc")].groupby("method")["cka"]
    titles = {f"{name}\nlogits {fc.mean()[name]:.3f} ± {fc.std()[name]:.3f}": part for name, part in panels.items()}
    grid = plot_heatmap_grid(titles, columns=4, vmin=0)
    for ax in np.ravel(grid):
        ax.title.set_fontsize("medium")
    save(folder, "teacher_student", np.ravel(grid)[0].figure, teacher_student=table)
    return table
