"""Residual networks for 32 x 32 images: slim ones of three stages (resnet8 ... resnet110, x4), wide ones of four.

Parameter names follow the common CIFAR checkpoints for distillation: the slim networks call the projection of a block
``downsample`` and the classifier ``fc``, the four-stage ones ``shortcut`` and ``linear``. No activation works in place,
so an output that a hook holds does not change. Every activation is a module, so each can be tapped by its path.
"""

from torch import Tensor, nn

from .convolution import convolution, draw_weights

__all__ = [
    "ResNet18",
    "ResNet50",
    "resnet8",
    "resnet8x4",
    "resnet14",
    "resnet20",
    "resnet32",
    "resnet32x4",
    "resnet44",
    "resnet56",
    "resnet110",
]


class BasicBlock(nn.Module):
    """relu(x + two 3 x 3 convolutions of x); the submodule ``skip_name`` projects x if the shape changes."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int, skip_name: str) -> None:
        super().__init__()
        self.conv1 = convolution(in_channels, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = convolution(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()
        self.skip_name = skip_name
        self.add_module(skip_name, projection(in_channels, width, stride))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, width, H / stride, W / stride)."""
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.relu2(out + getattr(self, self.skip_name)(x))


class Bottleneck(nn.Module):
    """relu(x + a 3 x 3 convolution between two 1 x 1 ones), with ``4 * width`` output channels."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int, skip_name: str) -> None:
        super().__init__()
        out_channels = self.expansion * width
        self.conv1 = convolution(in_channels, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = convolution(width, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()
        self.conv3 = convolution(width, out_channels, 1)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu3 = nn.ReLU()
        self.skip_name = skip_name
        self.add_module(skip_name, projection(in_channels, out_channels, stride))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, 4 * width, H / stride, W / stride)."""
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.relu2(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return self.relu3(out + getattr(self, self.skip_name)(x))


def projection(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """The skip connection of a block: the identity if the shape stays the same, else a strided 1 x 1 convolution."""
    if stride == 1 and in_channels == out_channels:
        return nn.Sequential()
    return nn.Sequential(convolution(in_channels, out_channels, 1, stride), nn.BatchNorm2d(out_channels))


class ResNet(nn.Module):
    """A residual network for small images: the first stage keeps the resolution, each later stage halves it.

    Parameters
    ----------
    block : type
        `BasicBlock` or `Bottleneck`.
    blocks : list of int
        Blocks in each stage; stage ``i`` is the submodule ``layer{i + 1}``.
    widths : list of int
        Channels of the stem, then the width of each stage.
    num_classes, in_channels : int
        Length of the logits, and channels of the images.
    skip_name, classifier_name : str
        Names of a block's projection and of the last linear layer in the checkpoints of this family.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        blocks: list[int],
        widths: list[int],
        num_classes: int,
        in_channels: int,
        *,
        skip_name: str,
        classifier_name: str,
    ) -> None:
        super().__init__()
        self.conv1 = convolution(in_channels, widths[0], 3)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU()
        channels = widths[0]
        for number, (count, width) in enumerate(zip(blocks, widths[1:], strict=True), start=1):
            stage = nn.Sequential()
            for index in range(count):
                stage.append(block(channels, width, 2 if number > 1 and index == 0 else 1, skip_name))
                channels = block.expansion * width
            self.add_module(f"layer{number}", stage)
        self.stage_layers = tuple(f"layer{number}" for number in range(1, len(blocks) + 1))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier_name = classifier_name
        self.add_module(classifier_name, nn.Linear(channels, num_classes))
        draw_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, C, H, W) to logits (B, num_classes)."""
        x = self.relu(self.bn1(self.conv1(x)))
        for name in self.stage_layers:
            x = getattr(self, name)(x)
        return getattr(self, self.classifier_name)(self.flatten(self.avgpool(x)))


def _slim(depth: int, widths: list[int], num_classes: int, in_channels: int) -> ResNet:
    # Three stages of n blocks with two convolutions each, the stem and the classifier: depth = 6 n + 2.
    blocks = [(depth - 2) // 6] * 3
    return ResNet(BasicBlock, blocks, widths, num_classes, in_channels, skip_name="downsample", classifier_name="fc")


def resnet8(num_classes: int = 100, in_channels: int = 3) -> ResNet:
    """ResNet-8 with 16, 32, 64 channels: 83,892 parameters at 100 classes."""
    return _slim(8, [16, 16, 32, 64], num_classes, in_channels)


def resnet14(num_classes: int = 100, in_channels: int = 3) -> ResNet:
    """ResNet-14 with 16, 32, 64 channels: 181,108 parameters at 100 classes."""
    return _slim(14, [16, 16, 32, 64], num_classes, in_channels)


def resnet20(num_classes: int = 100, in_channels: int = 3) -> ResNet:
    """ResNet-20 with 16, 32, 64 channels: 278,324 parameters at 100 classes."""
    return _slim(20, [16, 16, 32, 64], num_classes, in_channels)


def resnet32(num_classes: int = 100, in_channels: int = 3) -> ResNet:
    """ResNet-32 with 16, 32, 64 channels: 472,756 parameters at 100 classes."""
    return _slim(32, [16, 16, 32, 64], num_classes, in_channels)


def resnet44(num_classes: int = 100, in_channels: int = 3) -> ResNet:
    """ResNet-44 with 16, 32, 64 channels: 667,188 parameters at 100 classes."""
    return _slim(44, [16, 16, 32, 64], num_classes, in_channels)


def resnet56(num_classes: int = 100, in_channels: int = 3) -> ResNet:
    """ResNet-56 with 16, 32, 64 channels: 861,620 parameters at 100 classes."""
    return _slim(56, [16, 16, 32, 64], num_classes, in_channels)


def resnet110(num_classes: int = 100, in_channels: int = 3) -> ResNet:
    """ResNet-110 with 16, 32, 64 channels: 1,736,564 parameters at 100 classes."""
    return _slim(110, [16, 16, 32, 64], num_classes, in_channels)


def resnet8x4(num_classes: int = 100, in_channels: int = 3) -> ResNet:
    """ResNet-8 with four times the channels (64, 128, 256): 1,233,540 parameters at 100 classes."""
    return _slim(8, [32, 64, 128, 256], num_classes, in_channels)


def resnet32x4(num_classes: int = 100, in_channels: int = 3) -> ResNet:
    """ResNet-32 with four times the channels (64, 128, 256): 7,433,860 parameters at 100 classes."""
    return _slim(32, [32, 64, 128, 256], num_classes, in_channels)


def ResNet18(num_classes: int = 100, in_channels: int = 3) -> ResNet:  # noqa: N802  the checkpoints' own name
    """ResNet-18 for 32 x 32 images, four stages of 64 to 512 channels: 11,220,132 parameters at 100 classes."""
    return ResNet(
        BasicBlock,
        [2, 2, 2, 2],
        [64, 64, 128, 256, 512],
        num_classes,
        in_channels,
        skip_name="shortcut",
        classifier_name="linear",
    )


def ResNet50(num_classes: int = 100, in_channels: int = 3) -> ResNet:  # noqa: N802  the checkpoints' own name
    """ResNet-50 for 32 x 32 images, four stages of 256 to 2048 channels: 23,705,252 parameters at 100 classes."""
    return ResNet(
        Bottleneck,
        [3, 4, 6, 3],
        [64, 64, 128, 256, 512],
        num_classes,
        in_channels,
        skip_name="shortcut",
        classifier_name="linear",
    )
