"""torch.compile of a whole model, of one block, or in place (``module.compile()``), as training scripts leave them."""

import copy

import pytest
import torch
from numpy.testing import assert_allclose
from situation import activations, check_notes, images, values_of
from torch import nn

import cka_probe as cp


def network():
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
    return nn.Sequential(nn.Conv2d(3, 4, 3), block, nn.Flatten())


def compiled(net, how):
    net = copy.deepcopy(net)
    if how == "in place":
        net.compile(backend="eager")
    elif how == "a block":
        net[1] = torch.compile(net[1], backend="eager")
    else:
        net = torch.compile(net, backend="eager")
    return net


@pytest.mark.parametrize("how", ["whole", "a block", "in place"])
@pytest.mark.parametrize("warm", [False, True], ids=["fresh", "has run"])
def test_the_layers_inside(how, warm):
    plain, batches = network(), [images(6, 8, seed=seed) for seed in (0, 1)]
    fast = compiled(plain, how)
    if warm:
        with torch.no_grad():
            fast.eval()(batches[0])
    result = cp.compare(plain, fast, batches, progress=False)
    assert [name.replace("_orig_mod.", "") for name in result.columns] == list(result.rows)
    assert_allclose(result.values, values_of(activations(plain, batches, result.rows)), atol=1e-6)
    check_notes(result)
