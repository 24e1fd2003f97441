"""Data sets of tensors from COCO files and from Cityscapes-style folders."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.datasets import Cityscapes, CocoDetection
from torchvision.transforms import v2

from ..data.image_folders import IMAGENET_DEVIATION, IMAGENET_MEAN

__all__ = ["CITYSCAPES_TRAIN_IDS", "IGNORED", "CocoBoxes", "LabelMaps", "collate_lists"]

IGNORED = 255
"""Label of pixels that are left out of the loss and of the score."""

CITYSCAPES_TRAIN_IDS: dict[int, int] = {
    entry.id: entry.train_id for entry in Cityscapes.classes if 0 <= entry.train_id < IGNORED
}
"""From the labels of Cityscapes to its 19 evaluated classes. Every other label is ignored."""


class CocoBoxes(Dataset[tuple[Tensor, dict[str, Any]]]):
    """Pictures and boxes of a COCO file, in the form that torchvision's detectors need.

    Parameters
    ----------
    images : path
        Folder of the pictures.
    annotations : path
        COCO file.
    flip : float
        Probability of a horizontal flip.
    keep_ids : bool
        Whether labels are the category ids of COCO (1 to 90 with gaps, as in torchvision's weights). If False, they are
        1, 2, ... in the order of the ids. 0 is the background in both cases.

    Attributes
    ----------
    classes : tuple of str
        Name of each label: "background" first, "" for gaps.
    notes : tuple of str
        Number of boxes that were clipped to their picture, or left out because they lie outside of it.

    Raises
    ------
    FileNotFoundError
        If a folder or file is missing.
    ValueError
        If ``flip`` is not a probability.

    Notes
    -----
    An item is (image, target). The image is float32 (3, H, W) in [0, 1]. The target has boxes float32 (N, 4) as left,
    top, right, bottom, labels int64 (N,) and image_id. A picture without boxes has N = 0. Crowd regions are left out,
    as in torchvision's reference training. ``target["annotated"]`` has all boxes, labels, area and iscrowd, for
    `average_precision`.
    """

    def __init__(
        self, images: Path | str, annotations: Path | str, *, flip: float = 0.0, keep_ids: bool = False
    ) -> None:
        for path, what in ((Path(images), "folder of pictures"), (Path(annotations), "annotation file")):
            if not path.exists():
                raise FileNotFoundError(f"There is no {what} {path}.")
        if not 0 <= flip <= 1:
            raise ValueError(f"`flip` must be a probability, got {flip!r}.")
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
            self._coco = CocoDetection(images, annotations)
        categories = {entry["id"]: entry["name"] for entry in self._coco.coco.dataset["categories"]}
        ids = sorted(categories)
        self._labels = {old: old if keep_ids else new for new, old in enumerate(ids, 1)}
        names = {self._labels[old]: categories[old] for old in ids}
        self.classes = ("background", *(names.get(label, "") for label in range(1, max(names) + 1)))
        self.flip = flip
        self.notes = self._inspected()

    def _inspected(self) -> tuple[str, ...]:
        clipped = outside = 0
        for index in range(len(self)):
            facts = self._coco.coco.loadImgs(self._coco.ids[index])[0]
            for entry in self._entries(index):
                if entry.get("iscrowd", 0):
                    continue
                left, top, width, height = entry["bbox"]
                inside = _clipped(entry["bbox"], facts["height"], facts["width"])
                if inside is None:
                    outside += 1
                elif inside != [left, top, left + width, top + height]:
                    clipped += 1
        notes = []
        if clipped:
            notes.append(f"{clipped} boxes reach out of their pictures and were clipped.")
        if outside:
            notes.append(f"{outside} boxes have no area within their pictures and were left out.")
        return tuple(notes)

    def _entries(self, index: int) -> list[dict[str, Any]]:
        coco = self._coco.coco
        return list(coco.loadAnns(coco.getAnnIds(self._coco.ids[index])))

    def __len__(self) -> int:
        return len(self._coco)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        picture, _ = self._coco[index]
        image = v2.functional.to_dtype(v2.functional.pil_to_tensor(picture.convert("RGB")), scale=True)
        height, width = image.shape[1:]
        annotated = self._annotated(index, height, width)
        objects = annotated["iscrowd"] == 0
        target: dict[str, Any] = {
            "boxes": annotated["boxes"][objects],
            "labels": annotated["labels"][objects],
            "image_id": torch.tensor(self._coco.ids[index]),
            "annotated": annotated,
        }
        if self.flip and float(torch.rand(())) < self.flip:
            image = image.flip(2)
            for boxes in (target["boxes"], annotated["boxes"]):
                boxes[:, [0, 2]] = width - boxes[:, [2, 0]]
        return image, target

    def _annotated(self, index: int, height: int, width: int) -> dict[str, Tensor]:
        """All annotations within the picture, crowds included, in the order of the file."""
        lines = []
        for entry in self._entries(index):
            box = _clipped(entry["bbox"], height, width)
            if box is not None:
                area = entry.get("area", (box[2] - box[0]) * (box[3] - box[1]))
                lines.append((box, self._labels[entry["category_id"]], area, int(entry.get("iscrowd", 0))))
        boxes, labels, areas, crowds = zip(*lines, strict=True) if lines else ((), (), (), ())
        return {
            "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            "labels": torch.tensor(labels, dtype=torch.int64),
            "area": torch.tensor(areas, dtype=torch.float32),
            "iscrowd": torch.tensor(crowds, dtype=torch.int64),
        }


def _clipped(box: Sequence[float], height: int, width: int) -> list[float] | None:
    """Corners within the picture of a box given as left, top, width, height; None if it lies outside."""
    left, top = max(0.0, float(box[0])), max(0.0, float(box[1]))
    right, bottom = min(float(width), box[0] + box[2]), min(float(height), box[1] + box[3])
    return [left, top, right, bottom] if right > left and bottom > top else None


class LabelMaps(Dataset[tuple[Tensor, Tensor]]):
    """Pictures and label maps of Cityscapes-style folders (leftImg8bit, gtFine).

    Parameters
    ----------
    root : path
        Folder with leftImg8bit and gtFine.
    split : str
        "train", "val" or "test".
    labels : mapping of int to int, optional
        From the labels in the files to classes; other labels are ignored. Use ``CITYSCAPES_TRAIN_IDS`` for Cityscapes.
        None keeps the labels of the files.
    crop : tuple of int, optional
        Height and width of a random crop.
    flip : float
        Probability of a horizontal flip.

    Raises
    ------
    FileNotFoundError
        If a folder is missing.
    ValueError
        If ``flip`` is not a probability.

    Notes
    -----
    An item is (image, labels): float32 (3, H, W), normalised like ImageNet, and int64 (H, W) with 255 for ignored
    pixels. Items are in the order of their paths.
    """

    def __init__(
        self,
        root: Path | str,
        split: str,
        *,
        labels: Mapping[int, int] | None = None,
        crop: tuple[int, int] | None = None,
        flip: float = 0.0,
    ) -> None:
        if not 0 <= flip <= 1:
            raise ValueError(f"`flip` must be a probability, got {flip!r}.")
        for folder in (Path(root) / "leftImg8bit" / split, Path(root) / "gtFine" / split):
            if not folder.is_dir():
                raise FileNotFoundError(
                    f"There is no folder {folder}; Cityscapes has leftImg8bit and gtFine side by side."
                )
        self._data = Cityscapes(str(root), split=split, mode="fine", target_type="semantic")
        # torchvision uses the order of the file system, which differs between machines.
        order = sorted(range(len(self._data.images)), key=self._data.images.__getitem__)
        self._data.images = [self._data.images[index] for index in order]
        self._data.targets = [self._data.targets[index] for index in order]
        self._table: Tensor | None = None
        if labels is not None:
            self._table = torch.full((256,), IGNORED)
            for old, new in labels.items():
                self._table[old] = new
        steps: list[Any] = [v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True)]
        if crop is not None:
            fill: Any = {tv_tensors.Image: 0, tv_tensors.Mask: IGNORED}
            steps.append(v2.RandomCrop(crop, pad_if_needed=True, fill=fill))
        if flip:
            steps.append(v2.RandomHorizontalFlip(flip))
        steps.append(v2.Normalize(IMAGENET_MEAN, IMAGENET_DEVIATION))
        self._transform = v2.Compose(steps)

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        picture, found = self._data[index]
        labels = v2.functional.pil_to_tensor(found)[0].long()
        if self._table is not None:
            labels = self._table[labels]
        image, mask = self._transform(
            tv_tensors.Image(v2.functional.pil_to_tensor(picture.convert("RGB"))), tv_tensors.Mask(labels)
        )
        return image.as_subclass(Tensor), mask.as_subclass(Tensor)


def collate_lists(batch: Sequence[tuple[Any, ...]]) -> tuple[list[Any], ...]:
    """Batch as lists, for pictures and targets of different sizes."""
    return tuple(list(column) for column in zip(*batch, strict=True))
