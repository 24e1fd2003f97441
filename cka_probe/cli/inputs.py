"""Data from the text that names it, for the command line. Nothing is downloaded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset

from ..capture.extras import require
from ..safe_read import open_npz, read_npy

__all__ = ["FEATURE_FILES", "data_notes", "load_arrays", "load_data"]

FEATURE_FILES = (".npy", ".npz", ".safetensors")


def load_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a .npy, .npz or .safetensors file, by name. Nothing is unpickled.

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    ValueError
        If the file is of another kind, damaged, or holds Python objects.

    Examples
    --------
    >>> load_arrays("missing.npz")
    Traceback (most recent call last):
    FileNotFoundError: There is no file missing.npz.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        if path.suffix == ".safetensors":
            from safetensors.numpy import load_file

            return load_file(path)
        if path.suffix == ".npy":
            return {path.stem: read_npy(path)}
        if path.suffix == ".npz":
            with open_npz(path) as archive:
                return dict(archive)
    except Exception as error:
        raise ValueError(f"{path} cannot be read as {path.suffix[1:]}: {error}") from error
    raise ValueError(f"{path} is not one of {', '.join(FEATURE_FILES)}.")


def load_data(
    source: str,
    *,
    batch_size: int = 64,
    samples: int | None = None,
    image_size: int = 224,
    channels: int = 3,
    seed: int = 0,
    normalise: tuple[Sequence[float], Sequence[float]] | None = None,
) -> Iterable[Any]:
    """Batches of the inputs that a text names, always in the same order.

    Parameters
    ----------
    source : str
        "digits" (images of scikit-learn), "fashion_mnist" (its test images), "noise" (Gaussian images, for a first
        try), a folder of images (with or without class folders), or a .npy, .npz or .safetensors file whose first array
        holds the inputs (float64 becomes float32).
    batch_size : int
        Samples in a batch.
    samples : int, optional
        Number of samples, selected at random with ``seed``. By default all, or 1024 of noise.
    image_size : int
        Height and width of the images.
    channels : int
        Channels of digits, Fashion-MNIST and noise.
    seed : int
        Seed of the noise and of the selection.
    normalise : (mean, deviation), optional
        What is taken out of the images of a folder, one number for each channel; by default ImageNet's.

    Returns
    -------
    DataLoader
        Batches of input tensors.

    Raises
    ------
    FileNotFoundError
        If the source does not exist.
    ValueError
        If the source is empty or of another kind.
    ModuleNotFoundError
        If the digits are wanted and scikit-learn is not installed.

    Examples
    --------
    >>> next(iter(load_data("digits", image_size=16)))[0].shape
    torch.Size([64, 3, 16, 16])
    """
    if samples is not None and samples < 1:
        raise ValueError(f"`samples` must be at least 1, got {samples}.")
    generator = torch.Generator().manual_seed(seed)
    path = Path(source)
    dataset: torch.utils.data.Dataset[Any]
    if source == "noise":
        inputs = torch.randn(samples or 1024, channels, image_size, image_size, generator=generator)
        dataset, samples = TensorDataset(inputs), None
    elif source == "digits":
        require("sklearn", "distill", "--data digits")
        from ..distill.data import digits

        dataset = digits(size=image_size, channels=channels)[1]
    elif source == "fashion_mnist":
        from ..distill.data import fashion_mnist

        dataset = fashion_mnist(size=image_size, channels=channels)[1]
    elif path.is_dir():
        dataset = _image_folder(path, image_size, normalise)
    elif path.suffix in FEATURE_FILES:
        inputs = _tensor(next(iter(load_arrays(path).values())), source)
        dataset = TensorDataset(inputs)
    else:
        raise FileNotFoundError(
            f"There is no data {source!r}. Give 'digits', 'fashion_mnist', 'noise', a folder of images, "
            f"or a {', '.join(FEATURE_FILES)} file."
        )
    if samples is not None and samples < len(dataset):
        chosen = torch.randperm(len(dataset), generator=generator)[:samples]
        dataset = torch.utils.data.Subset(dataset, chosen.tolist())
    return DataLoader(dataset, batch_size=batch_size)


def data_notes(source: str) -> list[str]:
    """Notes about a file of inputs: the arrays in it that are not used, labels apart.

    Parameters
    ----------
    source : str
        The data, as :func:`load_data` takes them.
    """
    if Path(source).suffix not in (".npz", ".safetensors") or Path(source).is_dir():
        return []
    first, *others = load_arrays(source)
    left = [name for name in others if name.lower() not in ("y", "label", "labels", "target", "targets")]
    return [f"{source}: only its first array {first!r} was used, not {', '.join(map(repr, left))}"] if left else []


def _tensor(array: np.ndarray, source: str) -> torch.Tensor:
    """The inputs as a tensor; numpy's float64 becomes float32, in which networks run."""
    if array.dtype.kind not in "fiub" or array.ndim == 0 or not array.size:
        raise ValueError(f"{source} must hold numbers with samples on the first axis, got {array.dtype} {array.shape}.")
    # The file may have been written on a machine with another order of bytes, or in a type that torch lacks.
    array = array.astype(array.dtype.newbyteorder("="))
    return torch.from_numpy(array.astype(np.float32) if array.dtype == np.float64 else array)


class _Images(torch.utils.data.Dataset[torch.Tensor]):
    """Images of a folder tree in the order of their paths, resized and normalised, as for ImageNet by default."""

    def __init__(self, paths: list[Path], size: int, normalise: tuple[Sequence[float], Sequence[float]] | None) -> None:
        from torchvision import transforms

        from ..distill.data.image_folders import IMAGENET_DEVIATION, IMAGENET_MEAN

        self.paths = paths
        self.transform = transforms.Compose(
            [
                transforms.Resize(size),
                transforms.CenterCrop(size),
                transforms.ToTensor(),
                transforms.Normalize(*(normalise or (IMAGENET_MEAN, IMAGENET_DEVIATION))),
            ]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        from PIL import Image

        with Image.open(self.paths[index]) as image:
            return self.transform(image.convert("RGB"))


def _image_folder(folder: Path, size: int, normalise: tuple[Sequence[float], Sequence[float]] | None) -> _Images:
    from torchvision.datasets.folder import IMG_EXTENSIONS

    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMG_EXTENSIONS)
    if not paths:
        raise ValueError(f"{folder} holds no images ({', '.join(IMG_EXTENSIONS)}).")
    return _Images(paths, size, normalise)
