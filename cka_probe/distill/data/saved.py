"""Image data sets of Hugging Face that were saved on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from ...capture.extras import require
from ...capture.nearest import nearest_hint
from .image_folders import IMAGENET_DEVIATION, IMAGENET_MEAN, image_transform
from .options import check_flag, check_integer

__all__ = ["SavedImages", "saved_dataset"]

TEST_SPLITS = ("test", "validation", "valid", "val")


class SavedImages(Dataset[tuple[Tensor, int]]):
    """One split of a saved data set; reading a sample gives (image, label).

    Parameters
    ----------
    split : datasets.Dataset
        The samples.
    image, label : str
        Names of the columns.
    classes : sequence of str
        Name of each label.
    transform : callable
        From a PIL image in RGB to what a network sees.
    """

    def __init__(self, split: Any, image: str, label: str, classes: Sequence[str], transform: Any) -> None:
        self.split, self.image, self.label = split, image, label
        self.classes, self.transform = list(classes), transform

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        row = self.split[int(index)]
        return self.transform(row[self.image].convert("RGB")), int(row[self.label])


def saved_dataset(
    folder: str | Path,
    size: int | None = None,
    augment: bool = True,
    *,
    image: str | None = None,
    label: str | None = None,
    test: str | None = None,
    mean: Sequence[float] = IMAGENET_MEAN,
    deviation: Sequence[float] = IMAGENET_DEVIATION,
) -> tuple[SavedImages, SavedImages]:
    """Images of a Hugging Face data set, saved by ``DatasetDict.save_to_disk(folder)``, as a (train, test) pair.

    Parameters
    ----------
    folder : str or Path
        The saved ``DatasetDict`` with the splits "train" and "test" (or "validation").
    size : int, optional
        Height and width of the images; by default the shorter side of the first one.
    augment : bool
        Change training images at random, as `image_folder` does.
    image, label : str, optional
        Names of the columns; by default the only column of images, and the only one of class labels (or "label").
    test : str, optional
        Name of the split to test on; by default "test", else "validation".
    mean, deviation : sequence of three floats
        Of the channels, in [0, 1]; ImageNet's by default.

    Returns
    -------
    train, test : SavedImages
        Pairs of image, float32 (3, size, size), and label, an int. ``classes`` holds the names.

    Raises
    ------
    FileNotFoundError
        If the folder does not exist or holds no saved data set.
    ValueError
        If there is no such split or column, or a column is of another kind.
    TypeError
        If an argument has the wrong type.
    ModuleNotFoundError
        If the library datasets is not installed.

    Examples
    --------
    >>> train, test = saved_dataset("cifar10_saved", size=32)  # doctest: +SKIP
    """
    require("datasets", "hf", "saved_dataset()")
    import datasets

    check_flag("augment", augment)
    if size is not None:
        check_integer("size", size, at_least=1)
    try:
        splits = datasets.load_from_disk(str(folder))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(
            f"{str(folder)!r} holds no data set of Hugging Face. Save one there with DatasetDict.save_to_disk(folder)."
        ) from error
    if not isinstance(splits, Mapping):
        raise ValueError(
            f"{str(folder)!r} holds one split alone. Save both: dataset.train_test_split(0.2).save_to_disk(folder)."
        )
    part = test or next((name for name in TEST_SPLITS if name in splits), "test")
    for name in ("train", part):
        if name not in splits:
            raise ValueError(f"{str(folder)!r} has no split {name!r}. Its splits: {', '.join(map(repr, splits))}.")
    features = splits["train"].features
    pictures = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
    labelled = [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    if not labelled:
        labelled = [name for name in ("label", "labels") if name in features]
    picture = _column("image", image, pictures, features, folder)
    target = _column("label", label, labelled, features, folder)
    if not isinstance(features[picture], datasets.Image):
        raise ValueError(f"`image`: the column {picture!r} holds {features[picture]}, not images.")
    classes = _classes(splits, ("train", part), target, datasets.ClassLabel)
    if size is None:
        size = min(splits["train"][0][picture].size)
    return (
        SavedImages(splits["train"], picture, target, classes, image_transform(size, mean, deviation, augment=augment)),
        SavedImages(splits[part], picture, target, classes, image_transform(size, mean, deviation, augment=False)),
    )


def _column(argument: str, wanted: str | None, found: list[str], features: Any, folder: str | Path) -> str:
    if wanted is not None:
        if wanted not in features:
            raise ValueError(
                f"`{argument}`: there is no column {wanted!r} in {str(folder)!r}. {nearest_hint(wanted, features)}"
            )
        return wanted
    if len(found) != 1:
        columns = ", ".join(f"{name} ({type(kind).__name__})" for name, kind in features.items())
        problem = "several columns" if found else "no column"
        raise ValueError(
            f"{str(folder)!r} has {problem} that can be the {argument}. Pass {argument}=, one of its columns: "
            f"{columns}."
        )
    return found[0]


def _classes(splits: Any, parts: Sequence[str], column: str, kind: Any) -> list[str]:
    """Names of the classes; of labels without names, the numbers from 0 to the largest."""
    feature = splits["train"].features[column]
    if isinstance(feature, kind):
        found = {part: getattr(splits[part].features[column], "names", None) for part in parts}
        if found[parts[0]] != found[parts[1]]:
            raise ValueError(f"The classes of {column!r} are not the same in {' and '.join(parts)}.")
        return list(feature.names)
    labels = {value for part in parts for value in splits[part].unique(column)}
    if not all(isinstance(value, int) and value >= 0 for value in labels):
        wrong = next(value for value in labels if not (isinstance(value, int) and value >= 0))
        raise ValueError(
            f"`label`: the column {column!r} holds {wrong!r}. Class labels are the numbers from 0; turn names "
            f'into them with dataset.class_encode_column("{column}").'
        )
    return [str(number) for number in range(max(labels) + 1)]
