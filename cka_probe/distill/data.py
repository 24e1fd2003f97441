"""Data sets as (train, test) pairs of torch data sets of (image, label).

The digits come with scikit-learn; CIFAR-100 and ImageNet are read from local files. Nothing is downloaded by default.

The augmentations draw from torch's global generator. `cka_probe.distill.distill` seeds it for every batch. In your own
DataLoader, workers and a seeded ``generator`` make the augmentations repeatable.
"""

from pathlib import Path

import torch
from torch.utils.data import TensorDataset
from torchvision import transforms
from torchvision.datasets import CIFAR100, ImageFolder
from torchvision.datasets.utils import check_integrity

from ..capture.extras import require

__all__ = ["cifar100", "digits", "imagenet"]

# Fraction of the 1,797 digits in the test set: about 72 of each class. One test image is 0.14 % of accuracy.
DIGITS_TEST_FRACTION = 0.4

CIFAR100_MEAN, CIFAR100_DEVIATION = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
IMAGENET_MEAN, IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


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

    _check_integer("seed", seed, at_least=0)
    _check_integer("size", size, at_least=1)
    _check_integer("channels", channels, at_least=1)
    if train_per_class is not None:
        _check_integer("train_per_class", train_per_class, at_least=1)

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


def cifar100(root: str | Path, augment: bool = True, download: bool = False) -> tuple[CIFAR100, CIFAR100]:
    """CIFAR-100 (50,000 and 10,000 images of 32 x 32, 100 classes) as a (train, test) pair, read by torchvision.

    Images are normalised with the channel means and standard deviations that distillation papers use.

    Parameters
    ----------
    root : str or Path
        The folder that contains ``cifar-100-python``, the unpacked Python version of the data set.
    augment : bool
        Pad training images by 4, crop them to 32 x 32 at a random position and flip them with probability 1/2.
    download : bool
        Download the archive (169 MB) into `root` if it is missing.

    Returns
    -------
    train, test : torchvision.datasets.CIFAR100
        Pairs of image, float32 (3, 32, 32), and label, an int from 0 to 99. ``classes`` holds the names.

    Raises
    ------
    FileNotFoundError
        If files are missing and `download` is False.
    ValueError
        If the checksum of a file is wrong.

    Examples
    --------
    >>> train, test = cifar100("data")  # doctest: +SKIP
    """
    folder = Path(root) / CIFAR100.base_folder
    checksums = dict([*CIFAR100.train_list, *CIFAR100.test_list, [CIFAR100.meta["filename"], CIFAR100.meta["md5"]]])
    if not download:
        missing = [str(folder / name) for name in checksums if not (folder / name).is_file()]
        if missing:
            raise FileNotFoundError(
                f"CIFAR-100 is not in {str(root)!r}: {', '.join(missing)} "
                f"{'is' if len(missing) == 1 else 'are'} missing. Unpack cifar-100-python.tar.gz there, or pass "
                f"download=True; nothing is downloaded otherwise."
            )
    normalise = [transforms.ToTensor(), transforms.Normalize(CIFAR100_MEAN, CIFAR100_DEVIATION)]
    changes = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()] if augment else []
    try:
        train = CIFAR100(str(root), train=True, transform=transforms.Compose(changes + normalise), download=download)
        test = CIFAR100(str(root), train=False, transform=transforms.Compose(normalise))
    except RuntimeError as error:
        damaged = [name for name, checksum in checksums.items() if not check_integrity(str(folder / name), checksum)]
        if not damaged:
            raise  # the download failed; torchvision's message says why
        raise ValueError(
            f"CIFAR-100 in {str(folder)!r} is damaged: the checksum of {', '.join(damaged)} is wrong. "
            f"Delete the folder and unpack the archive again."
        ) from error
    return train, test


def imagenet(root: str | Path, augment: bool = True) -> tuple[ImageFolder, ImageFolder]:
    """ImageNet as a (train, test) pair, from the folders ``train`` and ``val`` with one folder of images per class.

    The shorter side of test images is resized to 256, and the central 224 x 224 pixels are kept. All images are
    normalised with ImageNet's channel means and standard deviations.

    Parameters
    ----------
    root : str or Path
        The folder that contains ``train`` and ``val``.
    augment : bool
        Make random resized crops of training images and flip them with probability 1/2. If False, training images are
        treated like test images.

    Returns
    -------
    train, test : torchvision.datasets.ImageFolder
        Pairs of image, float32 (3, 224, 224), and label, an int in alphabetical order of the class folders. ``classes``
        holds the names.

    Raises
    ------
    FileNotFoundError
        If a folder is missing or has no class folders, or a class has no images.
    ValueError
        If ``train`` and ``val`` have different classes.

    Examples
    --------
    >>> train, test = imagenet("imagenet")  # doctest: +SKIP
    """
    root = Path(root)
    classes = {part: _class_folders(root, part) for part in ("train", "val")}
    if classes["train"] != classes["val"]:
        differing = sorted(set(classes["train"]) ^ set(classes["val"]))
        raise ValueError(
            f"train and val in {str(root)!r} must have the same class folders: {len(classes['train'])} and "
            f"{len(classes['val'])} were found, and only one of them has {', '.join(differing[:5])}"
            f"{' ...' if len(differing) > 5 else ''}."
        )
    normalise = [transforms.ToTensor(), transforms.Normalize(IMAGENET_MEAN, IMAGENET_DEVIATION)]
    centre = [transforms.Resize(256), transforms.CenterCrop(224)]
    changes = [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip()]
    return (
        _image_folder(root / "train", transforms.Compose((changes if augment else centre) + normalise)),
        _image_folder(root / "val", transforms.Compose(centre + normalise)),
    )


def _class_folders(root: Path, part: str) -> list[str]:
    folder = root / part
    found = sorted(entry.name for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else []
    if not found:
        problem = "has no class folders" if folder.is_dir() else "does not exist"
        raise FileNotFoundError(
            f"{str(folder)!r} {problem}. Images are expected at "
            f"{root}/train/CLASS/*.JPEG and {root}/val/CLASS/*.JPEG; nothing is downloaded."
        )
    return found


def _image_folder(folder: Path, transform: transforms.Compose) -> ImageFolder:
    try:
        return ImageFolder(str(folder), transform=transform)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"Some class folders in {str(folder)!r} are empty. {error}") from error


def _check_integer(argument: str, value: object, at_least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"`{argument}` must be an integer, got {value!r}.")
    if value < at_least:
        raise ValueError(f"`{argument}` must be at least {at_least}, got {value}.")
