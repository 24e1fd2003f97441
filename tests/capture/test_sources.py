"""What may be given as `data`: one batch, batches, two loaders; what is refused before any model runs."""

from functools import partial

import pytest
import torch
from numpy.testing import assert_allclose
from small_networks import image_batches, small_network
from torch.utils.data import DataLoader

import cka_probe as cp

compared = partial(cp.compare, progress=False)


# --- two loaders --------------------------------------------------------------------------------------------------


def test_a_shuffling_loader_cannot_be_paired():
    net, (images,) = small_network(0), image_batches(count=1)
    plain, shuffled = (DataLoader(images, batch_size=6, shuffle=flag) for flag in (False, True))
    with pytest.raises(ValueError, match=r"`data_y` shuffles, so its samples are not in the order of the other\. Turn"):
        cp.compare(net, net, plain, data_y=shuffled, progress=False)
    with pytest.raises(ValueError, match=r"`data` shuffles"):
        cp.compare(net, net, shuffled, data_y=shuffled, progress=False)


def test_loaders_that_shuffle_with_equal_seeds_can_be_paired():
    net, (images,) = small_network(0), image_batches(count=1)
    loaders = [
        DataLoader(images, batch_size=6, shuffle=True, generator=torch.Generator().manual_seed(4)) for _ in range(2)
    ]
    result = cp.compare(net, small_network(0), loaders[0], data_y=loaders[1], progress=False)
    assert_allclose(result.values.diagonal(), 1.0, atol=1e-6)


def test_a_single_loader_may_shuffle():
    net, (images,) = small_network(0), image_batches(count=1)
    result = cp.compare(net, small_network(0), DataLoader(images, batch_size=6, shuffle=True), progress=False)
    assert_allclose(result.values.diagonal(), 1.0, atol=1e-6)
