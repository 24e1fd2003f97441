"""A data set of images that are held in memory as bytes; each is normalised, and changed at random, when it is read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

__all__ = ["GreyToChannels", "StoredImages"]


class StoredImages(Dataset[tuple[Tensor, Tensor]]):
    """Images as bytes with their labels; reading one gives (image, label).

    Parameters
    ----------
    images : Tensor of shape (N, height, width) or (N, channels, height, width)
        uint8. A grey image is repeated for every channel.
    labels : Tensor of shape (N,)
        int64.
    classes : sequence of str
        Name of each label.
    transform : callable
        From an image (1 or C, height, width), uint8, to the image that a network sees.
    """

    def __init__(self, images: Tensor, labels: Tensor, classes: Sequence[str], transform: Any) -> None:
        self.images, self.labels = images, labels.to(torch.int64)
        self.classes, self.transform = list(classes), transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = self.images[index]
        return self.transform(image if image.ndim == 3 else image[None]), self.labels[index]


class GreyToChannels:
    """From bytes (1, height, width) to normalised float32 (channels, height, width), the same in every channel.

    Parameters
    ----------
    mean, deviation : float
        Of the pixels, in [0, 1].
    channels : int
        Number of channels.
    """

    def __init__(self, mean: float, deviation: float, channels: int) -> None:
        self.mean, self.deviation, self.channels = mean, deviation, channels

    def __call__(self, image: Tensor) -> Tensor:
        """The normalised image."""
        grey = image.to(torch.float32).sub_(255 * self.mean).div_(255 * self.deviation)
        return grey.expand(self.channels, -1, -1)
