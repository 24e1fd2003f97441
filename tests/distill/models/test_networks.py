"""Networks: parameter counts and state dicts equal the published ones; networks of other libraries by name."""

import pytest
import torch
from torch import nn

from cka_probe.distill import models
from cka_probe.distill.models import NAMES, build

# The specification: parameters at 100 classes of the networks behind the common CIFAR distillation checkpoints.
PARAMETERS = {
    "resnet8": 83_892,
    "resnet14": 181_108,
    "resnet20": 278_324,
    "resnet32": 472_756,
    "resnet44": 667_188,
    "resnet56": 861_620,
    "resnet110": 1_736_564,
    "resnet8x4": 1_233_540,
    "resnet32x4": 7_433_860,
    "wrn_16_1": 180_916,
    "wrn_16_2": 703_284,
    "wrn_40_1": 569_780,
    "wrn_40_2": 2_255_156,
    "vgg8": 3_965_028,
    "vgg11": 9_277_284,
    "vgg13": 9_462_180,
    "vgg16": 14_774_436,
    "vgg19": 20_086_692,
    "MobileNetV2": 812_836,
    "ShuffleNetV1": 949_258,
    "ShuffleNetV2": 1_355_528,
    "ResNet18": 11_220_132,
    "ResNet50": 23_705_252,
    "MobileNetV1": 3_309_476,
}

# Some entries of those checkpoints, and the number of all entries.
LAYOUT = {
    "resnet8x4": (
        62,
        {
            "conv1.weight": (32, 3, 3, 3),
            "layer1.0.downsample.0.weight": (64, 32, 1, 1),
            "layer1.0.downsample.1.running_var": (64,),
            "layer3.0.bn2.bias": (256,),
            "fc.weight": (100, 256),
        },
    ),
    "resnet56": (
        344,
        {
            "conv1.weight": (16, 3, 3, 3),
            "layer1.8.conv2.weight": (16, 16, 3, 3),
            "layer2.0.downsample.0.weight": (32, 16, 1, 1),
            "layer3.8.bn1.num_batches_tracked": (),
            "fc.bias": (100,),
        },
    ),
    "wrn_40_2": (
        227,
        {
            "conv1.weight": (16, 3, 3, 3),
            "block1.layer.0.bn1.weight": (16,),
            "block1.layer.0.convShortcut.weight": (32, 16, 1, 1),
            "block3.layer.5.conv2.weight": (128, 128, 3, 3),
            "bn1.running_mean": (128,),
            "fc.weight": (100, 128),
        },
    ),
    "vgg13": (
        72,
        {
            "block0.0.weight": (64, 3, 3, 3),
            "block0.0.bias": (64,),
            "block0.4.weight": (64,),
            "block4.3.weight": (512, 512, 3, 3),
            "classifier.weight": (100, 512),
        },
    ),
    "MobileNetV2": (
        320,
        {
            "conv1.0.weight": (16, 3, 3, 3),
            "blocks.0.0.conv.3.weight": (16, 1, 3, 3),
            "blocks.6.0.conv.7.running_mean": (160,),
            "conv2.0.weight": (1280, 160, 1, 1),
            "classifier.0.weight": (100, 1280),
        },
    ),
    "ShuffleNetV1": (
        296,
        {
            "conv1.weight": (24, 3, 1, 1),
            "layer1.0.conv1.weight": (54, 24, 1, 1),
            "layer2.0.conv1.weight": (60, 80, 1, 1),
            "layer3.3.conv3.weight": (960, 80, 1, 1),
            "linear.weight": (100, 960),
        },
    ),
    "ShuffleNetV2": (
        338,
        {
            "layer1.0.conv1.weight": (24, 1, 3, 3),
            "layer1.0.conv5.weight": (58, 58, 1, 1),
            "layer3.3.bn3.weight": (232,),
            "conv2.weight": (1024, 464, 1, 1),
            "linear.bias": (100,),
        },
    ),
    "ResNet18": (
        122,
        {
            "conv1.weight": (64, 3, 3, 3),
            "layer2.0.shortcut.0.weight": (128, 64, 1, 1),
            "layer4.1.conv2.weight": (512, 512, 3, 3),
            "linear.weight": (100, 512),
        },
    ),
    "ResNet50": (
        320,
        {
            "layer1.0.shortcut.1.weight": (256,),
            "layer4.2.conv3.weight": (2048, 512, 1, 1),
            "linear.weight": (100, 2048),
        },
    ),
    "MobileNetV1": (
        164,
        {"model.0.0.weight": (32, 3, 3, 3), "model.13.3.weight": (1024, 1024, 1, 1), "fc.weight": (100, 1024)},
    ),
}

# Positions of the stages for a 32 x 32 image.
EXTENTS = {
    "resnet": (32, 16, 8),
    "wrn": (32, 16, 8),
    "vgg": (16, 8, 4, 4),
    "MobileNetV2": (16, 8, 4, 2),
    "ShuffleNet": (16, 8, 4),
    "ResNet": (32, 16, 8, 4),
    "MobileNetV1": (8, 4, 2, 1),
}


def meta(name, **options):
    with torch.device("meta"):
        return build(name, **options)


@pytest.fixture(autouse=True)
def _one_seed():
    torch.manual_seed(0)


def test_names_are_those_of_the_specification():
    assert set(NAMES) == set(PARAMETERS)
    for name in NAMES:
        assert getattr(models, name).__name__ == name
        assert name in models.__all__


@pytest.mark.parametrize("name", NAMES)
def test_parameter_count(name):
    assert sum(parameter.numel() for parameter in meta(name).parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", LAYOUT)
def test_state_dict_layout(name):
    count, shapes = LAYOUT[name]
    state = meta(name).state_dict()
    assert {key: tuple(state[key].shape) for key in shapes} == shapes
    assert len(state) == count


@pytest.mark.parametrize("name", NAMES)
def test_stages_run_in_order_and_end_at_the_expected_resolution(name):
    network = meta(name, num_classes=7).train()
    seen = {}
    for path in network.stage_layers:
        network.get_submodule(path).register_forward_hook(lambda *call, path=path: seen.update({path: call[2].shape}))
    logits = network(torch.zeros(2, 3, 32, 32, device="meta"))
    assert logits.shape == (2, 7)
    assert tuple(seen) == network.stage_layers
    extents = EXTENTS[max((family for family in EXTENTS if name.startswith(family)), key=len)]
    assert tuple(tuple(shape[2:]) for shape in seen.values()) == tuple((extent, extent) for extent in extents)


@pytest.mark.parametrize(
    "name", ["resnet8", "wrn_16_1", "vgg8", "MobileNetV2", "ShuffleNetV1", "ShuffleNetV2", "ResNet18"]
)
@pytest.mark.parametrize(("size", "channels"), [(32, 3), (16, 1)])
def test_trains_on_images_of_other_sizes_and_channels(name, size, channels):
    network = build(name, num_classes=10, in_channels=channels)
    logits = network(torch.randn(4, channels, size, size))
    assert logits.shape == (4, 10)
    assert torch.isfinite(logits).all()
    logits.logsumexp(1).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_vgg_pools_once_more_at_64_pixels():
    network = meta("vgg8")
    shapes = []
    network.block4.register_forward_hook(lambda *call: shapes.append(tuple(call[2].shape[2:])))
    for size in (32, 64):
        network(torch.zeros(1, 3, size, size, device="meta"))
    assert shapes == [(4, 4), (4, 4)]


def test_channel_shuffle_interleaves_the_groups():
    from cka_probe.distill.models.shufflenet import ChannelShuffle

    channels = torch.arange(6.0).reshape(1, 6, 1, 1)
    assert ChannelShuffle(3)(channels).flatten().tolist() == [0, 2, 4, 1, 3, 5]


def test_a_basic_block_is_its_formula():
    from cka_probe.distill.models.resnet import BasicBlock

    block = BasicBlock(4, 8, stride=2, skip_name="downsample").double().eval()
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    functional = nn.functional
    scale = 1 / (1 + 1e-5) ** 0.5  # a fresh batch norm in eval mode
    out = functional.conv2d(x, block.conv1.weight, stride=2, padding=1) * scale
    out = functional.conv2d(out.clamp(min=0), block.conv2.weight, padding=1) * scale
    around = functional.conv2d(x, block.downsample[0].weight, stride=2) * scale
    torch.testing.assert_close(block(x), (out + around).clamp(min=0))


def test_convolutions_are_drawn_by_fan_out():
    network = build("resnet8x4")
    weight = network.layer3[0].conv2.weight  # 256 x 256 x 3 x 3: the deviation is estimated to 0.1 %
    assert weight.std().item() == pytest.approx((2 / (256 * 9)) ** 0.5, rel=0.01)
    assert build("vgg8").classifier.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert build("wrn_16_1").fc.bias.abs().max() == 0


def test_no_activation_works_in_place():
    for name in NAMES:
        assert not any(getattr(module, "inplace", False) for module in meta(name).modules()), name


def test_the_same_seed_gives_the_same_network():
    torch.manual_seed(3)
    first = build("resnet8").state_dict()
    torch.manual_seed(3)
    second = build("resnet8").state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_networks_of_torchvision_by_name():
    network = meta("torchvision:resnet18", num_classes=5)
    assert network.fc.out_features == 5
    inception = meta("torchvision:googlenet", num_classes=5).train()
    assert inception(torch.zeros(2, 3, 64, 64, device="meta")).shape == (2, 5)


def test_networks_of_timm_by_name():
    pytest.importorskip("timm", reason="timm is not installed")
    network = build("timm:resnet10t", num_classes=5, in_channels=1)
    assert network(torch.zeros(2, 1, 32, 32)).shape == (2, 5)
    with pytest.raises(ValueError, match=r"timm has no network 'resnet19'\. Did you mean .*resnet1"):
        build("timm:resnet19")


def test_timm_missing_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'cka-probe\[timm\]'"):
        build("timm:resnet18")


def test_unknown_names():
    with pytest.raises(ValueError, match=r"no network 'resnet50'\. Did you mean .*ResNet50.*torchvision:NAME"):
        build("resnet50")
    with pytest.raises(ValueError, match=r"no network 'xyzzy'\. Known names are 'resnet8', 'resnet14'"):
        build("xyzzy")
    with pytest.raises(
        ValueError, match=r"torchvision has no classification network 'resnet19'\. Did you mean .*resnet1"
    ):
        build("torchvision:resnet19")
    with pytest.raises(ValueError, match="no network 'hub:resnet18'"):
        build("hub:resnet18")


def test_bad_arguments():
    with pytest.raises(TypeError, match="`name` must be a string such as 'resnet8x4', got 8"):
        build(8)
    with pytest.raises(ValueError, match="`num_classes` must be a positive integer, got 0"):
        build("resnet8", num_classes=0)
    with pytest.raises(ValueError, match=r"`in_channels` must be a positive integer, got 1\.5"):
        build("resnet8", in_channels=1.5)
    with pytest.raises(ValueError, match="torchvision's networks take images of 3 channels, not 1"):
        build("torchvision:resnet18", in_channels=1)
