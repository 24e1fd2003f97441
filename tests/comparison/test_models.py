"""compare() against float64 on cloned activations, and what it does with awkward batches, layers and users."""

import numpy as np
import pytest
import reference
import torch
import torchvision
from activations import cloned, reference_cka
from numpy.testing import assert_allclose
from small_networks import image_batches, small_network
from torch import nn

import cka_probe as cp


def random_images(seed, *sizes, side=32):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, 3, side, side, generator=generator) for n in sizes]


@pytest.fixture(scope="module")
def resnet18():
    torch.manual_seed(0)
    return torchvision.models.resnet18()


def compared(*args, **keywords):
    return cp.compare(*args, progress=False, **keywords)


def test_the_oracle_is_the_brute_force_definition(rng):
    """The fast oracle of these tests against loops over samples."""
    batches = [{"a": rng.normal(size=(n, 3)), "b": rng.normal(size=(n, 5)) + 4} for n in (6, 9)]
    for estimator in ("unbiased", "biased"):
        expected = reference.minibatch_cka([(b["a"], b["b"]) for b in batches], estimator)
        assert_allclose(reference_cka(batches, estimator=estimator)[0, 1], expected, atol=1e-12)


# --- issue 2's acceptance ------------------------------------------------------------------------------------------


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


def test_a_kept_reference_would_be_wrong_on_resnet18(resnet18):
    """Negative control of the oracle: torchvision's ReLUs work in place, so a kept output changes after its hook."""
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


def test_resnet50_whose_means_are_far_above_the_spread():
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


class Shifted(nn.Module):
    """Adds a mean and multiplies by a scale, so that the layer's output has both."""

    def __init__(self, mean, scale=1.0):
        super().__init__()
        self.mean, self.scale = mean, scale

    def forward(self, x):
        return (x + self.mean) * self.scale


def branches(*modules):
    """A network that shows each module the same input."""

    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = nn.ModuleList(modules)

        def forward(self, x):
            return [part(x) for part in self.parts]

    return Branches()


@pytest.mark.parametrize("mean", [0.0, 1.0, 3.0, 10.0, 1e2, 1e3, 1e4, 1e5])
@pytest.mark.parametrize("scale", [1e-10, 1.0, 1e10])
def test_any_mean_and_any_scale(mean, scale):
    torch.manual_seed(0)
    net = branches(nn.Linear(40, 64), nn.Sequential(nn.Linear(40, 64), nn.Tanh(), Shifted(mean, scale)), nn.Tanh())
    batches = [torch.randn(n, 40) for n in (32, 32, 20)]
    result = compared(net, net, batches)
    oracle = [cloned(net, b) for b in batches]
    assert_allclose(result.values, reference_cka(oracle), atol=1e-6)
    assert_allclose(np.diag(result.values), 1.0, atol=1e-6)
    assert np.array_equal(result.values, result.values.T)


def test_wide_features_with_a_mean_of_1000():
    torch.manual_seed(0)
    net = branches(Shifted(1000.0), nn.Linear(512, 300))
    batches = [torch.randn(128, 512)]
    result = compared(net, net, batches)
    assert_allclose(result.values, reference_cka([cloned(net, batches[0])]), atol=1e-6)


class Constant(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, x):
        return torch.full_like(x, self.value)


@pytest.mark.parametrize("value", [0.0, 0.1, 1234.567, 1e-20])
@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
def test_a_dead_layer_is_nan_with_a_note_for_itself_alone(value, estimator):
    torch.manual_seed(0)
    net = branches(nn.Linear(30, 30), Constant(value), nn.Tanh())
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


def test_a_layer_that_is_dead_in_some_batches_only():
    net = branches(nn.ReLU(), nn.Identity())
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(12, 5, generator=generator), -torch.rand(12, 5, generator=generator) - 1]
    result = compared(net, net, batches)
    assert_allclose(result.values, reference_cka([cloned(net, b) for b in batches]), atol=1e-6)
    assert not result.notes


# --- batches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("last", [1, 2, 3])
def test_a_small_last_batch_is_joined_to_its_neighbour(last):
    net = small_network(0)
    batches = image_batches(count=3, size=10)
    odd = batches[-1][:last]
    result = compared(net, net, [*batches[:2], odd])
    oracle = [cloned(net, batches[0]), cloned(net, torch.cat([batches[1], odd]))]
    assert_allclose(result.values, reference_cka(oracle), atol=1e-6)
    assert (result.meta["batches"], result.meta["samples"]) == (2, 20 + last)


def test_batches_of_two_are_joined_until_they_suffice():
    net = small_network(0)
    images = torch.cat(image_batches(count=1, size=12))
    result = compared(net, net, list(images.split(2)))
    expected = reference_cka([cloned(net, part) for part in images.split(4)])
    assert_allclose(result.values, expected, atol=1e-5)


def test_batches_of_unequal_size_weigh_by_their_samples():
    net, other = small_network(0), small_network(1)
    images = torch.cat(image_batches(count=3, size=16))
    batches = [images[:30], images[30:42], images[42:]]
    result = compared(net, other, batches)
    expected = reference_cka([cloned(net, b) for b in batches], [cloned(other, b) for b in batches])
    assert_allclose(result.values, expected, atol=1e-6)


def test_too_few_samples_in_all():
    net = small_network(0)
    with pytest.raises(ValueError, match=r"a batch of 3 samples was left out: at least 4 .* batch size of at least 4"):
        compared(net, net, image_batches(count=1, size=3))


def test_a_small_batch_that_cannot_be_joined_is_left_out_with_a_note():
    class Mean(nn.Module):
        def forward(self, x):
            return x.mean((2, 3))

    net = nn.Sequential(Mean(), nn.Linear(3, 4))
    generator = torch.Generator().manual_seed(0)
    large, small = torch.randn(8, 3, 6, 6, generator=generator), torch.randn(2, 3, 5, 5, generator=generator)
    result = compared(net, net, [large, small])
    assert result.meta["samples"] == 8
    assert any("a batch of 2 samples was left out" in note for note in result.notes)
    assert_allclose(result.values, reference_cka([cloned(net, large)]), atol=1e-6)


def test_no_batch_at_all():
    net = small_network(0)
    with pytest.raises(ValueError, match=r"`data` yielded no batch\. A generator can be used only once"):
        compared(net, net, [])


def test_an_exhausted_generator():
    net = small_network(0)
    batches = (batch for batch in image_batches(count=2))
    compared(net, net, batches)
    with pytest.raises(ValueError, match="A generator can be used only once: pass a list or a DataLoader"):
        compared(net, net, batches)


def test_a_dataset_is_not_a_loader():
    dataset = torch.utils.data.TensorDataset(image_batches(count=1)[0])
    with pytest.raises(TypeError, match=r"`data` is a Dataset, whose .* Wrap it: .*DataLoader\(data, batch_size=64\)"):
        compared(small_network(0), small_network(0), dataset)


def test_data_that_is_no_iterable():
    with pytest.raises(TypeError, match="`data` must be an iterable of batches, such as a DataLoader, got int"):
        compared(small_network(0), small_network(0), 3)


def test_a_single_tensor_is_one_batch():
    net = small_network(0)
    (batch,) = image_batches(count=1)
    assert_allclose(compared(net, net, batch).values, compared(net, net, [batch]).values, atol=0)


def test_loaders_of_images_and_targets():
    net = small_network(0)
    (batch,) = image_batches(count=1)
    dataset = torch.utils.data.TensorDataset(batch, torch.arange(len(batch)))
    loader = torch.utils.data.DataLoader(dataset, batch_size=6)
    expected = reference_cka([cloned(net, batch[:6]), cloned(net, batch[6:])])
    assert_allclose(compared(net, net, loader).values, expected, atol=1e-5)


def test_data_y_feeds_the_second_model():
    class Doubled(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def forward(self, x):
            return self.net(x[:, :, ::2, ::2])

    net = small_network(0)
    batches = image_batches(count=3)
    larger = [batch.repeat_interleave(2, 2).repeat_interleave(2, 3) for batch in batches]
    result = compared(net, Doubled(net), batches, data_y=larger)
    expected = compared(net, net, batches)
    assert result.columns == tuple(f"net.{name}" for name in expected.columns)
    assert_allclose(result.values, expected.values, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b[:2], r"`data_y` ended after 2 batches, `data` goes on"),
        (lambda b: [*b, b[0]], r"`data` ended after 3 batches, `data_y` goes on"),
        (lambda b: [b[0], b[1][:7], b[2]], r"Batch 1 holds 12 samples in `data` and 7 in `data_y`"),
    ],
)
def test_data_y_must_be_the_same_samples(change, message):
    net, batches = small_network(0), image_batches(count=3)
    with pytest.raises(ValueError, match=message):
        compared(net, small_network(1), batches, data_y=change(batches))


# --- layers and models -----------------------------------------------------------------------------------------------


def test_a_misspelt_layer_is_answered_with_the_nearest(resnet18):
    with pytest.raises(ValueError, match=r"ResNet has no layer 'layer1\.0\.conv3'\. Did you mean 'layer1\.0\.conv2'"):
        compared(resnet18, resnet18, random_images(0, 8), layers=["conv1", "layer1.0.conv3"])


def test_layers_y_picks_other_layers_of_the_second_model():
    net = small_network(0)
    result = compared(net, net, image_batches(), layers=["0", "1"], layers_y=nn.Linear)
    assert (result.rows, result.columns) == (("0", "1"), ("4",))


def test_the_same_model_with_other_layers_runs_once_and_is_right():
    """compare(net, net, layers=a, layers_y=b): the same numbers as the block of the whole."""
    net = small_network(0)
    whole = compared(net, net, image_batches())
    part = compared(net, net, image_batches(), layers=["0", "2"], layers_y=["4", "1"])
    assert_allclose(part.values, whole.values[np.ix_([0, 2], [1, 4])], atol=1e-7)


def test_nan_names_model_layer_and_batch():
    net, batches = small_network(0), image_batches()
    batches[2][3, 0, 0, 0] = float("nan")
    with pytest.raises(
        cp.CaptureError, match=r"Layer '0' of model_x \(Sequential\) gave NaN or infinity in batch 2\. Check the input"
    ):
        compared(net, small_network(1), batches)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("kernel", [cp.Linear(), cp.RBF(), cp.Cosine()])
@pytest.mark.parametrize("everywhere", [False, True])
def test_what_is_not_finite_is_an_error_in_every_kernel(value, kernel, everywhere):
    class Bad(nn.Module):
        def forward(self, x):
            x = x.clone()
            x[: len(x) if everywhere else 1] = value
            return x

    net = branches(nn.Identity(), Bad())
    with pytest.raises(cp.CaptureError, match=r"Layer 'parts\.1' of model_x \(Branches\) gave NaN or infinity"):
        compared(net, net, torch.randn(10, 4, generator=torch.Generator().manual_seed(0)), kernel=kernel)


def test_large_activations_overflow_nothing():
    """1e25 in float32: the squares in the Gram matrix are beyond its range, the similarity is not."""
    net = branches(nn.Identity(), Shifted(0.0, 1e25), Shifted(0.0, 1e-25))
    x = torch.randn(12, 7, generator=torch.Generator().manual_seed(0))
    assert_allclose(compared(net, net, x).values, 1.0, atol=1e-6)


def test_a_model_without_weights_is_named():
    message = r"model_y \(Sequential\) is on the meta device: it has shapes but no weights\. Load its weights first"
    with pytest.raises(ValueError, match=message):
        compared(small_network(0), small_network(1).to("meta"), image_batches())


def test_forward_for_anything_else():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, x, y):
            return self.a(x) + self.b(y)

    torch.manual_seed(0)
    net, x = Two(), torch.randn(10, 4)
    result = compared(net, net, [x], forward=lambda model, batch: model(batch, 2 * batch))
    expected = reference_cka([cloned(net, x, run=lambda model, batch: model(batch, 2 * batch))])
    assert_allclose(result.values, expected, atol=1e-6)


# --- what the caller gets back ---------------------------------------------------------------------------------------


class Fails(nn.Module):
    def __init__(self, error):
        super().__init__()
        self.error, self.calls = error, 0

    def forward(self, x):
        self.calls += 1
        torch.rand(1)
        if self.calls == 3:
            raise self.error
        return x


def mixed_modes(net):
    """A network in train mode with one part in eval mode, as in fine-tuning."""
    net.train()
    net[1].eval()
    return net


def hooks_of(net):
    return [
        (name, kind, len(getattr(module, kind)))
        for name, module in net.named_modules()
        for kind in ("_forward_hooks", "_forward_pre_hooks")
    ]


@pytest.mark.parametrize("error", [RuntimeError("the GPU fell over"), KeyboardInterrupt(), None])
def test_everything_is_as_before_on_the_way_out(error):
    net = mixed_modes(nn.Sequential(nn.Linear(5, 5), nn.Dropout(), Fails(error) if error else nn.Tanh()))
    net[0].register_forward_hook(lambda *_: None)
    modes, hooks = [m.training for m in net.modules()], hooks_of(net)
    batches = [torch.randn(8, 5) for _ in range(4)]
    torch.manual_seed(7)
    expected, state = torch.rand(3), torch.manual_seed(7).get_state()
    numpy_state = np.random.get_state()[1].copy()  # noqa: NPY002 - the global generator is what must not change
    if isinstance(error, RuntimeError):
        with pytest.raises(RuntimeError, match="the GPU fell over"):
            compared(net, net, batches)
    else:
        compared(net, net, batches)
    assert [m.training for m in net.modules()] == modes
    assert hooks_of(net) == hooks
    assert torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002 - as above
    assert torch.equal(torch.rand(3), expected)


def test_ctrl_c_gives_the_partial_result():
    class Stop(nn.Module):
        calls = 0

        def forward(self, x):
            self.calls += 1
            if self.calls == 4:
                raise KeyboardInterrupt
            return x

    net = nn.Sequential(nn.Linear(5, 5), nn.Tanh(), Stop())
    batches = [torch.randn(8, 5, generator=torch.Generator().manual_seed(i)) for i in range(6)]
    result = compared(net, net, batches)
    assert result.meta["partial"]
    assert result.meta["batches"] == 3
    assert "stopped by the user after 3 batches: a partial result" in result.notes
    oracle = [cloned(net[:2], b) for b in batches[:3]]
    assert_allclose(result.values[:2, :2], reference_cka(oracle), atol=1e-6)
    assert np.isfinite(result.standard_error).all()


def test_ctrl_c_before_the_first_batch_is_done_is_passed_on():
    class Stop(nn.Module):
        def forward(self, x):
            raise KeyboardInterrupt

    net = nn.Sequential(nn.Linear(5, 5), Stop())
    with pytest.raises(KeyboardInterrupt):
        compared(net, net, [torch.randn(8, 5)])
    assert not any(count for _, _, count in hooks_of(net))


def test_dropout_is_off_and_batch_norm_stands_still():
    net = small_network(0)
    net.append(nn.Dropout(0.5)).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    first, second = (compared(net, net, image_batches()) for _ in range(2))
    assert np.array_equal(first.values, second.values)
    assert net.training
    assert net[-1].training
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert_allclose(first.values, reference_cka([cloned(net, b) for b in image_batches()]), atol=1e-6)


def test_no_graph_is_built_and_no_gradient_left():
    net = small_network(0)
    compared(net, net, image_batches())
    assert all(p.grad is None for p in net.parameters())
    assert all(p.requires_grad for p in net.parameters())


# --- precision and kernels -------------------------------------------------------------------------------------------


def test_a_float64_model_is_compared_in_float64():
    net, batches = small_network(0).double(), [b.double() for b in image_batches()]
    result = compared(net, net, batches)
    assert_allclose(result.values, reference_cka([cloned(net, b) for b in batches]), atol=1e-12)


def test_a_float32_beside_a_float64_model():
    net, other = small_network(0), small_network(1).double()
    batches = image_batches()
    result = compared(net, other, batches, data_y=[b.double() for b in batches])
    expected = reference_cka([cloned(net, b) for b in batches], [cloned(other, b.double()) for b in batches])
    assert_allclose(result.values, expected, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mean", [0.0, 30.0])
def test_half_precision_is_as_right_as_its_own_features(dtype, mean):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(50, 40), Shifted(mean), nn.Tanh()).to(dtype)
    batches = [torch.randn(24, 50).to(dtype) for _ in range(2)]
    result = compared(net, net, batches)
    assert_allclose(result.values, reference_cka([cloned(net, b) for b in batches]), atol=1e-5)


def test_autocast_compares_what_the_model_gives_in_that_precision():
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
def test_other_kernels(kernel, brute):
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


# --- errors and p-values ---------------------------------------------------------------------------------------------


def test_standard_errors_are_those_of_the_influence_of_each_batch():
    net, other, batches = small_network(0), small_network(1), image_batches(count=8)
    result = compared(net, other, batches)
    pairs = [(cloned(net, b)["0"], cloned(other, b)["4"]) for b in batches]
    influence = reference.minibatch_influence(pairs)
    assert_allclose(result.standard_error[0, 4], influence.std(ddof=1) / np.sqrt(8), rtol=1e-3)
    assert result.meta["degrees_of_freedom"] == 7


def test_independent_layers_are_not_significant_and_equal_ones_are():
    torch.manual_seed(0)
    batches = [torch.randn(32, 6) for _ in range(4)]
    noise = [torch.randn(32, 6) for _ in range(4)]
    net = nn.Sequential(nn.Linear(6, 6))
    assert compared(net, nn.Sequential(nn.Linear(6, 6)), batches, data_y=noise).p_value[0, 0] > 0.01
    assert compared(net, net, batches).p_value[0, 0] < 1e-6


def test_the_result_says_how_it_was_made():
    net = small_network(0)
    meta = compared(net, net, image_batches()).meta
    expected = {"scope": "minibatch", "estimator": "unbiased", "samples": 72, "batches": 6, "partial": False}
    assert expected.items() <= meta.items()
    assert meta["kernel"] == "Linear()"
    assert meta["model_x"] == "Sequential"


def test_names_of_the_models_stand_in_the_result_and_in_messages():
    networks, data = (small_network(0), small_network(1)), image_batches(2)
    result = cp.compare(*networks, data, names=("old", "new"), progress=False)
    assert (result.meta["model_x"], result.meta["model_y"]) == ("old", "new")
    assert "old x new" in repr(result)
    data[1][3] = torch.nan
    with pytest.raises(cp.CaptureError, match=r"of old \("):
        cp.compare(*networks, data, names=("old", "new"), progress=False)
    with pytest.raises(ValueError, match="`names` must be two"):
        cp.compare(*networks, data, names="on", progress=False)
