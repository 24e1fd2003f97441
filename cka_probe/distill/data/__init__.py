"""Data sets as (train, test) pairs of torch data sets of (image, label). Nothing is downloaded by default.

The digits come with scikit-learn and Fashion-MNIST with Debian; the others are read from local files.

The augmentations draw from torch's global generator. `cka_probe.distill.distill` seeds it for every batch. In your own
DataLoader, workers and a seeded ``generator`` make the augmentations repeatable.
"""

from .cifar import CIFAR100_DEVIATION, CIFAR100_MEAN, cifar100
from .fashion import fashion_mnist
from .handwritten import digits
from .image_folders import IMAGENET_DEVIATION, IMAGENET_MEAN, imagenet

__all__ = [
    "CIFAR100_DEVIATION",
    "CIFAR100_MEAN",
    "IMAGENET_DEVIATION",
    "IMAGENET_MEAN",
    "cifar100",
    "digits",
    "fashion_mnist",
    "imagenet",
]
