"""The axis of the channels of an activation: what classes say, and what the layers before and inside a module say."""

import pytest
import torch
from torch import nn

import cka_probe as cp
from cka_probe.capture.channels import ChannelAxes, known_channels
from cka_probe.capture.hooks import Probe


class Turn(nn.Module):
    def __init__(self, *axes):
        super().__init__()
        self.axes = axes

    def forward(self, x):
        return x.permute(self.axes)


class MapNorm(nn.LayerNorm):
    """A layer norm over (n, c, h, w), as ConvNeXt has it."""

    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def found(net, x):
    """Axis of each module, asked inside its hook."""
    axes, answers = ChannelAxes(net, [name for name, _ in net.named_modules()]), {}
    for name, module in net.named_modules():
        module.register_forward_hook(lambda m, _i, out, name=name: answers.update({name: axes.of(name, m, out)}))
    with axes.watched(), torch.no_grad():
        net(x)
    return answers


@pytest.mark.parametrize(
    ("module", "shape", "axis"),
    [
        (nn.Conv1d(3, 4, 1), (2, 3, 4), 1),
        (nn.Conv3d(3, 4, 1), (2, 3, 4, 4, 4), 1),
        (nn.ConvTranspose2d(3, 4, 1), (2, 3, 5, 5), 1),
        (nn.BatchNorm1d(3), (2, 3, 3), 1),
        (nn.GroupNorm(1, 4), (2, 4, 7), 1),
        (nn.AvgPool1d(2), (2, 3, 8), 1),
        (nn.Linear(3, 4), (2, 4, 3), -1),
        (nn.Linear(3, 4), (2, 4, 4, 3), -1),
        (nn.LayerNorm(4), (2, 4, 4), -1),
        (MapNorm(4), (2, 4, 5, 5), 1),
        (MapNorm(4), (2, 4, 5, 4), None),
        (nn.ReLU(), (2, 4, 4), None),
        (nn.Linear(3, 4), (2, 3), None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_what_the_class_says(module, shape, axis):
    assert known_channels(module, module(torch.zeros(shape))) == axis


def test_activations_and_blocks_follow_the_layers_before_and_inside_them():
    block = nn.Sequential(nn.Conv1d(1, 6, 3), nn.BatchNorm1d(6), nn.ReLU())
    net = nn.Sequential(block, nn.Dropout(), Turn(0, 2, 1), nn.GELU(), nn.Linear(6, 5), nn.Tanh())
    assert found(net, torch.zeros(2, 1, 20)) == {
        **{"0.0": 1, "0.1": 1, "0.2": 1, "0": 1, "1": 1},
        **{"2": -1, "3": -1, "4": -1, "5": -1, "": -1},
    }


def test_a_block_that_turns_its_maps_and_back_keeps_the_axes_of_its_input():
    """Where channels, height and width agree, shapes say nothing; the layers inside disagree, so the input counts."""
    inside = nn.Sequential(nn.Conv2d(8, 8, 1), Turn(0, 2, 3, 1), nn.LayerNorm(8), nn.Linear(8, 8), Turn(0, 3, 1, 2))
    net = nn.Sequential(nn.Conv2d(3, 8, 1), inside)
    assert found(net, torch.zeros(2, 3, 8, 8))["1"] == 1


def test_maps_of_which_two_axes_agree():
    maps = nn.Sequential(nn.Conv2d(1, 8, 1), nn.ReLU())
    assert found(maps, torch.zeros(2, 1, 8, 20)) == {"0": 1, "1": 1, "": 1}
    windows = nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8), nn.ReLU())
    assert set(found(windows, torch.zeros(2, 8, 12, 3)).values()) == {-1}


class Gated(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.wide, self.act = nn.Linear(width, 8 * width), nn.GELU()

    def forward(self, x):
        gate, value = self.wide(x).chunk(2, -1)
        return self.act(gate) * value


def test_half_of_the_channels_have_the_axis_of_the_whole():
    """The maps (n, h, w, c) of MambaOut, and a norm over maps whose width is its number of channels (EdgeNeXt)."""
    assert set(found(Gated(3), torch.zeros(2, 5, 7, 3)).values()) == {-1}
    assert set(found(nn.Sequential(nn.Conv2d(1, 4, 1), MapNorm(4)), torch.zeros(2, 1, 5, 4)).values()) == {1}


def test_nothing_is_said_without_a_layer_that_knows():
    assert found(nn.Sequential(nn.ReLU(), nn.Flatten(2)), torch.zeros(2, 3, 4, 4)) == {"0": None, "1": None, "": None}


def test_the_first_answer_holds_and_the_hooks_go():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())
    axes = ChannelAxes(net, ["0", "1"])
    with axes.watched():
        axes.of("1", net[1], net(torch.zeros(2, 3, 4, 5)))
    assert axes.of("1", net[1], torch.zeros(2, 9, 9, 4)) == 1
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_a_probe_takes_the_mean_over_time_and_not_over_channels():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv1d(1, 4, 3), nn.ReLU(), nn.Conv1d(4, 5, 3))
    with Probe(net, pooling="mean") as probe, torch.no_grad():
        for length in (12, 30):
            x = torch.randn(3, 1, length)
            last = net(x)
            assert {name: f.shape for name, f in probe.features.items()} == {"0": (3, 4), "1": (3, 4), "2": (3, 5)}
            assert torch.allclose(probe.features["2"], last.mean(2))


def test_a_note_says_where_the_layers_inside_contradict_each_other():
    """A map (n, 8, 8, 8) that a block has turned, for good or not."""
    stem = nn.Sequential(nn.Conv2d(3, 8, 1), Turn(0, 2, 3, 1), nn.LayerNorm(8))
    net = nn.Sequential(stem, nn.ReLU())
    notes = cp.compare(net, net, torch.randn(6, 3, 8, 8), layers=["0", "1"], pooling="mean", progress=False).notes
    assert len(notes) == 1
    assert "'0' may have the channels on axis 1 or on the last axis" in notes[0]
    larger = cp.compare(net, net, torch.randn(6, 3, 8, 9), layers=["0", "1"], pooling="mean", progress=False)
    assert larger.notes == ()
    assert found(net, torch.zeros(2, 3, 8, 9))["0"] == -1
