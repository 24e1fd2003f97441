"""Measure how time and memory of compare() grow with layers, batch size, samples and width.

    python benchmarks/scaling.py            everything, about four minutes on two quiet cores
    python benchmarks/scaling.py --quick    small ends of each axis, nothing written

- layers: 10 to 500 linear layers of width 256 with a tanh each, 1024 samples in batches of 64, a network with itself.
- batch: the same network of 50 layers, 2048 samples in batches of 8 to 512: a Gram matrix costs n^2.
- samples: 1,000 to 100,000 samples in batches of 256, eight layers of width 64, exact over the whole data set
  (scope="dataset"; the moment route). Memory should not grow.
- width: one batch of 64 with layers of 64 to 65,536 features that were drawn before: the cost of a hook without the
  forward pass.

Times are medians over interleaved rounds, beside the forward passes alone. Memory is measured in a process of its own,
above what the process held before. Results go to
benchmarks/results/scaling.csv.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from memory import peak_in_a_process, peak_of
from tables import write
from torch import nn

import cka_probe as cp

RESULTS = Path(__file__).parent / "results" / "scaling.csv"
AXES = {
    "layers": [10, 20, 50, 100, 200, 500],
    "batch": [8, 16, 32, 64, 128, 256, 512],
    "samples": [1_000, 3_000, 10_000, 30_000, 100_000],
    "width": [64, 512, 4_096, 16_384, 65_536],
}
QUICK = {"layers": [10, 50], "batch": [16, 64], "samples": [1_000, 3_000], "width": [64, 4_096]}


class Batches:
    """Normal samples that are drawn batch by batch, so that the data take no memory."""

    def __init__(self, samples: int, batch: int, width: int) -> None:
        self.samples, self.batch, self.width = samples, batch, width

    def __len__(self) -> int:
        return -(-self.samples // self.batch)

    def __iter__(self) -> Iterator[torch.Tensor]:
        generator = torch.Generator().manual_seed(1)
        for start in range(0, self.samples, self.batch):
            yield torch.randn(min(self.batch, self.samples - start), self.width, generator=generator)


class Given(nn.Module):
    """Layers that return features drawn before, so that the forward pass costs nothing."""

    def __init__(self, layers: int, samples: int, width: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Identity() for _ in range(layers))
        generator = torch.Generator().manual_seed(2)
        self.drawn = [torch.randn(samples, width, generator=generator) for _ in range(layers)]

    def forward(self, _x: torch.Tensor) -> None:
        """Run every layer; the input is ignored."""
        for part, features in zip(self.parts, self.drawn, strict=True):
            part(features)


def chain(layers: int, width: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Sequential(nn.Linear(width, width), nn.Tanh()) for _ in range(layers))).eval()


def setting(axis: str, value: int) -> tuple[nn.Module, Batches, dict[str, Any]]:
    """Network, data and arguments of one measurement."""
    if axis == "layers":
        return chain(value, 256), Batches(1024, 64, 256), {"layers": nn.Tanh}
    if axis == "batch":
        return chain(50, 256), Batches(2048, value, 256), {"layers": nn.Tanh}
    if axis == "samples":
        return chain(8, 64), Batches(value, 256, 64), {"layers": nn.Tanh, "scope": "dataset"}
    return Given(8, 64, value), Batches(64, 64, 1), {"layers": "leaves"}


def tools(net: nn.Module, data: Batches, arguments: dict[str, Any]) -> dict[str, Callable[[], Any]]:
    def alone() -> None:
        with torch.no_grad():
            for batch in data:
                net(batch)

    return {"forward alone": alone, "cka_probe": lambda: cp.compare(net, net, data, progress=False, **arguments)}


def seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def peak_of_one(axis: str, value: int) -> float:
    small, data, arguments = setting(axis, min(QUICK[axis]))
    tools(small, Batches(min(data.samples, 300), data.batch, data.width), arguments)["cka_probe"]()  # imports
    net, data, arguments = setting(axis, value)
    return peak_of(tools(net, data, arguments)["cka_probe"])[1]


def measure(axis: str, value: int, options: argparse.Namespace) -> dict[str, Any]:
    net, data, arguments = setting(axis, value)
    runs = tools(net, data, arguments)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    rounds = 2 if axis == "samples" and value >= 30_000 else options.rounds
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(seconds(run))
    ours, alone = (statistics.median(times[name]) for name in ("cka_probe", "forward alone"))
    ratio = statistics.median(a / b for a, b in zip(times["cka_probe"], times["forward alone"], strict=True))
    memory = peak_in_a_process(__file__, "--memory-of", axis, str(value), "--threads", str(options.threads))
    row = {
        "axis": axis,
        "value": value,
        "samples": data.samples,
        "batch": data.batch,
        "rounds": rounds,
        "seconds": f"{ours:.4f}",
        "forward_seconds": f"{alone:.4f}",
        "times_floor": "" if axis == "width" else f"{ratio:.3f}",
        "milliseconds_above_per_batch": f"{(ours - alone) / len(data) * 1e3:.3f}",
        "peak_mib": "" if memory is None else f"{memory:.1f}",
    }
    print(
        f"{axis:8}{value:>8}{row['seconds']:>10} s{row['times_floor']:>8} x floor"
        f"{row['milliseconds_above_per_batch']:>10} ms a batch above it{row['peak_mib']:>10} MiB"
    )
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--axis", choices=AXES, action="append", help="only this axis; may be given several times")
    parser.add_argument("--quick", action="store_true", help="small ends of each axis, nothing written")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of torch")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--memory-of", nargs=2, metavar=("AXIS", "VALUE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory_of:
        axis, value = options.memory_of
        print(json.dumps(peak_of_one(axis, int(value))))
        return
    if options.quick:
        options.rounds = min(options.rounds, 2)
    values = QUICK if options.quick else AXES
    rows = [measure(axis, value, options) for axis in options.axis or AXES for value in values[axis]]
    if not options.quick:
        write(options.output, list(rows[0]), rows)
        print(f"written to {options.output}")


if __name__ == "__main__":
    main()
