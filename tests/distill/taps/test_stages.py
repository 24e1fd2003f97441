"""Stages found by running a network once, and how those of two networks are paired."""

import pytest
import torch
import torchvision
from torch import nn

from cka_probe.distill.models import NAMES, build
from cka_probe.distill.taps.stages import match_stages, stage_layers

IMAGE = torch.zeros(1, 3, 64, 64)


class HiddenStages(nn.Module):
    """A network of the zoo that does not say where its stages are."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x)


def test_networks_of_the_zoo_say_where_their_stages_end():
    for name in NAMES:
        with torch.device("meta"):
            network = build(name)
        assert stage_layers(network, None) == list(network.stage_layers)
        for path in network.stage_layers:
            network.get_submodule(path)


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1", "ShuffleNetV1", "ShuffleNetV2", "ResNet18"])
def test_found_stages_are_the_declared_ones(name):
    network = build(name)
    found = stage_layers(HiddenStages(network), torch.zeros(1, 3, 32, 32))
    expected = [f"network.{path}" for path in network.stage_layers]
    if name == "ShuffleNetV2":
        expected[-1] = "network.relu2"  # its head has the resolution of the last stage
    if name == "wrn_16_1":
        expected[-1] = "network.relu"  # the batch norm before the classifier belongs to the last stage
    assert found == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet18", ["layer1", "layer2", "layer3", "layer4"]),
        ("resnet50", ["layer1", "layer2", "layer3", "layer4"]),  # whose blocks reduce after their first convolution
        ("vgg11", ["features.4", "features.9", "features.14", "features.19"]),  # one convolution at 64 x 64: a stem
        ("mobilenet_v3_small", ["features.1", "features.3", "features.8", "features.12"]),  # gates pool to 1 x 1 inside
        ("squeezenet1_1", ["features.4", "features.7", "features.12"]),  # logits are a 1 x 1 map
        ("swin_t", ["features.1", "features.3", "features.5", "norm"]),  # channels last
    ],
)
def test_stages_of_torchvision_networks(name, expected):
    network = torchvision.models.get_model(name, weights=None)
    assert stage_layers(network, IMAGE) == expected


def test_a_small_image_leaves_the_last_stage_one_pixel():
    assert stage_layers(torchvision.models.resnet18(), torch.zeros(1, 3, 32, 32))[-1] == "layer4"


class TokenMixer(nn.Module):
    """Blocks on a sequence whose length never changes."""

    def __init__(self, depth):
        super().__init__()
        self.embed = nn.Linear(3, 8)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.GELU()) for _ in range(depth))
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True) for _ in range(depth))
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        x = self.embed(x)
        for block, layer in zip(self.blocks, self.layers, strict=True):
            x = layer(block(x))
        return self.head(x.mean(1))


def test_transformers_give_blocks_at_equal_distances():
    tokens = torch.zeros(1, 5, 3)
    assert stage_layers(TokenMixer(8), tokens) == ["layers.1", "layers.3", "layers.5", "layers.7"]
    assert stage_layers(TokenMixer(3), tokens) == ["layers.0", "layers.1", "layers.2"]
    student, teacher = match_stages(TokenMixer(3), TokenMixer(12), tokens)
    assert student == ["layers.0", "layers.1", "layers.2"]
    assert teacher == ["layers.3", "layers.7", "layers.11"]


def test_multilayer_perceptrons_give_their_hidden_layers():
    student = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    teacher = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    assert stage_layers(teacher, torch.zeros(1, 4)) == ["0", "2"]
    assert match_stages(student, teacher, torch.zeros(1, 4)) == (["0"], ["2"])


def test_stages_are_aligned_from_the_end():
    student, teacher = build("resnet8"), build("vgg8")
    assert match_stages(student, teacher, torch.zeros(1, 3, 32, 32)) == (
        ["layer1", "layer2", "layer3"],
        ["relu2", "relu3", "relu4"],
    )
    assert match_stages(teacher, student, torch.zeros(1, 3, 32, 32))[0] == ["relu2", "relu3", "relu4"]


def test_blocks_are_spread_over_the_stages_of_the_other_network():
    class Patches(TokenMixer):
        def forward(self, x):
            return super().forward(x.flatten(2).transpose(1, 2))

    student, teacher = match_stages(Patches(6), build("resnet8"), torch.zeros(1, 3, 8, 8))
    assert student == ["layers.1", "layers.3", "layers.5"]
    assert teacher == ["layer1", "layer2", "layer3"]


def test_wrapped_networks_have_the_paths_of_the_network_inside():
    network = nn.DataParallel(build("resnet8"))
    assert stage_layers(network, torch.zeros(1, 3, 32, 32)) == ["layer1", "layer2", "layer3"]


def test_the_network_is_left_as_it_was():
    network = torchvision.models.resnet18()
    network.layer1.eval()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    state = torch.get_rng_state()
    stage_layers(network, IMAGE)
    assert network.training
    assert not network.layer1.training
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert not any(module._forward_hooks for module in network.modules())


def test_hooks_go_when_the_network_fails():
    network = torchvision.models.resnet18()
    with pytest.raises(RuntimeError):
        stage_layers(network, torch.zeros(1, 5, 64, 64))
    assert not any(module._forward_hooks for module in network.modules())


def test_a_single_layer_has_no_stages():
    with pytest.raises(
        ValueError, match=r"No stages were found in the teacher \(Linear\): .* Name the layers to compare"
    ):
        match_stages(build("resnet8"), nn.Linear(4, 2), torch.zeros(1, 4))
