"""Compare two networks on real images and distill one from the other: five minutes on two cores.

    make demo            or            python examples/demo.py [--output figures/demo] [--seeds 3]

A teacher is trained on all training digits. Each student sees only a few labelled images. It is trained on the labels
alone (CE), on the labels and the teacher's softened logits (KD), or on the labels and the CKA of features and logits
(RCKA). Then every layer of the teacher is compared with every layer of the student, before and after training.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import pandas as pd
import torch
from torch import nn
from torch.utils.data import DataLoader

import cka_probe as cp
from cka_probe.distill import RCKALoss, digits, distill
from cka_probe.distill.baselines import KDLoss
from cka_probe.distill.models import build
from cka_probe.plotting import plot_accuracies, plot_before_after, plot_corridor, plot_heatmap, plot_training_curves

STAGES = ["layer1", "layer2", "layer3"]
SHOWN = ["conv1", "layer?.?", "fc"]


def train_teacher(train: torch.utils.data.Dataset, test: torch.utils.data.Dataset, epochs: int) -> nn.Module:
    torch.manual_seed(0)
    teacher = build("resnet20", num_classes=10)
    result = distill(None, teacher, train, test, epochs=epochs, batch_size=64, learning_rate=0.05)
    print(f"  teacher resnet20: {result.last_accuracy:.1%} of the test images right")
    return teacher


def train_students(
    teacher: nn.Module, few: torch.utils.data.Dataset, test: torch.utils.data.Dataset, seeds: int, epochs: int
) -> tuple[pd.DataFrame, nn.Module, nn.Module]:
    """Train all students; return their histories, and the first RCKA student before and after training."""
    # The weights of examples/recipes/digits.toml: 15 is too large for 200 steps (docs/distill.md, Weights).
    methods: dict[str, Callable[[], nn.Module] | None] = {
        "CE": None,
        "KD": KDLoss,
        "RCKA": lambda: RCKALoss(feature_weight=1, intra_weight=1, inter_weight=1),
    }
    histories, before, after = [], None, None
    for seed in range(seeds):
        for method, make_loss in methods.items():
            torch.manual_seed(seed)  # the same initial student for every method
            student = build("resnet8", num_classes=10)
            if method == "RCKA" and before is None:
                before = copy.deepcopy(student)
            result = distill(
                None if make_loss is None else teacher,
                student,
                few,
                test,
                None if make_loss is None else make_loss(),
                student_layers=STAGES if method == "RCKA" else (),
                epochs=epochs,
                batch_size=20,
                learning_rate=0.05,
                seed=seed,
                progress=False,
            )
            histories.append(result.history.assign(method=method, seed=seed))
            print(f"  seed {seed}  {method:5} {result.last_accuracy:.1%}")
            if method == "RCKA" and after is None:
                after = student
    return pd.concat(histories, ignore_index=True), before, after


def corridor_points(teacher: nn.Module, students: dict[str, nn.Module], images: torch.Tensor) -> pd.DataFrame:
    """CKA and the quadratic-kernel MMD^2 of every teacher layer with every student layer (docs/theory.md, T3)."""
    theirs = cp.extract(teacher, images, SHOWN, progress=False)
    rows = []
    for name, student in students.items():
        for y in cp.extract(student, images, SHOWN, progress=False).values():
            for x in theirs.values():
                point = cp.alignment_corridor(x, y)
                rows.append(
                    {
                        "source": name,
                        "cka": float(point.cka),
                        "mmd_squared": float(point.mmd_squared),
                        "rank": float(point.rank),
                    }
                )
    return pd.DataFrame(rows)


def save(ax, path: Path) -> None:
    figure = ax.figure
    figure.savefig(path, dpi=160, bbox_inches="tight")
    print(f"  {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[1] / "figures" / "demo")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--teacher-epochs", type=int, default=12)
    parser.add_argument("--student-epochs", type=int, default=40)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    mpl.use("Agg")
    started = time.perf_counter()

    print(
        "1. Real images: scikit-learn's handwritten digits, 1,078 to train the teacher, 100 labelled ones for students"
    )
    train, test = digits(size=16)
    few, _ = digits(size=16, train_per_class=10)

    print(f"2. The teacher ({options.teacher_epochs} epochs)")
    teacher = train_teacher(train, test, options.teacher_epochs)

    print(f"3. Students resnet8 ({options.student_epochs} epochs, the same images, seeds and budget for each method)")
    histories, before, after = train_students(teacher, few, test, options.seeds, options.student_epochs)
    last = histories[histories["epoch"] == options.student_epochs]
    table = last.groupby("method", sort=False)["test_accuracy"].agg(["mean", "std", "count"])
    histories.to_csv(options.output / "histories.csv", index=False)
    table.to_csv(options.output / "accuracy.csv")

    print("4. Layer by layer: the teacher with itself, and with the student before and after RCKA")
    images = DataLoader(test, batch_size=128)
    itself = cp.compare(teacher, teacher, images, layers=SHOWN, progress=False)
    first = cp.compare(teacher, before, images, layers=SHOWN, progress=False)
    second = cp.compare(teacher, after, images, layers=SHOWN, progress=False)
    for name, result in (("teacher_teacher", itself), ("before", first), ("after", second)):
        result.save(options.output / f"{name}.npz")

    print("5. The figures")
    ax = plot_heatmap(itself, title="teacher x teacher")
    ax.set(xlabel="teacher, resnet20", ylabel="teacher, resnet20")
    save(ax, options.output / "teacher_teacher.png")
    axes = plot_before_after(first, second)
    axes[0].set_ylabel("teacher, resnet20")
    for ax in axes:
        ax.set_xlabel("student, resnet8")
    save(axes[0], options.output / "before_after.png")
    save(plot_training_curves(histories), options.output / "training_curves.png")
    accuracies = last.rename(columns={"test_accuracy": "accuracy"})
    save(plot_accuracies(accuracies, from_zero=False), options.output / "accuracy.png")
    few_hundred = torch.stack([image for image, _ in test][:256])
    points = corridor_points(teacher, {"student before": before, "student after RCKA": after}, few_hundred)
    points.to_csv(options.output / "corridor.csv", index=False)
    save(plot_corridor(points), options.output / "mmd_bound.png")

    print(f"\nTest accuracy after the last epoch, mean and standard deviation over {options.seeds} seeds")
    for method, row in table.iterrows():
        print(f"  {method:5} {row['mean']:6.1%} +- {row['std']:.1%}")
    print(f"\nDone in {time.perf_counter() - started:.0f} s. The pictures and their numbers lie in {options.output}")


if __name__ == "__main__":
    main()
