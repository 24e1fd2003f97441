"""Data sets as (train, test) pairs of torch data sets that give (image, label).

`digits` is built in; nothing here downloads anything unless it is asked to.
"""

import torch
from torch.utils.data import TensorDataset

__all__ = ["digits"]

# Of scikit-learn's 1,797 digits, this part is held out: about 72 of each class, so that one test image is 0.14 %.
DIGITS_TEST_FRACTION = 0.4


def digits(
    train_per_class: int | None = None, seed: int = 0, size: int = 32, channels: int = 3
) -> tuple[TensorDataset, TensorDataset]:
    """The 1,797 handwritten digits of scikit-learn (8 x 8 pixels, 10 classes) as a (train, test) pair of data sets.

    The images are resized bilinearly, then shifted and scaled to mean 0 and standard deviation 1 over the training
    part. The split is stratified and depends on `seed` alone; with `train_per_class` the smaller training sets are
    subsets of the larger ones, and test set and normalisation stay the same.

    Parameters
    ----------
    train_per_class : int, optional
        Labelled training images of each class (1 to 104); all of them when None.
    seed : int
        Chooses the split and which training images are kept.
    size : int
        Height and width of the images.
    channels : int
        The grey image is repeated over this many channels.

    Returns
    -------
    train, test : TensorDataset
        Of (image, label): float32 (channels, size, size) and int64 scalars, 0 to 9. 1,078 and 719 images.

    Raises
    ------
    TypeError
        If an argument is not an integer.
    ValueError
        If an argument is out of range, or there are fewer than `train_per_class` images of a class.

    Examples
    --------
    >>> train, test = digits(train_per_class=5)
    >>> len(train), len(test), tuple(train[0][0].shape)
    (50, 719, (3, 32, 32))
    """
    from sklearn.datasets import load_digits

    for argument, value in {
        "seed": seed,
        "size": size,
        "channels": channels,
        "train_per_class": train_per_class,
    }.items():
        if value is None and argument == "train_per_class":
            continue
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"`{argument}` must be an integer, got {value!r}.")
        if value < (0 if argument == "seed" else 1):
            raise ValueError(f"`{argument}` must be {'at least 0' if argument == 'seed' else 'positive'}, got {value}.")

    bunch = load_digits()
    images = torch.from_numpy(bunch.images).to(torch.float32).unsqueeze(1) / 16  # (1797, 1, 8, 8) in [0, 1]
    labels = torch.from_numpy(bunch.target).to(torch.int64)

    generator = torch.Generator().manual_seed(seed)
    train_parts, test_parts = [], []
    for label in range(10):
        members = torch.nonzero(labels == label).flatten()
        members = members[torch.randperm(len(members), generator=generator)]
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


def _check_integer(argument: str, value: object, at_least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"`{argument}` must be an integer, got {value!r}.")
    if value < at_least:
        raise ValueError(f"`{argument}` must be at least {at_least}, got {value}.")
