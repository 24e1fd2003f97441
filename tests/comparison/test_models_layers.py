"""Which layers and models compare() takes, and its errors for layers that it cannot compare."""

from functools import partial

import numpy as np
import pytest
import torch
import torchvision
from activations import cloned, reference_cka
from numpy.testing import assert_allclose
from small_networks import Branches, Shifted, image_batches, small_network
from torch import nn

import cka_probe as cp

compared = partial(cp.compare, progress=False)


def test_the_error_for_an_unknown_layer_names_the_nearest():
    net = torchvision.models.resnet18()
    with pytest.raises(ValueError, match=r"ResNet has no layer 'layer1\.0\.conv3'\. Did you mean 'layer1\.0\.conv2'"):
        compared(net, net, torch.ones(8, 3, 32, 32), layers=["conv1", "layer1.0.conv3"])


def test_layers_y_selects_layers_of_the_second_model():
    net = small_network(0)
    result = compared(net, net, image_batches(), layers=["0", "1"], layers_y=nn.Linear)
    assert (result.rows, result.columns) == (("0", "1"), ("4",))


def test_one_model_with_different_layers_and_layers_y():
    """The values are the block of the full matrix."""
    net = small_network(0)
    whole = compared(net, net, image_batches())
    part = compared(net, net, image_batches(), layers=["0", "2"], layers_y=["4", "1"])
    assert_allclose(part.values, whole.values[np.ix_([0, 2], [1, 4])], atol=1e-7)


def test_the_error_for_nan_names_model_layer_and_batch():
    net, batches = small_network(0), image_batches()
    batches[2][3, 0, 0, 0] = float("nan")
    with pytest.raises(
        cp.CaptureError, match=r"Layer '0' of model_x \(Sequential\) gave NaN or infinity in batch 2\. Check the input"
    ):
        compared(net, small_network(1), batches)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("kernel", [cp.Linear(), cp.RBF(), cp.Cosine()])
@pytest.mark.parametrize("everywhere", [False, True])
def test_nan_and_infinity_are_errors_with_every_kernel(value, kernel, everywhere):
    class Bad(nn.Module):
        def forward(self, x):
            x = x.clone()
            x[: len(x) if everywhere else 1] = value
            return x

    net = Branches(nn.Identity(), Bad())
    with pytest.raises(cp.CaptureError, match=r"Layer 'parts\.1' of model_x \(Branches\) gave NaN or infinity"):
        compared(net, net, torch.randn(10, 4, generator=torch.Generator().manual_seed(0)), kernel=kernel)


def test_very_large_activations_do_not_overflow():
    """Squares of 1e25 in the Gram matrix are beyond the range of float32, the similarity is not."""
    net = Branches(nn.Identity(), Shifted(0.0, 1e25), Shifted(0.0, 1e-25))
    x = torch.randn(12, 7, generator=torch.Generator().manual_seed(0))
    assert_allclose(compared(net, net, x).values, 1.0, atol=1e-6)


def test_a_model_on_the_meta_device_is_an_error():
    message = r"model_y \(Sequential\) is on the meta device: it has shapes but no weights\. Load its weights first"
    with pytest.raises(ValueError, match=message):
        compared(small_network(0), small_network(1).to("meta"), image_batches())


def test_forward_runs_a_model_with_two_inputs():
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


def test_compare_many_takes_other_layers_for_each_model():
    nets, data = {"a": small_network(0), "b": small_network(1)}, image_batches()
    many = cp.compare_many(nets, data, layers={"a": ["0", "2"], "b": "4"}, progress=False)
    assert (many.row_models, many.rows) == (("a", "a", "b"), ("0", "2", "4"))
    pair = compared(*nets.values(), data, layers=["0", "2"], layers_y="4")
    assert_allclose(many.values[:2, 2:], pair.values, atol=1e-12)


def test_errors_for_the_models_and_layers_of_compare_many():
    nets, data = {"a": small_network(0), "b": small_network(1)}, image_batches(1)
    with pytest.raises(ValueError, match=r"`layers` has no entry for 'b'\. Give the layers of every model"):
        cp.compare_many(nets, data, layers={"a": "0"}, progress=False)
    with pytest.raises(ValueError, match="`models` is empty"):
        cp.compare_many({}, data, progress=False)
    with pytest.raises(TypeError, match="`models` must be a mapping of names to models, got list"):
        cp.compare_many(list(nets.values()), data, progress=False)
