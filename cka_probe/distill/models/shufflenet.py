"""ShuffleNetV1 and ShuffleNetV2 for 32 x 32 images: a 1 x 1 stem and no pooling before the stages."""

import torch
from torch import Tensor, nn

from .convolution import convolution

__all__ = ["ShuffleNetV1", "ShuffleNetV2"]

STEM_CHANNELS = 24


class ChannelShuffle(nn.Module):
    """Interleave `groups` equal groups of channels: channel j of group i moves to position j * groups + i."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        return x.unflatten(1, (self.groups, -1)).transpose(1, 2).flatten(1, 2)


class GroupedUnit(nn.Module):
    """A unit of ShuffleNetV1: grouped 1 x 1, shuffle, depthwise 3 x 3, grouped 1 x 1, plus the input.

    At stride 2 the pooled input is concatenated instead; the convolutions then give ``out_channels - in_channels``.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, groups: int) -> None:
        super().__init__()
        self.joins = stride == 2
        convolved = out_channels - in_channels if self.joins else out_channels
        middle = convolved // 4
        first_groups = 1 if in_channels == STEM_CHANNELS else groups  # the stem has too few channels for groups
        self.conv1 = convolution(in_channels, middle, 1, groups=first_groups)
        self.bn1 = nn.BatchNorm2d(middle)
        self.relu1 = nn.ReLU()
        self.shuffle1 = ChannelShuffle(first_groups)
        self.conv2 = convolution(middle, middle, 3, stride, groups=middle)
        self.bn2 = nn.BatchNorm2d(middle)
        self.relu2 = nn.ReLU()
        self.conv3 = convolution(middle, convolved, 1, groups=groups)
        self.bn3 = nn.BatchNorm2d(convolved)
        self.shortcut = nn.AvgPool2d(3, stride=2, padding=1) if self.joins else nn.Identity()
        self.relu3 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H / stride, W / stride)."""
        out = self.shuffle1(self.relu1(self.bn1(self.conv1(x))))
        out = self.relu2(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        skip = self.shortcut(x)
        return self.relu3(torch.cat([out, skip], dim=1) if self.joins else out + skip)


class SplitUnit(nn.Module):
    """A unit of ShuffleNetV2 that keeps the shape: half of the channels are convolved, then all are shuffled."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = convolution(half, half, 1)
        self.bn1 = nn.BatchNorm2d(half)
        self.relu1 = nn.ReLU()
        self.conv2 = convolution(half, half, 3, groups=half)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = convolution(half, half, 1)
        self.bn3 = nn.BatchNorm2d(half)
        self.relu3 = nn.ReLU()
        self.shuffle = ChannelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, channels, H, W) to the same shape."""
        kept, out = x.chunk(2, dim=1)
        out = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(out)))))
        out = self.relu3(self.bn3(self.conv3(out)))
        return self.shuffle(torch.cat([kept, out], dim=1))


class DownUnit(nn.Module):
    """A unit of ShuffleNetV2 that halves the resolution: two convolved paths, concatenated and shuffled."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        half = out_channels // 2
        # The short path ...
        self.conv1 = convolution(in_channels, in_channels, 3, stride=2, groups=in_channels)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv2 = convolution(in_channels, half, 1)
        self.bn2 = nn.BatchNorm2d(half)
        self.relu2 = nn.ReLU()
        # ... and the long one.
        self.conv3 = convolution(in_channels, half, 1)
        self.bn3 = nn.BatchNorm2d(half)
        self.relu3 = nn.ReLU()
        self.conv4 = convolution(half, half, 3, stride=2, groups=half)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = convolution(half, half, 1)
        self.bn5 = nn.BatchNorm2d(half)
        self.relu5 = nn.ReLU()
        self.shuffle = ChannelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H / 2, W / 2)."""
        short = self.relu2(self.bn2(self.conv2(self.bn1(self.conv1(x)))))
        long = self.bn4(self.conv4(self.relu3(self.bn3(self.conv3(x)))))
        long = self.relu5(self.bn5(self.conv5(long)))
        return self.shuffle(torch.cat([short, long], dim=1))


class ShuffleNet(nn.Module):
    """A 1 x 1 stem of 24 channels, three stages, an optional 1 x 1 head and a linear classifier.

    Parameters
    ----------
    stages : tuple of torch.nn.Sequential
        ``layer1`` to ``layer3``. Each halves the resolution.
    channels : int
        Channels of the last stage.
    head_channels : int, optional
        Channels of a 1 x 1 convolution after the stages. No such convolution if None.
    num_classes, in_channels : int
        Length of the logits, and channels of the images.
    """

    stage_layers = ("layer1", "layer2", "layer3")

    def __init__(
        self,
        stages: tuple[nn.Sequential, nn.Sequential, nn.Sequential],
        channels: int,
        head_channels: int | None,
        num_classes: int,
        in_channels: int,
    ) -> None:
        super().__init__()
        self.conv1 = convolution(in_channels, STEM_CHANNELS, 1)
        self.bn1 = nn.BatchNorm2d(STEM_CHANNELS)
        self.relu1 = nn.ReLU()
        self.layer1, self.layer2, self.layer3 = stages
        self.has_head = head_channels is not None
        if head_channels is not None:
            self.conv2 = convolution(channels, head_channels, 1)
            self.bn2 = nn.BatchNorm2d(head_channels)
            self.relu2 = nn.ReLU()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(channels if head_channels is None else head_channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, C, H, W) to logits (B, num_classes)."""
        x = self.relu1(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        if self.has_head:
            x = self.relu2(self.bn2(self.conv2(x)))
        return self.linear(self.flatten(self.avgpool(x)))


def ShuffleNetV1(num_classes: int = 100, in_channels: int = 3) -> ShuffleNet:  # noqa: N802  the paper's own name
    """ShuffleNetV1 with 3 groups (240, 480, 960 channels) for 32 x 32 images: 949,258 parameters at 100 classes."""

    def stage(before: int, width: int, units: int) -> nn.Sequential:
        kept = [GroupedUnit(width, width, stride=1, groups=3) for _ in range(units - 1)]
        return nn.Sequential(GroupedUnit(before, width, stride=2, groups=3), *kept)

    stages = (stage(STEM_CHANNELS, 240, 4), stage(240, 480, 8), stage(480, 960, 4))
    return ShuffleNet(stages, 960, None, num_classes, in_channels)


def ShuffleNetV2(num_classes: int = 100, in_channels: int = 3) -> ShuffleNet:  # noqa: N802  the paper's own name
    """ShuffleNetV2 (116, 232, 464 channels) for 32 x 32 images: 1,355,528 parameters at 100 classes."""

    def stage(before: int, width: int, units: int) -> nn.Sequential:
        return nn.Sequential(DownUnit(before, width), *[SplitUnit(width) for _ in range(units - 1)])

    stages = (stage(STEM_CHANNELS, 116, 4), stage(116, 232, 8), stage(232, 464, 4))
    return ShuffleNet(stages, 464, 1024, num_classes, in_channels)
