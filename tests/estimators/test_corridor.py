"""The corridor of T3: from Gram matrices and from covariances, both bounds and when they hold, gradients, bad input."""

import math

import numpy as np
import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from libraries import to_numpy
from numpy.testing import assert_allclose
from strategies import feature_pairs

from cka_probe.estimators import (
    RBF,
    Linear,
    alignment_corridor,
    alignment_corridor_from_covariances,
    cka,
    corridor_curves,
)
from cka_probe.estimators.alignment import normalized_gram
from cka_probe.estimators.corridor import corridor_of


@given(feature_pairs())
def test_covariances_give_the_same_corridor_as_grams(pair):
    x, y = (z - z.mean(axis=0) for z in pair)
    from_grams = corridor_of(normalized_gram(x, Linear()), normalized_gram(y, Linear()))
    point = alignment_corridor_from_covariances(x.T @ x, y.T @ y, x.T @ y)
    for name in ("cka", "mmd_squared", "upper", "spectral_lower"):
        assert_allclose(getattr(point, name), getattr(from_grams, name), rtol=1e-8, atol=1e-10, err_msg=name)


def test_the_route_is_chosen_by_cost_and_gives_the_same(xp, rng):
    x, y = rng.normal(size=(40, 3)), rng.normal(size=(40, 4))
    for a, b in ((x, y), (x.T, x.T**2)):
        point = alignment_corridor(xp.asarray(a), xp.asarray(b))
        expected = corridor_of(reference.unit_gram(a @ a.T), reference.unit_gram(b @ b.T))
        for name, value in point._asdict().items():
            assert_allclose(float(value), getattr(expected, name), rtol=1e-9, atol=1e-13, err_msg=name)
            assert value.dtype == xp.float64


def test_the_unbiased_corridor_has_an_upper_side_only(xp, rng):
    x, y = xp.asarray(rng.normal(size=(12, 3))), xp.asarray(rng.normal(size=(12, 4)))
    point = alignment_corridor(x, y, estimator="unbiased")
    assert_allclose(float(point.cka), float(cka(x, y)), rtol=1e-10)
    assert float(point.mmd_squared) <= float(point.upper)
    assert math.isnan(float(point.lower))


def test_a_stack_of_corridors(xp, rng):
    x, y = xp.asarray(rng.normal(size=(4, 20, 2))), xp.asarray(rng.normal(size=(4, 20, 3)))
    stacked = alignment_corridor(x, y)
    for i in range(4):
        single = alignment_corridor(x[i, ...], y[i, ...])
        for together, alone in zip(stacked, single, strict=True):
            assert_allclose(to_numpy(together)[i], float(alone), rtol=1e-11, atol=1e-13)


def test_curves(xp):
    c = xp.asarray([-0.5, 0.0, 0.25, 1.0], dtype=xp.float64)
    lower, upper = corridor_curves(c, rank=3)
    assert_allclose(to_numpy(lower), [4 * 2.25 / 3, 4 / 3, 4 * 0.5625 / 3, 0])
    assert_allclose(to_numpy(upper), [1.5, 2, 1.875, 0])
    assert type(lower) is type(c)


def test_the_rank_of_equal_layers_is_0(xp, rng):
    x = xp.asarray(rng.normal(size=(10, 3)))
    for point in (alignment_corridor(x, x), alignment_corridor(x, x, kernel=RBF())):
        assert float(point.rank) == 0
        assert_allclose([float(v) for v in point[1:4]], 0, atol=1e-13)


def test_the_corridor_can_be_differentiated(rng):
    x = torch.tensor(rng.normal(size=(6, 2)), requires_grad=True)
    y = torch.tensor(rng.normal(size=(6, 3)))
    assert torch.autograd.gradcheck(lambda a: alignment_corridor(a, y).mmd_squared, (x,))
    assert torch.autograd.gradcheck(lambda a: alignment_corridor(a, y, kernel=RBF(bandwidth=1.0)).mmd_squared, (x,))


def test_a_constant_side_has_no_corridor(xp, rng):
    x, y = xp.ones((8, 2), dtype=xp.float64), xp.asarray(rng.normal(size=(8, 3)))
    assert all(math.isnan(float(v)) for v in alignment_corridor(x, y))


@given(st.integers(2, 7), st.integers(0, 10_000))
def test_the_upper_side_of_t3_holds_for_any_symmetric_matrices(n, seed):
    a, b = np.random.default_rng(seed).normal(size=(2, n, n))
    a, b = ((m + m.T) / np.linalg.norm(m + m.T) for m in (a, b))
    point = corridor_of(a, b, psd=False)
    assert point.mmd_squared <= point.upper + 1e-12
    assert np.isnan(point.lower)


def test_both_sides_of_t3_are_attained():
    # Orthogonal projections of rank 1: c = 0, rank 2, Q = 2. Both bounds are 2.
    x, y = np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1]]).T
    point = alignment_corridor(x[:, None], y[:, None])
    assert_allclose([point.cka, point.mmd_squared, point.lower, point.upper, point.rank], [0, 2, 2, 2, 2], atol=1e-12)


@pytest.mark.parametrize("psd", [True, False])
def test_the_lower_side_of_t3_needs_positive_semi_definite_matrices(psd):
    a = np.diag([1.0, 1.0]) / math.sqrt(2)
    b = np.diag([1.0, 1.0 if psd else -1.0]) / math.sqrt(2)
    point = corridor_of(a, b)
    assert (point.mmd_squared >= point.lower - 1e-15) == psd


def test_t5_needs_positive_semi_definite_matrices():
    """T5 fails for two symmetric matrices with the same rows in another order: the MMD is 0 and CKA below 1."""
    swap = np.array([[0.0, 1.0], [1.0, 0.0]])
    point = corridor_of(np.eye(2) / math.sqrt(2), swap / math.sqrt(2), psd=False)
    assert_allclose(point.cka, 0, atol=1e-15)
    assert_allclose(point.mmd_squared, 0, atol=1e-15)


def test_bad_features(rng):
    x = rng.normal(size=(8, 2))
    with pytest.raises(TypeError, match="`y` is from torch"):
        alignment_corridor(x, torch.tensor(x))
    with pytest.raises(ValueError, match='`estimator` must be "unbiased" or "biased"'):
        alignment_corridor(x, x, estimator="none")


def test_bad_covariances():
    with pytest.raises(ValueError, match=r"`covariance_xy` must have shape \(..., 2, 3\)"):
        alignment_corridor_from_covariances(np.eye(2), np.eye(3), np.zeros((3, 2)))
    with pytest.raises(ValueError, match=r"`covariance_x` must have shape \(..., 3, 3\)"):
        alignment_corridor_from_covariances(np.zeros((2, 3)), np.eye(3), np.zeros((2, 3)))
    with pytest.raises(ValueError, match="`covariance_y` holds NaN"):
        alignment_corridor_from_covariances(np.eye(2), np.full((2, 2), np.nan), np.eye(2))
    with pytest.raises(TypeError, match="`covariance_x` must have a real floating dtype"):
        alignment_corridor_from_covariances(np.eye(2, dtype=int), np.eye(2), np.eye(2))


def test_bad_curves():
    with pytest.raises(ValueError, match="`rank` must be at least 1"):
        corridor_curves(np.array([0.5]), rank=0)
    with pytest.raises(TypeError, match="`c` must have a real floating dtype"):
        corridor_curves(np.array([1]), rank=2)
    with pytest.raises(ValueError, match="`c` holds NaN"):
        corridor_curves(np.array([np.nan]), rank=2)
