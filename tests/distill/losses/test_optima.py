"""T7 (docs/theory.md, section 8): the two logit terms have 2^P optima, one for each choice of signs."""

import numpy as np
import pytest
import torch

from cka_probe.distill.losses import LogitCKALoss


@pytest.fixture
def teacher(rng):
    return torch.from_numpy(rng.normal(size=(64, 10)))


def principal_axes(logits):
    _, axes = torch.linalg.eigh(logits.T @ logits)
    return axes


@pytest.mark.parametrize("seed", range(20))
def test_any_signs_of_the_principal_axes_are_an_optimum(teacher, seed):
    signs = torch.from_numpy(np.random.default_rng(seed).choice([-1.0, 1.0], size=10))
    axes = principal_axes(teacher)
    student = teacher @ (axes * signs) @ axes.T
    terms = LogitCKALoss(1.0, 1.0).terms(student, teacher)
    assert set(terms) == {"intra", "inter"}
    assert all(abs(float(value)) < 1e-12 for value in terms.values())


def test_most_of_them_give_other_answers_than_the_teacher(teacher):
    rng = np.random.default_rng(0)
    axes = principal_axes(teacher)
    agreement = []
    for _ in range(200):
        student = teacher @ (axes * torch.from_numpy(rng.choice([-1.0, 1.0], size=10))) @ axes.T
        agreement.append(float((student.argmax(1) == teacher.argmax(1)).double().mean()))
    assert np.mean(agreement) < 0.3  # 10 classes: 0.1 by chance


def test_a_general_rotation_of_the_classes_is_an_optimum_of_intra_alone(teacher, rng):
    rotation, _ = np.linalg.qr(rng.normal(size=(10, 10)))
    terms = LogitCKALoss(1.0, 1.0).terms(teacher @ torch.from_numpy(rotation), teacher)
    assert abs(float(terms["intra"])) < 1e-12
    assert float(terms["inter"]) > 0.05
