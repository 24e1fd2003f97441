"""Compare networks on real images and distill one from another: three minutes on two cores.

    make demo            or            python examples/demo.py [--data digits] [--seeds 3]

Data: Fashion-MNIST at 16 x 16 pixels if its files are there (Debian's package dataset-fashion-mnist), otherwise
scikit-learn's digits. A teacher (resnet20) learns from many images, students (resnet8) from a few: from the labels
alone (CE), also from the teacher's softened logits (KD), or also by CKA of features and logits (RCKA). The logit terms
of RCKA have the paper's weight of 15, from the first step on or ramped up over the first half of the run. Then every
layer of the teacher is compared with every layer of each student. Pictures and tables go to figures/demo, networks to
runs/demo, where `cka-probe compare` finds them.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import pandas as pd
import torch
from seaborn import move_legend
from torch import nn
from torch.utils.data import Dataset, TensorDataset

import cka_probe as cp
from cka_probe.distill import CosineDecay, RCKALoss, digits, distill, fashion_mnist, ramp
from cka_probe.distill.baselines import KDLoss
from cka_probe.distill.models import build, load_weights
from cka_probe.distill.models.saved_student import DESCRIPTION, describe_student
from cka_probe.plotting import plot_accuracies, plot_corridor, plot_heatmap, plot_heatmap_grid, plot_training_curves

ROOT = Path(__file__).parents[1]
STAGES = ["layer1", "layer2", "layer3"]
SHOWN = ["conv1", "layer?.?", "fc"]
SIZE = 16

METHODS: dict[str, Callable[[], nn.Module] | None] = {
    "CE": None,
    "KD": KDLoss,
    "RCKA": lambda: RCKALoss(1, intra_weight=15, inter_weight=15),
    "RCKA, ramp": lambda: RCKALoss(1, intra_weight=ramp(15, until=0.5), inter_weight=ramp(15, until=0.5)),
}


class Settings(NamedTuple):
    """Data, and how long teacher and students are trained."""

    data: str
    teacher_images: int | None
    """Of each class; None for all."""
    images: int
    """Of each class, for students."""
    teacher_epochs: int
    epochs: int
    batch_size: int


SETTINGS = {
    "fashion_mnist": Settings("fashion_mnist", 1000, 100, teacher_epochs=4, epochs=12, batch_size=50),
    "digits": Settings("digits", None, 10, teacher_epochs=12, epochs=40, batch_size=20),
}


class Cell(NamedTuple):
    """One student to train: in another process, so only with what that process needs to know."""

    method: str
    seed: int
    settings: Settings
    runs: Path


def installed() -> str:
    """The larger data set whose files are there."""
    try:
        fashion_mnist(train_per_class=1)
    except FileNotFoundError:
        return "digits"
    return "fashion_mnist"


@cache
def images(data: str, per_class: int | None) -> tuple[TensorDataset, TensorDataset]:
    """Training images, so many of each class, and at most 1,000 test images, in memory."""
    load = fashion_mnist if data == "fashion_mnist" else digits
    train, test = load(train_per_class=per_class, size=SIZE)
    return in_memory(train), in_memory(test, 1000)


def in_memory(data: Dataset, most: int | None = None) -> TensorDataset:
    samples = [data[i] for i in range(len(data))[:most]]
    return TensorDataset(
        torch.stack([image for image, _ in samples]), torch.tensor([int(label) for _, label in samples])
    )


def run_folder(runs: Path, method: str) -> Path:
    return runs / method.lower().replace(", ", "_")


def train(name: str, seed: int, folder: Path | None, teacher: nn.Module | None, *arguments, **options) -> pd.DataFrame:
    """Train a network and return its history. In a folder it leaves weights that `cka-probe compare FOLDER` finds."""
    torch.manual_seed(seed)  # the same initial student for every method
    network = build(name, num_classes=10)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / DESCRIPTION).write_text(describe_student(name, 10, []), encoding="utf-8")
    common = {"learning_rate": 0.05, "schedule": CosineDecay(), "channels_last": True, "resume": False}
    result = distill(teacher, network, *arguments, seed=seed, output_dir=folder, **common, **options)
    return result.history


def trained(name: str, folder: Path) -> nn.Module:
    """A network with the weights of the last epoch of its run."""
    return load_weights(build(name, num_classes=10), folder / "last.safetensors").eval()


def train_student(cell: Cell) -> pd.DataFrame:
    method, seed, settings, runs = cell
    make_loss = METHODS[method]
    history = train(
        "resnet8",
        seed,
        run_folder(runs, method) if seed == 0 else None,
        None if make_loss is None else trained("resnet20", runs / "teacher"),
        *images(settings.data, settings.images),
        None if make_loss is None else make_loss(),
        student_layers=STAGES if method.startswith("RCKA") else (),
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        progress=False,
        teacher_cache=None if make_loss is None else runs / "teacher_outputs",
    )
    print(f"  seed {seed}  {method:10} {history['test_accuracy'].iloc[-1]:.1%}", flush=True)
    return history.assign(method=method, seed=seed)


def train_teacher(settings: Settings, runs: Path) -> pd.DataFrame:
    length = {"epochs": settings.teacher_epochs, "batch_size": 64}
    history = train(
        "resnet20", 0, runs / "teacher", None, *images(settings.data, settings.teacher_images), progress=False, **length
    )
    print(f"  teacher resnet20  {history['test_accuracy'].iloc[-1]:.1%}", flush=True)
    return history


def train_all(settings: Settings, runs: Path, seeds: int, workers: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Histories of the teacher and of all students. CE needs no teacher, so its students run beside it."""
    cells = [Cell(method, seed, settings, runs) for seed in range(seeds) for method in METHODS]
    alone = [cell for cell in cells if METHODS[cell.method] is None]
    taught = [cell for cell in cells if METHODS[cell.method] is not None]
    if workers == 1:
        teacher = train_teacher(settings, runs)
        students = [train_student(cell) for cell in alone + taught]
    else:
        # One thread for each process: such small networks gain nothing from more.
        with ProcessPoolExecutor(workers, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
            first = pool.submit(train_teacher, settings, runs)
            without = pool.map(train_student, alone)
            teacher = first.result()
            students = [*without, *pool.map(train_student, taught)]
    together = pd.concat(students, ignore_index=True)
    return teacher, together.sort_values("method", key=lambda names: names.map(list(METHODS).index), kind="stable")


def corridor_points(teacher: nn.Module, students: dict[str, nn.Module], pixels: torch.Tensor) -> pd.DataFrame:
    """CKA and the quadratic-kernel MMD^2 of every teacher layer with every student layer (docs/theory.md, T3)."""
    theirs = cp.extract(teacher, pixels, SHOWN, progress=False)
    rows = []
    for name, student in students.items():
        for y in cp.extract(student, pixels, SHOWN, progress=False).values():
            for x in theirs.values():
                point = cp.alignment_corridor(x, y)
                values = {"cka": float(point.cka), "mmd_squared": float(point.mmd_squared), "rank": float(point.rank)}
                rows.append({"source": name} | values)
    return pd.DataFrame(rows)


def mean_of_seeds(row: pd.Series) -> str:
    """Mean and standard deviation in percent; the mean alone of one seed."""
    return f"{100 * row['mean']:.1f}" + (f" ± {100 * row['std']:.1f}" if row["count"] > 1 else "")


def save(ax, path: Path) -> None:
    ax.figure.savefig(path, dpi=220)
    print(f"  {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=list(SETTINGS), help="by default Fashion-MNIST if its files are there")
    parser.add_argument("--output", type=Path, default=ROOT / "figures" / "demo", help="folder of pictures and tables")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "demo", help="folder of the networks")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--teacher-epochs", type=int)
    parser.add_argument("--epochs", type=int, help="of the students")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="students that are trained at once")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    mpl.use("Agg")
    started = time.perf_counter()

    settings = SETTINGS[options.data or installed()]
    given = {"teacher_epochs": options.teacher_epochs, "epochs": options.epochs}
    settings = settings._replace(**{name: value for name, value in given.items() if value is not None})
    test = images(settings.data, settings.images)[1]
    few, many = (len(images(settings.data, count)[0]) for count in (settings.images, settings.teacher_images))
    print(f"1. {settings.data}: a teacher resnet20 learns from {many:,} images for {settings.teacher_epochs} epochs,")
    print(f"   students resnet8 from {few:,} for {settings.epochs} epochs; test accuracy on {len(test):,} images")
    taught, histories = train_all(settings, options.runs, options.seeds, options.workers)
    ceiling = float(taught["test_accuracy"].iloc[-1])
    last = histories.groupby(["method", "seed"], sort=False).tail(1)
    table = last.groupby("method", sort=False)["test_accuracy"].agg(["mean", "std", "count"])
    histories.to_csv(options.output / "histories.csv", index=False)
    table.to_csv(options.output / "accuracy.csv")

    print("2. Layer by layer: the teacher with itself, and with each student of seed 0")
    teacher = trained("resnet20", options.runs / "teacher")
    torch.manual_seed(0)
    students = {"untrained": build("resnet8", num_classes=10).eval()}
    students |= {method: trained("resnet8", run_folder(options.runs, method)) for method in METHODS}
    batches = test.tensors[0][:1000].split(125)
    itself = cp.compare(teacher, teacher, batches, layers=SHOWN, names=("resnet20", "resnet20"), progress=False)
    itself.save(options.output / "teacher_teacher.npz")
    compared = {}
    for method, student in students.items():
        names = ("teacher (resnet20)", "student (resnet8)")
        compared[method] = cp.compare(teacher, student, batches, layers=SHOWN, names=names, progress=False)
        compared[method].save(options.output / f"{run_folder(Path(), method)}.npz")

    print("3. The pictures")
    save(plot_heatmap(itself, limits="data"), options.output / "teacher_teacher.png")
    # Not the accuracy of the student that is shown: single seeds mislead.
    shown = {f"{method}\n{mean_of_seeds(table.loc[method])}": compared[method] for method in METHODS}
    low = math.floor(10 * min(result.values.min() for result in compared.values())) / 10
    panels = plot_heatmap_grid(
        {"untrained\n": compared["untrained"]} | shown, columns=5, limits=(low, 1.0), annotate=False
    )
    save(panels[0], options.output / "before_after.png")
    curves = plot_training_curves(histories)
    move_legend(curves, "lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, fontsize=7)  # the bands fill the axes
    save(curves, options.output / "training_curves.png")
    accuracies = last.rename(columns={"test_accuracy": "accuracy"})
    bars = plot_accuracies(accuracies, from_zero=False, references={"teacher": ceiling})
    save(bars, options.output / "accuracy.png")
    three = {f"student, {name}": students[name] for name in ("untrained", "CE", "RCKA, ramp")}
    points = corridor_points(teacher, three, test.tensors[0][:128])
    points.to_csv(options.output / "corridor.csv", index=False)
    save(plot_corridor(points, log=True), options.output / "mmd_bound.png")

    print(f"\nTest accuracy after the last epoch, mean and standard deviation over {options.seeds} seeds")
    for method, row in table.iterrows():
        print(f"  {method:10} {mean_of_seeds(row)} %")
    print(f"\nDone in {time.perf_counter() - started:.0f} s. The pictures and their numbers are in {options.output}.")
    print("The networks are there too, for example:")
    data = f"--data {settings.data} --image-size {SIZE} --samples 1000"
    networks = " ".join(map(os.path.relpath, (options.runs / "teacher", run_folder(options.runs, "RCKA, ramp"))))
    print(f'  cka-probe compare {networks} {data} --layers "conv1,layer?.?,fc" --limits data --plot similarity.png')


if __name__ == "__main__":
    main()
