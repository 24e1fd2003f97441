"""compare(measure="mmd", scope="minibatch"): MMD and CKA of all pairs from the same Gram matrices, in one pass."""

from functools import partial

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn

import cka_probe as cp
from cka_probe.estimators import layer_mmd_squared

compared = partial(cp.compare, measure="mmd", scope="minibatch", progress=False)
QUADRATIC = cp.Polynomial(degree=2, offset=0.0, gamma=1.0)


def network(seed, shift=0.0):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    with torch.no_grad():
        net[0].bias += shift
    return net


def data(sizes=(12, 9, 16), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, 5, generator=generator) for n in sizes]


def expected(x, y, batches, **options):
    """Mean over batches, weighted by samples, from copied features in float64."""
    total = np.zeros((3, 3))
    for batch in batches:
        with torch.no_grad():
            a, b = ([net[: i + 1](batch).double().numpy() for i in range(3)] for net in (x, y))
        total += len(batch) * np.array([[float(layer_mmd_squared(u, v, **options)) for v in b] for u in a])
    return total / sum(map(len, batches))


@pytest.mark.parametrize("kernel", [None, QUADRATIC, cp.RBF(bandwidth=0.5)])
@pytest.mark.parametrize("shift", [0.0, 300.0])
def test_values_errors_bounds_and_cka_of_one_pass(kernel, shift):
    x, y, batches = network(0, shift), network(1), data()
    layers = ["0"] if shift else ["0", "1", "2"]
    found = compared(x, y, batches, kernel=kernel, layers=layers)
    wanted = expected(x, y, batches, kernel=kernel)[: len(layers), : len(layers)]
    assert_allclose(found.values, wanted, atol=1e-6)
    assert (found.standard_error > 0).all()
    assert (found.values <= found.extra["upper"] + 1e-7).all()
    assert ("lower" in found.extra) == (kernel is QUADRATIC)
    if kernel is QUADRATIC:
        assert (found.values >= found.extra["lower"] - 1e-7).all()
    cka = cp.compare(x, y, batches, layers=layers, progress=False)
    beside = found.other("cka")
    for name in ("values", "standard_error", "p_value", "chance"):
        assert_array_equal(getattr(beside, name), getattr(cka, name))
    assert found.is_distance
    assert not beside.is_distance
    assert found.measure == "mmd"


def test_one_pass_only():
    x, y = network(0), network(1)
    calls = []
    x.register_forward_hook(lambda *_: calls.append(1))
    compared(x, y, data())
    runs = len(calls)
    cp.compare(x, y, data(), progress=False)
    assert len(calls) == 2 * runs


def test_one_batch_equals_the_data_set_scope():
    x, y, [batch] = network(0), network(1), data((20,))
    assert_allclose(compared(x, y, [batch]).values, compared(x, y, [batch], scope="dataset").values, atol=1e-6)


def test_gram_kernel_itself_many_models_and_resumption(tmp_path):
    x, y, batches = network(0), network(1), data()
    kernel = cp.RBF(bandwidth=2.0)
    found = compared(x, y, batches, gram_kernel=kernel)
    assert_allclose(found.values, expected(x, y, batches, gram_kernel=kernel), atol=1e-6)
    assert_array_equal(found.extra["cka"], cp.compare(x, y, batches, kernel=kernel, progress=False).values)
    itself = compared(x, x, batches)
    assert_allclose(np.diag(itself.values), 0, atol=1e-9)
    assert_allclose(itself.values, itself.values.T)
    many = cp.compare_many({"x": x, "y": y}, batches, measure="mmd", scope="minibatch", progress=False)
    assert_allclose(many.values[:3, 3:], compared(x, y, batches).values, atol=1e-12)

    path = tmp_path / "run.npz"
    sizes = (6,) * 25

    def stopping():
        yield from data(sizes)[:22]
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        compared(x, y, stopping(), checkpoint=path)
    with pytest.raises(ValueError, match="measure"):
        cp.compare(x, y, data(sizes), progress=False, checkpoint=path)
    assert_array_equal(compared(x, y, data(sizes), checkpoint=path).values, compared(x, y, data(sizes)).values)


def test_a_dead_layer_is_nan_with_its_note():
    x, y = network(0), network(1)
    with torch.no_grad():
        y[2].weight.zero_()
    found = compared(x, y, data())
    assert_array_equal(np.isnan(found.values), np.isnan(found.extra["cka"]))
    assert np.isnan(found.values[:, 2]).all()
    assert any("constant" in note for note in found.notes)


def test_biased_cka_and_plots(tmp_path):
    found = compared(network(0), network(1), data(), estimator="biased")
    assert "cka p_value" not in found.extra
    assert (found.extra["cka chance"] > 0).all()
    found.plot()
    loaded = cp.SimilarityMatrix.load(found.save(tmp_path / "m.npz"))
    loaded.other("cka").plot()


def test_refused():
    x, y = network(0), network(1)
    with pytest.raises(ValueError, match="median bandwidth would give each pair"):
        compared(x, y, data(), kernel=cp.RBF())
    with pytest.raises(ValueError, match=r'`centred=False` is for scope="dataset"'):
        compared(x, y, data(), centred=False)
    with pytest.raises(ValueError, match="'procrustes' has no minibatch form"):
        compared(x, y, data(), measure="procrustes")
    with pytest.raises(ValueError, match="`permutations` is for CKA"):
        compared(x, y, data(), permutations=99)
