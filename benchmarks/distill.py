"""Measure the cost that RCKA adds to a training step of resnet32x4 -> resnet8x4: batch 64, 32 x 32 images, 100 classes.

python benchmarks/distill.py [--rounds 15] [--output benchmarks/results/distill.csv]

Three kinds of step are interleaved. The first runs student and teacher forward, then cross-entropy, backward and the
optimizer. The second adds taps on three stages, the third taps and RCKA. The table has medians, also of the ratios to
the first step within each round.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from tables import write_frame
from torch.nn import functional

from cka_probe.distill.losses.cka import RCKALoss
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "distill.csv")
    options = parser.parse_args()
    kinds = steps(options.batch)
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    for round_number in range(options.rounds + 1):
        for name, step in kinds.items():
            started = time.perf_counter()
            step()
            if round_number:  # the first round only warms up
                seconds[name].append(time.perf_counter() - started)
    rows = []
    for name, values in seconds.items():
        median = statistics.median(values)
        # Ratios within a round: a busy machine disturbs them least.
        ratio = statistics.median(a / b for a, b in zip(values, seconds["without"], strict=True))
        rows.append({"step": name, "seconds": median, "fastest": min(values), "ratio": ratio})
        print(f"{name:20} {median:.3f} s   {ratio:.3f} x   fastest {min(values):.3f} s")
    write_frame(options.output, pd.DataFrame(rows))


if __name__ == "__main__":
    main()
