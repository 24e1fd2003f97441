"""Trained networks that the figures share: one teacher and students of every method, each trained once.

Weights are kept in figures/.cache, which git ignores; `python -m figures --fresh` trains again.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save
from torch import nn
from torch.utils.data import TensorDataset

from cka_probe.atomic_write import atomic_write
from cka_probe.distill import CosineDecay, FeatureCKALoss, LogitCKALoss, RCKALoss, digits, distill
from cka_probe.distill.baselines import DISTLoss, DKDLoss, KDLoss, SPLoss
from cka_probe.distill.models import build

CACHE = Path(__file__).parent / ".cache"
STAGES = ["layer1", "layer2", "layer3"]
SHOWN = ["conv1", "layer?.?", "fc"]


class Method(NamedTuple):
    """A loss, the weight of the cross-entropy beside it, and whether it reads feature maps."""

    loss: Callable[[], nn.Module] | None
    ce_weight: float = 1.0
    features: bool = False


# The paper's weight of 15 for intra and inter suits its 190,000 steps; in the 300 of these runs it drowns the labels.
METHODS: dict[str, Method] = {
    "CE": Method(None),
    "KD": Method(KDLoss, ce_weight=0.1),
    "FCKA": Method(FeatureCKALoss, features=True),
    "LCKA": Method(partial(LogitCKALoss, intra_weight=3, inter_weight=3)),
    "RCKA": Method(partial(RCKALoss, feature_weight=1, intra_weight=3, inter_weight=3), features=True),
    "DKD": Method(DKDLoss),
    "DIST": Method(DISTLoss),
    "SP": Method(SPLoss, features=True),
}


class Budget(NamedTuple):
    """Lengths of training and numbers of images; the tests use less."""

    teacher: str = "resnet20"
    teacher_epochs: int = 12
    student_epochs: int = 60
    train_per_class: int = 10
    batch_size: int = 20


FULL = Budget()


@cache
def data(train_per_class: int | None = None) -> tuple[TensorDataset, TensorDataset]:
    """Training and test set of scikit-learn's digits at 16 x 16 pixels: all for teachers, few labels for students."""
    return digits(train_per_class, size=16)


def images(count: int | None = None) -> torch.Tensor:
    """The first test images, or all."""
    return data()[1].tensors[0][:count].contiguous()


def accuracy(network: nn.Module) -> float:
    """Test accuracy of a network, between 0 and 1."""
    pixels, labels = data()[1].tensors
    network.eval()
    with torch.no_grad():
        return float((network(pixels).argmax(1) == labels).double().mean())


def cached(path: Path, network: nn.Module, train: Callable[[nn.Module], Any]) -> nn.Module:
    """The network with the weights in the file. If there is no file, train the network and write it."""
    if path.is_file():
        network.load_state_dict(load_file(path))
    else:
        train(network)
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, save(network.state_dict()))
    return network.eval()


def trained(name: str, seed: int, epochs: int, folder: Path = CACHE) -> nn.Module:
    """A network trained on all training digits."""

    def learn(network: nn.Module) -> None:
        train, test = data()
        options: dict[str, Any] = {"epochs": epochs, "batch_size": 64, "learning_rate": 0.05, "seed": seed}
        distill(None, network, train, test, progress=False, schedule=CosineDecay(), **options)

    torch.manual_seed(seed)
    return cached(folder / f"{name}-{epochs}-seed{seed}.safetensors", build(name, num_classes=10), learn)


def teacher(budget: Budget = FULL, folder: Path = CACHE) -> nn.Module:
    """The teacher of all students."""
    return trained(budget.teacher, 0, budget.teacher_epochs, folder)


def untrained_student(seed: int) -> nn.Module:
    """The initial student of a seed, the same for every method."""
    torch.manual_seed(seed)
    return build("resnet8", num_classes=10).eval()


def teach(student: nn.Module, method: str, seed: int, budget: Budget, folder: Path, **options: Any) -> None:
    """Train a student in place on few labelled digits."""
    chosen = METHODS[method]
    few, test = data(budget.train_per_class)
    glance = TensorDataset(*(part[:100] for part in test.tensors))  # distill evaluates it after every epoch
    distill(
        None if chosen.loss is None else teacher(budget, folder),
        student,
        few,
        glance,
        None if chosen.loss is None else chosen.loss(),
        student_layers=STAGES if chosen.features else (),
        epochs=budget.student_epochs,
        batch_size=budget.batch_size,
        learning_rate=0.05,
        schedule=CosineDecay(),
        ce_weight=chosen.ce_weight,
        seed=seed,
        progress=False,
        **options,
    )


def student(method: str, seed: int, budget: Budget = FULL, folder: Path = CACHE) -> nn.Module:
    """The trained student of a method and a seed."""
    path = folder / f"student-{'-'.join(map(str, budget))}-{method}-seed{seed}.safetensors"
    return cached(path, untrained_student(seed), lambda network: teach(network, method, seed, budget, folder))


def train_all(methods: list[str], seeds: int, budget: Budget = FULL, folder: Path = CACHE) -> None:
    """Train the students that do not exist yet, and their teacher before them."""
    teacher(budget, folder)
    cells = [(method, seed) for method in methods for seed in range(seeds)]
    _in_parallel(
        _train_student,
        [
            (method, seed, budget, folder)
            for method, seed in cells
            if not (folder / f"student-{'-'.join(map(str, budget))}-{method}-seed{seed}.safetensors").is_file()
        ],
    )


def train_seeds(seeds: int, budget: Budget = FULL, folder: Path = CACHE) -> None:
    """Train the teacher's network from several seeds, except those that exist."""
    name, epochs = budget.teacher, budget.teacher_epochs
    missing = [seed for seed in range(seeds) if not (folder / f"{name}-{epochs}-seed{seed}.safetensors").is_file()]
    _in_parallel(_train_reference, [(name, seed, epochs, folder) for seed in missing])


def _in_parallel(train: Callable[..., None], cells: list[tuple[Any, ...]]) -> None:
    """Train in one process of one thread for each core: such small networks gain nothing from more threads."""
    workers = min(os.cpu_count() or 1, len(cells))
    if workers < 2:
        for cell in cells:
            train(*cell)
        return
    with ProcessPoolExecutor(workers, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        for future in [pool.submit(train, *cell) for cell in cells]:
            future.result()


def _train_student(method: str, seed: int, budget: Budget, folder: Path) -> None:
    student(method, seed, budget, folder)


def _train_reference(name: str, seed: int, epochs: int, folder: Path) -> None:
    trained(name, seed, epochs, folder)
