"""The networks, layers and images that compare() and other tools are measured on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torchvision
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


@dataclass
class Case:
    """Two networks (or one twice), the layers to compare by name, and a loader of images."""

    title: str
    model_x: nn.Module
    model_y: nn.Module
    layers_x: list[str]
    layers_y: list[str]
    images: torch.Tensor
    batch: int

    def loader(self, *, targets: bool = True) -> DataLoader[Any]:
        """The images in batches, with or without targets."""
        parts = (self.images, torch.zeros(len(self.images), dtype=torch.long)) if targets else (self.images,)
        return DataLoader(TensorDataset(*parts), batch_size=self.batch)


@dataclass
class Table:
    """Similarities by the names of rows and columns."""

    rows: list[str]
    columns: list[str]
    values: np.ndarray


def leaves(net: nn.Module) -> list[str]:
    return [name for name, module in net.named_modules() if name and not list(module.children())]


def images(count: int, side: int) -> torch.Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def seeded(name: str, **arguments: Any) -> nn.Module:
    torch.manual_seed(0)
    return torchvision.models.get_model(name, weights=None, **arguments).eval()


def resnet18() -> Case:
    net = seeded("resnet18")
    layers = [name for name in leaves(net) if ".conv" in name or name in ("conv1", "fc")]
    return Case("ResNet-18 with itself, 18 layers, 32 x 32, batch 64", net, net, layers, layers, images(256, 32), 64)


def resnet50() -> Case:
    net = seeded("resnet50")
    layers = [name for name, module in net.named_modules() if type(module).__name__ == "Bottleneck"]
    return Case("ResNet-50 with itself, 16 blocks, 224 x 224, batch 16", net, net, layers, layers, images(32, 224), 16)


def vit_tiny() -> Case:
    torch.manual_seed(0)
    net = torchvision.models.VisionTransformer(
        image_size=224, patch_size=16, num_layers=12, num_heads=3, hidden_dim=192, mlp_dim=768
    ).eval()
    layers = [f"encoder.layers.encoder_layer_{i}" for i in range(12)]
    return Case("ViT-tiny with itself, 12 blocks, 224 x 224, batch 32", net, net, layers, layers, images(64, 224), 32)


def many_layers() -> Case:
    x, y = seeded("resnet18"), seeded("resnet34")
    title = f"ResNet-18 x ResNet-34, all {len(leaves(x)) + len(leaves(y))} leaves, 32 x 32, batch 64"
    return Case(title, x, y, leaves(x), leaves(y), images(256, 32), 64)


def quick() -> Case:
    net = seeded("resnet18")
    layers = ["conv1", "layer1.0", "layer2.0", "layer3.0", "layer4.0", "fc"]
    return Case("ResNet-18 with itself, 6 layers, 32 x 32, batch 16", net, net, layers, layers, images(32, 32), 16)


CASES = {"resnet18": resnet18, "resnet50": resnet50, "vit_tiny": vit_tiny, "many_layers": many_layers, "quick": quick}
