"""MapTap: the maps of a module, alone or as a dict, unchanged by later operations."""

import pytest
import torch
from torch import nn

from cka_probe.distill.dense.networks import small_pyramid
from cka_probe.distill.taps.map_tap import MapTap, maps_of


def test_taps_give_a_dict_of_maps_and_let_go():
    body = small_pyramid(8)
    model = nn.Sequential(body)
    with MapTap(model, "0", 4) as tap:
        given = torch.rand(1, 3, 64, 64)
        model(given)
        seen, maps = tap.take()
        assert seen is given
        assert [level.shape[-1] for level in maps] == [16, 8, 4, 2]
        assert maps[0].requires_grad
        with pytest.raises(RuntimeError, match="was called 0 times in one forward pass"):
            tap.take()
        model(given)
        model(given)
        with pytest.raises(RuntimeError, match="was called 2 times"):
            tap.take()
    assert not body._forward_hooks
    with pytest.raises(ValueError, match="`levels` is 9, but the output has 4 maps"):
        maps_of(body(given), 9)
    with pytest.raises(TypeError, match="no map of shape"):
        maps_of({"0": torch.zeros(3)})
    with pytest.raises(ValueError, match="backbon"):
        MapTap(nn.Sequential(body), "backbon", role="student")


def test_a_tap_keeps_what_a_later_operation_in_place_changes():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(inplace=True))
    with MapTap(model, "0") as tap:
        out = model(torch.randn(1, 1, 8, 8))
        maps = tap.take()[1]
    assert float(maps[0].detach().min()) < 0 <= float(out.detach().min())
