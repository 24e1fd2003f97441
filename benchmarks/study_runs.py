"""Data, networks and single runs of the study (benchmarks/study.py)."""

from __future__ import annotations

import csv
import fcntl
import hashlib
import json
import platform
import shutil
import subprocess
import tempfile
import time
from datetime import date
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from study_methods import METHODS, RAMP_UNTIL
from study_probe import PROBED, probe, unlabelled_student
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from cka_probe.distill import CosineDecay, distill, ramp
from cka_probe.distill.data import fashion_mnist, glyphs, make_glyphs
from cka_probe.distill.models.resnet import resnet8

__all__ = ["FIELDS", "Cell", "prepare", "run_cell", "teacher_of"]

TEACHERS = Path(__file__).parent / "results" / "study_teachers"
"""The teachers of the table in the repository, so that others can add cells to it."""
BATCH = 64
LEARNING_RATE = 0.05
STAGES = ["layer1", "layer2", "layer3"]
VALIDATION_PER_CLASS = {"fashion": 500, "glyphs": 50}
CLASSES = {"fashion": 10, "glyphs": 62}
TEACHER_EPOCHS = {"fashion": 24, "glyphs": 14}
# Epochs for a number of training images of all classes: fewer images, more epochs, and still fewer steps.
EPOCHS = {10_000: 15, 1_000: 60}


class Cell(NamedTuple):
    """One run of the study; ``weight`` and ``ramp`` are those of the method's loss (benchmarks/study_methods.py)."""

    data: str
    images: int
    method: str
    weight: float
    ramp: bool
    seed: int


FIELDS = [
    *Cell._fields, "epochs", "validation", "test", "agreement", "diagonal", "teacher_test", "seconds", "commit",
    "machine", "date",
]  # fmt: skip


class Block(nn.Module):
    """relu(x + two 3 x 3 convolutions of x)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.inner(x))


def _unit(inputs: int, width: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, width, 3, stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(width), nn.ReLU())


class Teacher(nn.Module):
    """A residual network that is wide where the maps are small, because that is cheap on a CPU: 0.5 million weights."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stem = _unit(1, 32, 1)
        self.layer1 = nn.Sequential(_unit(32, 48, 2), Block(48))
        self.layer2 = nn.Sequential(_unit(48, 96, 2), Block(96))
        self.layer3 = nn.Sequential(_unit(96, 128, 1))
        self.fc = nn.Linear(128, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(self.stem(x))))
        return self.fc(x.mean((2, 3)))


def parts(
    data: str, folder: Path, seed: int, images: int | None, *, augment: bool
) -> tuple[Dataset[Any], Dataset[Any], Dataset[Any]]:
    """Training, validation and test set. The validation images are training images that no student of the seed sees."""
    read: Any = fashion_mnist if data == "fashion" else partial(glyphs, folder / "glyphs")
    per_class = None if images is None else images // CLASSES[data]
    held_out = VALIDATION_PER_CLASS[data]
    _, validation = read(train_per_class=1, seed=seed, channels=1, validation_per_class=held_out)
    if images is not None:  # never an image of the validation part
        train, _ = read(
            train_per_class=per_class, seed=seed, channels=1, augment=augment, validation_per_class=held_out
        )
    else:
        train, _ = read(seed=seed, channels=1, augment=augment)
    _, test = read(train_per_class=1, seed=seed, channels=1)
    return train, validation, test


def device() -> torch.device:
    """The device that `distill` trains on."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def channels_last(network: nn.Module) -> nn.Module:
    """The network with weights in the order of memory in which convolutions are fastest on a CPU."""
    return network.to(memory_format=torch.channels_last)


def faces_of(glyph_folder: Path) -> dict[str, Any]:
    """How many faces and designs the glyphs show, and a digest of their names and parts."""
    with (glyph_folder / "fonts.csv").open(newline="") as file:
        used = [line for line in csv.DictReader(file) if not line["reason"]]
    named = sorted(f"{line['family']}, {line['style']}: {line['part']}" for line in used)
    digest = hashlib.sha256("\n".join(named).encode()).hexdigest()[:16]
    return {"faces": len(used), "designs": len({line["group"] for line in used}), "digest": digest}


def check_faces(glyph_folder: Path, teacher: Path) -> None:
    """Raise ValueError if a teacher has learned from other faces, which may be in the test part here.

    The faces of a new teacher are written into its folder.
    """
    faces, known = faces_of(glyph_folder), teacher / "faces.json"
    if not (teacher / "history.csv").is_file():
        teacher.mkdir(parents=True, exist_ok=True)
        known.write_text(json.dumps(faces) + "\n")
        return
    learned = json.loads(known.read_text()) if known.is_file() else None
    if learned != faces:
        theirs = "unknown ones" if learned is None else f"{learned['faces']} of {learned['designs']} designs"
        raise ValueError(
            f"The glyphs in {glyph_folder} show {faces['faces']} faces of {faces['designs']} designs, and the teacher "
            f"in {teacher} has learned from others ({theirs}). Install the fonts that docs/howto/data.md lists, no "
            f"others, and remove {glyph_folder}. Or begin anew: remove the folders of this teacher, {teacher} and "
            f"{TEACHERS / 'glyphs'}, and the lines of glyphs from the table."
        )


def prepare(data: str, folder: Path, progress: bool = False) -> None:
    """Draw the glyphs, and train the teacher on all training images, with shifts (and flips of clothes).

    What is there stays, the teachers in the repository too; a run that was stopped goes on. Another process that wants
    the same waits. Raises ValueError if the teacher has learned from other glyphs.
    """
    with (folder / f"teacher_{data}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if data == "glyphs" and not (folder / "glyphs" / "test.npz").is_file():
            make_glyphs(folder / "glyphs", progress=progress)
        history = folder / f"teacher_{data}" / "history.csv"
        if not history.is_file() and (TEACHERS / data).is_dir():
            shutil.copytree(TEACHERS / data, history.parent, dirs_exist_ok=True)
        if data == "glyphs":
            check_faces(folder / "glyphs", history.parent)
        if history.is_file() and len(history.read_text().splitlines()) > TEACHER_EPOCHS[data]:
            return
        train, _, test = parts(data, folder, 0, None, augment=True)
        torch.manual_seed(0)
        distill(
            None, channels_last(Teacher(CLASSES[data])), train, test, epochs=TEACHER_EPOCHS[data], batch_size=128,
            learning_rate=0.1, schedule=CosineDecay(warmup=1), seed=0, output_dir=folder / f"teacher_{data}",
            progress=progress, workers=8 if device().type == "cuda" else 0,
        )  # fmt: skip


@cache
def teacher_of(data: str, folder: Path) -> nn.Module:
    """The teacher after its last epoch; it is trained if needed."""
    prepare(data, folder)
    network = Teacher(CLASSES[data])
    network.load_state_dict(load_file(folder / f"teacher_{data}" / "last.safetensors"))
    return channels_last(network).eval().to(device())


def logits_of(network: nn.Module, data: Dataset[Any]) -> tuple[Tensor, Tensor]:
    """Logits (N, classes) and labels (N,), on the CPU."""
    network.eval()
    place = next(network.parameters()).device
    with torch.no_grad():
        found = [(network(images.to(place)).cpu(), labels) for images, labels in DataLoader(data, 250)]
    logits, labels = zip(*found, strict=True)
    return torch.cat(logits), torch.cat(labels)


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of right answers in percent."""
    return 100 * float((logits.argmax(1) == labels).double().mean())


def sign_diagonal(student: Tensor, teacher: Tensor) -> Tensor:
    """Cosines of Z_s v and Z_t v for the eigenvectors v of the teacher's Z_t' Z_t, largest eigenvalue first.

    Logits are centred over the classes, which softmax does not see; the eigenvector of the constant direction is left
    out. Shape (classes - 1,).
    """
    x, y = (z.double() - z.double().mean(1, keepdim=True) for z in (student, teacher))
    vectors = torch.linalg.eigh(y.T @ y).eigenvectors.flip(1)[:, :-1]
    return torch.nn.functional.cosine_similarity(x @ vectors, y @ vectors, dim=0)


def run_cell(cell: Cell, folder: Path) -> dict[str, Any]:
    """Train the student of a cell and measure it; the row of the table."""
    started = time.perf_counter()
    measure = _probed if cell.method in PROBED else _distilled
    scores = measure(cell, folder, parts(cell.data, folder, cell.seed, cell.images, augment=False))
    machine = torch.cuda.get_device_name() if device().type == "cuda" else f"{platform.machine()}, 1 thread"
    return {
        **cell._asdict(),
        "epochs": EPOCHS[cell.images],
        **scores,
        "seconds": round(time.perf_counter() - started),
        "commit": commit(),
        "machine": f"{machine}, torch {torch.__version__.partition('+')[0]}",
        "date": date.today().isoformat(),
    }


def cache_in(folder: str) -> str | None:
    """The folder, but None on a GPU: there the teacher is faster than its outputs on disk."""
    return folder if device().type == "cpu" else None


def new_student(cell: Cell) -> nn.Module:
    """The same first weights for every method."""
    torch.manual_seed(cell.seed)
    return channels_last(resnet8(CLASSES[cell.data], in_channels=1))


def _distilled(cell: Cell, folder: Path, data: tuple[Dataset[Any], ...]) -> dict[str, Any]:
    """Train with labels and the method's loss; the accuracies after the last epoch."""
    train, validation, test = data
    method = METHODS[cell.method]
    teacher = teacher_of(cell.data, folder)
    epochs = EPOCHS[cell.images]
    loss = None if method.make is None else method.make(cell.weight)
    if cell.ramp:
        loss = ramp(1.0, until=RAMP_UNTIL) * loss
    student = new_student(cell)
    glance = torch.utils.data.Subset(validation, range(0, len(validation), 10))
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        layers = STAGES if method.features else ()
        result = distill(
            None if loss is None else teacher, student, train, glance, loss, student_layers=layers, epochs=epochs,
            batch_size=BATCH, learning_rate=LEARNING_RATE, schedule=CosineDecay(), ce_weight=method.ce_weight,
            seed=cell.seed, progress=False, teacher_cache=None if loss is None else cache_in(scratch),
        )  # fmt: skip
    assert len(result.history) == epochs
    scored = {name: logits_of(student, part) for name, part in (("validation", validation), ("test", test))}
    taught, labels = logits_of(teacher, test)
    diagonal = sign_diagonal(scored["test"][0], taught)
    return {
        **{name: round(accuracy(*found), 3) for name, found in scored.items()},
        "agreement": round(accuracy(scored["test"][0], taught.argmax(1)), 3),
        "diagonal": " ".join(f"{value:.3f}" for value in diagonal),
        "teacher_test": round(accuracy(taught, labels), 3),
    }


def _probed(cell: Cell, folder: Path, data: tuple[Dataset[Any], ...]) -> dict[str, Any]:
    """Distill without labels from the teacher of clothes, then a linear probe; of the teacher too."""
    train, validation, test = data
    teacher = teacher_of("fashion", folder)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        student = unlabelled_student(
            cell.method, teacher, new_student(cell), train, student_layers=STAGES, epochs=EPOCHS[cell.images],
            batch_size=BATCH, learning_rate=LEARNING_RATE, seed=cell.seed, teacher_cache=cache_in(scratch),
        )  # fmt: skip
    scores = dict(zip(("validation", "test"), probe(student, train, validation, test), strict=True))
    (theirs,) = probe(teacher, train, test)
    nothing = {"agreement": "", "diagonal": "", "teacher_test": round(theirs, 3)}
    return {**{name: round(value, 3) for name, value in scores.items()}, **nothing}


def commit() -> str:
    """The commit that is checked out here."""
    here = Path(__file__).parent
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=here, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"
