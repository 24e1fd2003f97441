"""Fashion-MNIST: torchvision's reader, and the files of Debian's package, unpacked into a cache."""

from __future__ import annotations

import gzip
import hashlib
import os
import zlib
from pathlib import Path
from typing import Any

import torch
from torchvision import transforms
from torchvision.datasets import FashionMNIST

from ...atomic_write import atomic_write
from .images import GreyToChannels, StoredImages
from .options import check_flag, check_integer, shuffled_classes

__all__ = ["DEBIAN_FOLDER", "fashion_mnist"]

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist puts its files."""

# Size in bytes and SHA-256 of the unpacked files.
FILES = {
    "train-images-idx3-ubyte": (47_040_016, "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"),
    "train-labels-idx1-ubyte": (60_008, "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"),
    "t10k-images-idx3-ubyte": (7_840_016, "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"),
    "t10k-labels-idx1-ubyte": (10_008, "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"),
}

# Over the pixels of the 60,000 training images, in [0, 1].
MEAN, DEVIATION = 0.2860, 0.3530


def fashion_mnist(
    root: str | Path | None = None,
    train_per_class: int | None = None,
    seed: int = 0,
    size: int = 28,
    channels: int = 3,
    *,
    augment: bool = False,
    validation_per_class: int = 0,
) -> tuple[StoredImages, StoredImages]:
    """Fashion-MNIST (60,000 and 10,000 grey images of 28 x 28 pixels, 10 classes of clothes) as a (train, test) pair.

    Images are normalised with mean and standard deviation of all training pixels. Smaller training sets are subsets of
    larger ones, and none has an image of the validation part, whose images depend on `seed` alone.

    Parameters
    ----------
    root : str or Path, optional
        torchvision's folder: it holds ``FashionMNIST/raw`` with the four unpacked files. The four .gz files may also
        lie directly in `root`. Without a root, the files of Debian's package ``dataset-fashion-mnist`` are read. Files
        ending in .gz are unpacked into ``~/.cache/cka_probe`` (or ``$XDG_CACHE_HOME/cka_probe``) and stay as they are.
    train_per_class : int, optional
        Training images of each class (1 to 6,000). All if None.
    seed : int
        Chooses the training images of each class, and those for validation.
    size : int
        Height and width of the images, resized bilinearly.
    channels : int
        Number of channels; each holds the same grey image.
    augment : bool
        Pad training images by 2, crop them at a random position and flip them with probability 1/2.
    validation_per_class : int
        If positive, as many training images of each class are held out and returned instead of the test images, to
        choose settings without a look at the test images.

    Returns
    -------
    train, test : StoredImages
        Pairs of image, float32 (channels, size, size), and label, an int64 scalar from 0 to 9. ``classes`` holds the
        names.

    Raises
    ------
    FileNotFoundError
        If files are missing; the message says how to get them.
    ValueError
        If a file is damaged, an argument is out of range, or a class has too few images.
    TypeError
        If an argument has the wrong type.
    OSError
        If the cache cannot be written.

    References
    ----------
    Xiao, Rasul and Vollgraf, Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms, 2017.

    Examples
    --------
    >>> train, test = fashion_mnist(train_per_class=1000)  # doctest: +SKIP
    >>> len(train), len(test), tuple(train[0][0].shape)  # doctest: +SKIP
    (10000, 10000, (3, 28, 28))
    """
    check_integer("seed", seed, at_least=0)
    check_integer("size", size, at_least=1)
    check_integer("channels", channels, at_least=1)
    check_integer("validation_per_class", validation_per_class, at_least=0)
    check_flag("augment", augment)
    if train_per_class is not None:
        check_integer("train_per_class", train_per_class, at_least=1)

    folder = str(_torchvision_root(root))
    whole, test = (FashionMNIST(folder, train=train) for train in (True, False))
    members = shuffled_classes(whole.targets, seed)
    smallest = min(len(part) for part in members)
    if (train_per_class or 1) + validation_per_class > smallest:
        asked = f"`train_per_class` and `validation_per_class` must be at most {smallest} together"
        raise ValueError(
            f"{asked} (the images of a class), got {train_per_class or 'at least 1'} and {validation_per_class}."
        )
    kept = [part[: len(part) - validation_per_class] for part in members]
    chosen = torch.cat([part[:train_per_class] for part in kept])
    plain = _transform(size, channels, augment=False)
    train = StoredImages(
        whole.data[chosen], whole.targets[chosen], whole.classes, _transform(size, channels, augment=augment)
    )
    if not validation_per_class:
        return train, StoredImages(test.data, test.targets, test.classes, plain)
    held_out = torch.cat([part[len(part) - validation_per_class :] for part in members])
    return train, StoredImages(whole.data[held_out], whole.targets[held_out], whole.classes, plain)


def _transform(size: int, channels: int, *, augment: bool) -> Any:
    steps: list[Any] = [] if size == 28 else [transforms.Resize((size, size), antialias=True)]
    if augment:
        steps += [transforms.RandomCrop(size, padding=max(1, size // 14)), transforms.RandomHorizontalFlip()]
    return transforms.Compose([*steps, GreyToChannels(MEAN, DEVIATION, channels)])


def _torchvision_root(root: str | Path | None) -> Path:
    """A folder with ``FashionMNIST/raw`` and the unpacked files in it, which are unpacked if needed."""
    places = [DEBIAN_FOLDER] if root is None else [Path(root) / "FashionMNIST" / "raw", Path(root)]
    for place in places:
        if root is not None and place != Path(root) and all((place / name).is_file() for name in FILES):
            _check_sizes(place)
            return Path(root)
        if all((place / f"{name}.gz").is_file() for name in FILES):
            return _unpacked(place)
    missing = [
        name for name in FILES if not any((place / f"{name}{end}").is_file() for place in places for end in ("", ".gz"))
    ]
    if root is None:
        raise FileNotFoundError(
            f"Fashion-MNIST is not installed: {DEBIAN_FOLDER} does not hold it. On Debian and Ubuntu run "
            "`apt-get install dataset-fashion-mnist`. Elsewhere pass root=, a folder with the four files "
            f"{', '.join(f'{name}.gz' for name in FILES)}; nothing is downloaded."
        )
    raise FileNotFoundError(
        f"Fashion-MNIST is not in {str(root)!r}: {', '.join(missing or FILES)} "
        f"{'is' if len(missing) == 1 else 'are'} missing, unpacked in {str(places[0])!r} or as .gz files. On Debian "
        "and Ubuntu `apt-get install dataset-fashion-mnist` brings them, and root=None finds them; nothing is "
        "downloaded."
    )


def _check_sizes(folder: Path) -> None:
    for name, (size, _) in FILES.items():
        found = (folder / name).stat().st_size
        if found != size:
            raise ValueError(
                f"{str(folder / name)!r} is damaged: it has {found:,} bytes instead of {size:,}. Unpack it again."
            )


def _unpacked(packed: Path) -> Path:
    """Unpack the .gz files of a folder into the cache, unless they are there, and return torchvision's root."""
    # One folder for each source, so that files that differ never mix.
    name = "fashion-mnist-" + hashlib.blake2b(str(packed.resolve()).encode(), digest_size=6).hexdigest()
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cka_probe" / name
    raw = root / "FashionMNIST" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    for name, (size, digest) in FILES.items():
        if (raw / name).is_file() and (raw / name).stat().st_size == size:
            continue
        source = packed / f"{name}.gz"
        try:
            content = gzip.decompress(source.read_bytes())
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(f"{str(source)!r} is damaged ({error}). Install or download it again.") from error
        if hashlib.sha256(content).hexdigest() != digest:
            raise ValueError(f"{str(source)!r} is damaged: its checksum is wrong. Install or download it again.")
        atomic_write(raw / name, content)  # whole or not at all: another process may do the same now
    return root
