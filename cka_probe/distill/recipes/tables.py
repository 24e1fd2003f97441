"""Tables over methods and seeds: run what is missing; mean, deviation, the paper's number and a paired test."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from ...atomic_write import atomic_write
from ...similarity.text import latex_escaped, printable, safe_csv
from .experiment import check_recipe, finished, run_recipe
from .loading import load_datasets
from .methods import build_loss, title_of
from .recipe import Recipe

__all__ = ["format_latex", "format_markdown", "run_grid", "save_table", "summarise"]


def run_grid(
    recipes: Sequence[Recipe],
    methods: Sequence[str],
    seeds: Sequence[int],
    *,
    resume: bool = True,
    progress: bool = True,
) -> pd.DataFrame:
    """The accuracies of every recipe, method and seed. Finished runs are read, the others are started or continued.

    Parameters
    ----------
    recipes : sequence of Recipe
        Recipes with different names.
    methods : sequence of str
        Keys of `METHODS`, or sums such as "rcka+kd".
    seeds : sequence of int
        One run for each seed.
    resume : bool
        False repeats all runs.
    progress : bool
        Show progress bars.

    Returns
    -------
    DataFrame
        Columns recipe, method, seed, last, best; accuracies in percent.

    Raises
    ------
    ValueError
        If two recipes have the same name, a method does not exist, or a directory holds the run of another recipe.
    """
    names = [recipe.name for recipe in recipes]
    if len(set(names)) < len(names):
        raise ValueError(f"Recipes of one table need different names, got {', '.join(names)}.")
    cells = [
        (recipe.name, method, seed, recipe.with_method(method, seed))
        for recipe in recipes
        for method in methods
        for seed in seeds
    ]
    # A mistake in the last cell shows before the first one is trained.
    for recipe in recipes:
        check_recipe(recipe, load_datasets(recipe.data)[2])
    for *_, cell in cells:
        build_loss(cell.loss.name, cell.loss.options)
    lines = []
    for name, method, seed, cell in cells:
        facts = finished(cell) if resume else None
        if facts is None:
            result = run_recipe(cell, resume=resume, progress=progress)
            facts = {"last_accuracy": result.last_accuracy, "best_accuracy": result.best_accuracy}
        last, best = 100 * facts["last_accuracy"], 100 * facts["best_accuracy"]
        lines.append({"recipe": name, "method": method, "seed": seed, "last": last, "best": best})
    return pd.DataFrame(lines)


def summarise(runs: pd.DataFrame, recipes: Sequence[Recipe] = (), against: str | None = None) -> pd.DataFrame:
    """Mean and standard deviation over seeds for each recipe and method, beside the paper's number.

    Parameters
    ----------
    runs : DataFrame
        The result of `run_grid`.
    recipes : sequence of Recipe
        Recipes with published numbers.
    against : str, optional
        Compare the last accuracy of every other method with that of this one, seed by seed.

    Returns
    -------
    DataFrame
        Columns recipe, method, seeds, last_mean, last_sd, best_mean, best_sd, paper, difference, p. Accuracies are in
        percent, differences of the last accuracy in percentage points. ``sd`` is the sample standard deviation (NaN
        for one seed). ``p`` is the two-sided p-value of a paired t-test, adjusted by Holm over the methods of a
        recipe; NaN if there are fewer than two pairs or all differences are equal.

    Raises
    ------
    ValueError
        If `against` is not one of the methods.

    References
    ----------
    Holm, A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 1979.

    Examples
    --------
    >>> runs = pd.DataFrame(
    ...     {"recipe": "a", "method": ["kd", "kd", "rcka", "rcka"], "seed": [0, 1, 0, 1], "last": [70.0, 72, 73, 74]}
    ... )
    >>> summarise(runs.assign(best=75.0), against="kd")[["method", "last_mean", "difference"]]
      method  last_mean  difference
    0     kd       71.0         NaN
    1   rcka       73.5         2.5
    """
    if against is not None and against not in set(runs["method"]):
        raise ValueError(f"The method {against!r} to compare with is not among {', '.join(runs['method'].unique())}.")
    paper = {(recipe.name, method): value for recipe in recipes for method, value in recipe.paper.items()}
    lines = []
    for recipe, of_recipe in runs.groupby("recipe", sort=False):
        base = None if against is None else of_recipe[of_recipe["method"] == against].set_index("seed")["last"]
        block = []
        for method, group in of_recipe.groupby("method", sort=False):
            difference, p = np.nan, np.nan
            if base is not None and method != against:
                pairs = (group.set_index("seed")["last"] - base).dropna()
                difference, p = float(pairs.mean()), _paired_p(pairs.to_numpy(float))
            block.append(
                {
                    "recipe": recipe,
                    "method": method,
                    "seeds": len(group),
                    "last_mean": group["last"].mean(),
                    "last_sd": group["last"].std(),
                    "best_mean": group["best"].mean(),
                    "best_sd": group["best"].std(),
                    "paper": paper.get((str(recipe), str(method)), np.nan),
                    "difference": difference,
                    "p": p,
                }
            )
        adjusted = _holm(np.array([line["p"] for line in block], float))
        lines += [{**line, "p": float(p)} for line, p in zip(block, adjusted, strict=True)]
    return pd.DataFrame(lines)


def format_markdown(table: pd.DataFrame, against: str | None = None) -> str:
    """The table as Markdown, with the best mean of each recipe in bold.

    Parameters
    ----------
    table : DataFrame
        The result of `summarise`.
    against : str, optional
        The method that the others were compared with; it is named in the heading.

    Returns
    -------
    str
        Ends with a line break.
    """
    heading, rows = _cells(table, against, bold="**{}**", plus_minus="±", escaped=_markdown_escaped)
    lines = [heading, ["---"] * 2 + ["---:"] * (len(heading) - 2), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def format_latex(table: pd.DataFrame, against: str | None = None) -> str:
    r"""The table as a LaTeX tabular with the rules of booktabs, with the best mean of each recipe in bold.

    Parameters
    ----------
    table : DataFrame
        The result of `summarise`.
    against : str, optional
        The method that the others were compared with; it is named in the heading.

    Returns
    -------
    str
        From ``\begin{tabular}`` to ``\end{tabular}``.
    """
    heading, rows = _cells(table, against, bold=r"\textbf{{{}}}", plus_minus=r"$\pm$", escaped=latex_escaped)
    lines = [" & ".join(line) + r" \\" for line in (heading, *rows)]
    rules = [r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule"]
    columns = "ll" + "r" * (len(heading) - 2)
    return "\n".join([rf"\begin{{tabular}}{{{columns}}}", *rules, r"\end{tabular}", ""])


def save_table(table: pd.DataFrame, runs: pd.DataFrame, directory: Path, against: str | None = None) -> list[Path]:
    """Save table.csv, table.md, table.tex and runs.csv, and return their paths.

    Parameters
    ----------
    table : DataFrame
        The result of `summarise`.
    runs : DataFrame
        The result of `run_grid`.
    directory : path
        The folder of the files; it is created if needed.
    against : str, optional
        The method that the others were compared with.

    Returns
    -------
    list of Path
        The four files.

    Raises
    ------
    OSError
        If a file cannot be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    contents = {
        "table.csv": safe_csv(table),
        "table.md": format_markdown(table, against),
        "table.tex": format_latex(table, against),
        "runs.csv": safe_csv(runs),
    }
    for name, content in contents.items():
        atomic_write(directory / name, content)
    return [directory / name for name in contents]


def _cells(
    table: pd.DataFrame, against: str | None, bold: str, plus_minus: str, escaped: Callable[[str], str]
) -> tuple[list[str], list[list[str]]]:
    """Heading and rows as text, without the columns that have no numbers. ``escaped`` writes the names."""
    spread = {True: f" {plus_minus} {{sd:.2f}}", False: ""}

    def accuracy(line: Any, which: str) -> str:
        mean, sd = line[f"{which}_mean"], line[f"{which}_sd"]
        text = f"{mean:.2f}" + spread[bool(np.isfinite(sd))].format(sd=sd)
        rivals = table[table["recipe"] == line["recipe"]][f"{which}_mean"]
        return bold.format(text) if len(rivals) > 1 and mean == rivals.max() else text

    heading = ["recipe", "method", "seeds", "last", "best"]
    optional = [name for name in ("paper", "difference", "p") if table[name].notna().any()]
    titles = {"paper": "paper", "difference": f"minus {escaped(_title(against))}", "p": "p (Holm)"}
    formats = {"paper": "{:.2f}", "difference": "{:+.2f}", "p": "{:.3f}"}
    rows = []
    for _, line in table.iterrows():
        row = [
            escaped(str(line["recipe"])),
            escaped(_title(line["method"])),
            str(line["seeds"]),
            accuracy(line, "last"),
        ]
        row.append(accuracy(line, "best"))
        row += [formats[name].format(line[name]) if pd.notna(line[name]) else "" for name in optional]
        rows.append(row)
    return heading + [titles[name] for name in optional], rows


def _markdown_escaped(name: str) -> str:
    return "".join(f"\\{c}" if c in "\\`*[]<>|#&" else c for c in printable(name))


def _title(method: str | None) -> str:
    return str(method) if method is None else title_of(method)


def _paired_p(differences: NDArray[np.float64]) -> float:
    """The two-sided p-value of a paired t-test; NaN for fewer than two pairs or equal differences."""
    if len(differences) < 2 or np.ptp(differences) == 0:
        return np.nan
    return float(stats.ttest_1samp(differences, 0.0).pvalue)


def _holm(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Holm's adjusted p-values. A NaN stays NaN and does not count as a test."""
    adjusted = p.copy()
    order = [i for i in np.argsort(p) if np.isfinite(p[i])]
    largest = 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, p[i] * (len(order) - rank)))
        adjusted[i] = largest
    return adjusted
