"""The handwritten digits of scikit-learn."""

from __future__ import annotations

import torch
from torch.utils.data import TensorDataset

from ...capture.extras import require
from .options import check_integer, shuffled_classes

__all__ = ["digits"]

# Fraction of the 1,797 digits in the test set: about 72 of each class. One test image is 0.14 % of accuracy.
DIGITS_TEST_FRACTION = 0.4


def digits(
    train_per_class: int | None = None, seed: int = 0, size: int = 32, channels: int = 3
) -> tuple[TensorDataset, TensorDataset]:
    """The 1,797 handwritten digits of scikit-learn (8 x 8 pixels, 10 classes) as a (train, test) pair of data sets.

    The images are resized bilinearly and normalised to mean 0 and standard deviation 1 over the training part. The
    split is stratified and depends only on `seed`. `train_per_class` changes neither test set nor normalisation, and
    smaller training sets are subsets of larger ones.

    Parameters
    ----------
    train_per_class : int, optional
        Training images of each class (1 to 104). All if None.
    seed : int
        Chooses the split and the training images.
    size : int
        Height and width of the images.
    channels : int
        Number of channels; each holds the same grey image.

    Returns
    -------
    train, test : TensorDataset
        1,078 and 719 pairs of image, float32 (channels, size, size), and label, an int64 scalar from 0 to 9.

    Raises
    ------
    TypeError
        If an argument is not an integer.
    ValueError
        If an argument is out of range, or a class has fewer than `train_per_class` images.
    ModuleNotFoundError
        If scikit-learn is not installed.

    Examples
    --------
    >>> train, test = digits(train_per_class=5)
    >>> len(train), len(test), tuple(train[0][0].shape)
    (50, 719, (3, 32, 32))
    """
    require("sklearn", "distill", "digits()")
    from sklearn.datasets import load_digits

    check_integer("seed", seed, at_least=0)
    check_integer("size", size, at_least=1)
    check_integer("channels", channels, at_least=1)
    if train_per_class is not None:
        check_integer("train_per_class", train_per_class, at_least=1)

    bunch = load_digits()
    images = torch.from_numpy(bunch.images).to(torch.float32).unsqueeze(1) / 16  # (1797, 1, 8, 8) in [0, 1]
    labels = torch.from_numpy(bunch.target).to(torch.int64)

    train_parts, test_parts = [], []
    for members in shuffled_classes(labels, seed):
        held_out = round(DIGITS_TEST_FRACTION * len(members))
        test_parts.append(members[:held_out])
        train_parts.append(members[held_out:])
    smallest = min(len(part) for part in train_parts)
    if train_per_class is not None and train_per_class > smallest:
        raise ValueError(
            f"`train_per_class` must be at most {smallest} (the training images of the rarest digit), "
            f"got {train_per_class}; leave it out to train on all images."
        )

    images = torch.nn.functional.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)
    deviation, mean = torch.std_mean(images[torch.cat(train_parts)])
    images = ((images - mean) / deviation).expand(-1, channels, -1, -1)
    train = torch.cat([part[:train_per_class] for part in train_parts])
    test = torch.cat(test_parts)
    return TensorDataset(images[train], labels[train]), TensorDataset(images[test], labels[test])
