"""When the keeper multiplies on tensor cores. The kernels themselves are tested in tests/gpu/test_gpu_triton.py."""

import pytest
import torch
from activations import reference_cka
from numpy.testing import assert_allclose
from torch import nn

import cka_probe as cp
from cka_probe.comparison import minibatch
from cka_probe.comparison.grams import keeper
from cka_probe.comparison.grams.keeper import GramKeeper
from cka_probe.comparison.grams.triton_gram import pays
from cka_probe.estimators import RBF


@pytest.fixture
def multiplied(monkeypatch):
    """Shapes of the features that went to the stand-in for the kernels; minibatches wait for nothing, as on a GPU."""
    shapes = []

    def gram(features, *, tf32=False):
        shapes.append(tuple(features.shape))
        shifted = features.double() - features[: len(features) // 16].double().mean(0)
        return (shifted @ shifted.T).float()

    monkeypatch.setattr(keeper, "pays", lambda features: features.shape[1] >= 50)
    monkeypatch.setattr(keeper, "tensor_core_gram", gram)
    monkeypatch.setattr(minibatch, "GramKeeper", lambda *args, **kw: GramKeeper(*args, **kw, deferred=True))
    return shapes


def net(mean=0.0):
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(6, 60), nn.Tanh(), nn.Linear(60, 5))
    with torch.no_grad():
        model[0].bias += mean
    return model


def batches():
    return list(torch.randn(4, 32, 6, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("mean", [0.0, 30.0])
def test_wide_layers_go_to_the_kernels_after_the_first_minibatch(multiplied, mean):
    model = net(mean)
    found = cp.compare(model, model, batches(), layers=["0", "2"], progress=False)
    assert multiplied == [(32, 60)] * 3
    inside = [{"0": model[0](x).detach().double().numpy(), "2": model(x).detach().double().numpy()} for x in batches()]
    assert_allclose(found.values, reference_cka(inside), atol=1e-6)


@pytest.mark.parametrize("options", [{"kernel": RBF()}, {"kernel": cp.Cosine()}], ids=str)
def test_other_kernels_do_not(multiplied, options):
    cp.compare(net(), net(), batches(), progress=False, **options)
    assert not multiplied


class Half(nn.Module):
    def __init__(self, mean):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 60, generator=torch.Generator().manual_seed(1)))
        self.mean = mean

    def forward(self, x):
        return (x @ self.weight + self.mean).bfloat16()


@pytest.mark.parametrize(("mean", "count"), [(0.0, 0), (2.0, 0), (100.0, 3)])
def test_half_precision_goes_to_the_kernels_only_with_a_large_mean(multiplied, mean, count):
    model = Half(mean)
    found = cp.compare(model, model, batches(), layers=lambda path, _: path == "", progress=False)
    assert len(multiplied) == count
    inside = [{"model": model(x).detach().double().numpy()} for x in batches()]
    assert_allclose(found.values, reference_cka(inside), atol=1e-5)
    assert not found.notes


def test_the_kernels_are_for_large_products_on_a_gpu():
    assert not pays(torch.empty((256, 65536), device="meta"))
    assert not pays(torch.zeros(4, 4))
