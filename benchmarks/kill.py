"""Kill runs at random moments with SIGKILL, resume them, and compare the results bit by bit with uninterrupted runs.

    python benchmarks/kill.py                    100 kills over all jobs, about 20 minutes on one core
    python benchmarks/kill.py --kills 6          six kills
    python benchmarks/kill.py --job compare      one job

Each job (benchmarks/kill_jobs.py) runs in a process of its own, forked after the imports. It is killed after a random
share of the time of an uninterrupted run; then every file that it has left is read, and the job is run again to its
end. One kill in four kills the resumed run as well. The table counts the kills, the kills after which there was
something to resume from, the results that equal the uninterrupted run in every bit, and files that cannot be read.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
import tomllib
import traceback
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from kill_jobs import JOBS, TWO_PROCESSES, Job, join_processes
from safetensors.numpy import load_file
from tables import command, save_csv

RESULTS = Path(__file__).parent / "results" / "kill.csv"
FIELDS = (
    *("job", "kills", "with_a_checkpoint", "identical", "unreadable_files", "first_difference"),
    *("machine", "versions", "date", "command"),
)


def child(job: Job, folder: Path, inputs: Path, two: bool) -> int:
    """Start the job in a new process group and return its process id."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        os.setsid()
        torch.set_num_threads(1)
        rank = 0
        if two:
            other = os.fork()
            rank = int(other == 0)
            join_processes(rank, port)
        result = job(folder, inputs)
        if rank == 0:
            np.savez(folder / "outcome.npz", **result)
        status = 0
        if two and rank == 0:
            status = os.waitstatus_to_exitcode(os.waitpid(other, 0)[1])
    except BaseException:
        (folder / "error.txt").write_text(traceback.format_exc())
    finally:
        os._exit(status)


def finish(job: Job, folder: Path, inputs: Path, two: bool) -> tuple[dict[str, np.ndarray], float]:
    """Run the job to its end; return its result and the seconds."""
    started = time.monotonic()
    pid = child(job, folder, inputs, two)
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
        raise RuntimeError((folder / "error.txt").read_text())
    with np.load(folder / "outcome.npz") as outcome:
        return {name: outcome[name] for name in outcome.files}, time.monotonic() - started


def killed(job: Job, folder: Path, inputs: Path, two: bool, after: float) -> None:
    """Start the job and kill its process group after some seconds."""
    pid = child(job, folder, inputs, two)
    time.sleep(after)
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        os.kill(pid, signal.SIGKILL)  # it has not made its group yet, or has ended
    os.waitpid(pid, 0)
    (folder / "outcome.npz").unlink(missing_ok=True)


def unreadable(folder: Path) -> list[str]:
    """Files that are not whole. Names that begin with a dot are temporary files, which nothing reads."""
    readers = {
        ".npz": lambda path: [np.load(path)[name] for name in np.load(path).files],
        ".npy": lambda path: np.load(path, mmap_mode="r"),
        ".pt": lambda path: torch.load(path, weights_only=True),
        ".safetensors": load_file,
        ".csv": pd.read_csv,
        ".json": lambda path: pd.read_json(path, typ="series"),
        ".toml": lambda path: tomllib.loads(path.read_text()),
    }
    found = []
    for path in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.is_file() and not hidden and path.suffix in readers:
            try:
                readers[path.suffix](path)
            except Exception as error:
                found.append(f"{path.relative_to(folder)}: {type(error).__name__}: {error}")
    return found


def difference(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> str | None:
    """The first array whose bits differ, but for a note that a run was resumed."""
    if found.keys() != expected.keys():
        return f"other names: {sorted(found.keys() ^ expected.keys())[:3]}"
    for name, array in expected.items():
        same = found[name].shape == array.shape and found[name].dtype == array.dtype
        if not same or found[name].tobytes() != array.tobytes():
            return f"{name}: {found[name].ravel()[:3]} instead of {array.ravel()[:3]}"
    return None


def kill_job(name: str, kills: int, seed: int, work: Path) -> dict[str, object]:
    two = name in TWO_PROCESSES
    job = (TWO_PROCESSES if two else JOBS)[name]
    inputs = work / "inputs"
    inputs.mkdir(exist_ok=True)
    folder = work / "whole"
    folder.mkdir()
    expected, seconds = finish(job, folder, inputs, two)
    shutil.rmtree(folder)
    rng = random.Random(f"{name} {seed}")
    row: dict[str, object] = {"job": name, "kills": 0, "with_a_checkpoint": 0, "identical": 0, "unreadable_files": 0}
    done = resumed = identical = 0
    damaged: list[str] = []
    while done < kills:
        folder = work / f"run_{done}"
        folder.mkdir()
        again = 2 if rng.random() < 0.25 else 1
        for _ in range(again):
            killed(job, folder, inputs, two, rng.uniform(0, seconds))
            damaged += unreadable(folder)
        done += again
        names = ("state.npz", "state.rank*.npz", "checkpoint.pt", "cache.json")
        checkpoints = (path for name in names for path in folder.rglob(name))
        resumed += again * any(checkpoints)
        try:
            problem = difference(finish(job, folder, inputs, two)[0], expected)
        except RuntimeError as error:
            problem = str(error).strip().splitlines()[-1]
        identical += again * (problem is None)
        if problem is not None or damaged:
            row.setdefault("first_difference", problem or damaged[0])
        shutil.rmtree(folder)
        print(f"{name}: {done} kills, {resumed} with a checkpoint, {identical} identical, {len(damaged)} unreadable",
              flush=True)  # fmt: skip
    return row | {
        "kills": done,
        "with_a_checkpoint": resumed,
        "identical": identical,
        "unreadable_files": len(damaged),
    }


def main() -> None:
    names = [*JOBS, *TWO_PROCESSES]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="kills over all jobs")
    parser.add_argument("--job", action="append", choices=names, help="this job only; may be repeated")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    chosen = options.job or names
    rows = []
    for place, name in enumerate(chosen):
        share = options.kills * (place + 1) // len(chosen) - options.kills * place // len(chosen)
        with tempfile.TemporaryDirectory() as work:
            row = kill_job(name, share, options.seed, Path(work))
        versions = f"python {platform.python_version()}; torch {torch.__version__}"
        stamp = {"machine": platform.machine(), "versions": versions, "date": date.today().isoformat()}
        rows.append(row | stamp | {"command": command()})
        save_csv(options.output, FIELDS, rows)
    sys.exit(any(row["identical"] != row["kills"] or row["unreadable_files"] for row in rows))


if __name__ == "__main__":
    main()
