"""The networks of the paper's CIFAR-100 table, by name."""

from torch import nn

from .resnet import (
    ResNet18,
    ResNet50,
    resnet8,
    resnet8x4,
    resnet14,
    resnet20,
    resnet32,
    resnet32x4,
    resnet44,
    resnet56,
    resnet110,
)

_ZOO = {
    constructor.__name__: constructor
    for constructor in (
        resnet8,
        resnet14,
        resnet20,
        resnet32,
        resnet44,
        resnet56,
        resnet110,
        resnet8x4,
        resnet32x4,
        ResNet18,
        ResNet50,
    )
}
NAMES = tuple(_ZOO)


def build(name: str, num_classes: int = 100, in_channels: int = 3) -> nn.Module:
    """A network of the zoo with random weights."""
    if name not in _ZOO:
        raise ValueError(f"There is no network {name!r}; the zoo has {', '.join(NAMES)}.")
    return _ZOO[name](num_classes=num_classes, in_channels=in_channels)


__all__ = ["NAMES", "build", *NAMES]
