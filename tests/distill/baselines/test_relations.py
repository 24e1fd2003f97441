"""SP, RKD and CC against loops written from the equation of each paper, and samples that coincide."""

import math

import numpy as np
import pytest
import torch
from baselines_by_hand import flat, normal

from cka_probe.distill.baselines import CCLoss, RKDLoss, SPLoss


def huber(d):
    """Equation 6 of RKD."""
    return d * d / 2 if abs(d) <= 1 else abs(d) - 0.5


def test_sp():
    pairs = [(normal(4, 3, 2, 2), normal(4, 5, 3, 3, seed=1)), (normal(4, 7, seed=2), normal(4, 2, seed=3))]
    expected = 0.0
    for student, teacher in pairs:
        grams = []
        for z in (flat(student), flat(teacher)):
            gram = np.array([[sum(u * v) for v in z] for u in z])
            grams.append(np.array([row / math.sqrt(sum(row**2)) for row in gram]))
        expected += ((grams[0] - grams[1]) ** 2).sum() / 4**2
    student, teacher = zip(*pairs, strict=True)
    assert float(SPLoss(11)(student, teacher)) == pytest.approx(11 * expected, rel=1e-12)


def test_rkd():
    x, y = normal(5, 3, 2, 2), normal(5, 6, seed=1)
    distance = angle = 0.0
    relations = []
    for z in (flat(x), flat(y)):
        apart = np.array([[math.dist(u, v) for v in z] for u in z])
        mean = np.mean([apart[i, j] for i in range(5) for j in range(5) if i != j])
        cosines = np.zeros((5, 5, 5))
        for i in range(5):
            for j in range(5):
                for k in range(5):
                    if i != j and k != j:
                        cosines[i, j, k] = sum((z[i] - z[j]) * (z[k] - z[j])) / (apart[i, j] * apart[k, j])
        relations.append((apart / mean, cosines))
    distance = np.mean([huber(d) for d in (relations[0][0] - relations[1][0]).flat])
    angle = np.mean([huber(d) for d in (relations[0][1] - relations[1][1]).flat])
    terms = RKDLoss(2, 3).terms([x], [y])
    assert float(terms["distance"]) == pytest.approx(2 * distance, rel=1e-10)
    assert float(terms["angle"]) == pytest.approx(3 * angle, rel=1e-10)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_cc(order):
    x, y = normal(4, 6), normal(4, 3, 2, 2, seed=1)
    matrices = []
    for z in (flat(x), flat(y)):
        z = [row / math.sqrt(sum(row**2)) for row in z]
        powers = [math.exp(-0.8) * 0.8**p / math.factorial(p) for p in range(order + 1)]
        matrices.append(np.array([[sum(f * sum(u * v) ** p for p, f in enumerate(powers)) for v in z] for u in z]))
    expected = 7 * ((matrices[0] - matrices[1]) ** 2).sum() / 4**2
    assert float(CCLoss(7, order=order)([x], [y])) == pytest.approx(expected, rel=1e-12)


def test_cc_of_a_high_order_is_the_gaussian_kernel():
    x, y = normal(4, 6), normal(4, 3, seed=1)
    matrices = []
    for z in (flat(x), flat(y)):
        z = [row / math.sqrt(sum(row**2)) for row in z]
        matrices.append(np.array([[math.exp(-0.4 * math.dist(u, v) ** 2) for v in z] for u in z]))
    expected = ((matrices[0] - matrices[1]) ** 2).mean()
    assert float(CCLoss(1, order=20)([x], [y])) == pytest.approx(expected, rel=1e-10)


def test_samples_that_coincide_have_finite_gradients():
    x, y = normal(5, 3), normal(5, 4, seed=1)
    x[1] = x[0]
    y[3] = y[2]
    x.requires_grad_()
    RKDLoss()([x], [y]).backward()
    assert bool(torch.isfinite(x.grad).all())
