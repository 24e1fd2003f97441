"""One sample far from all others: float32 features give the value that the definition has in float64."""

import numpy as np
import pytest
import torch
from torch import nn

import cka_probe as cp
from cka_probe.estimators import cka, cka_matrix, cka_with_error, hsic
from cka_probe.estimators.distances import middle_sample
from cka_probe.estimators.gram_accuracy import has_far_sample
from cka_probe.estimators.layer_grams import layer_gram


def u_centred(x):
    """The U-centred Gram matrix, of features minus their median."""
    x = x.astype(np.float64) - np.median(x.astype(np.float64), axis=0)
    gram = x @ x.T
    np.fill_diagonal(gram, 0)
    n, rows = len(gram), gram.sum(1)
    gram -= rows[:, None] / (n - 2) + rows / (n - 2) - rows.sum() / ((n - 1) * (n - 2))
    np.fill_diagonal(gram, 0)
    return gram


def pair(n, far, place, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 100))
    y = (x + rng.normal(size=x.shape)).astype(np.float32)
    x[place] += far * rng.normal(size=100)
    return x.astype(np.float32), y


def expected(x, y):
    a, b = u_centred(x), u_centred(y)
    return (a * b).sum(), (a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b)


@pytest.mark.filterwarnings("ignore::cka_probe.estimators.outliers.OutlierWarning")
@pytest.mark.parametrize("n", [5, 16, 64, 256])
@pytest.mark.parametrize("far", [1e2, 1e4, 1e6])
@pytest.mark.parametrize("place", [0, 3])
def test_values_in_float32_are_those_of_the_definition(n, far, place, xp):
    x, y = pair(n, far, place)
    product, similarity = expected(x, y)
    x, y = (xp.asarray(one) for one in (x, y))
    assert float(cka(x, y)) == pytest.approx(similarity, abs=1e-6)
    assert float(cka_with_error(x, y).value) == pytest.approx(similarity, abs=1e-6)
    assert float(hsic(x, y)) == pytest.approx(product / (n * (n - 3)), rel=1e-6, abs=1e-6 * abs(product))
    assert float(cka_matrix([x], [y])[0, 0]) == pytest.approx(similarity, abs=1e-6)


@pytest.mark.parametrize("at", [0, 2])
def test_compare_gives_the_value_and_names_the_sample(at):
    torch.manual_seed(0)
    batches = [torch.randn(32, 20) for _ in range(3)]
    batches[at][5] *= 1e4
    nets = [nn.Sequential(nn.Linear(20, 30, bias=False), nn.Linear(30, 8, bias=False)) for _ in range(2)]
    result = cp.compare(*nets, batches, layers=["0", "1"], progress=False)
    products = np.zeros((3, 2, 2))
    with torch.no_grad():
        for batch in batches:
            sides = [[u_centred(one.numpy()) for one in (net[0](batch), net(batch))] for net in nets]
            for i, j in np.ndindex(2, 2):
                pairs = ((sides[0][i], sides[1][j]), (sides[0][i], sides[0][i]), (sides[1][j], sides[1][j]))
                products[:, i, j] += [(a * b).sum() for a, b in pairs]
    np.testing.assert_allclose(result.values, products[0] / np.sqrt(products[1] * products[2]), atol=1e-6)
    assert any("sample 5" in note or "index 5" in note for note in result.notes), result.notes


def test_gradients_flow_through_both_precisions():
    for far in (0.0, 1e4):
        x, y = (torch.tensor(one) for one in pair(16, far, 3))
        x.requires_grad_()
        cka(x, y).backward()
        assert x.grad.dtype == torch.float32
        assert bool(x.grad.isfinite().all())


def test_three_far_samples_do_not_move_the_middle(xp):
    x = np.random.default_rng(0).normal(size=(20, 50)).astype(np.float32)
    x[[1, 10, 18]] += 1e6
    assert float(xp.max(xp.abs(middle_sample(xp.asarray(x))))) < 10
    assert has_far_sample(xp.asarray(x))
    assert not has_far_sample(xp.asarray(x[2:10]))


def test_layers_without_a_far_sample_stay_in_float32():
    x, _ = pair(64, 0.0, 3)
    assert layer_gram(x).gram.dtype == np.float32
    assert layer_gram(pair(64, 1e3, 3)[0]).gram.dtype == np.float64
