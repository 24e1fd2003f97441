"""Measure on real layers how often the p-values of CKA and of other measures reject, and how often intervals cover.

    python benchmarks/calibration.py                     everything: about fifteen minutes on one core
    python benchmarks/calibration.py --part levels       one part: levels, measures or coverage
    python benchmarks/calibration.py --draws 2000        a quick look

The features are nine pairs of layers of six networks that `calibration_networks.py` trains (images, digits, text).

levels: under the null the samples of one layer are in random order. The share of such draws that a p-value rejects at
.05, .01 and .001 must be .05, .01 and .001. For CKA in minibatches (four of 64 samples, as `compare`) and of all 256 at
once the p-value is that of the Pearson distribution with the first four moments of the null, beside it that with three
(Pearson III) and with two (normal).

measures: the counted p-values of `cka_probe.estimators.calibrate` for three other measures, and the p-values of the
maximum over layers. Each permuted value is tested against the 999 others of its group, so the rates differ from the
nominal ones only where values are equal.

coverage: 95 % intervals for samples of 256 out of all, whose value is the truth.

Rows are written to benchmarks/results/calibration.csv, a summary to calibration.md.
"""

from __future__ import annotations

import argparse
import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from calibration_networks import stored
from scipy import stats
from tables import machine, save_csv

from cka_probe.estimators import (
    MEASURES,
    Calibration,
    MinibatchCKA,
    OutlierWarning,
    cka,
    cka_with_error,
    measure_matrix_with_error,
)
from cka_probe.estimators.calibration import packed_rows, permuted_inner
from cka_probe.estimators.kernels import Linear
from cka_probe.estimators.layer_grams import layer_rows
from cka_probe.estimators.pearson import pearson3_sf, pearson_sf

RESULTS = Path(__file__).parent / "results" / "calibration.csv"
LEVELS = (0.05, 0.01, 0.001)
TASKS = ("images", "digits", "language")
PAIRS = (("A early", "A late"), ("A early", "B late"), ("A late", "B late"))
OTHERS = ("rsa", "distance_correlation", "uncentred_alignment")
COVERED = ("nbs", "procrustes", "distance_correlation", "linear_regression_r2")

Row = dict[str, object]


def sides(features: dict[str, np.ndarray], task: str, samples: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Features of the rows (A early, A late) and the columns (A late, B late) of the pairs of a task."""
    named = {name.removeprefix(f"{task} "): x[samples] for name, x in features.items() if name.startswith(task)}
    return [named["A early"], named["A late"]], [named["A late"], named["B late"]]


PLACES = ((0, 0), (0, 1), (1, 1))


def rates(task: str, what: str, method: str, p: np.ndarray) -> Iterator[Row]:
    """The share of draws that are rejected at each level, with its 95 % interval, from p-values (draws, pairs)."""
    for pair, column in zip(PAIRS, p.T, strict=True):
        for level in LEVELS:
            hits = int(np.sum(column <= level))
            interval = stats.binomtest(hits, len(column)).proportion_ci(method="wilson")
            yield {
                "part": "levels", "task": task, "pair": " x ".join(pair), "measure": what, "method": method,
                "nominal": level, "rate": hits / len(column), "low": interval.low, "high": interval.high,
                "draws": len(column),
            }  # fmt: skip


def cka_levels(features: dict[str, np.ndarray], task: str, batches: list[int], draws: int) -> Iterator[Row]:
    """CKA of batches of these sizes: p-values of permuted samples by four, three and two moments of the null."""
    rng = np.random.default_rng(len(task))
    samples = rng.permutation(len(features[f"{task} A early"]))[: sum(batches)]
    xs, ys = sides(features, task, samples)
    statistics = MinibatchCKA()
    null = np.zeros((draws, 2, 2))
    start = 0
    for n in batches:
        part = slice(start, start + n)
        statistics.update([x[part] for x in xs], [y[part] for y in ys])
        packed, scales = [], []
        for side in (xs, ys):
            rows, scale, _ = layer_rows([x[part] for x in side], "xs", Linear(), "unbiased")
            packed.append(packed_rows(rows, n))
            scales.append(scale)
        weight = n / (n * (n - 3)) * scales[0][:, None] * scales[1][None, :]
        null += weight * np.stack(permuted_inner(*packed, n, draws, rng))
        start += n
    variance = statistics.sums["null_variance"]
    skewness, excess = statistics.sums["null_third"] / variance**1.5, statistics.sums["null_fourth"] / variance**2
    z = null / np.sqrt(variance)
    assert np.allclose(
        statistics.p_value(), pearson_sf(statistics.z_score(), skewness, excess), rtol=1e-6, atol=1e-300
    )  # as `compare` gives them
    what = f"CKA, {len(batches)} x {batches[0]}"
    chosen = tuple(zip(*PLACES, strict=True))
    tails = stats.kurtosis(z[:, *chosen], axis=0)
    for row in rates(task, what, "four moments", pearson_sf(z, skewness, excess)[:, *chosen]):
        place = [" x ".join(pair) for pair in PAIRS].index(str(row["pair"]))
        shape = {"skewness": skewness[chosen][place], "excess": excess[chosen][place], "drawn_excess": tails[place]}
        yield {**row, **{name: float(value) for name, value in shape.items()}}
    yield from rates(task, what, "three moments", pearson3_sf(z, skewness)[:, *chosen])
    yield from rates(task, what, "two moments", stats.norm.sf(z)[:, *chosen])


def levels(features: dict[str, np.ndarray], draws: int, _: int) -> Iterator[Row]:
    for task in TASKS:
        for batches in ([64] * 4, [256]):
            yield from cka_levels(features, task, batches, draws)


def measures(features: dict[str, np.ndarray], _: int, draws: int) -> Iterator[Row]:
    """Counted p-values of other measures, of 128 samples, and of the maximum over the four pairs of layers."""
    for task in TASKS:
        rng = np.random.default_rng(len(task))
        xs, ys = sides(features, task, rng.permutation(len(features[f"{task} A early"]))[:128])
        for name in OTHERS:
            groups = np.array_split(permuted_values(name, xs, ys, draws, rng), draws // 1000)
            found = [counted(group) for group in groups]
            p, corrected = (np.concatenate(parts) for parts in zip(*found, strict=True))
            yield from rates(task, name, "counted, 999 permutations", p[:, *zip(*PLACES, strict=True)])
            for level in LEVELS:
                hits = int(np.sum(corrected <= level))
                interval = stats.binomtest(hits, len(corrected)).proportion_ci(method="wilson")
                yield {
                    "part": "levels", "task": task, "pair": "largest of 4 pairs", "measure": name,
                    "method": "corrected, 999 permutations", "nominal": level, "rate": hits / len(corrected),
                    "low": interval.low, "high": interval.high, "draws": len(corrected),
                }  # fmt: skip


def permuted_values(
    name: str, xs: list[np.ndarray], ys: list[np.ndarray], draws: int, rng: np.random.Generator
) -> np.ndarray:
    """Values (draws, 2, 2) of a measure with the samples of ``ys`` permuted.

    These measures are functions of the inner product of two matrices between the samples, whose rows and columns a
    permutation reorders; that the values are those of the package is checked for one permutation.
    """
    measure, n = MEASURES[name], len(xs[0])
    packed = []
    for side in (xs, ys):
        statistics = [measure.prepare(x) for x in side]
        if name == "rsa":
            packed.append(np.stack(statistics) / 2**0.5)  # the dissimilarities of pairs i < j
        else:
            matrices = [one[0] if name == "distance_correlation" else one for one in statistics]
            packed.append(packed_rows(np.stack([one.reshape(-1) for one in matrices]), n, diagonal=True))
    first = rng.bit_generator.state
    null = np.stack(permuted_inner(packed[0], packed[1], n, draws, rng, diagonal=name != "rsa"))
    null = np.sqrt(np.maximum(null, 0)) if name == "distance_correlation" else null
    same = np.random.default_rng()
    same.bit_generator.state = first
    order = same.permutation(n)
    assert np.allclose(null[0], measure.matrix(xs, [y[order] for y in ys]).values, atol=1e-9)
    return null


def counted(group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """p-values (draws, 2, 2) of each draw among the others of its group, and the smallest corrected ones (draws,).

    They are those of ``Calibration`` for each draw against all others, which is checked for some.
    """
    count = len(group)
    ordered = np.sort(group, axis=0)
    p = np.stack([
        [(count - np.searchsorted(ordered[:, i, j], group[:, i, j] - 1e-12)) / count for j in (0, 1)] for i in (0, 1)
    ])  # fmt: skip
    p = np.moveaxis(p, 2, 0)
    largest = ((group - group.mean(axis=0)) / group.std(axis=0)).max(axis=(1, 2))
    corrected = (count - np.searchsorted(np.sort(largest), largest - 1e-9)) / count
    for place in (0, int(np.argmax(largest)), int(np.argmin(largest))):
        found = Calibration.of(group[place], np.delete(group, place, axis=0))
        assert np.allclose(found.p_value, p[place])
        assert np.isclose(found.corrected_p_value.min(), corrected[place])
    return p, corrected


def covered(truth: float, estimates: list[tuple[float, float, float, float]]) -> dict[str, object]:
    value, error, low, high = np.array(estimates).T
    inside = int(np.sum((low <= truth) & (truth <= high)))
    interval = stats.binomtest(inside, len(low)).proportion_ci(method="wilson")
    return {
        "nominal": 0.95, "rate": inside / len(low), "low": interval.low, "high": interval.high, "draws": len(low),
        "truth": truth, "mean": float(value.mean()), "mean_error": float(error.mean()),
        "spread": float(value.std(ddof=1)),
    }  # fmt: skip


def coverage(features: dict[str, np.ndarray], _: int, draws: int) -> Iterator[Row]:
    """95 % intervals of 256 samples, drawn with replacement from all, whose CKA is known exactly."""
    repeats = max(50, draws // 10)
    for task in TASKS:
        for place, pair in zip(PLACES, PAIRS, strict=True):
            every = np.arange(len(features[f"{task} A early"]))
            xs, ys = sides(features, task, every)
            x, y = xs[place[0]].astype(np.float64), ys[place[1]].astype(np.float64)
            truth = float(cka(x, y, estimator="biased"))  # of the distribution that draws each of these samples alike
            rng = np.random.default_rng(0)
            by: dict[str, list[tuple[float, float, float, float]]] = {}
            for _repeat in range(repeats):
                some = rng.integers(0, len(x), 256)
                a, b = x[some], y[some]
                found = cka_with_error(a, b)
                ends = (found.value, found.standard_error, found.low, found.high)
                by.setdefault("jackknife", []).append(tuple(float(end) for end in ends))
                for size in (32, 64):
                    statistics = MinibatchCKA(skewness=False)
                    for start in range(0, 256, size):
                        statistics.update([a[start : start + size]], [b[start : start + size]])
                    value, error = float(statistics.compute()[0, 0]), float(statistics.standard_error()[0, 0])
                    margin = stats.t.ppf(0.975, 256 // size - 1) * error
                    ends = (value, error, value - margin, value + margin)
                    by.setdefault(f"minibatches of {size}", []).append(ends)
            for method, estimates in by.items():
                yield {
                    "part": "coverage", "task": task, "pair": " x ".join(pair), "measure": "CKA", "method": method,
                    **covered(truth, estimates),
                }  # fmt: skip


def blocks(features: dict[str, np.ndarray], _: int, draws: int) -> Iterator[Row]:
    """95 % intervals of other measures by leaving out blocks of samples, about their mean over samples of 256."""
    repeats = max(40, draws // 80)
    for task in TASKS:
        rng = np.random.default_rng(0)
        by: dict[tuple[str, int], list[tuple[float, float, float, float]]] = {}
        for _repeat in range(repeats):
            some = rng.permutation(len(features[f"{task} A early"]))[:256]
            xs, ys = sides(features, task, some)
            for name in COVERED:
                found = measure_matrix_with_error(name, xs, ys, blocks=20)
                for place, (i, j) in enumerate(PLACES):
                    parts = (found.value, found.standard_error, found.low, found.high)
                    by.setdefault((name, place), []).append(tuple(float(part[i, j]) for part in parts))
        for (name, place), estimates in by.items():
            mean = float(np.mean([value for value, *_ in estimates]))
            yield {
                "part": "coverage", "task": task, "pair": " x ".join(PAIRS[place]), "measure": name,
                "method": "20 blocks", **covered(mean, estimates),
            }  # fmt: skip


PARTS: dict[str, Callable[..., Iterator[Row]]] = {
    "levels": levels,
    "measures": measures,
    "coverage": coverage,
    "blocks": blocks,
}
COLUMNS = [
    "part", "task", "pair", "measure", "method", "nominal", "rate", "low", "high", "draws", "truth", "mean",
    "mean_error", "spread", "skewness", "excess", "drawn_excess",
]  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, action="append", help="only this part; the other rows stay")
    parser.add_argument("--draws", type=int, default=40_000, help="permutations of CKA")
    parser.add_argument("--measure-draws", type=int, default=8000, help="permutations of other measures")
    parser.add_argument("--features", type=Path, default=Path(__file__).parent / ".cache" / "calibration.npz")
    parser.add_argument("--output", type=Path, default=RESULTS)
    given = parser.parse_args(arguments)
    parts = given.part or list(PARTS)
    features = stored(given.features)
    kept = [] if not given.output.exists() else pd.read_csv(given.output, keep_default_na=False).to_dict("records")
    for part in parts:
        kept = [row for row in kept if row["source"] != part]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", OutlierWarning)  # every draw of a heavy layer would warn
            rows = [
                {**row, "source": part, **machine()} for row in PARTS[part](features, given.draws, given.measure_draws)
            ]
        kept += rows
        save_csv(given.output, [*COLUMNS, "source", *machine()], kept)
        print(part, len(rows), "rows", flush=True)
    summary = given.output.with_suffix(".md")
    summary.write_text(report(pd.read_csv(given.output)))
    print(summary.read_text())


def report(table: pd.DataFrame) -> str:
    """The table as Markdown: the range of rates at every level, each pair at .001, and coverage."""
    text = [
        "# Calibration on real layers",
        "",
        "From `python benchmarks/calibration.py`; all rows: `calibration.csv`.",
        "",
    ]
    rejected = table[table["part"] == "levels"]
    kinds = sorted(set(zip(rejected["measure"], rejected["method"], strict=True)))
    text += ["## Rejected under the null: smallest and largest rate of all pairs", ""]
    text += ["| measure | p-value | draws | at .05 | at .01 | at .001 |", "|---|---|---|---|---|---|"]
    for measure, method in kinds:
        own = rejected[(rejected["measure"] == measure) & (rejected["method"] == method)]
        cells = []
        for level in LEVELS:
            found = own.loc[own["nominal"] == level, "rate"]
            cells.append(f"{found.min():.4f} to {found.max():.4f}")
        text.append(f"| {measure} | {method} | {own['draws'].iloc[0]:,} | {' | '.join(cells)} |")
    text += [
        "",
        "Counted p-values test each draw against the 999 others of its group: only ties could move their rates.",
    ]
    single = [kind for kind in kinds if "corrected" not in kind[1]]
    head = " | ".join(f"{measure}, {method.partition(',')[0]}" for measure, method in single)
    text += ["", "## Each pair at .001", "", f"| task | pair | {head} |", "|---" * (2 + len(single)) + "|"]
    at_last = rejected[rejected["nominal"] == LEVELS[-1]].set_index(["task", "pair", "measure", "method"])["rate"]
    for task in TASKS:
        for pair in map(" x ".join, PAIRS):
            cells = [f"{at_last.get((task, pair, *kind), math.nan):.4f}" for kind in single]
            text.append(f"| {task} | {pair} | {' | '.join(cells)} |")
    text += tails_of_nulls(rejected)
    text += ["", "## Coverage of 95 % intervals from 256 samples", ""]
    text += [
        "| task | pair | measure | method | true | covered | mean error / spread |",
        "|---|---|---|---|---|---|---|",
    ]
    for _, row in table[table["part"] == "coverage"].iterrows():
        names = " | ".join(str(row[column]) for column in ("task", "pair", "measure", "method"))
        interval = f"{row['rate']:.3f} ({row['low']:.3f} to {row['high']:.3f})"
        text.append(f"| {names} | {row['truth']:.3f} | {interval} | {row['mean_error'] / row['spread']:.2f} |")
    return "\n".join([*text, ""])


TAILS = """\
The p-values of `compare` and `cka_test` are those of the Pearson distribution with the exact mean, variance, skewness
and excess kurtosis of the null over all permutations. With three moments (Pearson III) the excess kurtosis is 1.5 times
the squared skewness. Where a few samples hold most of a Gram matrix the null has more, and more values are far out.
The 95 % interval of {above} of {rates} rates is above .001 ({before} with three moments); noise of the draws alone
would put one in forty there. The largest rate is {largest:.4f}."""


def tails_of_nulls(rejected: pd.DataFrame) -> list[str]:
    """The rates of CKA beside the shape of the null of each pair, with four and with three moments."""
    last = rejected[rejected["nominal"] == LEVELS[-1]]
    own, three = (last[last["method"] == f"{count} moments"] for count in ("four", "three"))
    above, before = (int((found["low"] > LEVELS[-1]).sum()) for found in (own, three))
    text = [
        "",
        "## CKA at .001, and the tails of its null",
        "",
        TAILS.format(above=above, before=before, rates=len(own), largest=own["rate"].max()),
        "",
        "| task | pair | measure | rate at .001 | with three moments | skewness | excess kurtosis | of the draws "
        "| of Pearson III |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (_, row), (_, other) in zip(own.iterrows(), three.iterrows(), strict=True):
        names = " | ".join(str(row[column]) for column in ("task", "pair", "measure"))
        assert names == " | ".join(str(other[column]) for column in ("task", "pair", "measure"))
        interval = f"{row['rate']:.4f} ({row['low']:.4f} to {row['high']:.4f}) | {other['rate']:.4f}"
        tail = f"{row['excess']:.1f} | {row['drawn_excess']:.1f} | {1.5 * row['skewness'] ** 2:.1f}"
        text.append(f"| {names} | {interval} | {row['skewness']:.2f} | {tail} |")
    return text


if __name__ == "__main__":
    main()
