"""Small scenes of handwritten digits on photographs, written as COCO and as Cityscapes folders.

The digits and the two photographs come with scikit-learn; nothing is downloaded. Detectors and segmenters learn them on
a CPU in minutes, as tests and examples need.
"""

from __future__ import annotations

import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...atomic_write import atomic_write
from ...capture.extras import require

__all__ = ["SceneFolders", "make_scenes"]

INK = 0.35
"""Opacity above which a pixel belongs to a digit, for boxes and label maps."""


@dataclass(frozen=True)
class SceneFolders:
    """Folders and files of the scenes.

    Parameters
    ----------
    root : pathlib.Path
        Folder of all scenes, and root of the Cityscapes folders (leftImg8bit, gtFine).
    train_images, val_images : pathlib.Path
        Folders of the pictures for COCO.
    train_annotations, val_annotations : pathlib.Path
        COCO files; category ids 1 to 10 are the digits 0 to 9.
    classes : tuple of str
        Names of the labels in the label maps: 0 is the background, 1 to 10 are the digits.
    """

    root: Path
    train_images: Path
    val_images: Path
    train_annotations: Path
    val_annotations: Path
    classes: tuple[str, ...] = ("background", *(str(digit) for digit in range(10)))


@dataclass(frozen=True)
class _Settings:
    train: int
    val: int
    size: int
    most: int
    smallest: int
    largest: int
    contrast: float
    seed: int


def make_scenes(
    root: Path | str,
    *,
    train: int = 256,
    val: int = 64,
    size: int = 128,
    most: int = 4,
    smallest: int = 16,
    largest: int = 44,
    contrast: float = 0.0,
    seed: int = 0,
) -> SceneFolders:
    """Write scenes of 0 to ``most`` digits on a part of a photograph, unless they exist; return their folders.

    Training and validation scenes share no digit and no part of a photograph. Digits have random sizes, colours and
    opacities, and do not overlap.

    Parameters
    ----------
    root : path
        Created if it does not exist. Existing scenes with the same settings are used.
    train, val : int
        Number of pictures of each split.
    size : int
        Height and width of a picture.
    most : int
        Largest number of digits in a picture; some pictures have none.
    smallest, largest : int
        Smallest and largest side of a digit in pixels, before its margins are cut off.
    contrast : float
        In [0, 1). Brightness of photographs is multiplied by 1 - contrast, and digits have at least this brightness.
        From 0.5 on digits are light on dark ground, and are learned many times faster.
    seed : int
        Decides all random choices.

    Returns
    -------
    SceneFolders
        With train2017, val2017, annotations, leftImg8bit and gtFine in ``root``.

    Raises
    ------
    ValueError
        If a number is out of range, or ``root`` holds scenes of other settings.
    OSError
        If a file cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     scenes = make_scenes(folder, train=2, val=1, size=64, largest=24)
    ...     sorted(path.name for path in scenes.root.iterdir())
    ['annotations', 'gtFine', 'leftImg8bit', 'scenes.json', 'train2017', 'val2017']
    """
    require("sklearn", "distill", "make_scenes()")
    for name, value, least in (("train", train, 1), ("val", val, 1), ("most", most, 0), ("smallest", smallest, 8)):
        if value < least:
            raise ValueError(f"`{name}` must be at least {least}, got {value}.")
    if not smallest <= largest <= size <= 250:
        raise ValueError(
            f"`smallest` <= `largest` <= `size` <= 250 must hold, got {smallest}, {largest} and {size}: digits must "
            "fit into the picture, and the picture into a part of a photograph of 427 x 640."
        )
    if not 0 <= contrast < 1:
        raise ValueError(f"`contrast` must be in [0, 1), got {contrast}.")
    root = Path(root)
    settings = _Settings(train, val, size, most, smallest, largest, contrast, seed)
    folders = SceneFolders(
        root=root,
        train_images=root / "train2017",
        val_images=root / "val2017",
        train_annotations=root / "annotations" / "instances_train2017.json",
        val_annotations=root / "annotations" / "instances_val2017.json",
    )
    # Written last: if it exists, everything else does.
    marker = root / "scenes.json"
    if marker.exists():
        found = json.loads(marker.read_text())
        if found != asdict(settings):
            raise ValueError(f"{root} holds scenes of other settings, {found}. Choose another folder.")
        return folders
    for split, count in (("train", train), ("val", val)):
        _write_split(root, split, count, settings)
    atomic_write(marker, json.dumps(asdict(settings)))
    return folders


def _write_split(root: Path, split: str, count: int, settings: _Settings) -> None:
    rng = np.random.default_rng([settings.seed, split == "val"])
    from sklearn.datasets import load_sample_images

    backgrounds = [_part(photo, split) for photo in load_sample_images().images]
    digits, labels = _digits(split)
    city, truth = (root / kind / split / "scenes" for kind in ("leftImg8bit", "gtFine"))
    for folder in (root / f"{split}2017", root / "annotations", city, truth):
        folder.mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(1, count + 1):
        picture, label_map, boxes = _scene(rng, backgrounds, digits, labels, settings)
        name = f"{number:012d}.png"
        frame = f"scenes_{number:06d}_000000"
        content = _png(picture)
        atomic_write(root / f"{split}2017" / name, content)
        atomic_write(city / f"{frame}_leftImg8bit.png", content)
        atomic_write(truth / f"{frame}_gtFine_labelIds.png", _png(label_map))
        images.append({"id": number, "file_name": name, "height": settings.size, "width": settings.size})
        for digit, (left, top, right, bottom) in boxes:
            width, height = right - left, bottom - top
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": digit + 1,
                    "bbox": [left, top, width, height],
                    "area": width * height,
                    "iscrowd": 0,
                }
            )
    categories = [{"id": digit + 1, "name": str(digit)} for digit in range(10)]
    coco = json.dumps({"images": images, "annotations": annotations, "categories": categories})
    atomic_write(root / "annotations" / f"instances_{split}2017.json", coco)


def _part(photo: np.ndarray, split: str) -> np.ndarray:
    """Left 60 % of a photograph for training, right 40 % for validation."""
    edge = photo.shape[1] * 6 // 10
    return photo[:, :edge] if split == "train" else photo[:, edge:]


def _digits(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Opacities (n, 8, 8) in [0, 1] and digits (n,) of a split. Three of four are for training."""
    from sklearn.datasets import load_digits

    data = load_digits()
    chosen = (np.arange(len(data.target)) % 4 == 3) == (split == "val")
    return data.images[chosen] / 16, data.target[chosen]


def _scene(
    rng: np.random.Generator,
    backgrounds: list[np.ndarray],
    digits: np.ndarray,
    labels: np.ndarray,
    settings: _Settings,
) -> tuple[np.ndarray, np.ndarray, list[tuple[int, tuple[int, int, int, int]]]]:
    """Picture, label map, and (digit, (left, top, right, bottom)) of each digit in the picture."""
    size = settings.size
    photo = backgrounds[rng.integers(len(backgrounds))]
    top, left = (rng.integers(side - size + 1) for side in photo.shape[:2])
    picture = photo[top : top + size, left : left + size].astype(np.float64)
    picture = picture[:, ::-1] if rng.random() < 0.5 else picture
    picture = picture * rng.uniform(0.6, 1.1) * (1 - settings.contrast)
    label_map = np.zeros((size, size), np.uint8)
    boxes: list[tuple[int, tuple[int, int, int, int]]] = []
    for _ in range(rng.integers(settings.most + 1)):
        side = int(rng.integers(settings.smallest, settings.largest + 1))
        chosen = rng.integers(len(labels))
        opacity = np.asarray(
            Image.fromarray((digits[chosen] * 255).astype(np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
        )
        alpha = opacity / 255 * rng.uniform(0.75, 1.0)
        rows, columns = (np.flatnonzero((alpha > INK).any(axis)) for axis in (1, 0))
        alpha = alpha[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        height, width = alpha.shape
        for _ in range(20):
            y, x = int(rng.integers(size - height + 1)), int(rng.integers(size - width + 1))
            if not label_map[max(0, y - 1) : y + height + 1, max(0, x - 1) : x + width + 1].any():
                break
        else:  # no free place was found: leave this digit out
            continue
        colour = rng.uniform(255 * settings.contrast, 255, 3)
        area = picture[y : y + height, x : x + width]
        picture[y : y + height, x : x + width] = area + alpha[..., None] * (colour - area)
        label_map[y : y + height, x : x + width][alpha > INK] = labels[chosen] + 1
        boxes.append((int(labels[chosen]), (x, y, x + width, y + height)))
    return picture.clip(0, 255).round().astype(np.uint8), label_map, boxes


def _png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG")
    return stream.getvalue()
