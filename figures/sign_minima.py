"""Figure 13: T7. The logit terms are 0 for every choice of signs; with large weights students end at a wrong choice."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.colors import TwoSlopeNorm
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from cka_probe.distill import CosineDecay, LogitCKALoss, RCKALoss, distill, ramp
from figures.networks import CACHE, FULL, STAGES, Budget, data, teacher, untrained_student
from figures.saving import FOLDER, save

WEIGHTS = (1.0, 3.0, 15.0)
RAMP_UNTIL = 0.5
"""Share of the steps after which a ramp has reached the full weight."""


def axes_of(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors (as columns) of Z'Z, the largest first, without the direction of equal logits.

    Softmax does not see a number that is added to all logits of a sample, so that the mean over the classes is taken
    out first. The direction of equal logits then has the eigenvalue 0.
    """
    centred = logits - logits.mean(1, keepdim=True)
    values, vectors = torch.linalg.eigh(centred.T @ centred)
    return values.flip(0)[:-1], vectors.flip(1)[:, :-1]


def signs_of(student: Tensor, theirs: Tensor) -> Tensor:
    """Cosine of the logits of student and teacher along each axis of the teacher, (classes - 1,)."""
    _, axes = axes_of(theirs)
    return functional.cosine_similarity((student - student.mean(1, keepdim=True)) @ axes, theirs @ axes, dim=0)


def path(theirs: Tensor, labels: Tensor, points: int) -> pd.DataFrame:
    """Cross-entropy and logit terms of the teacher's logits while one axis goes from its sign to the other one."""
    values, axes = axes_of(theirs)
    centred = theirs - theirs.mean(1, keepdim=True)
    lines = []
    for axis in (0, len(values) - 1):
        for t in np.linspace(1, -1, points):
            factors = torch.ones(len(values), dtype=torch.float64)
            factors[axis] = t
            moved = centred @ (axes * factors) @ axes.T
            terms = LogitCKALoss(1.0, 1.0).terms(moved, centred)
            cross = float(functional.cross_entropy(moved, labels))
            lines.append({"axis": axis + 1, "t": t, "cross_entropy": cross, **{k: float(v) for k, v in terms.items()}})
    return pd.DataFrame(lines)


def logits_of(network: nn.Module) -> Tensor:
    """Logits of the test images, float64."""
    with torch.no_grad():
        return network.eval()(data()[1].tensors[0]).double()


def students(cache: Path, budget: Budget, weights: tuple[float, ...], seeds: int) -> pd.DataFrame:
    """Signs of the axes and accuracy of a student for each weight, with and without the ramp, and each seed."""
    master = teacher(budget, cache)
    theirs, labels = logits_of(master), data()[1].tensors[1]
    few, test = data(budget.train_per_class)
    glance = TensorDataset(*(part[:100] for part in test.tensors))  # distill evaluates it after every epoch
    lines = []
    for weight in weights:
        for ramped in (False, True):
            for seed in range(seeds):
                pupil = untrained_student(seed)
                loss = RCKALoss(feature_weight=1, intra_weight=weight, inter_weight=weight)
                if ramped:
                    loss = ramp(1.0, until=RAMP_UNTIL) * loss
                distill(
                    master, pupil, few, glance, loss, student_layers=STAGES,
                    epochs=budget.student_epochs, batch_size=budget.batch_size, learning_rate=0.05,
                    schedule=CosineDecay(), seed=seed, progress=False,
                )  # fmt: skip
                ours = logits_of(pupil)
                accuracy = float((ours.argmax(1) == labels).double().mean())
                signs = {f"axis_{i + 1}": float(value) for i, value in enumerate(signs_of(ours, theirs))}
                lines.append({"weight": weight, "ramp": ramped, "seed": seed, "accuracy": accuracy, **signs})
    return pd.DataFrame(lines)


def runs(folder: Path, cache: Path, budget: Budget, weights: tuple[float, ...], seeds: int) -> pd.DataFrame:
    """The students of an earlier call, if they are those that are asked for; otherwise they are trained."""
    file = folder / "data" / "sign_minima_runs.csv"
    wanted = [(weight, ramp, seed) for weight in weights for ramp in (False, True) for seed in range(seeds)]
    if file.is_file():
        known = pd.read_csv(file)
        found = list(zip(known["weight"], known["ramp"], known["seed"], strict=True))
        if found == wanted and set(known["budget"]) == {str(budget._asdict())}:
            return known
    return students(cache, budget, weights, seeds).assign(budget=str(budget._asdict()))


def draw_path(ax: plt.Axes, table: pd.DataFrame, weights: tuple[float, ...]) -> None:
    """The loss along the path that turns the first axis round."""
    first = table[table["axis"] == 1]
    for weight, colour in zip(weights, ("tab:green", "tab:orange", "tab:red"), strict=False):
        total = first["cross_entropy"] + weight * (first["intra"] + first["inter"])
        ax.plot(first["t"], total, color=colour, label=f"weight {weight:g}")
    ax.plot(first["t"], first["cross_entropy"], color="black", linestyle="--", label="cross-entropy alone")
    ax.invert_xaxis()
    ax.set_xticks([1, 0, -1], ["right sign", "0", "wrong sign"])
    ax.set_xlabel("largest axis of the student's logits")
    ax.set_ylabel("cross-entropy + weight × (intra + inter)")
    ax.legend(fontsize="small", frameon=False)


def draw_signs(ax: plt.Axes, table: pd.DataFrame) -> None:
    """A row for each student, a column for each axis, the colour is the sign; the accuracy stands at the right."""
    columns = [name for name in table.columns if name.startswith("axis_")]
    image = ax.imshow(table[columns], aspect="auto", cmap="RdBu", norm=TwoSlopeNorm(0, -1, 1), interpolation="nearest")
    groups = table.groupby(["weight", "ramp"], sort=False)
    start = 0
    for (weight, ramped), group in groups:
        middle, end = start + len(group) / 2 - 0.5, start + len(group)
        ax.text(
            -0.8, middle, f"{weight:g}, {'ramp' if ramped else 'constant'}", ha="right", va="center", fontsize="small"
        )
        mean, sd = 100 * group["accuracy"].mean(), 100 * group["accuracy"].std()
        ax.text(len(columns) - 0.2, middle, f"{mean:.1f} ± {sd:.1f} %", va="center", fontsize="small")
        if end < len(table):
            ax.axhline(end - 0.5, color="black", linewidth=1.5)
        start = end
    ax.set_xticks(range(len(columns)), [str(i + 1) for i in range(len(columns))])
    ax.set_yticks([])
    ax.set_xlabel("axis of the teacher's logits")
    ax.set_title("weight of intra and inter        test accuracy", fontsize="small")
    bar = ax.figure.colorbar(image, ax=ax, location="right", pad=0.25, ticks=[-1, 0, 1], fraction=0.05)
    bar.ax.set_yticklabels(["wrong sign", "0", "right sign"], fontsize="small")


def make(
    folder: Path = FOLDER,
    *,
    cache: Path = CACHE,
    budget: Budget = FULL,
    weights: tuple[float, ...] = WEIGHTS,
    seeds: int = 5,
    points: int = 201,
) -> pd.DataFrame:
    along = path(logits_of(teacher(budget, cache)), data()[1].tensors[1], points)
    table = runs(folder, cache, budget, weights, seeds)
    figure, axes = plt.subplots(1, 2, figsize=(6.75, 2.9), layout="constrained", width_ratios=(1, 1.15))
    draw_path(axes[0], along, weights)
    draw_signs(axes[1], table)
    save(folder, "sign_minima", figure, sign_minima=along, sign_minima_runs=table)
    return table
