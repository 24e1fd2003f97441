"""Figure 8: test accuracy of students of eight methods, trained on few labels, with paired tests over seeds.

If figures/data/methods.csv holds every method and seed, it is drawn; otherwise the missing networks are trained first.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.ticker import MultipleLocator, PercentFormatter

from cka_probe.distill.recipes.tables import summarise
from cka_probe.plotting import house_style, plot_accuracies
from cka_probe.plotting.style import PAGE
from figures.networks import CACHE, FULL, METHODS, Budget, accuracy, student, teacher, train_all
from figures.saving import FOLDER, save

P_VALUES = {"CE": 1.155, "KD": 1.25}
"""Where the columns of p-values begin, in widths of the axes."""


def runs(folder: Path, methods: Sequence[str], seeds: int, budget: Budget, cache: Path) -> pd.DataFrame:
    """Test accuracy of the student, one row for each method and seed."""
    file = folder / "data" / "methods.csv"
    wanted = [(method, seed) for method in methods for seed in range(seeds)]
    budget_text = str(budget._asdict())
    if file.is_file():
        known = pd.read_csv(file)
        if list(zip(known["method"], known["seed"], strict=True)) == wanted and set(known["budget"]) == {budget_text}:
            return known
    train_all(list(methods), seeds, budget, cache)
    reference = accuracy(teacher(budget, cache))
    lines = [
        {"method": method, "seed": seed, "accuracy": accuracy(student(method, seed, budget, cache))}
        for method, seed in wanted
    ]
    return pd.DataFrame(lines).assign(teacher=reference, budget=budget_text)


def make(
    folder: Path = FOLDER,
    *,
    cache: Path = CACHE,
    budget: Budget = FULL,
    methods: Sequence[str] = tuple(METHODS),
    seeds: int = 5,
) -> pd.DataFrame:
    table = runs(folder, methods, seeds, budget, cache)
    percent = 100 * table["accuracy"]
    graded = table.assign(recipe="digits", last=percent, best=percent)
    tests = pd.concat([summarise(graded, against=base).assign(against=base) for base in ("CE", "KD")])
    tests = tests[["method", "against", "seeds", "last_mean", "last_sd", "difference", "p"]]
    tests = tests.rename(columns={"last_mean": "mean", "last_sd": "sd", "p": "p_holm"})
    p = {base: part.set_index("method")["p_holm"] for base, part in tests.groupby("against")}

    order = percent.groupby(table["method"]).mean().sort_values(ascending=False).index
    drawn = table.set_index("method").loc[order].reset_index()
    with house_style():
        height = 0.9 + 0.24 * len(order)
        figure, ax = plt.subplots(figsize=(PAGE, height), layout="constrained")
        plot_accuracies(drawn, from_zero=False, references={"teacher": table["teacher"].iloc[0]}, ax=ax)
        ax.get_legend().remove()
        teacher_at = float(table["teacher"].iloc[0])
        ax.annotate("teacher", (teacher_at, 1), (0, 3), xycoords=("data", "axes fraction"), textcoords="offset points",
                    ha="center", fontsize="small")  # fmt: skip
        headings = {"mean ± sd": 1.02} | {f"p ({base})": place for base, place in P_VALUES.items()}
        for heading, place in headings.items():
            ax.annotate(
                heading, (place, 1), (0, 3), xycoords="axes fraction", textcoords="offset points", fontsize="small"
            )
        for line, method in enumerate(order):
            for base, place in P_VALUES.items():
                value = p[base].get(method) if base in p else np.nan
                text = _p(value) if pd.notna(value) else "–"
                ax.annotate(text, (place, line), xycoords=("axes fraction", "data"), va="center", fontsize="small",
                            annotation_clip=False)  # fmt: skip
        ax.set_xlabel(
            "test accuracy (diamond: mean, line: 95 % interval, circles: seeds)\n"
            "p: paired t-test against CE and against KD, Holm"
        )
        ax.xaxis.set_major_locator(MultipleLocator(0.02))
        ax.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        save(folder, "methods_table", figure, methods=table, methods_tests=tests)
    return tests.reset_index(drop=True)


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
