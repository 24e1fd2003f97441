"""compare() gives the values, errors and p-values of a float64 reference on copied activations."""

from functools import partial

import numpy as np
import pytest
import reference
import torch
import torchvision
from activations import cloned, reference_cka
from numpy.testing import assert_allclose
from small_networks import Branches, Constant, Shifted, image_batches, small_network
from torch import nn

import cka_probe as cp

compared = partial(cp.compare, progress=False)


def random_images(seed, *sizes, side=32):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, 3, side, side, generator=generator) for n in sizes]


@pytest.fixture(scope="module")
def resnet18():
    torch.manual_seed(0)
    return torchvision.models.resnet18()


def test_the_float64_reference_equals_the_brute_force_definition(rng):
    """The fast reference of these tests against loops over samples."""
    batches = [{"a": rng.normal(size=(n, 3)), "b": rng.normal(size=(n, 5)) + 4} for n in (6, 9)]
    for estimator in ("unbiased", "biased"):
        expected = reference.minibatch_cka([(b["a"], b["b"]) for b in batches], estimator)
        assert_allclose(reference_cka(batches, estimator=estimator)[0, 1], expected, atol=1e-12)


@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
def test_resnet18_with_itself_over_all_leaves(resnet18, estimator):
    batches = random_images(1, 24, 24, 16)
    result = compared(resnet18, resnet18, batches, estimator=estimator)
    oracle = [cloned(resnet18, batch) for batch in batches]
    assert result.rows == result.columns == tuple(oracle[0])
    # 52 modules, of which the 8 ReLUs in the blocks run twice.
    assert len(result.rows) == 60
    assert_allclose(result.values, reference_cka(oracle, estimator=estimator), atol=1e-6)
    assert_allclose(np.diag(result.values), 1.0, atol=1e-6)
    assert np.array_equal(result.values, result.values.T)


def test_keeping_outputs_without_a_copy_is_wrong_on_resnet18(resnet18):
    """Negative control: torchvision's ReLUs work in place, so an output that is not copied changes after its hook."""
    batches = random_images(1, 24)
    kept = {}
    handles = [
        module.register_forward_hook(lambda _m, _i, out, name=name: kept.__setitem__(name, out))
        for name, module in resnet18.named_modules()
        if isinstance(module, nn.BatchNorm2d)
    ]
    with torch.no_grad():
        resnet18.eval()(batches[0])
    resnet18.train()
    for handle in handles:
        handle.remove()
    peer = reference_cka([{n: x.double().flatten(1).numpy() for n, x in kept.items()}])
    ours = compared(resnet18, resnet18, batches, layers=nn.BatchNorm2d)
    assert ours.rows == tuple(kept)
    assert np.abs(peer - ours.values).max() > 0.02


def test_two_different_networks(resnet18):
    torch.manual_seed(1)
    other = torchvision.models.resnet34()
    batches = random_images(2, 16, 16)
    result = compared(resnet18, other, batches)
    expected = reference_cka([cloned(resnet18, b) for b in batches], [cloned(other, b) for b in batches])
    assert result.shape == (60, 108) == expected.shape
    assert_allclose(result.values, expected, atol=1e-6)


def test_resnet50_with_means_far_above_the_spread():
    torch.manual_seed(0)
    net = torchvision.models.resnet50()
    batches = random_images(3, 12, 12, side=64)
    blocks = {name for name, m in net.named_modules() if type(m).__name__ == "Bottleneck"}
    oracle = [cloned(net, b, lambda name, _m: name in blocks) for b in batches]
    mean_over_spread = max(
        np.linalg.norm(x.mean(0)) / np.sqrt(((x - x.mean(0)) ** 2).sum(1).mean()) for x in oracle[0].values()
    )
    assert mean_over_spread > 5
    result = compared(net, net, batches, layers="blocks")
    assert set(result.rows) == blocks
    assert_allclose(result.values, reference_cka(oracle), atol=1e-6)


@pytest.mark.parametrize("mean", [0.0, 1.0, 3.0, 10.0, 1e2, 1e3, 1e4, 1e5])
@pytest.mark.parametrize("scale", [1e-10, 1.0, 1e10])
def test_any_mean_and_any_scale(mean, scale):
    torch.manual_seed(0)
    net = Branches(nn.Linear(40, 64), nn.Sequential(nn.Linear(40, 64), nn.Tanh(), Shifted(mean, scale)), nn.Tanh())
    batches = [torch.randn(n, 40) for n in (32, 32, 20)]
    result = compared(net, net, batches)
    oracle = [cloned(net, b) for b in batches]
    assert_allclose(result.values, reference_cka(oracle), atol=1e-6)
    assert_allclose(np.diag(result.values), 1.0, atol=1e-6)
    assert np.array_equal(result.values, result.values.T)


def test_wide_features_with_a_mean_of_1000():
    torch.manual_seed(0)
    net = Branches(Shifted(1000.0), nn.Linear(512, 300))
    batches = [torch.randn(128, 512)]
    result = compared(net, net, batches)
    assert_allclose(result.values, reference_cka([cloned(net, batches[0])]), atol=1e-6)


@pytest.mark.parametrize("value", [0.0, 0.1, 1234.567, 1e-20])
@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
def test_a_constant_layer_gives_nan_and_a_note_and_leaves_other_layers_alone(value, estimator):
    torch.manual_seed(0)
    net = Branches(nn.Linear(30, 30), Constant(value), nn.Tanh())
    batches = [torch.randn(20, 30) for _ in range(3)]
    result = compared(net, net, batches, estimator=estimator)
    expected = reference_cka([cloned(net, b) for b in batches], estimator=estimator)
    alive = [0, 2]
    assert np.isnan(result.values[1]).all()
    assert np.isnan(result.values[:, 1]).all()
    assert_allclose(result.values[np.ix_(alive, alive)], expected[np.ix_(alive, alive)], atol=1e-6)
    assert [note for note in result.notes if "constant" in note] == [
        "model_x (Branches): 'parts.1' is constant over the samples of every batch, so its similarity is undefined"
    ]


def test_a_layer_that_is_constant_in_one_batch_only():
    net = Branches(nn.ReLU(), nn.Identity())
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(12, 5, generator=generator), -torch.rand(12, 5, generator=generator) - 1]
    result = compared(net, net, batches)
    assert_allclose(result.values, reference_cka([cloned(net, b) for b in batches]), atol=1e-6)
    assert not result.notes


def test_a_float64_model_is_compared_in_float64():
    net, batches = small_network(0).double(), [b.double() for b in image_batches()]
    result = compared(net, net, batches)
    assert_allclose(result.values, reference_cka([cloned(net, b) for b in batches]), atol=1e-12)


def test_a_float32_model_with_a_float64_model():
    net, other = small_network(0), small_network(1).double()
    batches = image_batches()
    result = compared(net, other, batches, data_y=[b.double() for b in batches])
    expected = reference_cka([cloned(net, b) for b in batches], [cloned(other, b.double()) for b in batches])
    assert_allclose(result.values, expected, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mean", [0.0, 30.0])
def test_half_precision_equals_the_reference_of_its_own_features(dtype, mean):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(50, 40), Shifted(mean), nn.Tanh()).to(dtype)
    batches = [torch.randn(24, 50).to(dtype) for _ in range(2)]
    result = compared(net, net, batches)
    assert_allclose(result.values, reference_cka([cloned(net, b) for b in batches]), atol=1e-5)


def test_autocast_compares_the_activations_in_that_precision():
    net, batches = small_network(0), image_batches()
    result = compared(net, net, batches, autocast=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        oracle = [cloned(net, b) for b in batches]
    assert_allclose(result.values, reference_cka(oracle), atol=1e-5)
    assert np.abs(result.values - compared(net, net, batches).values).max() > 1e-5


@pytest.mark.parametrize(
    ("kernel", "brute"),
    [
        (cp.RBF(bandwidth=6.0), reference.rbf(6.0)),
        (cp.Laplacian(bandwidth=6.0), reference.laplacian(6.0)),
        (cp.Cosine(), reference.cosine),
        (cp.Polynomial(degree=2, offset=1.0, gamma=0.1), reference.polynomial(2, 1.0, 0.1)),
    ],
    ids=lambda k: type(k).__name__,
)
def test_other_kernels_equal_their_definition(kernel, brute):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5), nn.Tanh())
    batches = [torch.randn(9, 6), torch.randn(7, 6)]
    values = compared(net, net, batches, kernel=kernel).values
    sums = np.zeros(3)
    for batch in batches:
        features = list(cloned(net, batch).values())
        K, L = (reference.gram(f, brute) for f in features)
        sums += len(batch) * np.array([reference.hsic1(K, L), reference.hsic1(K, K), reference.hsic1(L, L)])
    assert_allclose(values[0, 1], sums[0] / np.sqrt(sums[1] * sums[2]), atol=2e-6)


def test_the_standard_error_is_that_of_the_influence_of_each_batch():
    net, other, batches = small_network(0), small_network(1), image_batches(count=8)
    result = compared(net, other, batches)
    pairs = [(cloned(net, b)["0"], cloned(other, b)["4"]) for b in batches]
    influence = reference.minibatch_influence(pairs)
    assert_allclose(result.standard_error[0, 4], influence.std(ddof=1) / np.sqrt(8), rtol=1e-3)
    assert result.meta["degrees_of_freedom"] == 7


def test_p_values_of_independent_and_of_equal_layers():
    torch.manual_seed(0)
    batches = [torch.randn(32, 6) for _ in range(4)]
    noise = [torch.randn(32, 6) for _ in range(4)]
    net = nn.Sequential(nn.Linear(6, 6))
    assert compared(net, nn.Sequential(nn.Linear(6, 6)), batches, data_y=noise).p_value[0, 0] > 0.01
    assert compared(net, net, batches).p_value[0, 0] < 1e-6


def test_meta_holds_the_settings_of_the_comparison():
    net = small_network(0)
    meta = compared(net, net, image_batches()).meta
    expected = {"scope": "minibatch", "estimator": "unbiased", "samples": 72, "batches": 6, "partial": False}
    assert expected.items() <= meta.items()
    assert meta["kernel"] == "Linear()"
    assert meta["model_x"] == "Sequential"


def test_names_of_the_models_in_the_result_and_in_messages():
    networks, data = (small_network(0), small_network(1)), image_batches(2)
    result = cp.compare(*networks, data, names=("old", "new"), progress=False)
    assert (result.meta["model_x"], result.meta["model_y"]) == ("old", "new")
    assert "old x new" in repr(result)
    data[1][3] = torch.nan
    with pytest.raises(cp.CaptureError, match=r"of old \("):
        cp.compare(*networks, data, names=("old", "new"), progress=False)
    with pytest.raises(ValueError, match="`names` must be two"):
        cp.compare(*networks, data, names="on", progress=False)
