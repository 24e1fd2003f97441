"""Every estimator with CuPy arrays returns CuPy arrays with the values of numpy."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

import cka_probe as cp
from cka_probe.estimators import MinibatchCKA, center_gram, cka_matrix, hsic, u_center_gram
from cka_probe.estimators.dataset.blocks import blocked_cka
from cka_probe.estimators.dataset.moments import MomentCKA

KERNELS = pytest.mark.parametrize(
    "kernel",
    [cp.Linear(), cp.RBF(), cp.Laplacian(fraction=0.5), cp.Polynomial(), cp.Cosine()],
    ids=lambda k: type(k).__name__,
)
ESTIMATORS = pytest.mark.parametrize("estimator", ["unbiased", "biased"])


@pytest.fixture
def pair(rng):
    shared = rng.normal(size=(24, 4))
    return shared @ rng.normal(size=(4, 9)) + rng.normal(size=(24, 9)), shared @ rng.normal(size=(4, 40))


def same(found, expected, cupy, **tolerance):
    assert isinstance(found, cupy.ndarray)
    assert_allclose(found.get(), expected, **(tolerance or {"rtol": 1e-9, "atol": 1e-12}))


@KERNELS
@ESTIMATORS
def test_cka_and_hsic(cupy, pair, kernel, estimator):
    for function in (cp.cka, hsic):
        expected = function(*pair, kernel=kernel, estimator=estimator)
        same(function(*map(cupy.asarray, pair), kernel=kernel, estimator=estimator), expected, cupy)


@KERNELS
def test_gram_matrices(cupy, pair, kernel):
    same(kernel(cupy.asarray(pair[0])), kernel(pair[0]), cupy)


def test_centring(cupy, rng):
    gram = rng.normal(size=(3, 8, 8))
    gram = gram + gram.swapaxes(1, 2)
    for function in (center_gram, u_center_gram):
        same(function(cupy.asarray(gram)), function(gram), cupy)


@KERNELS
def test_mmd(cupy, rng, kernel):
    x, y = rng.normal(size=(20, 5)), rng.normal(size=(18, 5)) + 0.3
    expected = cp.mmd_squared(x, y, kernel=kernel)
    same(cp.mmd_squared(cupy.asarray(x), cupy.asarray(y), kernel=kernel), expected, cupy)


@ESTIMATORS
def test_minibatches(cupy, rng, estimator):
    on_host, on_gpu = MinibatchCKA(estimator=estimator), MinibatchCKA(estimator=estimator)
    for n in (16, 16, 9):
        xs = [rng.normal(size=(n, p)) for p in (3, 30)]
        on_host.update(xs, [xs[0] ** 3])
        on_gpu.update(list(map(cupy.asarray, xs)), [cupy.asarray(xs[0] ** 3)])
    same(on_gpu.compute(), on_host.compute(), cupy)
    same(on_gpu.standard_error(), on_host.standard_error(), cupy)


@ESTIMATORS
def test_whole_data_sets(cupy, pair, estimator):
    xs = list(map(cupy.asarray, pair))
    same(cka_matrix(xs, estimator=estimator), cka_matrix(list(pair), estimator=estimator), cupy)
    same(blocked_cka(xs, estimator=estimator), blocked_cka(list(pair), estimator=estimator), cupy)
    on_host, on_gpu = MomentCKA(), MomentCKA()
    on_host.update(list(pair))
    on_gpu.update(xs)
    same(on_gpu.compute(estimator), on_host.compute(estimator), cupy)


NEEDED = {"soft_matching": "ot", "rtd": "ripser"}  # packages of extras


@pytest.mark.parametrize("library", ["cupy", "torch"])
@pytest.mark.parametrize("name", cp.MEASURES)
def test_every_other_measure(request, rng, library, name):
    """A value and a matrix of each measure equal numpy's; the results stay on the GPU."""
    if name in NEEDED:
        pytest.importorskip(NEEDED[name])
    xs = [rng.normal(size=(40, p)) for p in (3, 6)]
    ys = [np.tanh(xs[0] @ rng.normal(size=(3, 5))), rng.normal(size=(40, 4))]
    if library == "cupy":
        there = request.getfixturevalue("cupy").asarray
    else:

        def there(x):
            return torch.tensor(x, device="cuda")

    measure = cp.MEASURES[name]
    value = measure.function(there(xs[0]), there(ys[0]))
    matrix = measure.matrix(list(map(there, xs)), list(map(there, ys))).values
    assert type(value) is type(matrix) is type(there(xs[0]))
    # Singular values of the two libraries differ by more than the rounding of a product.
    assert_allclose(float(value), float(measure.function(xs[0], ys[0])), rtol=1e-7, atol=1e-9)
    assert_allclose(matrix.tolist(), measure.matrix(xs, ys).values.tolist(), rtol=1e-7, atol=1e-9)


def test_energy_distance_and_jackknife(cupy, rng, pair):
    x, y = rng.normal(size=(20, 5)), rng.normal(size=(18, 5)) + 0.3
    same(cp.energy_distance(cupy.asarray(x), cupy.asarray(y)), cp.energy_distance(x, y), cupy)
    expected, found = cp.cka_with_error(*pair), cp.cka_with_error(*map(cupy.asarray, pair))
    same(found.value, expected.value, cupy)
    same(found.standard_error, expected.standard_error, cupy)


def test_bounds(cupy, pair):
    expected = cp.cka_mmd_bounds(*pair, tau=1.0)
    found = cp.cka_mmd_bounds(*map(cupy.asarray, pair), tau=1.0)
    for name in ("cka", "hsic", "gaussian_mmd_squared", "quadratic_mmd_squared", "t1_bound", "t3_upper", "t4_bound"):
        assert_allclose(float(getattr(found, name)), float(getattr(expected, name)), rtol=1e-9)


def test_float32_stays_accurate_far_from_the_origin(cupy, pair):
    x, y = (a.astype(np.float32) for a in pair)
    expected = cp.cka(x.astype(np.float64), y.astype(np.float64))
    same(cp.cka(cupy.asarray(x + np.float32(8)), cupy.asarray(y)), cp.cka(x + np.float32(8), y), cupy, atol=1e-6)
    same(cp.cka(cupy.asarray(x), cupy.asarray(y)), expected, cupy, atol=1e-6)
