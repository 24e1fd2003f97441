"""Folders of image files, one folder for each class: ImageNet."""

from __future__ import annotations

from pathlib import Path

from torchvision import transforms
from torchvision.datasets import ImageFolder

__all__ = ["IMAGENET_DEVIATION", "IMAGENET_MEAN", "imagenet"]

IMAGENET_MEAN, IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


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
