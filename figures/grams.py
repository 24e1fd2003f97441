"""Figure 9: the Gram matrices that RCKA compares, as in the paper's framework figure: N x N and P x P."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from cka_probe.atomic_write import atomic_write
from cka_probe.plotting import centred_gram, house_style, plot_gram
from cka_probe.plotting.style import PAGE
from figures.networks import CACHE, FULL, Budget, data, student, teacher, untrained_student
from figures.saving import FOLDER, save


def make(folder: Path = FOLDER, *, cache: Path = CACHE, budget: Budget = FULL, samples: int = 200) -> pd.DataFrame:
    logits, classes = kept_logits(folder, cache, budget, samples)
    rows = []
    with house_style():
        figure, axes = plt.subplots(2, len(logits), figsize=(PAGE, 3.2), layout="constrained")
        for line, (what, turn) in enumerate((("samples", lambda z: z), ("classes", lambda z: z.T))):
            grams = {name: centred_gram(turn(z)) for name, z in logits.items()}
            # One scale for a row: the 99th percentile of the teacher's entries off the diagonal.
            reference = grams["teacher"]
            limit = float(np.quantile(np.abs(reference[~np.eye(len(reference), dtype=bool)]), 0.99))
            for ax, (name, gram) in zip(axes[line], grams.items(), strict=True):
                alignment = float((gram * reference).sum())
                rows.append({"gram": what, "network": name, "n": len(gram), "cka_with_teacher": alignment})
                size = f"{len(gram)} × {len(gram)} {what}"
                title = (
                    f"{name}\n{size}" if name == "teacher" else f"{name.replace('student, ', '')}\nCKA {alignment:.2f}"
                )
                bar = name == list(grams)[-1]
                plot_gram(gram, labels=None if line else classes, limit=limit, title=title, colorbar=bar, ax=ax)
                if bar:
                    ax.child_axes[0].set_ylabel("entry")
                if name != "teacher":
                    ax.set_yticks([])
                elif line:
                    ax.set_yticks(range(0, len(gram), 3), [str(i) for i in range(0, len(gram), 3)])
        table = pd.DataFrame(rows)
        save(folder, "grams", figure, grams=table)
    return table


def kept_logits(folder: Path, cache: Path, budget: Budget, samples: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Logits of the teacher and of each student, and the classes of the samples; computed once, then read."""
    file = folder / "data" / "grams.npz"
    if file.is_file():
        arrays = dict(np.load(file))
        classes = arrays.pop("classes")
        return {name: arrays[name].astype(np.float64) for name in arrays}, classes
    pixels, labels = data()[1].tensors
    chosen = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))[:samples]
    networks = {
        "teacher": teacher(budget, cache),
        "student, untrained": untrained_student(0),
        **{f"student, {method}": student(method, 0, budget, cache) for method in ("CE", "KD", "RCKA")},
    }
    with torch.no_grad():
        logits = {name: network(pixels[chosen]).numpy() for name, network in networks.items()}
    classes = labels[chosen].numpy()
    file.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(file, lambda stream: np.savez_compressed(stream, classes=classes, **logits))
    return logits, classes
