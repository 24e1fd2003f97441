"""Networks and batches small enough for every test, with an in-place ReLU and a batch norm as real ones have."""

import torch
from torch import nn


def small_network(seed: int, width: int = 6) -> nn.Sequential:
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(width * 16, 5)
    )
    return net.eval()


def image_batches(count: int = 6, size: int = 12, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, 3, 6, 6, generator=generator) for _ in range(count)]
