"""VGG networks with batch norm and one linear layer for 32 x 32 images, or 64 x 64 with one more pooling."""

from torch import Tensor, nn

from .convolution import draw_weights

__all__ = ["VGG", "vgg8", "vgg11", "vgg13", "vgg16", "vgg19"]

WIDTHS = (64, 128, 256, 512, 512)


class VGG(nn.Module):
    """Five blocks of 3 x 3 convolutions (64 to 512 channels), each followed by pooling, and a linear classifier.

    As in the checkpoints a block ends before its last ReLU: ``block1`` gives pre-activations, ``relu1`` activations.

    Parameters
    ----------
    convolutions : tuple of int
        Number of convolutions in each of the five blocks.
    num_classes, in_channels : int
        Length of the logits, and channels of the images.
    """

    stage_layers = ("relu1", "relu2", "relu3", "relu4")

    def __init__(self, convolutions: tuple[int, int, int, int, int], num_classes: int, in_channels: int) -> None:
        super().__init__()
        channels = in_channels
        for number, (count, width) in enumerate(zip(convolutions, WIDTHS, strict=True)):
            block = nn.Sequential()
            for index in range(count):
                if index > 0:
                    block.append(nn.ReLU())
                block.append(nn.Conv2d(channels, width, 3, padding=1))
                block.append(nn.BatchNorm2d(width))
                channels = width
            self.add_module(f"block{number}", block)
            self.add_module(f"relu{number}", nn.ReLU())
            self.add_module(f"pool{number}", nn.MaxPool2d(2) if number < 4 else nn.AdaptiveAvgPool2d(1))
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(channels, num_classes)
        draw_weights(self, classifier_deviation=0.01)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, C, H, W) to logits (B, num_classes)."""
        # Images below 64 x 64 skip the fourth pooling: at 32 x 32 both last blocks work on 4 x 4 maps.
        skipped = None if x.shape[-2] >= 64 else 3
        for number in range(len(WIDTHS)):
            x = getattr(self, f"relu{number}")(getattr(self, f"block{number}")(x))
            if number != skipped:
                x = getattr(self, f"pool{number}")(x)
        return self.classifier(self.flatten(x))


def vgg8(num_classes: int = 100, in_channels: int = 3) -> VGG:
    """VGG with 5 convolutions, batch norm and one linear layer: 3,965,028 parameters at 100 classes."""
    return VGG((1, 1, 1, 1, 1), num_classes, in_channels)


def vgg11(num_classes: int = 100, in_channels: int = 3) -> VGG:
    """VGG with 8 convolutions, batch norm and one linear layer: 9,277,284 parameters at 100 classes."""
    return VGG((1, 1, 2, 2, 2), num_classes, in_channels)


def vgg13(num_classes: int = 100, in_channels: int = 3) -> VGG:
    """VGG with 10 convolutions, batch norm and one linear layer: 9,462,180 parameters at 100 classes."""
    return VGG((2, 2, 2, 2, 2), num_classes, in_channels)


def vgg16(num_classes: int = 100, in_channels: int = 3) -> VGG:
    """VGG with 13 convolutions, batch norm and one linear layer: 14,774,436 parameters at 100 classes."""
    return VGG((2, 2, 3, 3, 3), num_classes, in_channels)


def vgg19(num_classes: int = 100, in_channels: int = 3) -> VGG:
    """VGG with 16 convolutions, batch norm and one linear layer: 20,086,692 parameters at 100 classes."""
    return VGG((2, 2, 4, 4, 4), num_classes, in_channels)
