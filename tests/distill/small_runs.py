"""Small networks, data and a loss, trained in less than a second. Tests also run it as a script and kill it."""

import sys
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn
from torch.nn import functional
from torch.utils.data import Dataset, TensorDataset

from cka_probe.distill.training.classification import distill


class ConvNet(nn.Module):
    """Convolution, batch norm, in-place ReLU. The ReLU overwrites the tapped output unless the tap prevents it."""

    def __init__(self, width=4, classes=3, dropout=0.0, norm=True):
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width) if norm else nn.Identity()
        self.act = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(dropout)
        self.fc = nn.Linear(width, classes)

    def forward(self, x):
        return self.fc(self.drop(self.act(self.norm(self.stem(x))).mean((2, 3))))


class Mimic(nn.Module):
    """Loss of two weighted terms: distances of logits and of features."""

    def terms(self, student, teacher, target=None):
        terms = {"logits": 0.5 * functional.mse_loss(student.logits, teacher.logits)}
        if student.features:
            x, y = student.features[0].mean((2, 3)), teacher.features[0].mean((2, 3))
            terms["features"] = 2.0 * functional.mse_loss(x, y)
        return terms

    def forward(self, *arguments):
        return sum(self.terms(*arguments).values())


class Noisy(Dataset):
    """Data set with noise from the generators of torch, numpy and Python."""

    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        import random

        import numpy as np

        x, y = self.data[index]
        return x + 0.1 * torch.randn(x.shape) + 0.1 * random.random() + 0.1 * np.random.rand(), y  # noqa: NPY002


@contextmanager
def cpu_accelerator(**kwargs):
    """An Accelerator whose settings are removed from the process afterwards."""
    try:
        yield Accelerator(cpu=True, **kwargs)
    finally:
        AcceleratorState._reset_state()


def images(n=40, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    target = torch.arange(n) % classes
    return TensorDataset(torch.randn(n, 1, 6, 6, generator=generator) + target.view(-1, 1, 1, 1), target)


def network(seed=0, **kwargs):
    torch.manual_seed(seed)
    return ConvNet(**kwargs)


def run(student=None, teacher=None, loss=None, **kwargs):
    student = network(1) if student is None else student
    options = {"epochs": 2, "batch_size": 8, "learning_rate": 0.1, "progress": False, **kwargs}
    train = options.pop("train", images())
    test = options.pop("test", images(24, seed=1))
    return distill(teacher, student, train, test, loss, **options)


def weights(model):
    return torch.cat([value.flatten().double() for value in model.state_dict().values()])


def killable(directory=None, **kwargs):
    """A run with everything that a checkpoint saves: augmentation, dropout, momentum, batch norm, two terms, decay."""
    options = {"epochs": 4, "output_dir": directory, "checkpoint_steps": 2, "student_layers": ["norm"], **kwargs}
    return run(network(1, dropout=0.3), network(2), Mimic(), train=Noisy(images()), **options)


if __name__ == "__main__":
    killable(Path(sys.argv[1]))
