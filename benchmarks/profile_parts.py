"""Where the time of compare() goes: who spends what, for each layer and batch.

    python benchmarks/profile.py many_layers            one of the cases of benchmarks/cases.py
    python benchmarks/profile.py resnet50 --channels-last --threads 1
    python benchmarks/profile.py many_layers --times 8  the same batches eight times: what occurs once counts less

Times are exclusive: what a part calls counts for the part that is called. "products alone" is no part: it is the time
of the bare products X @ X.T for features of these shapes, the least that the Gram matrices can take. The clock itself
costs about 0.3 us for each call of a part.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from cases import CASES, Case
from tools import floor, ours

from cka_probe.capture import recorder, streaming
from cka_probe.capture.batches import call_model
from cka_probe.capture.hooks import Probe
from cka_probe.capture.own_state import OwnState
from cka_probe.capture.random_draws import RandomDraws
from cka_probe.capture.unchanged import UnchangedOutputs
from cka_probe.comparison import minibatch
from cka_probe.comparison.grams import keeper
from cka_probe.comparison.grams.drift import BatchMeans
from cka_probe.estimators.minibatch import MinibatchCKA

PARTS: dict[str, list[tuple[Any, str]]] = {
    "forward passes": [],  # `call_model`, see `watched`
    "names and calls of layers": [(Probe, "_give")],
    "reading and checking outputs": [(recorder.LayerRecorder, "_receive")],
    "pooling": [(recorder, "pool")],
    "Gram matrices": [(keeper.GramKeeper, "__call__")],
    "review of Gram matrices": [(keeper.GramKeeper, "review")],
    "drift test": [(BatchMeans, "see"), (BatchMeans, "end_batch")],
    "outputs that never change": [(UnchangedOutputs, "see"), (UnchangedOutputs, "start"), (UnchangedOutputs, "end")],
    "state and noise of the network": [
        (OwnState, "__init__"),
        (OwnState, "after_first"),
        (OwnState, "finish"),
        (RandomDraws, "__init__"),
        (RandomDraws, "notes"),
    ],
    "centring of Gram matrices": [(minibatch, "centred_rows")],
    "statistics of all pairs": [(MinibatchCKA, "update_rows"), (minibatch, "minibatch_result")],
    "eval mode, memory, random states": [(streaming, "borrowed"), (streaming, "memory_kept")],
}


class Clock:
    """Exclusive time of each part: the time of an inner part is taken from the outer one."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._open: list[str] = ["the rest of the pass"]
        self._since = time.perf_counter()

    def turn(self, part: str | None) -> None:
        """Begin a part, or with None end the innermost one."""
        now = time.perf_counter()
        own = self._open[-1]
        self.seconds[own] = self.seconds.get(own, 0.0) + now - self._since
        self._since = now
        if part is None:
            self._open.pop()
        else:
            self._open.append(part)

    def watched(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, whose time counts for a part."""

        @functools.wraps(function)
        def run(*arguments: Any, **options: Any) -> Any:
            self.turn(part)
            try:
                return function(*arguments, **options)
            finally:
                self.turn(None)

        return run


def profiled(case: Case, **options: Any) -> tuple[float, dict[str, float], dict[str, tuple[int, ...]], int]:
    """Seconds of one comparison, seconds of each part, shapes of the features by layer, and the number of hooks run."""
    clock = Clock()
    shapes: dict[str, tuple[int, ...]] = {}
    calls = 0
    before = [(owner, name, vars(owner)[name]) for places in PARTS.values() for owner, name in places]
    before += [(streaming, "call_model", call_model), (recorder, "call_model", call_model)]
    run = clock.watched("forward passes", call_model)
    made = keeper.GramKeeper.__call__

    def seen(self: Any, name: str, features: torch.Tensor) -> Any:
        nonlocal calls
        calls += 1
        shapes[f"{id(self)} {name}"] = tuple(features.shape)
        return made(self, name, features)

    try:
        streaming.call_model = recorder.call_model = run  # type: ignore[attr-defined]
        for part, places in PARTS.items():
            for owner, name in places:
                function = seen if (owner, name) == (keeper.GramKeeper, "__call__") else vars(owner)[name]
                setattr(owner, name, clock.watched(part, function))
        start = time.perf_counter()
        clock._since = start
        ours(case, **options)
        clock.turn(None)
        return time.perf_counter() - start, clock.seconds, shapes, calls
    finally:
        for owner, name, function in before:
            setattr(owner, name, function)


def products(shapes: dict[str, tuple[int, ...]]) -> float:
    """Seconds of the bare products X @ X.T, one for each layer."""
    total = 0.0
    known: dict[tuple[int, ...], float] = {}
    for shape in shapes.values():
        if shape not in known:
            x, times = torch.randn(shape), []
            for _ in range(5):
                start = time.perf_counter()
                x @ x.T
                times.append(time.perf_counter() - start)
            known[shape] = statistics.median(times)
        total += known[shape]
    return total


def repeated(data: torch.Tensor | dict[str, torch.Tensor], times: int) -> torch.Tensor | dict[str, torch.Tensor]:
    """The samples, so many times one after the other."""
    if isinstance(data, dict):
        return {key: torch.cat([value] * times) for key, value in data.items()}
    return torch.cat([data] * times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--rounds", type=int, default=5, help="the round with the median time is shown")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--times", type=int, default=1, help="run over the data so many times in one comparison")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    case = CASES[options.case]()
    case.images = repeated(case.images, options.times)
    asked = {"channels_last": True} if options.channels_last else {}
    floor(case), profiled(case, **asked)  # warm
    rounds, floors = [], []
    for _ in range(options.rounds):
        start = time.perf_counter()
        floor(case)
        floors.append(time.perf_counter() - start)
        rounds.append(profiled(case, **asked))
    total, seconds, shapes, calls = sorted(rounds, key=lambda found: found[0])[len(rounds) // 2]
    batches = -(-case.samples // case.batch)
    alone = products(shapes) * batches
    ratio = statistics.median(found[0] / base for found, base in zip(rounds, floors, strict=True))
    print(f"{case.title}; {batches} batches, {options.threads} threads, {calls} Gram matrices")
    print(f"{'':36}{'ms':>10}{'share':>8}{'us / layer and batch':>22}")
    for part, spent in sorted(seconds.items(), key=lambda item: -item[1]):
        print(f"{part:36}{1e3 * spent:10.1f}{spent / total:8.1%}{1e6 * spent / max(calls, 1):22.1f}")
    print(f"{'total':36}{1e3 * total:10.1f}{'':8}{1e6 * total / max(calls, 1):22.1f}")
    print(f"{'forwards alone, without hooks':36}{1e3 * statistics.median(floors):10.1f}   total / alone {ratio:.3f}")
    print(f"{'products alone':36}{1e3 * alone:10.1f}{'':8}{1e6 * alone / max(calls, 1):22.1f}")
