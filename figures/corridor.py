"""Figure 3: T3. MMD² with the quadratic kernel lies between 4(1 - c)²/rank and 2(1 - c²); both bounds are sharp."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

import cka_probe as cp
from cka_probe.plotting import house_style, plot_corridor
from cka_probe.plotting.style import PAGE
from figures.networks import CACHE, FULL, SHOWN, Budget, images, student, teacher, untrained_student
from figures.saving import FOLDER, kept, save

SIZE = (12, 2)  # samples and features: the difference of the Gram matrices has rank 4


def points(source: str, x: torch.Tensor, y: torch.Tensor) -> pd.DataFrame:
    """CKA, MMD², bounds and rank of each pair in a stack of features, one row for each."""
    found = cp.alignment_corridor(x, y)
    names = ("cka", "mmd_squared", "lower", "upper", "rank")
    columns = {name: np.atleast_1d(getattr(found, name).detach().numpy()) for name in names}
    return pd.DataFrame({"source": source, **columns})


def random_pairs(count: int, samples: int, width: int, random: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Pairs of features from unrelated to nearly equal, with the variance in few or in many directions."""
    x, noise = torch.randn(2, count, samples, width, dtype=torch.float64, generator=random)
    scales = torch.exp(1.5 * torch.randn(2, count, 1, width, dtype=torch.float64, generator=random))
    mix = torch.rand(count, 1, 1, dtype=torch.float64, generator=random)
    x = x * scales[0]
    return x, mix * x + (1 - mix) * noise * scales[1]


def adversaries(side: str, count: int, samples: int, width: int, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pairs of features moved by gradient descent towards one curve, each at another CKA."""
    random = torch.Generator().manual_seed(1)
    x, y = (z.requires_grad_() for z in random_pairs(count, samples, width, random))
    target = torch.linspace(0.03, 0.97, count, dtype=torch.float64)
    descent = torch.optim.Adam([x, y], lr=0.05)
    for step in range(steps):
        descent.param_groups[0]["lr"] = 0.05 * (1 - step / steps)
        found = cp.alignment_corridor(x, y)
        c, q = found.cka, found.mmd_squared
        ratio = -q / (1 - c**2) if side == "upper" else q / (1 - c) ** 2
        loss = (ratio + 100 * (c - target) ** 2).sum()
        descent.zero_grad()
        loss.backward()
        descent.step()
    return x.detach(), y.detach()


def training_pairs(cache: Path, budget: Budget, samples: int) -> list[pd.DataFrame]:
    """Points for every layer of the teacher with every layer of a student, before and after distillation."""
    pixels = images(samples)
    theirs = cp.extract(teacher(budget, cache), pixels, SHOWN, progress=False)
    students = {"student, untrained": untrained_student(0)} | {
        f"student after {method}": student(method, 0, budget, cache) for method in ("CE", "RCKA")
    }
    return [
        points(name, x.double(), y.double())
        for name, network in students.items()
        for y in cp.extract(network, pixels, SHOWN, progress=False).values()
        for x in theirs.values()
    ]


def make(
    folder: Path = FOLDER,
    *,
    cache: Path = CACHE,
    budget: Budget = FULL,
    count: int = 400,
    adversarial: int = 30,
    steps: int = 400,
    samples: int = 128,
) -> pd.DataFrame:
    table = kept(folder, "corridor")
    if table is None:
        table = pairs_of_features(cache, budget, count, adversarial, steps, samples)
    with house_style():
        figure, axes = plt.subplots(1, 2, figsize=(PAGE, 2.9), layout="constrained")
        for ax, (panel, part) in zip(axes, table.groupby("panel", sort=False), strict=True):
            # Real layers crowd at c = 1: there the logarithm of 1 - c shows where they lie between the curves.
            plot_corridor(part, log=panel == "training", ax=ax)
            # The kept numbers have six digits, so the bounds are taken from the table, not computed from CKA again.
            out = (part["mmd_squared"] > 1.00001 * part["upper"]) | (part["mmd_squared"] < 0.99999 * part["lower"])
            outside = (
                f"{out.sum()} of {len(part)} points outside"
                if (out & (part["upper"] > 1e-6)).any()
                else "no point outside"
            )
            what = f"{SIZE[0]} samples, {SIZE[1]} features" if panel == "small" else f"digits, {samples} samples"
            ax.set_title(f"{what}: {outside}")
        axes[1].legend(frameon=False, loc="lower right")
        save(folder, "corridor", figure, corridor=table)
    return table


def pairs_of_features(
    cache: Path, budget: Budget, count: int, adversarial: int, steps: int, samples: int
) -> pd.DataFrame:
    """Random and adversarial pairs, and all pairs of layers of teacher and students."""
    size = SIZE
    parts = [
        points("random", *random_pairs(count, *size, torch.Generator().manual_seed(0))),
        points("adversarial, up", *adversaries("upper", adversarial, *size, steps)),
        points("adversarial, down", *adversaries("lower", adversarial, *size, steps)),
    ]
    small = pd.concat(parts, ignore_index=True)
    training = pd.concat(training_pairs(cache, budget, samples), ignore_index=True)
    return pd.concat([small.assign(panel="small"), training.assign(panel="training")], ignore_index=True)
