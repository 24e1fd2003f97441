"""Measure how often 95 % intervals of CKA contain the true value, and how often its p-values reject unrelated features.

    python benchmarks/coverage.py               everything, about six minutes on one core
    python benchmarks/coverage.py --repeats 200 a quick look

Samples are drawn from populations whose CKA is known: y = x M / sqrt(p) + noise e with independent entries of mean 0
and variance 1, so that the covariances, and with them the CKA that HSIC_1 estimates, are exact. "t5" has the tails of
Student's t with 5 degrees of freedom, "lognormal" also the skewness of activations after an exponential. Results go to
benchmarks/results/coverage.csv.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import time
import warnings
from collections.abc import Callable, Iterator
from datetime import date
from itertools import chain
from pathlib import Path

import numpy as np
import scipy
from scipy import stats
from tables import command, processor, save_csv

from cka_probe.estimators import MinibatchCKA, OutlierWarning, cka_double_debiased, cka_matrix_test, cka_with_error

RESULTS = Path(__file__).parent / "results" / "coverage.csv"
P, Q = 10, 20
SIDE_BY_SIDE = 50  # repetitions in one call: each is a layer, and only the pairs on the diagonal are used
LEVELS = (0.05, 0.01)

Draw = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]


def lognormal(sigma: float) -> Draw:
    mean, spread = math.exp(sigma**2 / 2), math.sqrt(math.expm1(sigma**2) * math.exp(sigma**2))
    return lambda rng, shape: (rng.lognormal(sigma=sigma, size=shape) - mean) / spread


ENTRIES: dict[str, Draw] = {
    "gaussian": lambda rng, shape: rng.normal(size=shape),
    "t5": lambda rng, shape: rng.standard_t(5, size=shape) / math.sqrt(5 / 3),
    "lognormal": lognormal(0.8),
}
NULL_ENTRIES: dict[str, Draw] = {
    "gaussian": ENTRIES["gaussian"],
    "t5": ENTRIES["t5"],
    "lognormal(1.5)": lognormal(1.5),  # one sample in a hundred often holds most of the Gram matrix
}


class Population:
    """A distribution of pairs of features with known CKA; it is 0 if ``noise`` is None."""

    def __init__(self, draw: Draw, noise: float | None, rng: np.random.Generator) -> None:
        self.draw, self.rng = draw, rng
        self.mixing = np.zeros((P, Q)) if noise is None else rng.normal(size=(P, Q)) / math.sqrt(P)
        self.noise = 1.0 if noise is None else noise
        covariance_y = self.mixing.T @ self.mixing + self.noise**2 * np.eye(Q)
        self.cka = float(np.sum(self.mixing**2) / math.sqrt(P) / np.linalg.norm(covariance_y))

    def sample(self, *shape: int) -> tuple[np.ndarray, np.ndarray]:
        """Features (*shape, p) and (*shape, q)."""
        x = self.draw(self.rng, (*shape, P))
        return x, x @ self.mixing + self.noise * self.draw(self.rng, (*shape, Q))


Row = dict[str, object]


def populations(rng: np.random.Generator) -> Iterator[tuple[str, Population]]:
    for name, draw in ENTRIES.items():
        for noise in (None, 2.0, 1.0, 0.3):
            yield name, Population(draw, noise, rng)


def intervals(rng: np.random.Generator, repeats: int) -> Iterator[Row]:
    """Coverage of intervals: jackknife over samples, and over minibatches."""
    for name, population in populations(rng):
        for n in (32, 64, 128, 256):
            estimate = cka_with_error(*population.sample(repeats, n))
            hits = (estimate.low <= population.cka) & (population.cka <= estimate.high)
            yield {
                "what": "95 % interval, jackknife",
                "data": name,
                "samples": n,
                "batches": 1,
                "true_cka": population.cka,
                "nominal": 0.95,
                "rate": float(np.mean(hits)),
                "repeats": repeats,
                "mean_error": float(np.mean(estimate.standard_error)),
                "spread": float(np.std(estimate.value)),
            }
    for name, population in populations(rng):
        for batches in (5, 10, 20, 50):
            values, errors = by_minibatch(population, batches, 32, repeats // 2)
            half = stats.t(batches - 1).ppf(0.975) * errors
            yield {
                "what": "95 % interval, minibatches of 32",
                "data": name,
                "samples": 32 * batches,
                "batches": batches,
                "true_cka": population.cka,
                "nominal": 0.95,
                "rate": float(np.mean(np.abs(values - population.cka) <= half)),
                "repeats": len(values),
                "mean_error": float(np.mean(errors)),
                "spread": float(np.std(values)),
            }


def few_features(rng: np.random.Generator, repeats: int) -> Iterator[Row]:
    """Error of double debiased CKA if only few of many random features are recorded."""
    in_x = np.linspace(2, 0.1, 20)
    in_y = np.roll(in_x, 3) ** 2
    truth = float(np.sum(in_x * in_y) / math.sqrt(np.sum(in_x**2) * np.sum(in_y**2)))
    for n, features in ((32, 16), (64, 16), (64, 64), (256, 16), (256, 64)):
        z = rng.normal(size=(repeats, n, 20))
        x, y = (z @ (np.sqrt(w)[:, None] * rng.normal(size=(repeats, 20, features))) for w in (in_x, in_y))
        estimate = cka_double_debiased(x, y)
        yield {
            "what": f"95 % interval, {features} of many features",
            "data": "gaussian",
            "samples": n,
            "batches": 1,
            "true_cka": truth,
            "nominal": 0.95,
            "rate": float(np.mean((estimate.low <= truth) & (truth <= estimate.high))),
            "repeats": repeats,
            "mean_error": float(np.mean(estimate.standard_error)),
            "spread": float(np.std(estimate.value)),
        }


def by_minibatch(population: Population, batches: int, size: int, repeats: int) -> tuple[np.ndarray, np.ndarray]:
    values, errors = [], []
    for count in portions(repeats):
        statistics = MinibatchCKA(skewness=False)
        for _ in range(batches):
            x, y = population.sample(count, size)
            statistics.update(x, y)
        values.append(np.diag(statistics.compute()))
        errors.append(np.diag(statistics.standard_error()))
    return np.concatenate(values), np.concatenate(errors)


def portions(repeats: int) -> Iterator[int]:
    for start in range(0, repeats, SIDE_BY_SIDE):
        yield min(SIDE_BY_SIDE, repeats - start)


def rejections(rng: np.random.Generator, repeats: int) -> Iterator[Row]:
    """Rejection rates for unrelated features, by three kinds of p-values: normal, by the exact moments, counted."""
    for name, draw in NULL_ENTRIES.items():
        population = Population(draw, None, rng)
        for n, batches in ((16, 1), (32, 1), (64, 1), (256, 1), (16, 8)):
            counted = batches == 1 and n <= 32
            # Small rates need more repetitions: four times as many where they are cheap.
            pieces = [
                null_p_values(population, n, batches, count, counted and index * SIDE_BY_SIDE < repeats, rng)
                for index, count in enumerate(portions(repeats if n == 256 else 4 * repeats))
            ]
            for method in ("normal", "exact moments", "999 shuffles"):
                p = np.concatenate([piece[method] for piece in pieces if method in piece] or [np.empty(0)])
                for level in LEVELS if len(p) else ():
                    yield {
                        "what": f"rejections, {method}",
                        "data": name,
                        "samples": n * batches,
                        "batches": batches,
                        "true_cka": 0.0,
                        "nominal": level,
                        "rate": float(np.mean(p <= level)),
                        "repeats": len(p),
                    }


def null_p_values(
    population: Population, n: int, batches: int, count: int, counted: bool, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    if batches == 1:
        x, y = population.sample(count, n)
        test = cka_matrix_test(x, y)
        found = {"normal": stats.norm.sf(np.diag(test.z_score)), "exact moments": np.diag(test.p_value)}
        if counted:
            found["999 shuffles"] = np.diag(cka_matrix_test(x, y, permutations=999, seed=rng).p_value)
        return found
    statistics = MinibatchCKA()
    for _ in range(batches):
        statistics.update(*population.sample(count, n))
    return {
        "normal": stats.norm.sf(np.diag(statistics.z_score())),
        "exact moments": np.diag(statistics.p_value()),
    }


def write(rows: list[Row], path: Path, seed: int) -> None:
    """Write the table with the machine and the versions in each row."""
    machine = {
        "seed": seed,
        "platform": platform.platform(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "date": date.today().isoformat(),
        "command": command(),
    }
    names = list(dict.fromkeys(name for row in rows for name in row))
    texts = [{k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows]
    save_csv(path, [*names, *machine], [{**row, **machine} for row in texts])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=800, help="of each experiment")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    warnings.simplefilter("ignore", OutlierWarning)  # heavy tails are wanted here
    rng = np.random.default_rng(options.seed)
    start = time.perf_counter()
    rows: list[Row] = []
    print(f"{'':40}{'data':16}{'samples':>8}{'batches':>8}{'CKA':>7}{'nominal':>9}{'rate':>8}{'+-':>7}{'SE/sd':>7}")
    for row in chain(*(section(rng, options.repeats) for section in (intervals, few_features, rejections))):
        rows.append(row)
        rate, repeats = float(str(row["rate"])), int(str(row["repeats"]))
        noise = math.sqrt(rate * (1 - rate) / repeats)
        ratio = f"{row['mean_error'] / row['spread']:7.2f}" if "spread" in row else ""
        print(
            f"{row['what']:40}{row['data']:16}{row['samples']:8}{row['batches']:8}{row['true_cka']:7.2f}"
            f"{row['nominal']:9}{rate:8.4f}{noise:7.4f}{ratio}"
        )
    write(rows, options.output, options.seed)
    print(f"\n{time.perf_counter() - start:.0f} s; written to {options.output}")


if __name__ == "__main__":
    main()
