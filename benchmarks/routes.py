"""Time and memory of compare(scope="dataset", memory=...) by each route, over features from 0.1 to 40 GiB.

python benchmarks/routes.py [--output FILE] [--memory 4GiB] [--most GIB] [--all-below GIB]
python benchmarks/routes.py --accept [efficientnet] [resnet]

Wide features come from scaled and bent images of 128 x 128, narrow ones from layers of 256 to 1,024 units. Each
comparison runs in a process of its own, whose largest memory is that of the operating system. Up to ``--all-below``
each route that fits is forced too. The error is the largest difference from the n x n definition in float64, whose
Gram matrices are made one layer at a time. ``--accept`` runs all leaves of two networks, each against itself with other
weights, within 4 GiB: EfficientNet-Lite0 (timm) on 48 images of 160, which took 23 GB without routes, and ResNet-50
(torchvision) on 64 images of 224, 15 GiB of features. Their table is routes_accept.csv, beside the output.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tables import write_frame
from torch import nn

import cka_probe as cp

CASES = [
    ("images", 16, 1),
    ("units of 512", 4096, 8),
    ("units of 1024", 2048, 8),
    ("images", 32, 4),
    ("units of 256", 65536, 8),
    ("images", 64, 8),
    ("images", 64, 32),
    ("images", 64, 80),
]
"""Kind of layers, number of samples, and of blocks of two layers each."""

ROUTES = ("moments", "grams", "disk", "blocks")
CHANNELS, SIDE = 64, 128
BATCH = {"images": 16, "units of 256": 256, "units of 512": 256, "units of 1024": 256}
PAIRS = 3
"""Layers of rows and of columns whose pairs are compared with the definition."""

MOST_SAMPLES = 8192
"""Above this number the definition takes too long."""


class Affine(nn.Module):
    """Each channel times one number, plus another."""

    def __init__(self) -> None:
        super().__init__()
        self.factor, self.shift = nn.Parameter(torch.randn(CHANNELS, 1, 1)), nn.Parameter(torch.randn(CHANNELS, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Of images (n, channels, height, width)."""
        return torch.addcmul(self.shift, x, self.factor)


def width_of(kind: str) -> int:
    return CHANNELS * SIDE**2 if kind == "images" else int(kind.split()[-1])


def network(kind: str, blocks: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    if kind == "images":
        layers: list[nn.Module] = [nn.Conv2d(3, CHANNELS, 1)]
        for _ in range(blocks):
            layers += [Affine(), nn.Hardtanh(-2, 2)]
    else:
        width = width_of(kind)
        layers = [nn.Identity()]
        for _ in range(blocks):
            layers += [nn.Linear(width, width), nn.Tanh()]
    return nn.Sequential(*layers).eval()


def samples(kind: str, count: int) -> torch.Tensor:
    shape = (count, 3, SIDE, SIDE) if kind == "images" else (count, width_of(kind))
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def u_centred(net: nn.Module, layer: str, batches: list[torch.Tensor]) -> np.ndarray:
    """The U-centred Gram matrix of a layer by its definition in float64, of norm 1."""
    parts = []
    with cp.Probe(net, [layer]) as probe, torch.no_grad():
        for batch in batches:
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


def max_error(found: cp.SimilarityMatrix, nets: tuple[nn.Module, nn.Module], batches: list[torch.Tensor]) -> float:
    """Largest difference from the definition, for some pairs of layers from all depths."""
    rows = [found.rows[int(i)] for i in np.linspace(0, len(found.rows) - 1, PAIRS)]
    columns = [found.columns[int(i)] for i in np.linspace(0, len(found.columns) - 1, PAIRS)]
    of_rows = {layer: u_centred(nets[0], layer, batches) for layer in rows}
    of_columns = {layer: u_centred(nets[1], layer, batches) for layer in columns}
    return max(abs(found[a, b] - float((of_rows[a] * of_columns[b]).sum())) for a in rows for b in columns)


def measured(nets: tuple[nn.Module, nn.Module], batches: list[torch.Tensor], **options: Any) -> dict[str, object]:
    """Time, memory and error of one comparison in this process."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    found = cp.compare(*nets, batches, scope="dataset", progress=False, **options)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    few = found.meta["samples"] <= MOST_SAMPLES
    return {
        "route": found.meta["route"],
        "passes": found.meta["passes"],
        "seconds": seconds,
        "added_gib": (peak - before) / 2**20,
        "peak_gib": peak / 2**20,
        "max_error": max_error(found, nets, batches) if few else float("nan"),
    }


def one(kind: str, count: int, blocks: int, memory: str, route: str | None) -> dict[str, object]:
    net, data = network(kind, blocks, 0), samples(kind, count)
    layers = [str(i) for i in range(1, 2 * blocks + 1)]
    return measured((net, net), list(data.split(BATCH[kind])), layers=layers, memory=memory, route=route)


def accept(name: str, memory: str) -> dict[str, object]:
    """One of the two cases that a comparison within 4 GiB has to finish, to 1e-6."""
    nets = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        if name == "efficientnet":
            import timm

            nets.append(timm.create_model("efficientnet_lite0", pretrained=False).eval())
        else:
            import torchvision

            nets.append(torchvision.models.resnet50().eval())
    shape = (48, 3, 160, 160) if name == "efficientnet" else (64, 3, 224, 224)
    data = torch.randn(shape, generator=torch.Generator().manual_seed(5))
    return measured((nets[0], nets[1]), list(data.split(16)), memory=memory)


def child(*arguments: str) -> dict[str, Any] | str:
    """What this script prints in a process of its own, or its error."""
    run = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True, check=False)
    if run.returncode:
        return (run.stderr.strip().splitlines() or [f"ended with {run.returncode}"])[-1][:300]
    return json.loads(run.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "routes.csv")
    parser.add_argument("--memory", default="4GiB")
    parser.add_argument("--most", type=float, default=40.0, help="largest features, in GiB")
    parser.add_argument("--all-below", type=float, default=5.0, help="up to this all routes run, above the chosen one")
    parser.add_argument("--accept", nargs="*", choices=("efficientnet", "resnet"), help="the two networks only")
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        if len(options.one) == 1:
            print(json.dumps(accept(options.one[0], options.memory)))
            return
        kind, count, blocks, route = options.one
        print(json.dumps(one(kind, int(count), int(blocks), options.memory, None if route == "chosen" else route)))
        return
    if options.accept is not None:
        found = {}
        for name in options.accept or ("efficientnet", "resnet"):
            found[name] = child("--memory", options.memory, "--one", name)
            print(name, found[name], flush=True)
        frame = pd.DataFrame([{"network": name, **row} for name, row in found.items() if isinstance(row, dict)])
        write_frame(options.output.with_name("routes_accept.csv"), frame)
        return
    rows: list[dict[str, Any]] = []
    for kind, count, blocks in CASES:
        size = count * 2 * blocks * width_of(kind) * 4 / 2**30
        if size > options.most:
            continue
        own: list[dict[str, Any]] = []
        for asked in ("chosen", *(ROUTES if size <= options.all_below and count <= MOST_SAMPLES else ())):
            found = child("--memory", options.memory, "--one", kind, str(count), str(blocks), asked)
            print(f"{size:6.2f} GiB  {kind:14} {asked:8}", found, flush=True)
            if isinstance(found, dict):
                case = {"features_gib": size, "layers": kind, "samples": count, "number_of_layers": 2 * blocks}
                own.append({**case, "asked": asked, "memory": options.memory, **found})
        best = min((row["seconds"] for row in own), default=float("nan"))
        rows += [{**row, "times_best": row["seconds"] / best} for row in own]
        write_frame(options.output, pd.DataFrame(rows))
    print(options.output)


if __name__ == "__main__":
    main()
