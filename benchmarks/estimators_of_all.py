"""Time and error of each route to the CKA of a whole data set, for docs/estimators.md.

python benchmarks/estimators_of_all.py [--output benchmarks/results/estimators_of_all.csv] [--quick]

Features are float32; each side has two correlated layers; linear kernel, unbiased estimator. The reference is the
n x n definition in float64. Times are medians over the rounds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tables import write_frame

from cka_probe.estimators import MinibatchCKA, MomentCKA, SketchCKA, blocked_cka, choose_route
from cka_probe.estimators.inference import cka_matrix_with_error

SIZES = [(1_000, 64), (1_000, 4_096), (10_000, 64), (10_000, 512), (100_000, 64), (4_000, 4_096)]


def features(n: int, d: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(n, 16, generator=generator)

    def layer() -> torch.Tensor:
        mixed = shared @ torch.randn(16, d, generator=generator) / 4
        return mixed + torch.randn(n, d, generator=generator) + 5

    return [layer(), layer()], [layer(), layer()]


def definition(xs: list[torch.Tensor], ys: list[torch.Tensor]) -> np.ndarray:
    """The n x n definition of unbiased CKA in float64, one pair of layers at a time."""

    def u_centred(x: torch.Tensor) -> torch.Tensor:
        x = x.double() - x.double().mean(0)
        gram = (x @ x.T).fill_diagonal_(0)
        n = len(gram)
        rows = gram.sum(1)
        gram -= rows[:, None] / (n - 2) + rows[None, :] / (n - 2) - rows.sum() / ((n - 1) * (n - 2))
        return gram.fill_diagonal_(0)

    left, right = [u_centred(x) for x in xs], [u_centred(y) for y in ys]
    norm_x, norm_y = [float(a.norm()) for a in left], [float(b.norm()) for b in right]
    return np.array(
        [
            [float((a * b).sum()) / (p * q) for b, q in zip(right, norm_y, strict=True)]
            for a, p in zip(left, norm_x, strict=True)
        ]
    )


def batches(xs: list[torch.Tensor], size: int = 256):
    for start in range(0, len(xs[0]), size):
        yield [x[start : start + size] for x in xs]


def streamed(statistics, xs, ys):
    for x, y in zip(batches(xs), batches(ys), strict=True):
        if len(x[0]) > 3:
            statistics.update(x, y)
    return statistics.compute().numpy()


ROUTES: dict[str, Callable] = {
    "minibatch (256)": lambda xs, ys: streamed(MinibatchCKA(), xs, ys),
    "moments": lambda xs, ys: streamed(MomentCKA(), xs, ys),
    "blocks": lambda xs, ys: blocked_cka(xs, ys).numpy(),
    "whole Gram + jackknife": lambda xs, ys: cka_matrix_with_error(xs, ys).value.numpy(),
    "sketch (512)": lambda xs, ys: streamed(SketchCKA(size=512), xs, ys),
}
MOST = {
    "whole Gram + jackknife": lambda n, _: n <= 4_000,
    "moments": lambda _, d: d <= 1_024,
    "blocks": lambda n, _: n <= 10_000,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "estimators_of_all.csv")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="small sizes only")
    options = parser.parse_args()
    rows = []
    for n, d in SIZES[:1] if options.quick else SIZES:
        xs, ys = features(n, d)
        reference = definition(xs, ys) if n <= 10_000 else None
        chosen = choose_route(n, [d, d], [d, d]).name
        for name, run in ROUTES.items():
            if name in MOST and not MOST[name](n, d):
                continue
            seconds = []
            for _ in range(options.rounds):
                started = time.perf_counter()
                values = run(xs, ys)
                seconds.append(time.perf_counter() - started)
            error = np.nan if reference is None else float(np.abs(values - reference).max())
            rows.append(
                {
                    "n": n,
                    "d": d,
                    "route": name,
                    "seconds": np.median(seconds),
                    "max_error": error,
                    "chosen": name.startswith(chosen),
                }
            )
            print(f"n {n:7}  d {d:5}  {name:24} {np.median(seconds):8.3f} s   error {error:.1e}", flush=True)
    write_frame(options.output, pd.DataFrame(rows))
    print(options.output)


if __name__ == "__main__":
    main()
