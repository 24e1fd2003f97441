"""channels_last=True: the same values, models given back as they were, and no copies of activations."""

import copy

import numpy as np
import pytest
import torch
from activations import cloned, reference_cka
from torch import nn

import cka_probe as cp
from cka_probe.capture.pooling import pool

LAST = torch.channels_last


class Residual(nn.Module):
    """Convolutions, groups, norms, a ReLU in place, a linear head; its filters are views of one buffer."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.conv = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.act = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Linear(8 * 4 * 4, 5)

    def forward(self, x):
        x = self.act(self.norm(self.stem(x)))
        x = self.pool(self.act(x + self.conv(x)))
        return self.head(x.flatten(1))


def batches(count=3):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(32, 3, 8, 8, generator=generator) for _ in range(count)]


def memory(net):
    return [
        (name, value.data_ptr(), value.stride(), value.detach().clone())
        for name, value in net.state_dict(keep_vars=True).items()
    ]


def same_memory(before, net):
    for (name, place, strides, values), (_, place_now, strides_now, values_now) in zip(
        before, memory(net), strict=True
    ):
        assert (place, strides) == (place_now, strides_now), name
        assert torch.equal(values, values_now), name
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in net.modules())


@pytest.mark.parametrize("scope", ["minibatch", "dataset"])
@pytest.mark.parametrize("pooling", ["auto", "mean"])
@pytest.mark.parametrize("kernel", [None, cp.RBF(), cp.Laplacian(bandwidth=3.0)])
def test_values_are_those_of_the_other_order_and_the_models_get_their_memory_back(scope, pooling, kernel):
    x, y, data = Residual(0), Residual(1), batches()
    before = memory(x), memory(y)
    options = {"scope": scope, "pooling": pooling, "kernel": kernel, "progress": False}
    plain = cp.compare(x, y, data, **options)
    found = cp.compare(x, y, data, channels_last=True, **options)
    np.testing.assert_allclose(found.values, plain.values, atol=1e-6)
    assert found.notes == plain.notes
    same_memory(before[0], x)
    same_memory(before[1], y)


def test_values_agree_with_float64_and_a_network_that_is_in_this_order_already_stays_so():
    x, y, data = Residual(0), Residual(1).to(memory_format=LAST), batches()
    xs, ys = ([cloned(copy.deepcopy(net).double(), batch.double()) for batch in data] for net in (x, y))
    expected = reference_cka(xs, ys)
    for channels_last in (False, True):
        found = cp.compare(x, y, data, channels_last=channels_last, progress=False)
        np.testing.assert_allclose(found.values, expected, atol=1e-6)
        assert y.stem.weight.is_contiguous(memory_format=LAST)
        assert x.stem.weight.is_contiguous()


def test_convolutions_run_in_this_order_also_through_a_function_of_the_caller():
    x, seen = Residual(0), []
    x.conv.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0]))
    cp.compare(x, x, batches(), channels_last=True, progress=False)
    cp.compare(x, x, batches(), channels_last=True, progress=False, forward=lambda model, batch: model.forward(batch))
    assert len(seen) >= 6
    assert all(one.is_contiguous(memory_format=LAST) for one in seen)


def test_features_keep_their_order_and_signatures_agree():
    x, data = Residual(0), batches()
    plain, found = (cp.extract(x, data, progress=False, channels_last=wanted) for wanted in (False, True))
    assert plain.keys() == found.keys()
    for name in plain:
        torch.testing.assert_close(found[name], plain[name], atol=1e-5, rtol=1e-5)
    first, second = (cp.signature(x, data, progress=False, channels_last=wanted) for wanted in (False, True))
    for before, after in zip(first.grams, second.grams, strict=True):
        np.testing.assert_allclose(before, after, atol=1e-5)
    many = cp.compare_many({"a": x, "b": Residual(1)}, data, progress=False, channels_last=True)
    assert abs(np.diag(many.values) - 1).max() < 1e-6


class Stopping:
    """Batches, and then an error instead of the third."""

    def __init__(self, error):
        self.error = error

    def __iter__(self):
        yield from batches(2)
        raise self.error


@pytest.mark.parametrize("error", [ZeroDivisionError(), KeyboardInterrupt()])
def test_models_get_their_memory_back_after_an_error_and_after_ctrl_c(error):
    x = Residual(0)
    before = memory(x)
    if isinstance(error, KeyboardInterrupt):
        assert "stopped by the user" in " ".join(
            cp.compare(x, x, Stopping(error), channels_last=True, progress=False).notes
        )
    else:
        with pytest.raises(ZeroDivisionError):
            cp.compare(x, x, Stopping(error), channels_last=True, progress=False)
    same_memory(before, x)


def test_weights_that_are_views_of_one_tensor_stay_views_of_it():
    x = Residual(0)
    weights = [x.stem.weight, x.conv.weight]
    flat = torch.cat([weight.detach().reshape(-1) for weight in weights])
    start = 0
    for weight in weights:
        weight.data = flat[start : start + weight.numel()].view(weight.shape)
        start += weight.numel()
    cp.compare(x, x, batches(), channels_last=True, progress=False)
    flat.zero_()
    assert not x.stem.weight.any()
    assert not x.conv.weight.any()


def test_a_network_that_asks_for_a_view_is_told_what_to_do():
    class Viewing(Residual):
        def forward(self, x):
            x = self.pool(self.act(self.norm(self.stem(x))))
            return self.head(x.view(len(x), -1))

    net = Viewing(0)
    before = memory(net)
    with pytest.raises(RuntimeError, match="view size") as caught:
        cp.compare(net, net, batches(), channels_last=True, progress=False)
    assert any("Leave `channels_last` out" in note for note in caught.value.__notes__)
    same_memory(before, net)
    cp.compare(net, net, batches(), progress=False)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_part_in_torchscript_runs():
    torch.manual_seed(0)
    net = nn.Sequential(
        torch.jit.script(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())), nn.Conv2d(8, 4, 3), nn.Flatten()
    )
    plain, found = (cp.compare(net, net, batches(), progress=False, channels_last=wanted) for wanted in (False, True))
    np.testing.assert_allclose(found.values, plain.values, atol=1e-6)


def test_a_kernel_of_the_caller_is_given_features_in_their_usual_order():
    seen = []

    class FirstHalf:
        def __call__(self, x):
            seen.append(x)
            half = x[..., : x.shape[-1] // 2]
            return half @ half.mT

        def __repr__(self):
            return "FirstHalf()"

    x, data = Residual(0), batches()
    plain, found = (
        cp.compare(x, x, data, kernel=FirstHalf(), progress=False, channels_last=wanted) for wanted in (False, True)
    )
    np.testing.assert_allclose(found.values, plain.values, atol=1e-6)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 3, 1, 2), (0, 2, 3, 1), (0, 2, 1, 3)])
def test_flatten_makes_no_copy_of_a_dense_activation_in_any_order(order):
    dense = torch.randn(6, 3, 4, 5)
    activation = dense.permute(order)
    features = pool(activation, "flatten", any_order=True)
    assert features.untyped_storage().data_ptr() == dense.untyped_storage().data_ptr()
    expected = activation.flatten(1).double()
    torch.testing.assert_close(features.double() @ features.double().T, expected @ expected.T)
    assert torch.equal(pool(activation, "flatten"), activation.flatten(1))


@pytest.mark.parametrize(
    "activation",
    [
        torch.randn(6, 1, 4, 5).expand(6, 3, 4, 5),  # strides of zero
        torch.randn(4, 6, 5).transpose(0, 1),  # samples are not outermost
        torch.randn(6, 3, 8, 5)[:, :, ::2],  # gaps
        torch.randn(6, 3, 1, 1).to(memory_format=LAST),
        torch.randn(6, 5).T,
    ],
)
def test_flatten_in_any_order_keeps_the_gram_matrix_of_every_other_activation(activation):
    found, expected = pool(activation, "flatten", any_order=True).double(), activation.flatten(1).double()
    torch.testing.assert_close(found @ found.T, expected @ expected.T)
