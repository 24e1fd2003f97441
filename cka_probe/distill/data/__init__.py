"""Data sets as (train, test) pairs of torch data sets of (image, label). Nothing is downloaded by default.

The digits come with scikit-learn, Fashion-MNIST with Debian, glyphs are drawn from the fonts of this machine; the
others are read from local files.

The augmentations draw from torch's global generator. `cka_probe.distill.distill` seeds it for every batch. In your own
DataLoader, workers and a seeded ``generator`` make the augmentations repeatable.
"""

from .characters import glyphs, make_glyphs
from .cifar import cifar10, cifar100
from .fashion import fashion_mnist
from .handwritten import digits
from .image_folders import image_folder, imagenet, tiny_imagenet
from .saved import saved_dataset

__all__ = [
    "cifar10",
    "cifar100",
    "digits",
    "fashion_mnist",
    "glyphs",
    "image_folder",
    "imagenet",
    "make_glyphs",
    "saved_dataset",
    "tiny_imagenet",
]
