"""torchvision's detectors and segmenters over any backbone, and a small backbone that a CPU trains in minutes."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import detection, segmentation
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN, resnet_fpn_backbone
from torchvision.models.resnet import BasicBlock, conv1x1
from torchvision.models.segmentation.deeplabv3 import DeepLabHead
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelP6P7

__all__ = ["DETECTORS", "SEGMENTERS", "SmallResNet", "detector", "segmenter", "small_pyramid"]

DETECTORS = ("faster_rcnn", "retinanet", "fcos")
SEGMENTERS = ("deeplabv3", "lraspp")


class SmallResNet(nn.Module):
    """A ResNet of basic blocks with stages at strides 4, 8, 16 and 32, for small pictures.

    Parameters
    ----------
    width : int
        Channels of the first stage; each later stage has twice as many.
    blocks : int
        Number of basic blocks of each stage.

    Examples
    --------
    >>> import torch
    >>> SmallResNet(8, 1)(torch.zeros(1, 3, 64, 64)).shape
    torch.Size([1, 64, 2, 2])
    """

    def __init__(self, width: int = 16, blocks: int = 1) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        )
        self.widths = [width * 2**stage for stage in range(4)]
        for stage, (old, new) in enumerate(zip([width, *self.widths], self.widths, strict=False), 1):
            shortcut = nn.Sequential(conv1x1(old, new, 2), nn.BatchNorm2d(new))
            rest = [BasicBlock(new, new) for _ in range(blocks - 1)]
            setattr(self, f"layer{stage}", nn.Sequential(BasicBlock(old, new, 2, shortcut), *rest))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Map of the last stage, of shape (B, 8 width, H / 32, W / 32)."""
        for layer in self.children():
            x = layer(x)
        return x


def small_pyramid(width: int = 16, blocks: int = 1, channels: int = 64) -> BackboneWithFPN:
    """A feature pyramid over `SmallResNet`: maps "0" to "3" at strides 4 to 32.

    Parameters
    ----------
    width, blocks : int
        Size of the `SmallResNet`.
    channels : int
        Channels of every map. FCOS normalises its heads in 32 groups: use at least 64 there.

    Returns
    -------
    BackboneWithFPN
        A backbone for `detector`.
    """
    body = SmallResNet(width, blocks)
    stages = {f"layer{stage}": str(stage - 1) for stage in range(1, 5)}
    return BackboneWithFPN(body, stages, body.widths, channels, _NoMoreLevels())


class _NoMoreLevels(ExtraFPNBlock):
    """Adds no level to the pyramid. By default BackboneWithFPN adds one."""

    def forward(
        self,
        results: list[Tensor],
        x: list[Tensor],  # noqa: ARG002
        names: list[str],
    ) -> tuple[list[Tensor], list[str]]:
        return results, names


def detector(architecture: str, backbone: str | nn.Module, classes: int, **options: Any) -> nn.Module:
    """A torchvision detector over a ResNet feature pyramid, without pretrained weights.

    Parameters
    ----------
    architecture : "faster_rcnn", "retinanet" or "fcos"
        RetinaNet and FCOS have maps at strides 8 to 128 of the named backbones, Faster R-CNN at 4 to 64.
    backbone : str or torch.nn.Module
        A torchvision ResNet by name ("resnet18", "resnext101_64x4d"), or a module that returns a dict of maps and has
        ``out_channels``.
    classes : int
        Number of classes, including the background, which is class 0.
    **options
        Arguments of torchvision's class: min_size, max_size, score_thresh, ...

    Returns
    -------
    torch.nn.Module
        FasterRCNN, RetinaNet or FCOS. Its layer "backbone" returns the dict of maps.

    Raises
    ------
    ValueError
        For an unknown architecture, fewer than 2 classes, or a module that is not such a backbone.

    Notes
    -----
    Anchors depend on the strides as in torchvision's own models: their sides are 8 strides for Faster R-CNN, 4 for
    RetinaNet (three scales) and 1 for FCOS.

    Examples
    --------
    >>> type(detector("fcos", small_pyramid(), 11, min_size=128, max_size=128)).__name__
    'FCOS'
    """
    if architecture not in DETECTORS:
        raise ValueError(f"`architecture` must be one of {', '.join(DETECTORS)}, got {architecture!r}.")
    if classes < 2:
        raise ValueError(f"`classes` counts the background and must be at least 2, got {classes}.")
    body = _named_pyramid(architecture, backbone) if isinstance(backbone, str) else backbone
    if not isinstance(getattr(body, "out_channels", None), int):
        raise ValueError(f"The backbone {type(body).__name__} must have `out_channels`, the channels of its maps.")
    names, strides = _levels(body)
    if architecture == "fcos":
        anchors = AnchorGenerator(tuple((stride,) for stride in strides), ((1.0,),) * len(strides))
        return detection.FCOS(body, classes, anchor_generator=anchors, **options)
    if architecture == "retinanet":
        sizes = tuple(tuple(int(4 * stride * 2 ** (k / 3)) for k in range(3)) for stride in strides)
        anchors = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(strides))
        return detection.RetinaNet(body, classes, anchor_generator=anchors, **options)
    anchors = AnchorGenerator(tuple((8 * stride,) for stride in strides), ((0.5, 1.0, 2.0),) * len(strides))
    pooler = MultiScaleRoIAlign([name for name in names if name != "pool"], output_size=7, sampling_ratio=2)
    return detection.FasterRCNN(body, classes, rpn_anchor_generator=anchors, box_roi_pool=pooler, **options)


def _named_pyramid(architecture: str, name: str) -> BackboneWithFPN:
    # torchvision's default, frozen batch norm, is for pretrained weights. These weights are not pretrained.
    make = partial(resnet_fpn_backbone, backbone_name=name, weights=None, norm_layer=nn.BatchNorm2d, trainable_layers=5)
    if architecture == "faster_rcnn":
        return make()
    return make(returned_layers=[2, 3, 4], extra_blocks=LastLevelP6P7(256, 256))


def _levels(backbone: nn.Module) -> tuple[list[str], list[int]]:
    """Names and strides of the maps that a backbone returns for a picture of 128 x 128."""
    training = backbone.training
    try:
        with torch.no_grad():
            maps = backbone.eval()(torch.zeros(1, 3, 128, 128))
    finally:
        backbone.train(training)
    if not isinstance(maps, dict):
        raise ValueError(
            f"The backbone {type(backbone).__name__} must return a dict of maps, but it returned {type(maps).__name__}."
        )
    return list(maps), [128 // level.shape[-1] for level in maps.values()]


def segmenter(architecture: str, backbone: str | SmallResNet, classes: int) -> nn.Module:
    """A torchvision segmenter without pretrained weights.

    Parameters
    ----------
    architecture : "deeplabv3" or "lraspp"
        The head.
    backbone : str or SmallResNet
        "resnet50", "resnet101" or "mobilenet_v3_large" for DeepLabV3, "mobilenet_v3_large" for LRASPP, or a
        `SmallResNet` for either.
    classes : int
        Number of scores for each pixel.

    Returns
    -------
    torch.nn.Module
        Returns {"out": scores at the size of the picture}. Its layer "classifier" returns the scores before they are
        upsampled, "backbone" the features.

    Raises
    ------
    ValueError
        For an unknown architecture or backbone, or fewer than 2 classes.

    Examples
    --------
    >>> segmenter("lraspp", SmallResNet(8), 11)(torch.zeros(2, 3, 64, 64))["out"].shape
    torch.Size([2, 11, 64, 64])
    """
    if classes < 2:
        raise ValueError(f"`classes` must be at least 2, got {classes}.")
    if isinstance(backbone, SmallResNet):
        if architecture == "deeplabv3":
            # Stride 8, as in the dilated ResNets.
            body = IntermediateLayerGetter(backbone, {"layer2": "out"})
            return segmentation.DeepLabV3(body, DeepLabHead(backbone.widths[1], classes))
        if architecture == "lraspp":
            body = IntermediateLayerGetter(backbone, {"layer2": "low", "layer3": "high"})
            return segmentation.LRASPP(body, backbone.widths[1], backbone.widths[2], classes)
    makers = {
        ("deeplabv3", "resnet50"): segmentation.deeplabv3_resnet50,
        ("deeplabv3", "resnet101"): segmentation.deeplabv3_resnet101,
        ("deeplabv3", "mobilenet_v3_large"): segmentation.deeplabv3_mobilenet_v3_large,
        ("lraspp", "mobilenet_v3_large"): segmentation.lraspp_mobilenet_v3_large,
    }
    if not isinstance(backbone, str) or (architecture, backbone) not in makers:
        known = ", ".join(f"{head} over {body}" for head, body in makers)
        raise ValueError(
            f"There is no {architecture!r} over {backbone!r}. There are {known}, and both over SmallResNet."
        )
    return makers[architecture, backbone](weights=None, weights_backbone=None, num_classes=classes)
