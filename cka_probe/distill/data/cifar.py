"""CIFAR-100, read by torchvision from the unpacked archive."""

from __future__ import annotations

from pathlib import Path

from torchvision import transforms
from torchvision.datasets import CIFAR100
from torchvision.datasets.utils import check_integrity

__all__ = ["CIFAR100_DEVIATION", "CIFAR100_MEAN", "cifar100"]

CIFAR100_MEAN, CIFAR100_DEVIATION = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)


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
