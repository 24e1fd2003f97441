"""Runs of each kind, killed at random moments and resumed, have the results of uninterrupted runs, bit for bit."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
JOBS = ("compare", "compare, 2 processes", "distill", "distill, 2 processes", "teacher cache", "detector", "table")


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a system with fork and SIGKILL")
def test_killed_runs_resume_to_the_same_bits(tmp_path):
    arguments = ["--kills", str(len(JOBS)), *(argument for job in JOBS for argument in ("--job", job))]
    done = subprocess.run(
        [
            sys.executable,
            "benchmarks/kill.py",
            "--kills",
            str(len(JOBS)),
            *arguments,
            "--output",
            tmp_path / "kill.csv",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (tmp_path / "kill.csv").exists(), done.stderr
    with (tmp_path / "kill.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["job"] for row in rows] == list(JOBS)
    for row in rows:
        assert row["identical"] == row["kills"], row["first_difference"]
        assert row["unreadable_files"] == "0", row["first_difference"]
    assert done.returncode == 0, done.stderr
