"""Figure 9: the Gram matrices that RCKA compares, as in the paper's framework figure: N x N and P x P."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from cka_probe.plotting import centred_gram, plot_gram
from figures.networks import CACHE, FULL, Budget, data, student, teacher, untrained_student
from figures.saving import FOLDER, save


def make(folder: Path = FOLDER, *, cache: Path = CACHE, budget: Budget = FULL, samples: int = 200) -> pd.DataFrame:
    pixels, labels = data()[1].tensors
    chosen = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))[:samples]
    networks = {
        "teacher": teacher(budget, cache),
        "student, untrained": untrained_student(0),
        "student, CE": student("CE", 0, budget, cache),
        "student, RCKA": student("RCKA", 0, budget, cache),
    }
    with torch.no_grad():
        logits = {name: network(pixels[chosen]).numpy() for name, network in networks.items()}
    classes = labels[chosen].numpy()
    figure, axes = plt.subplots(2, len(logits), figsize=(11.5, 6.0), layout="constrained")
    rows = []
    for line, (what, turn) in enumerate((("samples", lambda z: z), ("classes", lambda z: z.T))):
        grams = {name: centred_gram(turn(z)) for name, z in logits.items()}
        # One scale for a row: the 99th percentile of the teacher's entries off the diagonal.
        reference = grams["teacher"]
        limit = float(np.quantile(np.abs(reference[~np.eye(len(reference), dtype=bool)]), 0.99))
        for ax, (name, gram) in zip(axes[line], grams.items(), strict=True):
            alignment = float((gram * reference).sum())
            rows.append({"gram": what, "network": name, "n": len(gram), "cka_with_teacher": alignment})
            size = f"{len(gram)} × {len(gram)} {what}"
            title = f"{name}\n{size}" if name == "teacher" else f"{name}\nCKA with teacher {alignment:.3f}"
            bar = name == list(grams)[-1]
            plot_gram(gram, labels=None if line else classes, limit=limit, title=title, colorbar=bar, ax=ax)
            ax.title.set_fontsize("medium")
            if line:
                ax.set_yticks(range(len(gram)), [str(i) for i in range(len(gram))], fontsize="small")
    table = pd.DataFrame(rows)
    save(folder, "grams", figure, grams=table)
    return table
