"""Time and memory of compare(scope="dataset", memory=...) by each route, over features from 0.1 to 40 GiB.

python benchmarks/routes.py [--output FILE] [--memory 4GiB] [--most GIB] [--chosen-above GIB]

Two networks of depthwise convolutions and tanh on images of 64 x 64, each comparison in a process of its own, whose
largest memory is that of the operating system. Batches hold 16 images. Above ``--chosen-above`` only the route that is
chosen runs. The error is the largest difference from the n x n definition in float64, one layer at a time.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tables import write_frame
from torch import nn

import cka_probe as cp

CASES = [(64, 1), (64, 8), (128, 16), (256, 32), (320, 64)]
"""Numbers of images and of convolutions; each image and convolution has 2 MiB of features."""

ROUTES = ("grams", "disk", "blocks")
CHANNELS, BATCH = 64, 16


def network(depth: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    layers: list[nn.Module] = [nn.Conv2d(3, CHANNELS, 1)]
    for _ in range(depth):
        layers += [nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=CHANNELS), nn.Tanh()]
    return nn.Sequential(*layers).eval()


def images(count: int) -> torch.Tensor:
    return torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def names(depth: int) -> list[str]:
    return [str(i) for i in range(1, 2 * depth + 1)]


def reference(net: nn.Module, data: torch.Tensor, pairs: list[tuple[str, str]]) -> list[float]:
    """Unbiased CKA of some pairs of layers by its definition in float64."""

    def u_centred(layer: str) -> np.ndarray:
        with cp.Probe(net, [layer]) as probe, torch.no_grad():
            parts = []
            for batch in data.split(BATCH):
                net(batch)
                parts.append(probe.features[layer].double().numpy())
        x = np.concatenate(parts)
        x -= x.mean(0)
        gram = x @ x.T
        np.fill_diagonal(gram, 0)
        n, rows = len(gram), gram.sum(1)
        gram -= rows[:, None] / (n - 2) + rows / (n - 2) - rows.sum() / ((n - 1) * (n - 2))
        np.fill_diagonal(gram, 0)
        return gram / np.linalg.norm(gram)

    return [float((u_centred(a) * u_centred(b)).sum()) for a, b in pairs]


def one(count: int, depth: int, memory: str, route: str | None) -> dict[str, object]:
    net, data = network(depth, 0), images(count)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    found = cp.compare(
        net,
        net,
        list(data.split(BATCH)),
        layers=names(depth),
        scope="dataset",
        memory=memory,
        route=route,
        progress=False,
    )
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pairs = [("1", str(2 * depth)), (str(depth), str(2 * depth))]
    values = [found[pair] for pair in pairs]
    error = max(abs(a - b) for a, b in zip(values, reference(net, data, pairs), strict=True))
    return {
        "route": found.meta["route"],
        "passes": found.meta["passes"],
        "seconds": seconds,
        "added_gib": (peak - before) / 2**20,
        "peak_gib": peak / 2**20,
        "max_error": error,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "routes.csv")
    parser.add_argument("--memory", default="4GiB")
    parser.add_argument("--most", type=float, default=40.0, help="largest features, in GiB")
    parser.add_argument("--chosen-above", type=float, default=5.0, help="above this only the chosen route runs")
    parser.add_argument("--one", nargs=3, metavar=("IMAGES", "DEPTH", "ROUTE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        count, depth, route = options.one
        print(json.dumps(one(int(count), int(depth), options.memory, None if route == "chosen" else route)))
        return
    rows = []
    for count, depth in CASES:
        size = count * 2 * depth * CHANNELS * 64 * 64 * 4 / 2**30
        if size > options.most:
            continue
        for asked in ("chosen", *(ROUTES if size <= options.chosen_above else ())):
            command = [sys.executable, __file__, "--memory", options.memory, "--one", str(count), str(depth), asked]
            run = subprocess.run(command, capture_output=True, text=True, check=False)
            if run.returncode:
                print(f"{size:6.2f} GiB  {asked:7} {run.stderr.strip().splitlines()[-1][:200]}", flush=True)
                continue
            found = json.loads(run.stdout.splitlines()[-1])
            rows.append({"features_gib": size, "images": count, "asked": asked, "memory": options.memory, **found})
            print(f"{size:6.2f} GiB  {asked:7}", {k: v for k, v in found.items()}, flush=True)
            write_frame(options.output, pd.DataFrame(rows))
    print(options.output)


if __name__ == "__main__":
    main()
