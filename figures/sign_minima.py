"""Figure 13: T7. The logit terms are 0 for every choice of signs; where students end, with and without the ramp."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from cka_probe.plotting import house_style
from cka_probe.plotting.style import PAGE
from figures.saving import BENCHMARKS, FOLDER, measured, save

WEIGHTS = (1.0, 3.0, 15.0)
IMAGES = 10_000
# Method, weight, ramp: from what knows nothing of the minima to what looks for one of them.
LINES = {
    ("ce", 1.0, False): "CE",
    ("rcka", 15.0, False): "RCKA 15",
    ("rcka", 3.0, False): "RCKA 3",
    ("rcka", 15.0, True): "RCKA 15, ramp",
    ("rcka_signs", 15.0, True): "RCKA + signs 15, ramp",
    ("kd", 1.0, False): "KD",
}


def axes_table(cells: pd.DataFrame) -> pd.DataFrame:
    """A row for each student: method, seed, test accuracy, and its cosine with the teacher along each axis."""
    rows = []
    for (method, weight, ramp), name in LINES.items():
        chosen = (cells["method"] == method) & (cells["weight"] == weight) & (cells["ramp"] == ramp)
        part = cells[chosen & (cells["data"] == "fashion") & (cells["images"] == IMAGES)]
        for line in part.drop_duplicates("seed", keep="last").sort_values("seed").itertuples():
            cosines = {f"axis_{i + 1}": float(value) for i, value in enumerate(line.diagonal.split())}
            rows.append({"method": name, "seed": line.seed, "test": line.test, **cosines})
    return pd.DataFrame(rows)


def draw_path(ax: plt.Axes, table: pd.DataFrame) -> None:
    """The loss along the path that turns the largest axis round."""
    first = table[table["axis"] == 1]
    for weight, colour in zip(WEIGHTS, ("tab:green", "tab:orange", "tab:red"), strict=True):
        total = first["cross_entropy"] + weight * (first["intra"] + first["inter"])
        ax.plot(first["t"], total, color=colour, label=f"weight {weight:g}")
    ax.plot(first["t"], first["cross_entropy"], color="black", linestyle="--", label="cross-entropy alone")
    ax.invert_xaxis()
    ax.set_xticks([1, 0, -1], ["right sign", "0", "wrong sign"])
    ax.set_xlabel("largest axis of the student's logits")
    ax.set_ylabel("cross-entropy +\nweight × (intra + inter)")
    ax.set_ylim(top=1.35 * ax.get_ylim()[1])  # room for the legend
    ax.legend(frameon=False, loc="upper left", ncols=2)
    ax.spines[["top", "right"]].set_visible(False)


def draw_axes(ax: plt.Axes, table: pd.DataFrame) -> None:
    """Mean cosine over the seeds along each axis, a line for each method; a band from the least to the largest."""
    columns = [name for name in table.columns if name.startswith("axis_")]
    places = np.arange(1, len(columns) + 1)
    colours = ("black", "tab:red", "tab:orange", "tab:green", "tab:purple", "tab:blue")
    for name, colour in zip(LINES.values(), colours, strict=True):
        part = table[table["method"] == name]
        if part.empty:
            continue
        values = part[columns].to_numpy()
        label = f"{name}: {part['test'].mean():.1f} % ({len(part)})"
        ax.plot(places, values.mean(0), color=colour, marker=".", markersize=4, label=label)
        ax.fill_between(places, values.min(0), values.max(0), color=colour, alpha=0.15, linewidth=0)
    ax.set_xticks(places)
    ax.set_ylim(0, 1.02)
    ax.set_xlabel("axis of the teacher's logits, largest first")
    ax.set_ylabel("cosine of student and teacher")
    ax.legend(frameon=False, loc="lower left", title="test accuracy (number of students)", alignment="left")
    ax.spines[["top", "right"]].set_visible(False)


def make(folder: Path = FOLDER, *, results: Path = BENCHMARKS) -> pd.DataFrame | None:
    along, cells = measured(results / "study_signs.csv"), measured(results / "study.csv")
    if along is None or cells is None:
        return None
    table = axes_table(cells)
    with house_style():
        figure, axes = plt.subplots(1, 2, figsize=(PAGE, 2.8), layout="constrained", width_ratios=(1, 1.15))
        draw_path(axes[0], along)
        draw_axes(axes[1], table)
        save(folder, "sign_minima", figure, sign_minima=along, sign_minima_axes=table)
    return table
