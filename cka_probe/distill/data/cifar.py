"""CIFAR-10 and CIFAR-100, read by torchvision from the unpacked archives."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from torchvision import transforms
from torchvision.datasets import CIFAR10, CIFAR100
from torchvision.datasets.utils import check_integrity

__all__ = ["CIFAR10_DEVIATION", "CIFAR10_MEAN", "CIFAR100_DEVIATION", "CIFAR100_MEAN", "cifar10", "cifar100"]

CIFAR10_MEAN, CIFAR10_DEVIATION = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
CIFAR100_MEAN, CIFAR100_DEVIATION = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)

# torchvision's CIFAR100 is a subclass of CIFAR10.
Set = TypeVar("Set", bound=CIFAR10)


def cifar10(root: str | Path, augment: bool = True, download: bool = False) -> tuple[CIFAR10, CIFAR10]:
    """CIFAR-10 (50,000 and 10,000 images of 32 x 32, 10 classes) as a (train, test) pair, read by torchvision.

    Images are normalised with the means and standard deviations of the channels over the training images.

    Parameters
    ----------
    root : str or Path
        The folder that contains ``cifar-10-batches-py``, the unpacked Python version of the data set.
    augment : bool
        Pad training images by 4, crop them to 32 x 32 at a random position and flip them with probability 1/2.
    download : bool
        Download the archive (171 MB) into `root` if it is missing.

    Returns
    -------
    train, test : torchvision.datasets.CIFAR10
        Pairs of image, float32 (3, 32, 32), and label, an int from 0 to 9. ``classes`` holds the names.

    Raises
    ------
    FileNotFoundError
        If files are missing and `download` is False.
    ValueError
        If the checksum of a file is wrong.

    Examples
    --------
    >>> train, test = cifar10("data")  # doctest: +SKIP
    """
    return _pair(CIFAR10, "CIFAR-10", Path(root), (CIFAR10_MEAN, CIFAR10_DEVIATION), augment, download)


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
    return _pair(CIFAR100, "CIFAR-100", Path(root), (CIFAR100_MEAN, CIFAR100_DEVIATION), augment, download)


def _pair(
    kind: type[Set],
    name: str,
    root: Path,
    normalisation: tuple[tuple[float, ...], tuple[float, ...]],
    augment: bool,
    download: bool,
) -> tuple[Set, Set]:
    folder = root / kind.base_folder
    checksums = dict([*kind.train_list, *kind.test_list, [kind.meta["filename"], kind.meta["md5"]]])
    if not download:
        missing = [str(folder / file) for file in checksums if not (folder / file).is_file()]
        if missing:
            raise FileNotFoundError(
                f"{name} is not in {str(root)!r}: {', '.join(missing)} "
                f"{'is' if len(missing) == 1 else 'are'} missing. Unpack {kind.filename} there, or pass "
                f"download=True; nothing is downloaded otherwise."
            )
    normalise = [transforms.ToTensor(), transforms.Normalize(*normalisation)]
    changes = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()] if augment else []
    try:
        train = kind(str(root), train=True, transform=transforms.Compose(changes + normalise), download=download)
        test = kind(str(root), train=False, transform=transforms.Compose(normalise))
    except RuntimeError as error:
        damaged = [file for file, checksum in checksums.items() if not check_integrity(str(folder / file), checksum)]
        if not damaged:
            raise  # the download failed; torchvision's message says why
        raise ValueError(
            f"{name} in {str(folder)!r} is damaged: the checksum of {', '.join(damaged)} is wrong. "
            f"Delete the folder and unpack the archive again."
        ) from error
    return train, test
