"""MobileNetV2 at half width for 32 x 32 images, and MobileNetV1 for ImageNet's 224 x 224."""

from torch import Tensor, nn

from .convolution import convolution, draw_weights

__all__ = ["MobileNetV1", "MobileNetV2"]


def _normalised(layer: nn.Conv2d) -> list[nn.Module]:
    return [layer, nn.BatchNorm2d(layer.out_channels), nn.ReLU()]


class InvertedResidual(nn.Module):
    """1 x 1 convolution to more channels, depthwise 3 x 3, 1 x 1 to fewer; plus x if the shape stays the same."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = expansion * in_channels
        self.conv = nn.Sequential(
            *_normalised(convolution(in_channels, width, 1)),
            *_normalised(convolution(width, width, 3, stride, groups=width)),
            convolution(width, out_channels, 1),
            nn.BatchNorm2d(out_channels),
        )
        self.adds_input = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, out_channels, H / stride, W / stride)."""
        out = self.conv(x)
        return x + out if self.adds_input else out


class SmallMobileNetV2(nn.Module):
    """MobileNetV2 for 32 x 32 images: stem and second group keep more resolution than in the version for ImageNet.

    Parameters
    ----------
    width : float
        Factor of the number of channels, except for the last 1280.
    num_classes, in_channels : int
        Length of the logits, and channels of the images.
    """

    # Channels at width 1, number of blocks, stride of the first block, expansion.
    groups = ((16, 1, 1, 1), (24, 2, 1, 6), (32, 3, 2, 6), (64, 4, 2, 6), (96, 3, 1, 6), (160, 3, 2, 6), (320, 1, 1, 6))
    stage_layers = ("blocks.1", "blocks.2", "blocks.4", "blocks.6")

    def __init__(self, width: float, num_classes: int, in_channels: int) -> None:
        super().__init__()
        channels = int(32 * width)
        self.conv1 = nn.Sequential(*_normalised(convolution(in_channels, channels, 3, stride=2)))
        self.blocks = nn.ModuleList()
        for full_width, count, first_stride, expansion in self.groups:
            group = nn.Sequential()
            for index in range(count):
                stride = first_stride if index == 0 else 1
                group.append(InvertedResidual(channels, int(full_width * width), stride, expansion))
                channels = int(full_width * width)
            self.blocks.append(group)
        self.conv2 = nn.Sequential(*_normalised(convolution(channels, 1280, 1)))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Sequential(nn.Linear(1280, num_classes))
        draw_weights(self, classifier_deviation=0.01)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, C, H, W) to logits (B, num_classes)."""
        x = self.conv1(x)
        for group in self.blocks:
            x = group(x)
        return self.classifier(self.flatten(self.avgpool(self.conv2(x))))


class DepthwiseNet(nn.Module):
    """MobileNetV1: thirteen pairs of a depthwise 3 x 3 and a 1 x 1 convolution.

    Parameters
    ----------
    num_classes, in_channels : int
        Length of the logits, and channels of the images.
    """

    # Output channels and stride.
    layers = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))
    stage_layers = ("model.3", "model.5", "model.11", "model.13")

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Sequential(*_normalised(convolution(in_channels, 32, 3, stride=2))))
        channels = 32
        for width, stride in self.layers:
            depthwise = convolution(channels, channels, 3, stride, groups=channels)
            self.model.append(nn.Sequential(*_normalised(depthwise), *_normalised(convolution(channels, width, 1))))
            channels = width
        self.model.append(nn.AdaptiveAvgPool2d(1))
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, C, H, W) to logits (B, num_classes)."""
        return self.fc(self.flatten(self.model(x)))


def MobileNetV2(num_classes: int = 100, in_channels: int = 3) -> SmallMobileNetV2:  # noqa: N802  the paper's own name
    """MobileNetV2 at half width for 32 x 32 images: 812,836 parameters at 100 classes."""
    return SmallMobileNetV2(0.5, num_classes, in_channels)


def MobileNetV1(num_classes: int = 100, in_channels: int = 3) -> DepthwiseNet:  # noqa: N802  the paper's own name
    """MobileNetV1 for 224 x 224 images, the student of a pair on ImageNet: 4,231,976 parameters at 1000 classes."""
    return DepthwiseNet(num_classes, in_channels)
