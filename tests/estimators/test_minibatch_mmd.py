"""Layerwise MMD over minibatches: against loops over points, its bounds, its error, and every kind of kernel."""

import numpy as np
import pytest
import reference
from libraries import to_numpy
from numpy.testing import assert_allclose

from cka_probe.estimators import RBF, Laplacian, MinibatchCKA, Polynomial, layer_mmd_squared
from cka_probe.estimators.hsic import flat_centred
from cka_probe.estimators.minibatch_mmd import minibatch_mmd, mmd_sums, unit_clouds

QUADRATIC = Polynomial(degree=2, offset=0.0, gamma=1.0)
KERNELS = [RBF(bandwidth=1.0), RBF(bandwidth=0.4), QUADRATIC, Polynomial(degree=3, gamma=0.5), Laplacian(bandwidth=1.0)]


def clouds(xp, features):
    grams = np.stack([x @ x.T for x in features])
    n = grams.shape[-1]
    return unit_clouds(flat_centred(xp.asarray(grams / np.abs(grams).max((1, 2), keepdims=True)), "biased"), n)


def batches(rng, sizes=(5, 7, 6)):
    return [([rng.normal(size=(n, 3)) for _ in range(2)], [rng.normal(size=(n, 2)) for _ in range(3)]) for n in sizes]


def added(sums):
    return {name: sum(part[name] for part in sums[1:]) + sums[0][name] for name in sums[0]}


def brute(x, y, kernel):
    """Squared MMD by loops over the points of both clouds."""
    sides = []
    for features in (x, y):
        sides.append(np.sqrt(len(features)) * reference.unit_gram(reference.gram(features)))
    k = {"RBF": lambda u, v: np.exp(-np.sum((u - v) ** 2) / (2 * kernel.bandwidth**2))}.get(
        type(kernel).__name__, lambda u, v: float(kernel(u[None], v[None])[0, 0])
    )
    mean = {(a, b): np.mean([[k(u, v) for v in sides[b]] for u in sides[a]]) for a, b in ((0, 0), (1, 1), (0, 1))}
    return mean[0, 0] + mean[1, 1] - 2 * mean[0, 1]


@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
def test_mean_over_minibatches_by_hand(kernel, xp, rng):
    data = batches(rng)
    found = minibatch_mmd(added([mmd_sums(clouds(xp, xs), clouds(xp, ys), kernel) for xs, ys in data]))
    sizes = np.array([5.0, 7.0, 6.0])
    for i in range(2):
        for j in range(3):
            values = np.array([brute(xs[i], ys[j], kernel) for xs, ys in data])
            mean = np.sum(sizes * values) / 18
            error = np.sqrt(np.sum((sizes * (values - mean)) ** 2) * 3 / 2) / 18
            assert_allclose(float(found.value[i, j]), mean, rtol=1e-10, atol=1e-14)
            assert_allclose(float(found.standard_error[i, j]), error, rtol=1e-8)
    assert found.value.dtype == xp.float64


@pytest.mark.parametrize("kernel", KERNELS[:3], ids=repr)
def test_bounds_hold_and_are_those_of_the_theory(kernel, rng):
    """For 40 random pairs, also nearly equal ones."""
    for _ in range(40):
        x = rng.normal(size=(9, 4))
        y = x @ rng.normal(size=(4, 4)) * rng.choice([0.0, 1.0]) + rng.choice([1e-3, 1.0]) * rng.normal(size=(9, 4)) + x
        found = minibatch_mmd(mmd_sums(clouds(np, [x]), clouds(np, [y]), kernel))
        value = float(layer_mmd_squared(x, y, kernel=kernel))
        assert_allclose(found.value, value, rtol=1e-8, atol=1e-14)
        assert found.lower[0, 0] - 1e-12 <= value <= found.upper[0, 0] + 1e-12
        assert np.isnan(found.standard_error).all()  # one minibatch
        c = reference.cka(x, y, "biased")
        if kernel is QUADRATIC:
            assert_allclose([found.lower[0, 0], found.upper[0, 0]], [4 * (1 - c) ** 2 / 8, 2 * (1 - c * c)], rtol=1e-6)
        else:
            t1 = 2 * (1 - np.exp(-(1 - c) / kernel.bandwidth**2))
            t4 = (1 - c) * (3 + c + min(1, 2 * (1 - c))) / kernel.bandwidth**4
            assert_allclose(found.upper[0, 0], min(t1, t4), rtol=1e-5)


def test_a_network_with_itself(xp, rng):
    x = clouds(xp, [rng.normal(size=(8, 3)) for _ in range(3)])
    for kernel in KERNELS[:3]:
        found = to_numpy(minibatch_mmd(mmd_sums(x, x, kernel)).value)
        assert_allclose(np.diag(found), 0, atol=1e-14)
        assert_allclose(found, found.T, atol=1e-14)


def test_blocks_of_layers_change_nothing(rng, monkeypatch):
    x, y = (clouds(np, [rng.normal(size=(6, 3)) for _ in range(5)]) for _ in range(2))
    whole = mmd_sums(x, y, KERNELS[0])
    monkeypatch.setattr("cka_probe.estimators.minibatch_mmd.BLOCK", 80)
    for name, part in mmd_sums(x, y, KERNELS[0]).items():
        assert_allclose(part, whole[name], rtol=1e-12)


def test_a_layer_that_is_constant_in_one_batch_counts_in_the_others(rng):
    first, second = rng.normal(size=(2, 6, 3))
    other = rng.normal(size=(6, 2))
    parts = [mmd_sums(clouds(np, [x]), clouds(np, [other]), KERNELS[0]) for x in (first, second)]
    with np.errstate(invalid="ignore"):
        dead = mmd_sums(unit_clouds(np.zeros((1, 36)), 6), clouds(np, [other]), KERNELS[0])
    expected, found = minibatch_mmd(added(parts)), minibatch_mmd(added([*parts, dead]))
    for one, two in zip(expected, found, strict=True):
        assert_allclose(one, two)
    with np.errstate(invalid="ignore", divide="ignore"):
        assert np.isnan(minibatch_mmd(dead).value).all()


def test_they_add_up_beside_the_sums_of_cka(rng):
    statistics = MinibatchCKA()
    rows = rng.normal(size=(2, 25))
    more = {"mmd_sum": np.ones((2, 2))}
    for _ in range(3):
        statistics.update_rows(rows, np.ones(2), rows, np.ones(2), 5, more)
    assert statistics.sums["mmd_sum"].tolist() == [[3.0, 3.0], [3.0, 3.0]]
