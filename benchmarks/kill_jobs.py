"""Jobs that benchmarks/kill.py kills and resumes. Each writes its result as arrays, for a comparison of bits."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import TensorDataset

import cka_probe as cp
from cka_probe.distill import RCKALoss, distill
from cka_probe.distill.dense import PatchCKALoss, detector, distill_detector, small_pyramid
from cka_probe.distill.dense.data import CocoBoxes
from cka_probe.distill.dense.scenes import make_scenes
from cka_probe.distill.recipes.recipe import Recipe
from cka_probe.distill.recipes.tables import run_grid
from cka_probe.distill.training.diagnostics import Diagnostics

__all__ = ["JOBS", "TWO_PROCESSES", "Job", "join_processes"]

Job = Callable[[Path, Path], dict[str, np.ndarray]]
"""Takes the folder of the run and a folder of shared inputs; returns its result."""

RECIPE = """
[teacher]
model = "resnet14"
[teacher.train]
epochs = 1
batch_size = 32
[student]
model = "resnet8"
[data]
name = "digits"
size = 8
train_per_class = 8
[train]
epochs = 2
batch_size = 16
[output]
checkpoint_steps = 2
teacher_cache = true
"""


def network(seed: int, width: int = 8) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True), nn.Dropout(0.2),
        nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 5),
    )  # fmt: skip


def images(count: int, seed: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    target = torch.arange(count) % 5
    return TensorDataset(torch.randn(count, 1, 12, 12, generator=generator) + target.view(-1, 1, 1, 1) / 3, target)


def weights(model: nn.Module) -> dict[str, np.ndarray]:
    return {name: tensor.cpu().numpy() for name, tensor in model.state_dict().items()}


def history(rows: Any) -> dict[str, np.ndarray]:
    return {f"history {name}": rows[name].to_numpy() for name in rows.columns if name != "seconds"}


def batches() -> Any:
    return torch.utils.data.DataLoader(images(64 * 90 + 2, 3), batch_size=64)


def compare_job(folder: Path, _inputs: Path, *, data: Any = None, **options: Any) -> dict[str, np.ndarray]:
    result = cp.compare(
        network(1), network(2, 12), data or batches(), checkpoint=folder / "state.npz", progress=False, **options
    )
    return {
        "values": result.values, "error": result.standard_error, "p": result.p_value,
        "notes": np.array(result.notes), "samples": np.array(result.meta["samples"]),
    }  # fmt: skip


def compare_two_job(folder: Path, _inputs: Path) -> dict[str, np.ndarray]:
    torch.distributed.init_process_group("gloo")
    return compare_job(folder, _inputs, data=cp.Shard(batches()), distributed=True)


def distill_job(folder: Path, _inputs: Path, **options: Any) -> dict[str, np.ndarray]:
    result = distill(
        network(2, 12), network(1), images(320, 0), images(80, 1), RCKALoss(), student_layers=["4"], epochs=4,
        batch_size=16, checkpoint_steps=3, output_dir=folder / "run", progress=False, **options,
    )  # fmt: skip
    return {**weights(result.student), **history(result.history)}


def diagnosed_job(folder: Path, inputs: Path) -> dict[str, np.ndarray]:
    return distill_job(folder, inputs, diagnostics=Diagnostics(every=1, samples=40), accumulation_steps=2)


def cache_job(folder: Path, inputs: Path) -> dict[str, np.ndarray]:
    return distill_job(folder, inputs, teacher_cache=folder / "cache")


def detector_job(folder: Path, inputs: Path) -> dict[str, np.ndarray]:
    def made(width: int, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return detector("fcos", small_pyramid(width, 1, 32), 11, min_size=64, max_size=64)

    scenes = make_scenes(inputs / "scenes", train=8, val=2, size=64, largest=24)  # written once
    train = CocoBoxes(scenes.train_images, scenes.train_annotations, flip=0.5)
    result = distill_detector(
        made(12, 1), made(8, 0), train, None, PatchCKALoss(mimic_weight=0.1), steps=12, batch_size=2, log_every=3,
        checkpoint_steps=2, output_dir=folder / "run", progress=False,
    )  # fmt: skip
    return {**weights(result.student), **history(result.history)}


def table_job(folder: Path, _inputs: Path) -> dict[str, np.ndarray]:
    path = folder / "small.toml"
    if not path.exists():
        path.write_text(RECIPE)
    recipe = Recipe.load(path, [f'output.directory="{folder / "runs"}"'])
    table = run_grid([recipe], ["kd", "rcka"], [0], progress=False)
    return {"last": table["last"].to_numpy(), "best": table["best"].to_numpy()}


JOBS: dict[str, Job] = {
    "compare": compare_job,
    "distill": distill_job,
    "distill, diagnostics, microbatches": diagnosed_job,
    "teacher cache": cache_job,
    "detector": detector_job,
    "table": table_job,
}

TWO_PROCESSES: dict[str, Job] = {
    "compare, 2 processes": compare_two_job,
    "distill, 2 processes": distill_job,
}


def join_processes(rank: int, port: int) -> None:
    """Make this process one of two that train together."""
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true",
    }  # fmt: skip
