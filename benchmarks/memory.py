"""Peak memory of a piece of work on the CPU, from /proc, also in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

Result = TypeVar("Result")


def status(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def peak_of(run: Callable[[], Result]) -> tuple[Result, float]:
    """Result of ``run()``, and its peak of memory in MiB above what the process held before; NaN without /proc."""
    if not Path("/proc/self/status").exists():
        return run(), float("nan")
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM, the peak, back to the memory held now
    result = run()
    return result, (status("VmHWM") - before) / 2**20


def peak_in_a_process(script: str, *arguments: str) -> float | None:
    """Run the script in a process of its own and return the number in its last line, or None if it fails."""
    # glibc then returns each large array to the system at once, so that the peak counts live arrays only.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    command = [sys.executable, script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    return None if done.returncode else float(json.loads(done.stdout.splitlines()[-1]))
