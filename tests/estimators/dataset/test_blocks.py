"""``blocked_cka`` against the n x n definition, and ``choose_route``."""

import numpy as np
import pytest
import reference
import torch

from cka_probe.estimators import RBF, Cosine, Linear, Polynomial, cka
from cka_probe.estimators.dataset.blocks import blocked_cka
from cka_probe.estimators.dataset.routes import choose_route


@pytest.fixture
def layers(rng):
    shared = rng.normal(size=(53, 3))
    xs = [shared + 100, shared @ rng.normal(size=(3, 40)) + rng.normal(size=(53, 40))]
    ys = [shared**2 @ rng.normal(size=(3, 6)) + rng.normal(size=(53, 6)), rng.normal(size=(53, 2)), 3 * shared]
    return xs, ys


@pytest.mark.parametrize("block", [1, 16, 53, 200])
@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
def test_linear_kernel_equals_the_definition(xp, layers, estimator, block):
    xs, ys = layers
    values = blocked_cka([xp.asarray(x) for x in xs], [xp.asarray(y) for y in ys], estimator=estimator, block=block)
    expected = [[reference.cka(x, y, estimator) for y in ys] for x in xs]
    np.testing.assert_allclose(np.asarray(values), expected, atol=1e-11)
    assert type(values) is type(xp.asarray(xs[0]))
    assert values.dtype == xp.float64


@pytest.mark.parametrize("kernel", [RBF(bandwidth=3.0), Polynomial(), Cosine()], ids=repr)
@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
def test_other_kernels_equal_cka_of_the_whole_arrays(layers, kernel, estimator):
    xs, ys = layers
    values = blocked_cka(xs, ys, kernel=kernel, estimator=estimator, block=20)
    expected = [[float(cka(x, y, kernel=kernel, estimator=estimator)) for y in ys] for x in xs]
    np.testing.assert_allclose(values, expected, atol=1e-9)


def test_a_median_bandwidth_is_measured_on_samples_from_all_over_the_data(layers):
    xs, ys = layers
    fixed = [[RBF().fixed(side[:: -(-len(side) // 16)]) for side in sides] for sides in (xs, ys)]
    expected = [
        [float(cka(x, y, kernel=k, kernel_y=m)) for y, m in zip(ys, fixed[1], strict=True)]
        for x, k in zip(xs, fixed[0], strict=True)
    ]
    np.testing.assert_allclose(blocked_cka(xs, ys, kernel=RBF(), block=16), expected, atol=1e-11)


def test_one_network_with_itself_is_symmetric_with_ones(layers):
    xs, ys = layers
    values = blocked_cka([*xs, *ys], block=16)
    np.testing.assert_allclose(values, values.T, atol=0)
    np.testing.assert_allclose(np.diag(values), 1, atol=1e-12)


@pytest.mark.parametrize("kernel", [Linear(), RBF(bandwidth=2.0), RBF()], ids=repr)
def test_only_a_constant_layer_is_nan(layers, kernel):
    xs, ys = layers
    values = blocked_cka([*xs, np.full((53, 4), 5.1)], ys, kernel=kernel, block=16)
    assert np.isnan(values[2]).all()
    assert np.isfinite(values[:2]).all()


@pytest.mark.parametrize("mean", [0, 1e5])
@pytest.mark.parametrize("scale", [1e-10, 1, 1e10])
def test_float32_features_of_any_mean_and_scale(rng, mean, scale):
    x = ((rng.normal(size=(60, 30)) + mean) * scale).astype(np.float32)
    y = (x[:, :7] + scale * rng.normal(size=(60, 7))).astype(np.float32)
    value = blocked_cka([x], [y], block=25)[0, 0]
    assert value == pytest.approx(reference.cka(x.astype(float), y.astype(float)), abs=1e-6)


def test_error_messages(rng):
    x = rng.normal(size=(10, 3))
    with pytest.raises(ValueError, match="`block` must be at least 1, got 0"):
        blocked_cka([x], block=0)
    with pytest.raises(ValueError, match="`xs` holds no layers"):
        blocked_cka([])
    with pytest.raises(ValueError, match="`xs` hold 10 samples and `ys` 9"):
        blocked_cka([x], [x[:9]])
    with pytest.raises(TypeError, match=r"one library: `xs\[0\]` is from numpy and `xs\[1\]` is from torch"):
        blocked_cka([x, torch.from_numpy(x)])
    with pytest.raises(ValueError, match="half of all pairs of samples or more are equal"):
        blocked_cka([np.eye(10)[:, :1]], kernel=RBF())
    with pytest.raises(ValueError, match=r"`xs\[1\]` has shape \(9, 3\), but must be \(n, p\)"):
        blocked_cka([x, x[:9]])
    with pytest.raises(ValueError, match=r"`xs\[0\]` has 3 samples, but this estimator needs at least 4"):
        blocked_cka([x[:3]])


@pytest.mark.parametrize(
    ("samples", "widths", "kernel", "memory", "name"),
    [
        (100_000, [64, 128], None, 2**32, "moments"),
        (None, [64, 128], None, 2**32, "moments"),
        (500, [50_000], None, 2**32, "grams"),
        (500, [64], RBF(bandwidth=1.0), 2**32, "grams"),
        (60_000, [30_000], None, 2**34, "moments"),
        (30_000, [40_000], Cosine(), 2**34, "blocks"),
        (10**6, [10**6], None, 2**32, "sketch"),
        (None, [10**6], None, 2**32, "sketch"),
    ],
)
def test_the_cheapest_route_that_fits(samples, widths, kernel, memory, name):
    route = choose_route(samples, widths, kernel=kernel, memory=memory)
    assert route.name == name
    assert route.reason


def test_an_error_when_no_route_fits():
    with pytest.raises(ValueError, match="has no sketch"):
        choose_route(10**6, [10**6], kernel=Cosine())
