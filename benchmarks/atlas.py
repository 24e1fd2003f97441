"""Measure an atlas of 10,000 models of 50 layers: time to add, to build the index and to search; recall, memory, disk.

    python benchmarks/atlas.py                 everything, about a quarter of an hour on one core, 10 GB of disk
    python benchmarks/atlas.py --runs 20       a quick look

The signatures are simulated from real ones by noise. Real are 50 layers, evenly spaced, of three networks on 192
digits, in three minibatches. A run starts at one of them, each layer moved by noise of 0.7 of its norm, and goes on for
ten checkpoints, each moved on by noise of 0.1 to 0.4. So the nearest layer of another model is mostly that of the
checkpoint before or after. The models keep sketches of 4,096 numbers only. The true nearest layer of 1,000 layers comes
from the exact vectors of all in float32. Results go to benchmarks/results/atlas.csv, with the costs of 10^6 models on
paper, scaled from the measured ones.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from tables import write

import cka_probe as cp
from cka_probe.comparison.signature_files import SketchedSignature, header_of
from cka_probe.comparison.signature_vectors import batch_columns, sketch_of, vectors_of
from cka_probe.distill.models import build
from cka_probe.estimators.count_sketch import RowSketch

CHECKPOINTS, LAYERS, SIZE = 10, 50, 4096
QUERIED_RUNS = 100


def real_signatures() -> list[cp.Signature]:
    """Signatures of three untrained networks, of 50 layers each."""
    images = torch.tensor(load_digits().images[:192, None] / 16, dtype=torch.float32)
    images = torch.nn.functional.interpolate(images.expand(-1, 3, -1, -1), size=16)
    found = []
    for seed, name in enumerate(("resnet20", "resnet32", "wrn_16_2")):
        torch.manual_seed(seed)
        one = cp.signature(build(name, num_classes=10), list(images.split(64)), name=name, progress=False)
        places = np.linspace(0, len(one.layers) - 1, LAYERS).round().astype(int)
        found.append(
            replace(
                one,
                layers=tuple(f"{i:02d} {one.layers[p]}" for i, p in enumerate(places)),
                grams=tuple(gram[places] for gram in one.grams),
                scales=tuple(scale[places] for scale in one.scales),
            )
        )
    return found


def moved(rng: np.random.Generator, vectors: np.ndarray, noise: float) -> np.ndarray:
    """Vectors (layers, columns) of norm 1, moved by noise of this norm and brought back to norm 1."""
    step = rng.standard_normal(vectors.shape, dtype=np.float32)
    step *= noise / np.linalg.norm(step, axis=1, keepdims=True)
    step += vectors
    return step / np.linalg.norm(step, axis=1, keepdims=True)


def run_of(run: int, bases: list[np.ndarray]) -> Iterator[np.ndarray]:
    """Vectors of the checkpoints of one run."""
    rng = np.random.default_rng(run)
    vectors = moved(rng, bases[run % len(bases)], 0.7)
    for _ in range(CHECKPOINTS):
        yield vectors
        vectors = moved(rng, vectors, rng.uniform(0.1, 0.4))


def sketch(name: str, vectors: np.ndarray, like: cp.Signature) -> SketchedSignature:
    """The sketched signature of a simulated model."""
    rows = RowSketch(SIZE, 0)
    for start, stop in batch_columns(like.samples, like.estimator):
        rows.add(vectors[:, start:stop])
    return sketch_of(rows, {**header_of(like), "name": name})


def disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def measure(runs: int, folder: Path) -> list[dict[str, object]]:
    real = real_signatures()
    bases = [vectors_of(one) for one in real]
    rng = np.random.default_rng(0)
    queried = sorted(rng.choice(runs, min(QUERIED_RUNS, runs), replace=False).tolist())
    queries: list[tuple[int, int, int, np.ndarray]] = []
    for run in queried:
        chosen = [(int(rng.integers(CHECKPOINTS)), int(rng.integers(LAYERS))) for _ in range(10)]
        models = list(run_of(run, bases))
        queries += [(run, step, layer, models[step][layer]) for step, layer in chosen]
    wanted = np.stack([query[-1] for query in queries])

    atlas = cp.Atlas(folder / "atlas", sketch=cp.Sketch(SIZE))
    best = np.full(len(queries), -2.0)
    truth: list[tuple[str, str]] = [("", "")] * len(queries)
    adding = simulating = 0.0
    for run in range(runs):
        for step, vectors in enumerate(run_of(run, bases)):
            start = time.perf_counter()
            one = sketch(f"run {run} step {step}", vectors, real[run % len(real)])
            simulating += time.perf_counter() - start
            start = time.perf_counter()
            atlas.add(one)
            adding += time.perf_counter() - start
            values = wanted @ vectors.T
            for i, (own_run, own_step, *_) in enumerate(queries):
                if (own_run, own_step) == (run, step):
                    values[i] = -2
            nearest = values.argmax(axis=1)
            largest = values[np.arange(len(queries)), nearest]
            for i in np.flatnonzero(largest > best):
                best[i] = largest[i]
                truth[i] = (one.name, one.layers[nearest[i]])
    count = len(atlas)
    start = time.perf_counter()
    atlas = cp.Atlas(folder / "atlas")
    opening = time.perf_counter() - start
    ask = [((f"run {run} step {step}", real[run % len(real)].layers[layer]), 10) for run, step, layer, _ in queries]
    start = time.perf_counter()
    atlas.nearest(*ask[0])
    building = time.perf_counter() - start
    start = time.perf_counter()
    answers = [atlas.nearest(*one) for one in ask]
    searching = (time.perf_counter() - start) / len(ask)
    pairs = [list(zip(table["model"], table["layer"], strict=True)) for table in answers]
    start = time.perf_counter()
    cp.Atlas(folder / "atlas").nearest(*ask[0])
    again = time.perf_counter() - start
    layers = count * LAYERS
    first = float(np.mean([found[0] == true for found, true in zip(pairs, truth, strict=True)]))
    among = float(np.mean([true in found for found, true in zip(pairs, truth, strict=True)]))
    models = disk(folder / "atlas" / "models")
    index = disk(folder / "atlas" / "cache")
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    scale = 1_000_000 / count
    coarse = layers * 1024
    rows = [
        ("models", count, 1_000_000, "linear"),
        ("layers", layers, layers * scale, "linear"),
        ("sketch a model, from its vectors (ms)", 1e3 * simulating / count, 1e3 * simulating / count, "the same"),
        ("add a model (ms)", 1e3 * adding / count, 1e3 * adding / count, "the same"),
        ("open the atlas without an index (s)", opening, opening * scale, "linear"),
        ("build the index (s)", building, building * scale**1.5, "cells grow with the root: power 1.5"),
        ("open with the index and search once (s)", again, again * scale, "linear"),
        ("search (ms)", 1e3 * searching, 1e3 * searching * scale**0.5, "64 cells of root size: power 0.5"),
        ("true nearest layer found first", first, first, "not measured"),
        ("true nearest layer among the first 10", among, among, "not measured"),
        ("disk: sketches (GB)", models / 1e9, models * scale / 1e9, "linear"),
        ("disk: index (GB)", index / 1e9, index * scale / 1e9, "linear"),
        ("memory: coarse sketches of the index (GB)", coarse / 1e9, coarse * scale / 1e9, "linear"),
        ("memory: peak of this process (GB)", memory / 1e9, float("nan"), "holds the simulation too"),
    ]
    return [
        {"what": what, "measured": f"{value:.4g}", "10^6 models on paper": f"{paper:.4g}", "how": how}
        for what, value, paper, how in rows
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000, help="runs of ten checkpoints")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "atlas.csv")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="atlas_"))
    start = time.perf_counter()
    try:
        rows = measure(arguments.runs, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    for row in rows:
        print("  ".join(str(value) for value in row.values()))
    print(f"{time.perf_counter() - start:.0f} s in all")
    write(arguments.output, rows[0], rows)


if __name__ == "__main__":
    main()
