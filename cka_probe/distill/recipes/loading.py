"""Load the data of a recipe: the data sets of this package, or what a function of the user's own file returns."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset

from .. import data as datasets
from ..data.images import GreyToChannels
from ..models.factories import function_of_file
from .data_section import DATA_SETS, DataSection, file_and_function

__all__ = ["class_names", "data_sources", "file_digest", "folder_digest", "load_datasets", "normalisation_of"]

SHAPE = "Return (train, test), two torch data sets or DataLoaders of (image, label), or (train, test, classes)."


def load_datasets(data: DataSection) -> tuple[Dataset[Any], Dataset[Any], int]:
    """Training data, test data and number of classes of a recipe's section ``data``.

    The number of classes of one's own data is ``classes`` of the section, else what the function returns as a third
    value, else the length of ``train.classes``, else one more than the largest label of a TensorDataset.

    Raises
    ------
    FileNotFoundError, ValueError
        If the files are missing or damaged; nothing is downloaded.
    TypeError
        If a function of the user's own file returns something else.
    ModuleNotFoundError
        If a library that the data need is not installed.
    """
    own = file_and_function(data.name)
    if own is not None:
        return _from_own_file(data, *own)
    kind = DATA_SETS[data.name]
    place = [] if kind.root is None else [data.root]
    train, test = getattr(datasets, kind.function)(*place, **data.arguments)
    classes = _classes_of(train)
    assert classes is not None
    return train, test, classes


def class_names(data: Any) -> list[str]:
    """Names of the classes of a data set or loader; empty if it does not know them."""
    for part in _inner(data):
        names = getattr(part, "classes", None)
        if isinstance(names, list | tuple):
            return [str(name) for name in names]
    return []


def normalisation_of(data: Any) -> tuple[list[float], list[float]] | None:
    """Mean and deviation of the channels that a data set takes out of its images; None if its transform has none."""
    for part in _inner(data):
        transform = getattr(part, "transform", None)
        for step in getattr(transform, "transforms", [transform]):
            if isinstance(step, GreyToChannels):
                return [step.mean] * step.channels, [step.deviation] * step.channels
            if hasattr(step, "mean") and hasattr(step, "std"):  # Normalize of torchvision, in either version
                return [float(value) for value in step.mean], [float(value) for value in step.std]
    return None


def data_sources(name: str, data: DataSection) -> dict[str, str]:
    """Digests of the files that a section names: a Python file, or the names and sizes of the files of a folder."""
    found = {}
    own = file_and_function(data.name)
    if own is not None and Path(own[0]).is_file():
        found[f"{name}.name"] = file_digest(Path(own[0]))
    if data.root is not None:
        found[f"{name}.root"] = folder_digest(data.root)
    return found


def file_digest(path: Path) -> str:
    """Hash of the content of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, partial(hashlib.blake2b, digest_size=16)).hexdigest()


def folder_digest(folder: Path) -> str:
    """Hash of the names and sizes of all files of a folder."""
    files = sorted(
        (path.relative_to(folder).as_posix(), path.stat().st_size) for path in folder.rglob("*") if path.is_file()
    )
    return hashlib.blake2b(repr(files).encode(), digest_size=16).hexdigest()


def _from_own_file(data: DataSection, file: str, name: str) -> tuple[Dataset[Any], Dataset[Any], int]:
    function = function_of_file(file, name)
    options = data.arguments
    try:
        inspect.signature(function.code).bind(**options)
    except TypeError as error:
        raise ValueError(f"data.options: {data.name} cannot be called with ({', '.join(options)}): {error}.") from error
    made = function.run(**options)
    if not isinstance(made, tuple | list) or len(made) not in (2, 3):
        got = f"{len(made)} values" if isinstance(made, tuple | list) else type(made).__name__
        raise TypeError(f"{data.name} returned {got}. {SHAPE}")
    train, test, *more = made
    for part, thing in (("train", train), ("test", test)):
        if not hasattr(thing, "__getitem__") and not hasattr(thing, "__iter__"):
            raise TypeError(f"{data.name} returned {type(thing).__name__} as {part}. {SHAPE}")
    classes = data.classes or (more[0] if more else _classes_of(train))
    if classes is None:
        raise ValueError(
            f"data: how many classes has {data.name}? Set data.classes = 10, let the function return "
            "(train, test, 10), or give `train` a list `classes`."
        )
    if isinstance(classes, bool) or not isinstance(classes, int) or classes < 1:
        raise TypeError(f"{data.name} returned {classes!r} as the number of classes. {SHAPE}")
    return train, test, classes


def _classes_of(data: Any) -> int | None:
    """Number of classes of a data set or loader, from its names of classes or its tensor of labels."""
    sets = list(_inner(data))
    for part in sets:
        names = getattr(part, "classes", None)
        if isinstance(names, int) and not isinstance(names, bool):
            return names
        if isinstance(names, list | tuple):
            return len(names)
    labels = [part.tensors[-1] for part in sets if isinstance(part, TensorDataset)]
    if labels and all(y.ndim == 1 and not y.is_floating_point() and len(y) for y in labels):
        return max(int(torch.max(y)) for y in labels) + 1
    return None


def _inner(data: Any) -> Iterator[Any]:
    """The data set itself, and those that it wraps."""
    yield data
    if isinstance(data, DataLoader | Subset):
        yield from _inner(data.dataset)
    if isinstance(data, ConcatDataset):
        for part in data.datasets:
            yield from _inner(part)
