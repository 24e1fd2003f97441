"""Figure 7: CKA of teacher and student trained with labels alone (CE), logits (KD) or RCKA."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

import cka_probe as cp
from cka_probe.plotting import plot_heatmap_grid
from figures.networks import CACHE, FULL, SHOWN, Budget, images, student, teacher, train_all, untrained_student
from figures.saving import FOLDER, kept, save

METHODS = ["untrained", "CE", "KD", "RCKA"]
COUNTERPARTS = {"layer1.2": "layer1.0", "layer2.2": "layer2.0", "layer3.2": "layer3.0", "fc": "fc"}
NAMES = {"untrained": "untrained", "CE": "labels alone (CE)", "KD": "logits (KD)", "RCKA": "RCKA"}


def make(
    folder: Path = FOLDER, *, cache: Path = CACHE, budget: Budget = FULL, seeds: int = 5, samples: int = 384
) -> pd.DataFrame:
    table = kept(folder, "teacher_student")
    if table is None:
        table = measured_students(cache, budget, seeds, samples)
    rows, columns = (list(dict.fromkeys(table[side])) for side in ("teacher_layer", "student_layer"))
    fc = table[(table["teacher_layer"] == "fc") & (table["student_layer"] == "fc")].groupby("method")["cka"]
    panels = {}
    for method, part in table.groupby("method", sort=False):
        mean = part.groupby(["teacher_layer", "student_layer"])["cka"].mean().unstack().loc[rows, columns]
        meta = {"model_x": f"teacher ({budget.teacher})", "model_y": "student (resnet8)", "estimator": "unbiased"}
        title = f"{NAMES.get(method, method)}\nlogits {fc.mean()[method]:.2f} ± {fc.std()[method]:.2f}"
        panels[title] = cp.SimilarityMatrix(mean.to_numpy(), rows, columns, meta=meta)
    low = max(0.0, np.floor(10 * min(panel.values.min() for panel in panels.values())) / 10)
    grid = plot_heatmap_grid(panels, columns=len(panels), limits=(low, 1.0), annotate=False)
    save(folder, "teacher_student", np.ravel(grid)[0].figure, teacher_student=table)
    return table


def measured_students(cache: Path, budget: Budget, seeds: int, samples: int) -> pd.DataFrame:
    """CKA of every pair of layers of the teacher and of each student."""
    train_all([method for method in METHODS if method != "untrained"], seeds, budget, cache)
    batches = images(samples).split(128)
    master = teacher(budget, cache)
    rows = []
    for method in METHODS:
        for seed in range(seeds):
            pupil = untrained_student(seed) if method == "untrained" else student(method, seed, budget, cache)
            names = ("teacher (resnet20)", "student (resnet8)")
            result = cp.compare(master, pupil, batches, layers=SHOWN, names=names, progress=False)
            frame = result.to_frame()
            for theirs in result.rows:
                for ours in result.columns:
                    line = {"method": method, "seed": seed, "teacher_layer": theirs, "student_layer": ours}
                    rows.append(line | {"cka": frame.loc[theirs, ours], "pair": COUNTERPARTS.get(theirs) == ours})
    return pd.DataFrame(rows)
