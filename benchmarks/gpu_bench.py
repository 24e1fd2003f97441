"""The clock, the device and the rows of a run of benchmarks/gpu.py."""

from __future__ import annotations

import importlib.metadata
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import torch
from tables import command, save_csv

FIELDS = (
    "part", "case", "method", "seconds", "over_floor", "max_error", "peak_bytes", "peak_over_floor", "waits_per_batch",
    "gigabytes_per_second", "note", "device", "versions", "date", "command",
)  # fmt: skip
Row = dict[str, Any]


class Bench:
    """Sizes, the device, the clock and the rows of one run."""

    def __init__(self, smoke: bool, minutes: float, output: Path) -> None:
        self.smoke = smoke
        self.device = torch.device("cpu" if smoke else "cuda")
        self.rounds = 1 if smoke else 3
        self.deadline = time.monotonic() + 60 * minutes
        self.file = output / "gpu.csv"
        self.rows: list[Row] = []
        packages = ("torch", "torchvision", "transformers", "cupy-cuda13x", "cupy-cuda12x", "pytorch-cka", "torch_cka")
        self.stamp = {
            "device": platform.machine() if smoke else torch.cuda.get_device_name(),
            "versions": "; ".join([f"python {platform.python_version()}", *filter(None, map(version, packages))]),
            "date": date.today().isoformat(),
            "command": command(),
        }

    def add(self, part: str, case: str, method: str, **values: Any) -> None:
        """Add a row and save the table at once, so that a run that is cut off keeps its rows."""
        row = {"part": part, "case": case, "method": method, **values, **self.stamp}
        self.rows.append(row)
        shown = (f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items())
        print(f"{part:9} {case:28} {method:24} " + "  ".join(shown), flush=True)
        save_csv(self.file, FIELDS, self.rows)

    def late(self, part: str, case: str) -> bool:
        """Whether the time is up. If so, a row says that the case was skipped."""
        if time.monotonic() < self.deadline:
            return False
        self.add(part, case, "all", note="skipped: the time was up")
        return True

    def wait(self) -> None:
        """Wait until the GPU has finished."""
        if not self.smoke:
            torch.cuda.synchronize()

    def measure(self, run: Callable[[], Any]) -> tuple[float, int]:
        """Seconds of one run, and its peak memory in bytes above what was allocated before."""
        self.wait()
        before = 0
        if not self.smoke:
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        started = time.perf_counter()
        run()
        self.wait()
        seconds = time.perf_counter() - started
        return seconds, 0 if self.smoke else torch.cuda.max_memory_allocated() - before

    def median(self, run: Callable[[], Any], repeat: int = 5) -> float:
        """Seconds of one run: mean over ``repeat`` runs in a row, median over the rounds."""
        run()
        times = [self.measure(lambda: [run() for _ in range(repeat)])[0] / repeat for _ in range(self.rounds)]
        return statistics.median(times)


def version(package: str) -> str | None:
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return None


def has_cupy(bench: Bench) -> bool:
    if bench.smoke:
        return False
    try:
        import cupy  # noqa: F401
    except ImportError:
        return False
    return True


@contextmanager
def quiet() -> Iterator[None]:
    """Hide the warnings of other tools."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
