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


def patterns(count, classes=10):
    """Different choices of signs: all plus, all minus, and random ones."""
    rng = np.random.default_rng(0)
    found = {(1.0,) * classes, (-1.0,) * classes}
    while len(found) < count:
        found.add(tuple(rng.choice([-1.0, 1.0], size=classes)))
    return torch.tensor(sorted(found), dtype=torch.float64)


@pytest.mark.parametrize("shift", [0.0, 2.0])
def test_any_signs_of_the_principal_axes_are_an_optimum(teacher, shift):
    teacher = teacher + shift * torch.arange(10)  # means over samples and classes far from 0
    axes = principal_axes(teacher)
    for signs in patterns(200):
        student = 3.0 * teacher @ (axes * signs) @ axes.T
        terms = LogitCKALoss(1.0, 1.0).terms(student, teacher)
        assert set(terms) == {"intra", "inter"}
        assert all(abs(float(value)) < 1e-15 for value in terms.values())


def test_they_are_an_optimum_of_the_definition_too(teacher):
    """The same with CKA as a plain formula: centred Gram matrices, inner product over norms."""

    def cka(k, m):
        h = np.eye(len(k)) - 1 / len(k)
        k, m = h @ k @ h, h @ m @ h
        return (k * m).sum() / np.sqrt((k * k).sum() * (m * m).sum())

    axes = principal_axes(teacher).numpy()
    z = teacher.numpy()
    for signs in patterns(20).numpy():
        student = z @ (axes * signs) @ axes.T
        assert abs(1 - cka(student @ student.T, z @ z.T)) < 1e-14
        assert abs(1 - cka(student.T @ student, z.T @ z)) < 1e-14


def test_most_of_them_give_other_answers_than_the_teacher(teacher):
    axes = principal_axes(teacher)
    answers = teacher.argmax(1)
    agreement = {
        tuple(signs.tolist()): float(((teacher @ (axes * signs) @ axes.T).argmax(1) == answers).double().mean())
        for signs in patterns(200)
    }
    assert agreement[(1.0,) * 10] == 1
    assert agreement[(-1.0,) * 10] == 0  # the largest logit is the smallest
    assert np.mean(list(agreement.values())) < 0.2  # 10 classes: 0.1 by chance


@pytest.fixture
def centred(teacher):
    """Logits with mean 0 over samples and over classes, so that centring changes nothing."""
    stretched = teacher * torch.arange(1, 11)  # eigenvalues of different sizes
    return stretched - stretched.mean(0) - stretched.mean(1, keepdim=True) + stretched.mean()


def test_the_path_that_turns_one_sign(centred):
    values, axes = torch.linalg.eigh(centred.T @ centred)
    norm = values.square().sum()
    for axis in range(1, 10):  # axis 0 is that of equal logits, with the eigenvalue 0
        for t in (1.0, 0.5, 0.0, -0.3, -1.0):
            factors = torch.ones(10, dtype=torch.float64)
            factors[axis] = t
            terms = LogitCKALoss(1.0, 1.0).terms(centred @ (axes * factors) @ axes.T, centred)
            square = values[axis] ** 2
            expected = 1 - (norm - (1 - t**2) * square) / (norm * (norm - (1 - t**4) * square)).sqrt()
            for value in terms.values():
                assert float(value) == pytest.approx(float(expected), abs=1e-13)


def test_the_path_that_turns_two_axes_in_their_plane(centred):
    values, axes = torch.linalg.eigh(centred.T @ centred)
    for i, j in ((9, 8), (9, 1), (4, 5)):
        for angle in (0.0, 0.7, np.pi / 2, 2.0, np.pi):
            turn = torch.eye(10, dtype=torch.float64)
            turn[i, i] = turn[j, j] = np.cos(angle)
            turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
            terms = LogitCKALoss(1.0, 1.0).terms(centred @ axes @ turn @ axes.T, centred)
            expected = np.sin(angle) ** 2 * (values[i] - values[j]) ** 2 / values.square().sum()
            assert float(terms["intra"]) == pytest.approx(0, abs=1e-13)
            assert float(terms["inter"]) == pytest.approx(float(expected), abs=1e-13)


def test_a_general_rotation_of_the_classes_is_an_optimum_of_intra_alone(teacher, rng):
    rotation, _ = np.linalg.qr(rng.normal(size=(10, 10)))
    terms = LogitCKALoss(1.0, 1.0).terms(teacher @ torch.from_numpy(rotation), teacher)
    assert abs(float(terms["intra"])) < 1e-12
    assert float(terms["inter"]) > 0.05
