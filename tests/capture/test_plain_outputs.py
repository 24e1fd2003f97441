"""Outputs of the usual kind are read in a few looks, and one that holds the numbers of the last one is known."""

import numpy as np
import pytest
import torch
from activations import cloned, reference_cka
from torch import nn
from torch.nn import functional as F

import cka_probe as cp
from cka_probe.capture.plain_outputs import LastOutput, PlainOutputs


def known(output, any_order=False):
    plain = PlainOutputs(any_order)
    plain.learn("a", output)
    return plain


def test_a_later_output_of_the_same_kind_is_flattened_without_a_copy():
    x = torch.randn(4, 3, 2, 2)
    features = known(torch.zeros(4, 3, 2, 2)).features("a", x, 4)
    assert features.shape == (4, 12)
    assert features.data_ptr() == x.data_ptr()


def test_channels_last_is_a_view_where_the_order_does_not_matter():
    x = torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)
    assert known(x).features("a", x, 4) is None
    features = known(x, any_order=True).features("a", x, 4)
    assert features.data_ptr() == x.data_ptr()
    torch.testing.assert_close(features @ features.T, x.flatten(1) @ x.flatten(1).T)


@pytest.mark.parametrize(
    "odd",
    [
        torch.zeros(4, 6, dtype=torch.float64),
        torch.zeros(4, 6, dtype=torch.int64),
        torch.zeros(4, 3, 2),
        torch.zeros(5, 6),
        torch.zeros(4, 0),
        torch.zeros(6, 4).T,
        torch.zeros(4, 6).to_sparse(),
        torch.zeros(4, 6, device="meta"),
        torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)], layout=torch.jagged),
        nn.Parameter(torch.zeros(4, 6)),
        (torch.zeros(4, 6),),
        None,
    ],
)
def test_any_other_output_is_looked_at_closely(odd):
    assert known(torch.zeros(4, 6)).features("a", odd, 4) is None


def test_half_precision_unknown_layers_and_autocast_are_looked_at_closely():
    x = torch.zeros(4, 6)
    assert known(x.half()).features("a", x.half(), 4) is None
    assert known(x).features("b", x, 4) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert known(x).features("a", x, 4) is None


class TestLastOutput:
    def taken(self, x):
        last = LastOutput()
        last.take("a", x)
        return last

    def test_the_same_tensor_and_its_views_are_known(self):
        x = torch.randn(4, 3, 2)
        last = self.taken(x)
        assert last.is_same(x)
        assert last.is_viewed_by(x.flatten(1))
        assert last.is_viewed_by(x.detach())

    def test_another_tensor_or_part_is_not(self):
        x = torch.randn(4, 6)
        last = self.taken(x)
        assert not last.is_same(x.clone())
        assert not last.is_viewed_by(x.clone())
        assert not last.is_viewed_by(x[:, :3])
        assert not last.is_viewed_by(x.view(8, 3))
        assert not last.is_viewed_by(x.T)
        assert not last.is_viewed_by(x.view(torch.int32))

    def test_a_change_in_place_is_noticed_through_every_view(self):
        for change in (lambda x: x.mul_(2), lambda x: x.view(-1)[:1].zero_(), lambda x: F.relu_(x)):
            x = torch.randn(4, 6)
            last = self.taken(x)
            change(x)
            assert not last.is_same(x)
            assert not last.is_viewed_by(x.view(4, 3, 2))

    def test_other_memory_under_the_same_tensor_is_noticed(self):
        x = torch.randn(4, 6)
        last = self.taken(x)
        x.data = torch.randn(4, 6)
        assert not last.is_same(x)

    def test_memory_of_a_tensor_that_is_gone_proves_nothing(self):
        x = torch.randn(4, 6)
        last = self.taken(x)
        del x
        assert not last.is_viewed_by(torch.randn(4, 6))
        assert not last.is_same(None)  # a layer may return None

    def test_in_inference_mode_nothing_is_known(self):
        with torch.inference_mode():
            x = torch.randn(4, 6)
            assert not self.taken(x).is_same(x)


class HandsOn(nn.Module):
    """Layers that hand on their input: as it is, as a view, changed in place, and changed in place through a view."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.same, self.drop, self.flat = nn.Identity(), nn.Dropout(), nn.Flatten()
        self.again = nn.Identity()
        self.relu = nn.ReLU(inplace=True)
        self.norm = nn.BatchNorm2d(4)
        self.last = nn.Identity()

    def forward(self, x):
        x = self.drop(self.same(self.conv(x)))
        self.flat(x)
        x.flatten(1)[:, 0] *= 3
        self.again(x)
        x = self.relu(x)
        self.flat(x)
        x = self.norm(x)
        return self.last(x.mul_(0.5).exp_())


def test_values_of_layers_that_hand_on_their_input_agree_with_float64():
    torch.manual_seed(0)
    net = HandsOn().eval()
    data = [torch.randn(20, 3, 8, 8) for _ in range(4)]
    expected = [cloned(net, batch) for batch in data]
    result = cp.compare(net, net, data, progress=False)
    assert list(result.rows) == list(expected[0])
    np.testing.assert_allclose(result.values, reference_cka(expected), atol=1e-6)


def test_a_layer_that_hands_on_its_input_makes_no_gram_matrix_of_its_own(monkeypatch):
    from cka_probe.comparison.grams.keeper import GramKeeper

    made, names = GramKeeper.__call__, []

    def watched(self, name, features):
        names.append(name)
        return made(self, name, features)

    monkeypatch.setattr(GramKeeper, "__call__", watched)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Identity(), nn.Dropout(), nn.Flatten())
    cp.compare(net, net, [torch.randn(20, 3, 8, 8) for _ in range(4)], progress=False)
    assert names.count("0") == 4
    assert names.count("1") == names.count("2") == 0
    assert names.count("3") < 4
