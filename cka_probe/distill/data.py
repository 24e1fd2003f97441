"""Data sets as (train, test) pairs of torch data sets that give (image, label).

`digits` is built in; CIFAR-100 and ImageNet are read from local files. Nothing is downloaded unless it is asked for.

The augmentations draw from torch's generator. `cka_probe.distill.distill` reseeds it for every batch; a DataLoader of
your own repeats itself when it has workers and a seeded ``generator``, from which torch seeds the workers.
"""

from pathlib import Path

import torch
from torch.utils.data import TensorDataset
from torchvision import transforms
from torchvision.datasets import CIFAR100, ImageFolder
from torchvision.datasets.utils import check_integrity

from ..capture.extras import require

__all__ = ["cifar100", "digits", "imagenet"]

# Of scikit-learn's 1,797 digits, this part is held out: about 72 of each class, so that one test image is 0.14 %.
DIGITS_TEST_FRACTION = 0.4

CIFAR100_MEAN, CIFAR100_DEVIATION = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
IMAGENET_MEAN, IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


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

    Images are normalised with the mean and deviation of the distillation recipes.

    Parameters
    ----------
    root : str or Path
        The folder that holds ``cifar-100-python``, the unpacked Python version of the data set.
    augment : bool
        Whether training images are padded by 4, cropped back to 32 x 32 at random and flipped with probability 1/2.
    download : bool
        Whether to fetch the archive (169 MB) into `root` when it is not there.

    Returns
    -------
    train, test : torchvision.datasets.CIFAR100
        Of (image, label): float32 (3, 32, 32) and int, 0 to 99. The names are in ``classes``.

    Raises
    ------
    FileNotFoundError
        If the files are not there and `download` is False.
    ValueError
        If a file is there but its checksum is wrong.

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
                f"{'is' if len(missing) == 1 else 'are'} missing. Unpack cifar-100-python.tar.gz there, or say "
                f"download=True; nothing is downloaded otherwise."
            )
    normalise = [transforms.ToTensor(), transforms.Normalize(CIFAR100_MEAN, CIFAR100_DEVIATION)]
    shake = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()] if augment else []
    try:
        train = CIFAR100(str(root), train=True, transform=transforms.Compose(shake + normalise), download=download)
        test = CIFAR100(str(root), train=False, transform=transforms.Compose(normalise))
    except RuntimeError as error:
        damaged = [name for name, checksum in checksums.items() if not check_integrity(str(folder / name), checksum)]
        if not damaged:
            raise  # a download that failed: torchvision says why
        raise ValueError(
            f"CIFAR-100 in {str(folder)!r} is damaged: the checksum of {', '.join(damaged)} is not the original's. "
            f"Delete the folder and unpack the archive again."
        ) from error
    return train, test


def imagenet(root: str | Path, augment: bool = True) -> tuple[ImageFolder, ImageFolder]:
    """An ImageNet tree as a (train, test) pair: folders ``train`` and ``val``, in each one folder of images per class.

    Test images are resized to 256 on their shorter side and cropped to the central 224 x 224; all are normalised with
    ImageNet's mean and deviation.

    Parameters
    ----------
    root : str or Path
        The folder that holds ``train`` and ``val``.
    augment : bool
        Whether training images are random resized crops, flipped with probability 1/2; else they are treated as test
        images are.

    Returns
    -------
    train, test : torchvision.datasets.ImageFolder
        Of (image, label): float32 (3, 224, 224) and int, in the alphabetical order of the class folders. The names are
        in ``classes``.

    Raises
    ------
    FileNotFoundError
        If a folder is not there, has no class folders, or a class has no images.
    ValueError
        If ``train`` and ``val`` do not have the same classes.

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
            f"{len(classes['val'])} were found, and only one of the two has {', '.join(differing[:5])}"
            f"{' ...' if len(differing) > 5 else ''}."
        )
    normalise = [transforms.ToTensor(), transforms.Normalize(IMAGENET_MEAN, IMAGENET_DEVIATION)]
    centre = [transforms.Resize(256), transforms.CenterCrop(224)]
    shake = [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip()]
    return (
        _image_folder(root / "train", transforms.Compose((shake if augment else centre) + normalise)),
        _image_folder(root / "val", transforms.Compose(centre + normalise)),
    )


def _class_folders(root: Path, part: str) -> list[str]:
    folder = root / part
    found = sorted(entry.name for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else []
    if not found:
        problem = "has no class folders" if folder.is_dir() else "does not exist"
        raise FileNotFoundError(
            f"{str(folder)!r} {problem}. Images are expected as "
            f"{root}/train/CLASS/*.JPEG and {root}/val/CLASS/*.JPEG; nothing is downloaded."
        )
    return found


def _image_folder(folder: Path, transform: transforms.Compose) -> ImageFolder:
    try:
        return ImageFolder(str(folder), transform=transform)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"In {str(folder)!r} some class folders are empty. {error}") from error


def _check_integer(argument: str, value: object, at_least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"`{argument}` must be an integer, got {value!r}.")
    if value < at_least:
        raise ValueError(f"`{argument}` must be at least {at_least}, got {value}.")
