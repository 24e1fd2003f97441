"""Random logits and maps, and simple formulas with loops, that tests compare the baselines with."""

import math

import numpy as np
import torch

F64 = torch.float64


def normal(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


LOGITS = normal(6, 5), 2 * normal(6, 5, seed=1)
TARGET = torch.tensor([0, 1, 2, 3, 4, 1])
MAPS = normal(3, 4, 5, 6, seed=2), normal(3, 4, 5, 6, seed=3)


def softmax(row, temperature=1.0):
    exponentials = [math.exp(z / temperature) for z in row]
    return [e / sum(exponentials) for e in exponentials]


def divergence(teacher, student):
    """KL(teacher || student) of two distributions."""
    return sum(p * math.log(p / q) for p, q in zip(teacher, student, strict=True))


def pearson(a, b):
    a, b = np.asarray(a) - np.mean(a), np.asarray(b) - np.mean(b)
    return sum(a * b) / math.sqrt(sum(a * a) * sum(b * b))


def flat(x):
    return x.reshape(len(x), -1).numpy()
