"""Figure 11: detectors and segmenters distilled on scenes of digits (`make figures-dense`).

One teacher of each kind. The students start from the same weights and train for the same number of steps: alone, with
PCKA (with and without feature imitation), or with the CKA of class-score maps. If figures/data already holds the
numbers, they are drawn; otherwise the missing runs are made first, one process for each core.

    python -m figures detections
    python -m figures --fresh detections         # trains everything again
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from safetensors.torch import load_file
from scipy import stats
from torch import nn
from torchvision.models.detection.fcos import FCOSHead
from torchvision.ops import nms

from cka_probe.atomic_write import atomic_write
from cka_probe.distill import CosineDecay
from cka_probe.distill.dense import PatchCKALoss, SegmentationCKALoss
from cka_probe.distill.dense.data import CocoBoxes, LabelMaps
from cka_probe.distill.dense.detection import distill_detector
from cka_probe.distill.dense.networks import SmallResNet, detector, segmenter, small_pyramid
from cka_probe.distill.dense.scenes import SceneFolders, make_scenes
from cka_probe.distill.dense.segmentation import distill_segmenter
from cka_probe.distill.losses.contract import DistillationLoss
from cka_probe.plotting import house_style, plot_accuracies
from cka_probe.plotting.style import PAGE
from figures.networks import CACHE
from figures.saving import FOLDER, save


class Budget(NamedTuple):
    """Number of scenes, their size, and lengths of training; the tests use less."""

    train: int = 1024
    val: int = 256
    size: int = 96
    teacher_steps: int = 600
    student_steps: int = 300
    segmenter_teacher_steps: int = 600
    segmenter_steps: int = 600
    batch_size: int = 8


FULL = Budget()
# Weight 10 is the paper's, for runs of 180,000 steps. All weights were fixed before any student with a teacher was run.
METHODS: dict[str, dict[str, Callable[[], DistillationLoss] | None]] = {
    "detector": {
        "alone": None,
        "PCKA, weight 1": partial(PatchCKALoss, intra_weight=1.0),
        "PCKA, weight 10": partial(PatchCKALoss, intra_weight=10.0),
        "PCKA, weight 1, + mimic": partial(PatchCKALoss, intra_weight=1.0, mimic_weight=0.1),
    },
    "segmenter": {
        "alone": None,
        "CKA, weight 1": partial(SegmentationCKALoss, intra_weight=1.0, inter_weight=1.0),
        "CKA, weight 10": partial(SegmentationCKALoss, intra_weight=10.0, inter_weight=10.0),
    },
}
SHOWN = 4
COLOURS = mpl.colormaps["tab10"]
# Seconds of CPU time. This file is written last: if it exists, the run is complete.
COST = "cpu_seconds.txt"


# --- the runs -----------------------------------------------------------------------------------------------------


def scenes(budget: Budget, cache: Path) -> SceneFolders:
    folder = cache / f"scenes-{budget.train}-{budget.val}-{budget.size}"
    # Without these limits on size and contrast a small network would need thousands of steps.
    return make_scenes(
        folder, train=budget.train, val=budget.val, size=budget.size, most=8, smallest=22, largest=32, contrast=0.75
    )


def network(kind: str, role: str, seed: int, size: int) -> nn.Module:
    """A teacher or a student before training."""
    torch.manual_seed(seed)
    large = role == "teacher"
    if kind == "segmenter":
        body = SmallResNet(32, 2) if large else SmallResNet(8, 1)
        return segmenter("deeplabv3" if large else "lraspp", body, 11)
    pyramid = small_pyramid(32, 2) if large else small_pyramid(8, 1)
    head = FCOSHead(64, 1, 11, num_convs=2 if large else 1)
    return detector("fcos", pyramid, 11, head=head, min_size=size, max_size=size, score_thresh=0.05)


def steps(kind: str, role: str, budget: Budget) -> int:
    if kind == "segmenter":
        return budget.segmenter_teacher_steps if role == "teacher" else budget.segmenter_steps
    return budget.teacher_steps if role == "teacher" else budget.student_steps


def runs(budget: Budget, cache: Path) -> Path:
    return cache / f"dense-{'-'.join(map(str, budget))}"


def place(kind: str, method: str, seed: int, budget: Budget, cache: Path) -> Path:
    return runs(budget, cache) / f"{kind}-{re.sub('[^a-zA-Z0-9]+', '-', method)}-seed{seed}"


def run(kind: str, method: str, seed: int, budget: Budget, cache: Path) -> None:
    """Train and score one network, unless that was done before."""
    folder = place(kind, method, seed, budget, cache)
    if (folder / COST).is_file():
        return
    started = time.process_time()
    role = "teacher" if method == "teacher" else "student"
    make = None if role == "teacher" else METHODS[kind][method]
    teacher = None if make is None else trained(kind, "teacher", 0, budget, cache)
    options: dict[str, Any] = {
        "loss": None if make is None else make(),
        "batch_size": budget.batch_size,
        "learning_rate": 3e-3 if kind == "detector" else 5e-3,
        "optimizer": torch.optim.AdamW,
        "schedule": CosineDecay(warmup=15),
        "steps": steps(kind, role, budget),
        "seed": seed,
        "output_dir": folder,
        "progress": False,
    }
    where = scenes(budget, cache)
    student = network(kind, role, seed, budget.size)
    if kind == "detector":
        train = CocoBoxes(where.train_images, where.train_annotations)
        test = CocoBoxes(where.val_images, where.val_annotations)
        distill_detector(teacher, student, train, test, **options)
    else:
        distill_segmenter(teacher, student, LabelMaps(where.root, "train"), LabelMaps(where.root, "val"), **options)
    atomic_write(folder / COST, f"{time.process_time() - started:.1f}")


def trained(kind: str, method: str, seed: int, budget: Budget, cache: Path) -> nn.Module:
    model = network(kind, "teacher" if method == "teacher" else "student", seed, budget.size)
    model.load_state_dict(load_file(place(kind, method, seed, budget, cache) / "last.safetensors"))
    return model.eval()


def run_all(seeds: int, budget: Budget, cache: Path) -> None:
    """Train the teachers, then the students; one process for each core."""
    scenes(budget, cache)
    students = [(kind, method, seed) for seed in range(seeds) for kind in METHODS for method in METHODS[kind]]
    for cells in ([(kind, "teacher", 0) for kind in METHODS], students):
        missing = [(*cell, budget, cache) for cell in cells if not (place(*cell, budget, cache) / COST).is_file()]
        workers = min(os.cpu_count() or 1, len(missing))
        if workers < 2:
            for cell in missing:
                run(*cell)
            continue
        with ProcessPoolExecutor(workers, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
            for future in [pool.submit(run, *cell) for cell in missing]:
                future.result()


# --- results and examples -----------------------------------------------------------------------------------------


def collect(seeds: int, budget: Budget, cache: Path) -> dict[str, Any]:
    """Tables of the scores of every run, and the predictions of the teacher and of seed 0's students in some scenes."""
    found: dict[str, Any] = {}
    for kind, methods in METHODS.items():
        cells = [("teacher", 0), *((method, seed) for method in methods for seed in range(seeds))]
        lines = []
        for method, seed in cells:
            folder = place(kind, method, seed, budget, cache)
            scores = pd.read_csv(folder / "scores.csv").iloc[0]
            cost = float((folder / COST).read_text())
            lines.append({"method": method, "seed": seed, **scores.to_dict(), "cpu_seconds": cost})
        found[f"{kind}s"] = pd.DataFrame(lines).assign(budget=str(tuple(budget)))
    where = scenes(budget, cache)
    boxes = CocoBoxes(where.val_images, where.val_annotations)
    maps = LabelMaps(where.root, "val")
    chosen = [index for index in range(len(boxes)) if len(boxes[index][1]["boxes"]) > 1][: 4 * SHOWN : 4]
    pictures = [boxes[index][0] for index in chosen]
    found["pictures"] = np.stack([(255 * picture).round().byte().permute(1, 2, 0).numpy() for picture in pictures])
    found["detections"] = {"truth": [_listed(boxes[index][1]) for index in chosen]}
    found["maps"] = {"truth": np.stack([maps[index][1].byte().numpy() for index in chosen])}
    for method in ("teacher", *METHODS["detector"]):
        with torch.no_grad():
            answers = trained("detector", method, 0, budget, cache)(pictures)
        found["detections"][method] = [_listed(answer) for answer in answers]
    inputs = torch.stack([maps[index][0] for index in chosen])
    for method in ("teacher", *METHODS["segmenter"]):
        with torch.no_grad():
            scores = trained("segmenter", method, 0, budget, cache)(inputs)["out"]
        found["maps"][method] = scores.argmax(1).byte().numpy()
    return found


def _listed(answer: dict[str, torch.Tensor], least: float = 0.4) -> list[list[float]]:
    """[left, top, right, bottom, digit, score] of each box to draw; true boxes have the score 1.

    Of boxes that overlap (IoU above 0.3) only the best is drawn: the detector keeps one for each digit.
    """
    scores = answer.get("scores", torch.ones(len(answer["labels"])))
    rows = torch.cat([answer["boxes"], (answer["labels"] - 1)[:, None], scores[:, None]], 1)
    rows = rows[nms(answer["boxes"], scores, 0.3)]
    return [[round(value, 3) for value in row] for row in rows[rows[:, 5] >= least].tolist()]


def compared(table: pd.DataFrame, value: str) -> pd.DataFrame:
    """Mean and standard deviation of each method, and its difference to students alone, paired by seed."""
    wide = table[table["method"] != "teacher"].pivot(index="seed", columns="method", values=value)
    lines = []
    for method in wide:
        apart = wide[method] - wide["alone"]
        line = {"method": method, "seeds": len(wide), "mean": wide[method].mean(), "sd": wide[method].std()}
        line |= {"difference": apart.mean(), "p": np.nan}
        if method != "alone" and len(wide) > 1:
            line["p"] = float(stats.ttest_rel(wide[method], wide["alone"]).pvalue)
        lines.append(line)
    return pd.DataFrame(lines).sort_values("mean", ignore_index=True)


# --- the pictures -------------------------------------------------------------------------------------------------


PICTURES = 3
"""Scenes that are drawn; fewer and larger ones can be read."""


def draw_boxes(picture: np.ndarray, boxes: Sequence[Sequence[float]], ax: Axes) -> None:
    ax.imshow(picture, interpolation="nearest")
    for left, top, right, bottom, digit, _ in boxes:
        colour = COLOURS(int(digit))
        ax.add_patch(plt.Rectangle((left, top), right - left, bottom - top, fill=False, ec=colour, lw=1.4))


def draw_maps(picture: np.ndarray, labels: np.ndarray, ax: Axes) -> None:
    ax.imshow(picture, alpha=0.55, interpolation="nearest")
    shown = np.ma.masked_equal(labels, 0)
    ax.imshow(shown, cmap=COLOURS, vmin=0.5, vmax=10.5, alpha=0.85, interpolation="nearest")


def panels(
    pictures: np.ndarray, rows: dict[str, Any], draw: Callable[..., None], table: pd.DataFrame, value: str
) -> Any:
    """Draw a column of scenes for each network, the digits' colours, and below them the scores of all seeds."""
    pictures = pictures[:PICTURES]
    side = (PAGE - 0.3) / len(rows)
    students = table[table["method"] != "teacher"]
    below = 0.9 + 0.24 * students["method"].nunique()
    figure = plt.figure(figsize=(PAGE, side * len(pictures) + 0.75 + below), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=[side * len(pictures) + 0.75, below])
    grid = top.subplots(len(pictures), len(rows), squeeze=False)
    for column, (name, answers) in zip(grid.T, rows.items(), strict=True):
        for ax, picture, answer in zip(column, pictures, answers, strict=False):
            draw(picture, answer, ax)
            ax.set(xticks=[], yticks=[])
        column[0].set_title(name.replace(", ", "\n", 1))
    patches = [Patch(color=COLOURS(digit), label=str(digit)) for digit in range(10)]
    top.legend(handles=patches, title="digit", loc="outside lower center", ncols=10, frameon=False, handlelength=1.0)
    reference = {"teacher": float(table.loc[table["method"] == "teacher", value].iloc[0])}
    ax = plot_accuracies(students, value=value, from_zero=False, references=reference, ax=bottom.subplots())
    ax.set_xlabel(f"{value} on the validation scenes (diamond: mean, line: 95 % interval, circles: seeds)")
    return figure


def make(
    folder: Path = FOLDER, *, cache: Path = CACHE, budget: Budget = FULL, seeds: int = 3
) -> dict[str, pd.DataFrame]:
    data = folder / "data"
    kept = data / "detections.json"
    wanted = {"budget": list(budget), "seeds": seeds, "methods": {kind: list(METHODS[kind]) for kind in METHODS}}
    known = json.loads(kept.read_text()) if kept.is_file() else {}
    if known.get("settings") == wanted:
        arrays = np.load(data / "detections.npz")
        found = {"pictures": arrays["pictures"], "detections": known["detections"]}
        found["maps"] = {name.removeprefix("map "): arrays[name] for name in arrays if name.startswith("map ")}
        found |= {name: pd.read_csv(data / f"{name}.csv") for name in ("detectors", "segmenters")}
    else:
        run_all(seeds, budget, cache)
        found = collect(seeds, budget, cache)
    results = {}
    for name, value, draw, answers in (
        ("detectors", "AP", draw_boxes, found["detections"]),
        ("segmenters", "mIoU", draw_maps, found["maps"]),
    ):
        table = found[name]
        results[name] = compared(table, value)
        with house_style():
            figure = panels(found["pictures"], answers, draw, table, value)
            save(folder, name, figure, **{name: table, f"{name}_compared": results[name]})
        print(results[name].round(4).to_string(index=False), flush=True)
    maps = {f"map {name}": value for name, value in found["maps"].items()}
    atomic_write(data / "detections.npz", lambda file: np.savez_compressed(file, pictures=found["pictures"], **maps))
    atomic_write(kept, json.dumps({"settings": wanted, "detections": found["detections"]}))
    return results
