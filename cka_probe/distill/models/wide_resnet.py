"""Wide residual networks (wrn_depth_width): batch norm and ReLU before each convolution, no dropout."""

from collections import OrderedDict

from torch import Tensor, nn

from .convolution import convolution, draw_weights

__all__ = ["WideResNet", "wrn_16_1", "wrn_16_2", "wrn_40_1", "wrn_40_2"]


class PreActivationBlock(nn.Module):
    """x plus two 3 x 3 convolutions of relu(bn(x)). If the width changes, a projection of relu(bn(x)) replaces x."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.relu1 = nn.ReLU()
        self.conv1 = convolution(in_channels, out_channels, 3, stride)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu2 = nn.ReLU()
        self.conv2 = convolution(out_channels, out_channels, 3)
        changes_width = in_channels != out_channels
        self.convShortcut = convolution(in_channels, out_channels, 1, stride) if changes_width else None

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, out_channels, H / stride, W / stride)."""
        activated = self.relu1(self.bn1(x))
        out = self.conv2(self.relu2(self.bn2(self.conv1(activated))))
        return out + (x if self.convShortcut is None else self.convShortcut(activated))


class WideResNet(nn.Module):
    """A wide residual network for small images: three stages with 16, 32 and 64 times `width` channels.

    Parameters
    ----------
    depth : int
        6 n + 4 for n blocks in each stage.
    width : int
        Factor of the number of channels.
    num_classes, in_channels : int
        Length of the logits, and channels of the images.
    """

    stage_layers = ("block1", "block2", "block3")

    def __init__(self, depth: int, width: int, num_classes: int, in_channels: int) -> None:
        super().__init__()
        count = (depth - 4) // 6
        self.conv1 = convolution(in_channels, 16, 3)
        channels = 16
        for name, out_channels, stride in zip(
            self.stage_layers, (16 * width, 32 * width, 64 * width), (1, 2, 2), strict=True
        ):
            blocks = nn.Sequential(PreActivationBlock(channels, out_channels, stride))
            for _ in range(count - 1):
                blocks.append(PreActivationBlock(out_channels, out_channels, 1))
            self.add_module(name, nn.Sequential(OrderedDict(layer=blocks)))  # names such as block1.layer.0
            channels = out_channels
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(channels, num_classes)
        draw_weights(self)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, C, H, W) to logits (B, num_classes)."""
        x = self.conv1(x)
        for name in self.stage_layers:
            x = getattr(self, name)(x)
        return self.fc(self.flatten(self.avgpool(self.relu(self.bn1(x)))))


def wrn_16_1(num_classes: int = 100, in_channels: int = 3) -> WideResNet:
    """Wide ResNet of depth 16, width 1: 180,916 parameters at 100 classes."""
    return WideResNet(16, 1, num_classes, in_channels)


def wrn_16_2(num_classes: int = 100, in_channels: int = 3) -> WideResNet:
    """Wide ResNet of depth 16, width 2: 703,284 parameters at 100 classes."""
    return WideResNet(16, 2, num_classes, in_channels)


def wrn_40_1(num_classes: int = 100, in_channels: int = 3) -> WideResNet:
    """Wide ResNet of depth 40, width 1: 569,780 parameters at 100 classes."""
    return WideResNet(40, 1, num_classes, in_channels)


def wrn_40_2(num_classes: int = 100, in_channels: int = 3) -> WideResNet:
    """Wide ResNet of depth 40, width 2: 2,255,156 parameters at 100 classes."""
    return WideResNet(40, 2, num_classes, in_channels)
