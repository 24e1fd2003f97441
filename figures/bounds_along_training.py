"""Figure 5: MMD² between teacher and student, and its bounds, along a training run with RCKA."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import torch
from torch import nn

import cka_probe as cp
from cka_probe.plotting import house_style, plot_bounds_along_training
from cka_probe.plotting.style import PAGE
from figures.networks import CACHE, FULL, Budget, images, teach, teacher, untrained_student
from figures.saving import FOLDER, kept, save

BOUNDS = {"T1": "t1_bound", "T4": "t4_bound", "conjecture (not proved)": "conjectured_bound"}


class KeepingSGD(torch.optim.SGD):
    """SGD that stores the network's state after each epoch."""

    def __init__(self, *args, network: nn.Module, every: int, states: list[dict], **kwargs) -> None:
        super().__init__(*args, momentum=0.9, **kwargs)
        self.network, self.every, self.states, self.steps = network, every, states, 0

    def step(self, closure=None):  # noqa: D102
        answer = super().step(closure)
        self.steps += 1
        if self.steps % self.every == 0:
            self.states.append({name: value.clone() for name, value in self.network.state_dict().items()})
        return answer


def make(
    folder: Path = FOLDER,
    *,
    cache: Path = CACHE,
    budget: Budget = FULL,
    seed: int = 0,
    samples: int = 128,
    tau_squared: float = 4.0,
) -> pd.DataFrame:
    table = kept(folder, "bounds_along_training")
    if table is None:
        table = measured_run(cache, budget, seed, samples, tau_squared)
    with house_style():
        figure, axes = plt.subplots(1, 2, figsize=(PAGE, 2.8), layout="constrained", sharey=True)
        for ax, (layer, part) in zip(axes, table.groupby("layer", sort=False), strict=True):
            plot_bounds_along_training(part, bounds=list(BOUNDS), ax=ax)
            first, last = part["cka"].iloc[0], part["cka"].iloc[-1]
            ax.set_title(f"{layer}: CKA {first:.2f} → {last:.2f} (τ² = {tau_squared:g})")
        axes[1].set_ylabel("")
        axes[1].get_legend().remove()
        save(folder, "bounds_along_training", figure, bounds_along_training=table)
    return table


def measured_run(cache: Path, budget: Budget, seed: int, samples: int, tau_squared: float) -> pd.DataFrame:
    """MMD² and its bounds after each epoch of one run."""
    network = untrained_student(seed)
    states = [{name: value.clone() for name, value in network.state_dict().items()}]
    steps = 10 * budget.train_per_class // budget.batch_size
    teach(
        network,
        "RCKA",
        seed,
        budget,
        cache,
        optimizer=partial(KeepingSGD, network=network, every=steps, states=states),
    )
    pixels = images(samples)
    layers = ["layer3", "fc"]
    theirs = cp.extract(teacher(budget, cache), pixels, layers, progress=False)
    rows = []
    for epoch, state in enumerate(states):
        if epoch > 10 and epoch % 4:
            continue
        network.load_state_dict(state)
        ours = cp.extract(network, pixels, layers, progress=False)
        for layer in layers:
            terms = cp.cka_mmd_bounds(theirs[layer].double(), ours[layer].double(), tau=tau_squared**0.5)
            row = {"layer": layer, "epoch": epoch, "cka": float(terms.cka), "tau_squared": tau_squared}
            row |= {"mmd_squared": float(terms.gaussian_mmd_squared)}
            rows.append(row | {name: float(getattr(terms, attribute)) for name, attribute in BOUNDS.items()})
    return pd.DataFrame(rows)
