"""Folders of image files, one folder for each class: anyone's own, ImageNet, Tiny ImageNet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import default_loader

from .options import check_flag, check_integer

__all__ = [
    "IMAGENET_DEVIATION",
    "IMAGENET_MEAN",
    "ListedImages",
    "image_folder",
    "image_transform",
    "imagenet",
    "tiny_imagenet",
]

IMAGENET_MEAN, IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TINY_IMAGENET_MEAN, TINY_IMAGENET_DEVIATION = (0.480, 0.448, 0.398), (0.277, 0.269, 0.282)

# Names of the folder of test images, in the order in which they are looked for.
TEST_FOLDERS = ("test", "val", "valid", "validation")

# Up to this size images are cropped after padding, as CIFAR's are; above it, parts of any size are cut out and resized.
SMALL = 64


def image_folder(
    root: str | Path,
    size: int = 224,
    augment: bool = True,
    *,
    test: str | None = None,
    mean: Sequence[float] = IMAGENET_MEAN,
    deviation: Sequence[float] = IMAGENET_DEVIATION,
) -> tuple[ImageFolder, ImageFolder]:
    """Your own images as a (train, test) pair, from ``train/CLASS/*.jpg`` and ``test/CLASS/*.jpg``.

    Images of any size, format and mode become RGB of `size` x `size`: the shorter side is resized to 8/7 of `size` (to
    `size` if that is at most 64), and the central part is kept.

    Parameters
    ----------
    root : str or Path
        The folder that contains ``train`` and ``test`` (or ``val``, ``valid``, ``validation``).
    size : int
        Height and width of the images.
    augment : bool
        Change training images at random: cut out a part of 8 to 100 % of the area and resize it (for a `size` of at
        most 64: pad by 1/8 and crop), and flip it with probability 1/2. If False, they are treated like test images.
    test : str, optional
        Name of the folder of test images, if there are several.
    mean, deviation : sequence of three floats
        Of the channels, in [0, 1]; ImageNet's by default, as pretrained networks expect.

    Returns
    -------
    train, test : torchvision.datasets.ImageFolder
        Pairs of image, float32 (3, size, size), and label, an int in alphabetical order of the class folders.
        ``classes`` holds the names.

    Raises
    ------
    FileNotFoundError
        If a folder is missing or has no class folders, or a class has no images.
    ValueError
        If train and test have different classes, or an argument is out of range.
    TypeError
        If an argument has the wrong type.

    Examples
    --------
    >>> train, test = image_folder("flowers", size=64)  # doctest: +SKIP
    """
    check_integer("size", size, at_least=1)
    check_flag("augment", augment)
    root = Path(root)
    part = test or next((name for name in TEST_FOLDERS if (root / name).is_dir()), "test")
    plain = image_transform(size, mean, deviation, augment=False)
    return _folders(root, part, image_transform(size, mean, deviation, augment=augment), plain)


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
    plain = image_transform(224, IMAGENET_MEAN, IMAGENET_DEVIATION, augment=False)
    changed = image_transform(224, IMAGENET_MEAN, IMAGENET_DEVIATION, augment=augment)
    return _folders(Path(root), "val", changed, plain, kind="*.JPEG")


def tiny_imagenet(root: str | Path, augment: bool = True) -> tuple[Dataset[Any], Dataset[Any]]:
    """Tiny ImageNet (100,000 and 10,000 images of 64 x 64, 200 classes) as a (train, test) pair.

    The test part is ``val``, whose labels stand in ``val_annotations.txt``, because those of ``test`` are not public.

    Parameters
    ----------
    root : str or Path
        The unpacked folder ``tiny-imagenet-200``, or the folder that contains it.
    augment : bool
        Pad training images by 8, crop them to 64 x 64 at a random position and flip them with probability 1/2.

    Returns
    -------
    train, test : Dataset
        Pairs of image, float32 (3, 64, 64), and label, an int in alphabetical order of the WordNet numbers, such as
        n01443537, which ``classes`` holds.

    Raises
    ------
    FileNotFoundError
        If files are missing.
    ValueError
        If ``val_annotations.txt`` names a class that ``train`` does not have, or cannot be read.

    Examples
    --------
    >>> train, test = tiny_imagenet("tiny-imagenet-200")  # doctest: +SKIP
    """
    check_flag("augment", augment)
    root = Path(root)
    if not (root / "train").is_dir() and (root / "tiny-imagenet-200").is_dir():
        root = root / "tiny-imagenet-200"
    plain = image_transform(64, TINY_IMAGENET_MEAN, TINY_IMAGENET_DEVIATION, augment=False)
    changed = image_transform(64, TINY_IMAGENET_MEAN, TINY_IMAGENET_DEVIATION, augment=augment)
    labels = root / "val" / "val_annotations.txt"
    if not labels.is_file():
        if (root / "val" / "images").is_dir() or not (root / "val").is_dir():
            raise FileNotFoundError(
                f"Tiny ImageNet is not complete in {str(root)!r}: {str(labels)!r} is missing. It is expected beside "
                "train/CLASS/images/*.JPEG and val/images/*.JPEG, as in tiny-imagenet-200.zip; nothing is downloaded."
            )
        return _folders(root, "val", changed, plain, kind="*.JPEG")  # sorted into folders by hand, as many people do
    _class_folders(root, "train", "val", "images/*.JPEG")
    train = _read_folder(root / "train", changed)
    samples = []
    for number, line in enumerate(labels.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        name, *rest = line.split("\t")
        if not rest or rest[0] not in train.class_to_idx:
            raise ValueError(
                f"{str(labels)!r}, line {number}: expected the name of an image, a tab and one of the "
                f"{len(train.classes)} classes of {str(root / 'train')!r}, got {line!r}."
            )
        samples.append((root / "val" / "images" / name, train.class_to_idx[rest[0]]))
    missing = [path.name for path, _ in samples if not path.is_file()]
    if missing or not samples:
        raise FileNotFoundError(
            f"{len(missing)} of {len(samples)} images that {str(labels)!r} names are not in "
            f"{str(root / 'val' / 'images')!r}: {', '.join(missing[:3])}{' ...' if len(missing) > 3 else ''}."
        )
    return train, ListedImages(samples, train.classes, plain)


class ListedImages(Dataset[tuple[Tensor, int]]):
    """Image files with their labels; reading one gives (image, label).

    Parameters
    ----------
    samples : sequence of (path, int)
        File and label.
    classes : sequence of str
        Name of each label.
    transform : callable
        From a PIL image in RGB to what a network sees.
    """

    def __init__(self, samples: Sequence[tuple[Path, int]], classes: Sequence[str], transform: Any) -> None:
        self.samples, self.classes, self.transform = list(samples), list(classes), transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.samples[index]
        return self.transform(default_loader(str(path))), label


def image_transform(size: int, mean: Sequence[float], deviation: Sequence[float], *, augment: bool) -> Any:
    """From a PIL image in RGB to float32 (3, size, size), normalised.

    Parameters
    ----------
    size : int
        Height and width. Up to 64, random changes are padded crops; above, random resized crops.
    mean, deviation : sequence of float
        Of the channels, in [0, 1].
    augment : bool
        Whether the image is changed at random.

    Returns
    -------
    callable
        The transform.
    """
    if size <= SMALL:
        # A no-op for images that have this size, as those of Tiny ImageNet have.
        steps: list[Any] = [transforms.Resize(size), transforms.CenterCrop(size)]
        if augment:
            steps.append(transforms.RandomCrop(size, padding=max(1, size // 8)))
    elif augment:
        steps = [transforms.RandomResizedCrop(size)]
    else:
        steps = [transforms.Resize(round(size * 8 / 7)), transforms.CenterCrop(size)]
    if augment:
        steps.append(transforms.RandomHorizontalFlip())
    return transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize(mean, deviation)])


def _folders(root: Path, part: str, changed: Any, plain: Any, kind: str = "*.jpg") -> tuple[ImageFolder, ImageFolder]:
    """The folders ``train`` and ``part`` of ``root``, which must have the same classes."""
    classes = {name: _class_folders(root, name, part, kind) for name in ("train", part)}
    if classes["train"] != classes[part]:
        differing = sorted(set(classes["train"]) ^ set(classes[part]))
        raise ValueError(
            f"train and {part} in {str(root)!r} must have the same class folders: {len(classes['train'])} and "
            f"{len(classes[part])} were found, and only one of them has {', '.join(differing[:5])}"
            f"{' ...' if len(differing) > 5 else ''}."
        )
    return _read_folder(root / "train", changed), _read_folder(root / part, plain)


def _class_folders(root: Path, part: str, test: str, kind: str) -> list[str]:
    folder = root / part
    found = sorted(entry.name for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else []
    if not found:
        problem = "has no class folders" if folder.is_dir() else "does not exist"
        raise FileNotFoundError(
            f"{str(folder)!r} {problem}. Images are expected at "
            f"{root}/train/CLASS/{kind} and {root}/{test}/CLASS/{kind}; nothing is downloaded."
        )
    return found


def _read_folder(folder: Path, transform: Any) -> ImageFolder:
    try:
        return ImageFolder(str(folder), transform=transform)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"Some class folders in {str(folder)!r} are empty. {error}") from error
