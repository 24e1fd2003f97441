"""Tables of the study from its finished cells: `python benchmarks/study_tables.py` writes them beside the cells.

study_table.csv, .md and .tex have a line for each data set, method, weight and ramp: mean and standard deviation of the
test accuracy over the seeds, and the difference to KD and to DIST with its 95 % interval (paired over the seeds,
Student's t) and Holm's p-value over all lines of the data set. "chosen" (bold) marks the weight of each method with the
best validation accuracy of seed 0. study_tuned.csv, .md and .tex have these lines alone, with the differences to KD and
DIST at their own chosen weights. docs/distill.md gets the lines with several seeds, README.md a short table, between
two marks each.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats
from study_methods import METHODS
from study_probe import PROBED
from tables import on_page

from cka_probe.atomic_write import atomic_write
from cka_probe.distill.recipes.tables import summarise

__all__ = ["PAGE", "README", "SCRIPT", "chosen", "label", "page_text", "readme_text", "summary", "table_text"]

RIVALS = ("kd", "dist")
LEAST_SEEDS = 3
"""With two seeds an interval reaches nine standard deviations to each side, and says nothing."""
PAGE = Path(__file__).parents[1] / "docs" / "distill.md"
README = Path(__file__).parents[1] / "README.md"
SCRIPT = "benchmarks/study_tables.py"
# The methods of the table in README.md with their names there, and the differences that it shows.
SHORT = {"ce": "CE", "dist": "DIST", "rcka": "RCKA", "rcka_even_signs": "RCKA, all terms + signs", "kd": "KD"}
DIFFERENCES = (("rcka", "dist"), ("rcka", "kd"), ("rcka_even_signs", "kd"))
TITLES = {"fashion": "Fashion-MNIST", "glyphs": "Characters of fonts"}


def chosen(known: Mapping[Any, float], data: str, images: int) -> list[Any]:
    """The cell of seed 0 with the best validation accuracy of each method; none before all its weights are known."""
    best = []
    for name, method in METHODS.items():
        cells = [cell for cell in known if cell[:3] == (data, images, name) and cell[-1] == 0]
        wanted = {(round(weight, 4), ramp) for weight in method.weights for ramp in (False, True)[: 1 + method.ramp]}
        if wanted <= {(cell[3], cell[4]) for cell in cells}:
            best.append(max((cell for cell in cells if (cell[3], cell[4]) in wanted), key=lambda cell: known[cell]))
    return best


def label(method: str, weight: float, ramp: bool) -> str:
    """A line's name, such as "RCKA 15, ramp"; the usual weight of a method with one usual weight is left out."""
    if method in PROBED:
        return PROBED[method]
    found = METHODS[method]
    if weight != 1 or found.default != 1 or found.ramp:
        number = "1/3" if abs(weight - 1 / 3) < 1e-3 else f"{weight:g}"
        return f"{found.title} {number}{', ramp' if ramp else ''}"
    return found.title


def summary(cells: pd.DataFrame, *, tuned: bool = False) -> pd.DataFrame:
    """A line for each data set, method, weight and ramp of the finished cells.

    ``tuned`` keeps the chosen ones only, where all weights of KD and of DIST have run, and compares them with these two
    at their chosen weights instead of the usual ones.
    """
    cells = cells.drop_duplicates(["data", "images", "method", "weight", "ramp", "seed"], keep="last")
    lines = []
    probed = cells["method"].isin(PROBED).rename("probed")  # another measure, which no difference to KD has
    for (data, images, _), group in cells.groupby(["data", "images", probed], sort=False):
        known = {
            (line.data, line.images, line.method, line.weight, line.ramp, line.seed): line.validation
            for line in group.itertuples()
        }
        best = {cell[2:5] for cell in chosen(known, str(data), int(images))}
        others = {rival: label(rival, 1.0, False) for rival in RIVALS}
        if tuned:
            others = {rival: label(*key) for rival in RIVALS for key in best if key[0] == rival}
            if len(others) < len(RIVALS):
                continue
            settings = zip(group["method"], group["weight"], group["ramp"], strict=True)
            group = group[[key in best for key in settings]]
        names = [label(*key) for key in zip(group["method"], group["weight"], group["ramp"], strict=True)]
        runs = pd.DataFrame(
            {"recipe": "study", "method": names, "seed": group["seed"], "last": group["test"], "best": group["test"]}
        )
        against = {
            rival: summarise(runs, against=other).set_index("method")
            for rival, other in others.items()
            if other in set(names)
        }
        scores = runs.pivot(index="seed", columns="method", values="last")
        for key, part in group.groupby(["method", "weight", "ramp"], sort=False):
            name = label(*key)
            line: dict[str, Any] = {
                "data": data, "images": images, "method": name, "chosen": key in best, "seeds": len(part),
                "validation": part["validation"].mean(), "test": part["test"].mean(), "sd": part["test"].std(),
            }  # fmt: skip
            for rival, other in others.items():
                line |= {
                    f"minus_{rival}": np.nan,
                    f"low_{rival}": np.nan,
                    f"high_{rival}": np.nan,
                    f"p_{rival}": np.nan,
                }
                if rival not in against or name == other:
                    continue
                pairs = (scores[name] - scores[other]).dropna().to_numpy(float)
                if len(pairs) == 0:
                    continue
                error = stats.sem(pairs) if len(pairs) > 1 else 0.0
                # Two differences that are equal by chance say nothing about their spread; the p-value is NaN too.
                half = stats.t.ppf(0.975, len(pairs) - 1) * error if error > 1e-9 else np.nan
                line |= {
                    f"minus_{rival}": pairs.mean(),
                    f"low_{rival}": pairs.mean() - half,
                    f"high_{rival}": pairs.mean() + half,
                    f"p_{rival}": against[rival].loc[name, "p"],
                }
            lines.append(line)
    return pd.DataFrame(lines)


def table_text(table: pd.DataFrame, *, latex: bool) -> str:
    """The lines as a table in Markdown, or as a LaTeX tabular with the rules of booktabs."""
    bold, plus_minus = (r"\textbf{{{}}}", r" $\pm$ ") if latex else ("**{}**", " ± ")
    heading = ["data", "images", "method", "seeds", "test accuracy", "minus KD (95 %)", "p", "minus DIST (95 %)", "p"]
    rows = []
    for line in table.itertuples():
        text = f"{line.test:.2f}" + (f"{plus_minus}{line.sd:.2f}" if line.seeds > 1 else "")
        row = [line.data, f"{line.images:,}", line.method, str(line.seeds), bold.format(text) if line.chosen else text]
        for rival in RIVALS:
            mean, low, high, p = (getattr(line, f"{part}_{rival}") for part in ("minus", "low", "high", "p"))
            interval = f" ({low:+.2f} to {high:+.2f})" if np.isfinite(low) else ""
            row += [f"{mean:+.2f}{interval}" if np.isfinite(mean) else "", f"{p:.3f}" if np.isfinite(p) else ""]
        rows.append(row)
    if latex:
        escaped = [[cell.replace("%", r"\%") for cell in row] for row in (heading, *rows)]
        body = [" & ".join(row) + r" \\" for row in escaped]
        rules = [r"\toprule", body[0], r"\midrule", *body[1:], r"\bottomrule"]
        return "\n".join([r"\begin{tabular}{lrlrrrrrr}", *rules, r"\end{tabular}", ""])
    lines = [heading, ["---", "---:", "---", *["---:"] * 6], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def page_text(table: pd.DataFrame, tuned: pd.DataFrame) -> str:
    """The lines with several seeds as tables in Markdown, one for each data set and number of images, the best first.

    Other methods than RCKA have their usual weight there. A second table has every method at its chosen weight. Linear
    probes come last, in tables of their own.
    """
    usual = [label(name, method.default, False) for name, method in METHODS.items()]
    shown = table["method"].isin([*usual, *PROBED.values()]) | table["method"].str.startswith("RCKA")
    parts = []
    table = table[shown].assign(probed=table["method"].isin(PROBED.values())).sort_values("probed", kind="stable")
    for (data, images, probe), part in table.groupby(["data", "images", "probed"], sort=False):
        title = f"{TITLES[str(data)]}, {images:,} images"
        parts.append(_page_table(f"{title}, linear probe" if probe else title, part))
        if not probe and len(tuned):
            chosen_lines = tuned[(tuned["data"] == data) & (tuned["images"] == images)]
            rivals = chosen_lines[chosen_lines["method"].str.fullmatch(r"(KD|DIST)( [\d/]+)?")]
            if (rivals["seeds"] >= LEAST_SEEDS).sum() == len(RIVALS):
                parts.append(_page_table(f"{title}, every method at its chosen weight", chosen_lines))
    return "\n".join(filter(None, parts))


def readme_text(table: pd.DataFrame, tuned: pd.DataFrame) -> str:
    """The question of the study in short: a column for each data set and number of images, a line for each method.

    Methods have their usual weights, RCKA those of 15 with the ramp. A second column of a data set has the methods at
    their chosen weights. Three lines of differences come last. A column whose methods have not all run with
    `LEAST_SEEDS` is left out.
    """
    usual = dict(zip(SHORT, ("CE", "DIST", "RCKA 15, ramp", "RCKA, all terms + signs 15, ramp", "KD"), strict=True))
    columns = [["", *SHORT.values(), *(f"{SHORT[one]} minus {SHORT[other]} (95 %)" for one, other in DIFFERENCES)]]
    for (data, images), part in table.groupby(["data", "images"], sort=False):
        title = f"{TITLES[str(data)]}, {images:,} images"
        columns += _short_column(title, part, {name: re.escape(text) for name, text in usual.items()})
        if len(tuned):
            part = tuned[(tuned["data"] == data) & (tuned["images"] == images)]
            patterns = {name: rf"{re.escape(METHODS[name].title)}( [\d/]+)?(, ramp)?" for name in SHORT}
            columns += _short_column(f"{images:,} images, best weights", part, patterns)
    rows = list(zip(*columns, strict=True))
    rows.insert(1, ("---", *["---:"] * (len(columns) - 1)))
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _short_column(title: str, lines: pd.DataFrame, patterns: Mapping[str, str]) -> list[list[str]]:
    """A column of the lines that the patterns match; none if one has not run with `LEAST_SEEDS`."""
    lines = lines[lines["seeds"] >= LEAST_SEEDS]
    found = {name: lines[lines["method"].str.fullmatch(pattern)] for name, pattern in patterns.items()}
    if any(one.empty for one in found.values()):
        return []
    scores = {name: one.iloc[0] for name, one in found.items()}
    differences = []
    for one, other in DIFFERENCES:
        mean, low, high = (scores[one][f"{part}_{other}"] for part in ("minus", "low", "high"))
        differences.append(f"{mean:+.1f} ({low:+.1f} to {high:+.1f})")
    fewest, most = (reach(int(line["seeds"]) for line in scores.values()) for reach in (min, max))
    title = f"{title}, {most if fewest == most else f'{fewest} to {most}'} seeds"
    return [[title, *(f"{line['test']:.1f}" for line in scores.values()), *differences]]


def _page_table(title: str, lines: pd.DataFrame) -> str:
    """The lines with several seeds under a title; nothing if there are none."""
    lines = lines[lines["seeds"] > 1].sort_values("test", ascending=False, kind="stable")
    if lines.empty:
        return ""
    rows = [["method", "seeds", "test accuracy", "minus KD (95 %)", "minus DIST (95 %)"], ["---", *["---:"] * 4]]
    for line in lines.itertuples():
        row = [line.method, str(line.seeds), f"{line.test:.2f} ± {line.sd:.2f}"]
        for rival in RIVALS:
            mean, low, high, p = (getattr(line, f"{name}_{rival}") for name in ("minus", "low", "high", "p"))
            text = f"{mean:+.2f} ({low:+.2f} to {high:+.2f})" if np.isfinite(low) else ""
            row.append(f"{text} \\*" if p < 0.05 else text)
        rows.append(row)
    body = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    return f"**{title}**\n\n{body}"


def main() -> None:
    results = Path(__file__).parent / "results"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=Path, default=results / "study.csv", help="the finished cells")
    parser.add_argument("--output", type=Path, default=results, help="folder of the tables")
    options = parser.parse_args()
    cells = pd.read_csv(options.cells)
    table, tuned = summary(cells), summary(cells, tuned=True)
    for name, lines in (("study_table", table), ("study_tuned", tuned)):
        atomic_write(options.output / f"{name}.csv", lines.to_csv(index=False, float_format="%.6g"))
        atomic_write(options.output / f"{name}.md", table_text(lines, latex=False))
        atomic_write(options.output / f"{name}.tex", table_text(lines, latex=True))
    if options.output == results:
        for page, text in ((PAGE, page_text(table, tuned)), (README, readme_text(table, tuned))):
            atomic_write(page, on_page(page.read_text(), SCRIPT, text))
    print(table_text(table, latex=False))


if __name__ == "__main__":
    main()
