"""Which batches compare() takes, joins, leaves out and refuses."""

from functools import partial

import pytest
import torch
from activations import cloned, reference_cka
from numpy.testing import assert_allclose
from small_networks import image_batches, small_network
from torch import nn

import cka_probe as cp

compared = partial(cp.compare, progress=False)


@pytest.mark.parametrize("last", [1, 2, 3])
def test_a_small_last_batch_is_joined_to_its_neighbour(last):
    net = small_network(0)
    batches = image_batches(count=3, size=10)
    odd = batches[-1][:last]
    result = compared(net, net, [*batches[:2], odd])
    oracle = [cloned(net, batches[0]), cloned(net, torch.cat([batches[1], odd]))]
    assert_allclose(result.values, reference_cka(oracle), atol=1e-6)
    assert (result.meta["batches"], result.meta["samples"]) == (2, 20 + last)


def test_batches_of_two_are_joined_until_they_have_four_samples():
    net = small_network(0)
    images = torch.cat(image_batches(count=1, size=12))
    result = compared(net, net, list(images.split(2)))
    expected = reference_cka([cloned(net, part) for part in images.split(4)])
    assert_allclose(result.values, expected, atol=1e-5)


def test_batches_are_weighted_by_their_samples():
    net, other = small_network(0), small_network(1)
    images = torch.cat(image_batches(count=3, size=16))
    batches = [images[:30], images[30:42], images[42:]]
    result = compared(net, other, batches)
    expected = reference_cka([cloned(net, b) for b in batches], [cloned(other, b) for b in batches])
    assert_allclose(result.values, expected, atol=1e-6)


def test_too_few_samples_in_all_batches_together():
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


def test_data_without_a_batch():
    net = small_network(0)
    with pytest.raises(ValueError, match=r"`data` yielded no batch\. A generator can be used only once"):
        compared(net, net, [])


def test_an_exhausted_generator():
    net = small_network(0)
    batches = (batch for batch in image_batches(count=2))
    compared(net, net, batches)
    with pytest.raises(ValueError, match="A generator can be used only once: pass a list or a DataLoader"):
        compared(net, net, batches)


def test_a_dataset_instead_of_a_loader():
    dataset = torch.utils.data.TensorDataset(image_batches(count=1)[0])
    with pytest.raises(TypeError, match=r"`data` is a Dataset, whose .* Wrap it: .*DataLoader\(data, batch_size=64\)"):
        compared(small_network(0), small_network(0), dataset)


def test_data_that_cannot_be_iterated():
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
        (lambda b: b[:2], r"`data_y` ended after 2 batches, but `data` goes on"),
        (lambda b: [*b, b[0]], r"`data` ended after 3 batches, but `data_y` goes on"),
        (lambda b: [b[0], b[1][:7], b[2]], r"Batch 1 holds 12 samples in `data` and 7 in `data_y`"),
    ],
)
def test_data_y_must_be_the_same_samples(change, message):
    net, batches = small_network(0), image_batches(count=3)
    with pytest.raises(ValueError, match=message):
        compared(net, small_network(1), batches, data_y=change(batches))
