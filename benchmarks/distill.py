"""Measure the cost that RCKA adds to a training step of resnet32x4 -> resnet8x4: batch 64, 32 x 32 images, 100 classes.

    python benchmarks/distill.py               writes benchmarks/results/distill.csv
    python benchmarks/distill.py --compiled    losses under torch.compile beside eager ones: compiled_losses.csv

Three kinds of step are interleaved. The first runs student and teacher forward, then cross-entropy, backward and the
optimizer. The second adds taps on three stages, the third taps and RCKA. The table has medians, also of the ratios to
the first step within each round. All steps run while glibc keeps freed memory, as in `distill`.

With --compiled, forward and backward of each loss alone on outputs of these shapes, eager and with
``torch.compile(loss, fullgraph=True)``, interleaved too; the time of compilation is a column of its own.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tables import write_frame
from torch.nn import functional

from cka_probe.capture.allocator import memory_kept
from cka_probe.distill.baselines import DISTLoss, DKDLoss, KDLoss, SPLoss
from cka_probe.distill.losses.cka import FeatureCKALoss, LogitCKALoss, RCKALoss
from cka_probe.distill.losses.contract import Outputs
from cka_probe.distill.models import build
from cka_probe.distill.taps.tapped_model import TappedModel

STAGES = ["layer1", "layer2", "layer3"]


def steps(batch: int) -> dict[str, Callable[[], None]]:
    """The training steps to compare, by name; all use the same images."""
    torch.manual_seed(0)
    teacher, student = build("resnet32x4").eval(), build("resnet8x4").train()
    images, labels = torch.randn(batch, 3, 32, 32), torch.randint(0, 100, (batch,))
    optimizer = torch.optim.SGD(student.parameters(), lr=0.01, momentum=0.9)
    rcka = RCKALoss()
    plain = TappedModel(student), TappedModel(teacher)
    watched = TappedModel(student, STAGES), TappedModel(teacher, STAGES)

    def step(taps: bool, with_rcka: bool) -> None:
        pupil, master = watched if taps else plain
        with pupil, master:
            outputs = pupil(images)
            with torch.no_grad():
                goals = master(images)
        loss = functional.cross_entropy(outputs.logits, labels)
        if with_rcka:
            loss = loss + rcka(outputs, goals)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return {
        "without": lambda: step(False, False),
        "with taps": lambda: step(True, False),
        "with taps and RCKA": lambda: step(True, True),
    }


def outputs(batch: int, requires_grad: bool) -> Outputs:
    """Logits and feature maps of the shapes of resnet8x4, at random."""
    shapes = [(batch, 64, 32, 32), (batch, 128, 16, 16), (batch, 256, 8, 8)]
    logits = torch.randn(batch, 100, requires_grad=requires_grad)
    return Outputs(logits, tuple(torch.randn(shape, requires_grad=requires_grad) for shape in shapes))


def compiled_losses(batch: int, rounds: int) -> list[dict[str, object]]:
    """A row for each loss: median milliseconds of forward and backward, eager and compiled."""
    rows: list[dict[str, object]] = []
    for make in (RCKALoss, FeatureCKALoss, LogitCKALoss, KDLoss, DKDLoss, DISTLoss, SPLoss):
        torch.manual_seed(0)
        eager, student, teacher = make(), outputs(batch, True), outputs(batch, False)
        targets = torch.randint(0, 100, (batch,))
        ways = {"eager": eager, "compiled": torch.compile(eager, fullgraph=True)}

        def run(loss: Any, student: Outputs = student, teacher: Outputs = teacher, target: Any = targets) -> None:
            value = loss(student, teacher, target)
            torch.autograd.grad(value, [student.logits, *student.features], allow_unused=True)

        started = time.perf_counter()
        run(ways["compiled"])
        first = time.perf_counter() - started
        seconds = interleaved({name: partial(run, loss) for name, loss in ways.items()}, rounds)
        ratio = statistics.median(a / b for a, b in zip(seconds["compiled"], seconds["eager"], strict=True))
        row = {f"{name}_ms": round(1000 * statistics.median(values), 3) for name, values in seconds.items()}
        rows.append({"loss": make.__name__, **row, "ratio": round(ratio, 3), "compilation_s": round(first, 1)})
        print(rows[-1], flush=True)
    return rows


def interleaved(kinds: Mapping[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call in each round; a round before them only warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    for round_number in range(rounds + 1):
        for name, step in kinds.items():
            started = time.perf_counter()
            step()
            if round_number:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--compiled", action="store_true", help="losses under torch.compile beside eager ones")
    parser.add_argument("--output", type=Path, help="the table")
    options = parser.parse_args()
    results = Path(__file__).parent / "results"
    if options.compiled:
        frame = pd.DataFrame(compiled_losses(options.batch, options.rounds))
        write_frame(options.output or results / "compiled_losses.csv", frame)
        return
    with memory_kept([torch.nn.Linear(1, 1)]):
        seconds = interleaved(steps(options.batch), options.rounds)
    rows = []
    for name, values in seconds.items():
        median = statistics.median(values)
        # Ratios within a round: a busy machine disturbs them least.
        ratio = statistics.median(a / b for a, b in zip(values, seconds["without"], strict=True))
        rows.append({"step": name, "seconds": median, "fastest": min(values), "ratio": ratio})
        print(f"{name:20} {median:.3f} s   {ratio:.3f} x   fastest {min(values):.3f} s")
    write_frame(options.output or results / "distill.csv", pd.DataFrame(rows))


if __name__ == "__main__":
    main()
