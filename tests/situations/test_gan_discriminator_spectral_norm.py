"""Discriminators of GANs: spectral or weight norm on each layer, as a parametrisation or by the older hooks."""

import copy

import pytest
import torch
from situation import check, check_notes, images
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils import spectral_norm as hooked_spectral_norm

import cka_probe as cp


def discriminator(norm):
    torch.manual_seed(0)
    return nn.Sequential(
        norm(nn.Conv2d(3, 8, 4, 2)), nn.LeakyReLU(0.2, inplace=True), nn.Flatten(), norm(nn.Linear(72, 1))
    )


@pytest.mark.parametrize("norm", [parametrizations.spectral_norm, parametrizations.weight_norm, hooked_spectral_norm])
def test_the_normalised_layers_are_layers_and_their_state_stays(norm):
    net, batches = discriminator(norm), [images(7, 8, seed=seed) for seed in (0, 1)]
    net(batches[0])  # one step of the power iteration, in training mode
    before = copy.deepcopy(net.state_dict())
    result = cp.compare(net, net, batches, progress=False)
    assert result.rows == ("0", "1", "2", "3")
    check(result, net, batches, copied=norm is not hooked_spectral_norm)
    check_notes(result)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
