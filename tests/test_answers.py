"""How alike two networks answer, against plain loops over the samples."""

import math

import numpy as np
import pytest
import scipy.spatial.distance
import scipy.special
import torch
from array_api_compat import array_namespace
from numpy.testing import assert_allclose
from sklearn.linear_model import Ridge
from sklearn.metrics import cohen_kappa_score

from cka_probe.answers import (
    accuracy_difference,
    disagreement,
    error_consistency,
    jensen_shannon_divergence,
    linear_probe_agreement,
)


@pytest.fixture
def answers(rng):
    target = rng.integers(0, 4, size=50)
    x, y = (rng.normal(size=(50, 4)) + 2 * np.eye(4)[target] * strength for strength in (1.0, 0.5))
    return x, y, target


def test_disagreement_by_a_loop(xp, answers):
    x, y, _ = answers
    expected = sum(
        max(range(4), key=lambda c: u[c]) != max(range(4), key=lambda c: v[c]) for u, v in zip(x, y, strict=True)
    )
    value = disagreement(xp.asarray(x), xp.asarray(y))
    assert_allclose(float(value), expected / 50, rtol=1e-15)
    assert value.dtype == xp.float64
    assert array_namespace(value) is array_namespace(xp.asarray(x))
    assert float(disagreement(xp.asarray(x), xp.asarray(3 * x))) == 0


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_jensen_shannon_divergence_by_scipy(xp, answers, temperature):
    x, y, _ = answers
    p, q = (scipy.special.softmax(z / temperature, axis=1) for z in (x, y))
    expected = np.mean([scipy.spatial.distance.jensenshannon(a, b, base=2) ** 2 for a, b in zip(p, q, strict=True)])
    value = jensen_shannon_divergence(xp.asarray(x), xp.asarray(y), temperature=temperature)
    assert_allclose(float(value), expected, rtol=1e-10)


def test_jensen_shannon_divergence_of_sure_and_of_near_networks(answers):
    x, _, _ = answers
    sure = 1e4 * np.eye(4)
    assert_allclose(jensen_shannon_divergence(sure, np.roll(sure, 1, axis=1)), 1, rtol=1e-12)
    assert jensen_shannon_divergence(x, x + 7.0) == pytest.approx(0, abs=1e-15)
    steps = [jensen_shannon_divergence(x, x + step * np.eye(4)[0]) for step in (1e-3, 2e-3)]
    assert steps[1] / steps[0] == pytest.approx(4, rel=1e-2)  # a squared distance for near networks


def test_accuracy_difference_and_error_consistency(xp, answers):
    x, y, target = answers
    right = [[int(np.argmax(u) == t) for u, t in zip(z, target, strict=True)] for z in (x, y)]
    inputs = [xp.asarray(z) for z in (x, y, target)]
    assert_allclose(float(accuracy_difference(*inputs)), np.mean(right[0]) - np.mean(right[1]), rtol=1e-12)
    assert_allclose(float(error_consistency(*inputs)), cohen_kappa_score(*right), rtol=1e-10)
    assert_allclose(float(error_consistency(inputs[0], inputs[0], inputs[2])), 1, rtol=1e-12)


def test_error_consistency_without_errors_is_nan(xp):
    x = xp.asarray(np.eye(3))
    assert math.isnan(float(error_consistency(x, x, xp.asarray(np.arange(3)))))


def test_half_precision_and_gpu_free_torch(answers):
    x, y, target = answers
    x, y = (torch.tensor(np.round(z * 64) / 64) for z in (x, y))
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        u, v = x.to(dtype), y.to(dtype)
        assert_allclose(disagreement(u, v), disagreement(u.double(), v.double()))
        assert_allclose(jensen_shannon_divergence(u, v), jensen_shannon_divergence(u.double(), v.double()), rtol=1e-6)
        assert error_consistency(u, v, torch.tensor(target)).dtype == torch.float64


@pytest.mark.parametrize("seed", [0, 3])
def test_linear_probes_agree_with_scikit_learn(xp, rng, seed):
    target = rng.integers(0, 3, size=90)
    x, y = (rng.normal(size=(90, p)) + np.eye(3, p)[target] for p in (5, 8))
    found = linear_probe_agreement(
        *(xp.asarray(z) for z in (x, y, target)), held_out=0.4, regularization=0.1, seed=seed
    )
    split = np.random.default_rng(seed)
    held = []
    for one in range(3):
        members = split.permutation(np.flatnonzero(target == one))
        held += members[: round(0.4 * len(members))].tolist()
    fitted = [i for i in range(90) if i not in held]
    held = sorted(held)
    predictions = []
    for z in (x, y):
        penalty = 0.1 * np.sum((z[fitted] - z[fitted].mean(axis=0)) ** 2)
        scores = Ridge(alpha=penalty).fit(z[fitted], np.eye(3)[target[fitted]]).predict(z[held])
        predictions.append(scores.argmax(axis=1))
    right = [p == target[held] for p in predictions]
    assert_allclose(found["agreement"], np.mean(predictions[0] == predictions[1]))
    assert_allclose([found["accuracy_x"], found["accuracy_y"]], [r.mean() for r in right])
    assert_allclose(found["error_consistency"], cohen_kappa_score(*right), rtol=1e-10)


def test_probes_read_the_same_from_a_rotated_layer(rng):
    target = rng.integers(0, 3, size=60)
    x = rng.normal(size=(60, 100))
    rotated = x @ np.linalg.qr(rng.normal(size=(100, 100)))[0]
    assert linear_probe_agreement(x, rotated, target)["agreement"] == 1.0


def test_wrong_input_is_named(answers):
    x, y, target = answers
    with pytest.raises(ValueError, match="`x` has 4 classes and `y` has 3"):
        disagreement(x, y[:, :3])
    with pytest.raises(ValueError, match=r"`x` must have shape \(samples, classes\), got \(5, 10, 4\)"):
        disagreement(x.reshape(5, 10, 4), y.reshape(5, 10, 4))
    with pytest.raises(ValueError, match="one class only"):
        disagreement(x[:, :1], y[:, :1])
    with pytest.raises(TypeError, match="`x` must have a real floating dtype"):
        disagreement(target[:, None], target[:, None])
    with pytest.raises(ValueError, match="`y` holds NaN"):
        disagreement(x, y * np.nan)
    with pytest.raises(ValueError, match="`temperature` must be positive"):
        jensen_shannon_divergence(x, y, temperature=0)
    with pytest.raises(TypeError, match="`temperature` must be a number, got str"):
        jensen_shannon_divergence(x, y, temperature="1")
    for function in (accuracy_difference, error_consistency):
        with pytest.raises(TypeError, match="`target` must hold the classes as integers, got float64"):
            function(x, y, target.astype(float))
        with pytest.raises(ValueError, match=r"`target` must have shape \(50,\), one class a sample, got \(49,\)"):
            function(x, y, target[1:])
        with pytest.raises(ValueError, match="`target` holds classes from 0 to 4, but the outputs have 4"):
            function(x, y, np.where(target == 3, 4, target))
        with pytest.raises(TypeError, match="`target` is from torch"):
            function(x, y, torch.tensor(target))
    for bad in (0, 1, -0.5):
        with pytest.raises(ValueError, match="`held_out` must be between 0 and 1"):
            linear_probe_agreement(x, y, target, held_out=bad)
    with pytest.raises(ValueError, match="`regularization` must be positive"):
        linear_probe_agreement(x, y, target, regularization=0)
    with pytest.raises(TypeError, match="`seed` must be an int, got float"):
        linear_probe_agreement(x, y, target, seed=0.5)
    with pytest.raises(ValueError, match="one class only"):
        linear_probe_agreement(x, y, 0 * target)
    with pytest.raises(ValueError, match="class 7 once"):
        linear_probe_agreement(x, y, np.where(np.arange(50) == 3, 7, target))
