"""Networks, layers and batches that are small enough for every test."""

import torch
from torch import nn


def small_network(seed: int, width: int = 6) -> nn.Sequential:
    """Convolution, batch norm, in-place ReLU and a linear layer, for images of 6 x 6."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(width * 16, 5)
    )
    return net.eval()


def image_batches(count: int = 6, size: int = 12, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, 3, 6, 6, generator=generator) for _ in range(count)]


class Shifted(nn.Module):
    """Adds a mean, then multiplies by a scale."""

    def __init__(self, mean: float, scale: float = 1.0) -> None:
        super().__init__()
        self.mean, self.scale = mean, scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x + self.mean) * self.scale


class Constant(nn.Module):
    """Gives the same value for every sample."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.full_like(x, self.value)


class Branches(nn.Module):
    """Gives the same input to each of its modules."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [part(x) for part in self.parts]
