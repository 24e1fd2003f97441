"""The paper's networks by name. Parameter counts and state dicts are those of the common CIFAR checkpoints.

>>> student = build("resnet8x4", num_classes=100)
>>> sum(parameter.numel() for parameter in student.parameters())
1233540
"""

from collections.abc import Callable

from torch import nn

from ...capture.extras import require
from ...capture.nearest import nearest_hint
from .mobilenet import MobileNetV1, MobileNetV2
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
from .shufflenet import ShuffleNetV1, ShuffleNetV2
from .vgg import vgg8, vgg11, vgg13, vgg16, vgg19
from .weights import load_weights
from .wide_resnet import wrn_16_1, wrn_16_2, wrn_40_1, wrn_40_2

_ZOO: dict[str, Callable[[int, int], nn.Module]] = {
    "resnet8": resnet8,
    "resnet14": resnet14,
    "resnet20": resnet20,
    "resnet32": resnet32,
    "resnet44": resnet44,
    "resnet56": resnet56,
    "resnet110": resnet110,
    "resnet8x4": resnet8x4,
    "resnet32x4": resnet32x4,
    "wrn_16_1": wrn_16_1,
    "wrn_16_2": wrn_16_2,
    "wrn_40_1": wrn_40_1,
    "wrn_40_2": wrn_40_2,
    "vgg8": vgg8,
    "vgg11": vgg11,
    "vgg13": vgg13,
    "vgg16": vgg16,
    "vgg19": vgg19,
    "MobileNetV2": MobileNetV2,
    "ShuffleNetV1": ShuffleNetV1,
    "ShuffleNetV2": ShuffleNetV2,
    "ResNet18": ResNet18,
    "ResNet50": ResNet50,
    "MobileNetV1": MobileNetV1,
}

NAMES = tuple(_ZOO)
__all__ = ["NAMES", "build", "load_weights", *NAMES]


def build(name: str, num_classes: int = 100, in_channels: int = 3) -> nn.Module:
    """Build a network with random weights from its name. Nothing is downloaded.

    Parameters
    ----------
    name : str
        One of `NAMES` (for 32 x 32 images; MobileNetV1 for 224 x 224), ``"torchvision:NAME"`` for a classification
        network of torchvision, or ``"timm:NAME"``.
    num_classes : int
        Length of the logits.
    in_channels : int
        Channels of the images. Must be 3 for networks of torchvision.

    Returns
    -------
    torch.nn.Module
        Maps images (B, in_channels, H, W) to logits (B, num_classes).

    Raises
    ------
    TypeError
        If `name` is not a string.
    ValueError
        If there is no network of that name (the message names the nearest ones), a number is not positive, or
        `in_channels` is not 3 for a network of torchvision.
    ModuleNotFoundError
        If the name starts with "timm:" and timm is not installed.

    Examples
    --------
    >>> import torch
    >>> build("vgg8", num_classes=10, in_channels=1)(torch.zeros(2, 1, 32, 32)).shape
    torch.Size([2, 10])
    """
    if not isinstance(name, str):
        raise TypeError(f"`name` must be a string such as 'resnet8x4', got {name!r}.")
    for argument, value in (("num_classes", num_classes), ("in_channels", in_channels)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"`{argument}` must be a positive integer, got {value!r}.")
    library, colon, network = name.partition(":")
    if colon and library == "torchvision":
        return _build_torchvision(network, num_classes, in_channels)
    if colon and library == "timm":
        return _build_timm(network, num_classes, in_channels)
    if name not in _ZOO:
        raise ValueError(
            f"There is no network {name!r}. {nearest_hint(name, NAMES)} "
            f"Names of other libraries are written 'torchvision:NAME' and 'timm:NAME'."
        )
    return _ZOO[name](num_classes, in_channels)


def _build_torchvision(name: str, num_classes: int, in_channels: int) -> nn.Module:
    import torchvision

    names = torchvision.models.list_models(module=torchvision.models)  # the classification networks
    if name not in names:
        raise ValueError(f"torchvision has no classification network {name!r}. {nearest_hint(name, names)}")
    if in_channels != 3:
        raise ValueError(f"torchvision's networks take images of 3 channels, not {in_channels}. Use a timm network.")
    options: dict[str, bool] = {}
    if name in ("googlenet", "inception_v3"):
        # With auxiliary classifiers the output in train mode would not be plain logits.
        options = {"aux_logits": False, "init_weights": True}
    return torchvision.models.get_model(name, weights=None, num_classes=num_classes, **options)


def _build_timm(name: str, num_classes: int, in_channels: int) -> nn.Module:
    require("timm", "timm", f"'timm:{name}'")
    import timm

    if not timm.is_model(name):
        raise ValueError(f"timm has no network {name!r}. {nearest_hint(name, timm.list_models())}")
    return timm.create_model(name, pretrained=False, num_classes=num_classes, in_chans=in_channels)
