"""benchmarks/gpu.py, as far as a machine without a GPU can run it."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers", reason="the decoder of the benchmark needs transformers")

ROOT = Path(__file__).parents[1]


def run(*arguments):
    return subprocess.run(
        [sys.executable, "benchmarks/gpu.py", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_every_part_runs_on_the_cpu(tmp_path):
    done = run("--cpu-smoke", "--output", str(tmp_path))
    assert done.returncode == 0, done.stderr
    with (tmp_path / "gpu.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["part"] for row in rows} == {"compare", "gram", "rbf", "centring", "buffers", "pcka", "rcka"}
    cases = {row["case"].split()[0] for row in rows if row["part"] == "compare"}
    assert cases == {"ResNet-50", "ViT-B/16", "decoder"}
    ours = [row for row in rows if row["part"] == "compare" and row["method"] == "cka_probe"]
    assert all(float(row["max_error"]) < 1e-5 for row in ours)
    assert all(row["command"].startswith("python benchmarks/gpu.py --cpu-smoke") for row in rows)


@pytest.mark.skipif(torch.cuda.is_available(), reason="tests a machine without a GPU")
def test_says_what_is_missing_without_a_gpu(tmp_path):
    done = run("--output", str(tmp_path))
    assert done.returncode == 2
    assert "this needs an NVIDIA GPU; --cpu-smoke --output FOLDER shows that the script runs" in done.stderr
    assert not list(tmp_path.iterdir())


def test_smoke_never_replaces_results():
    done = run("--cpu-smoke")
    assert done.returncode == 2
    assert "pass --output" in done.stderr
