"""Detectors: distillation on the feature pyramid, and the COCO metric."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from ...capture.extras import require
from ...capture.state import frozen, modes_restored
from ..losses.contract import DistillationLoss, Outputs, check_signature
from ..taps.map_tap import MapTap, maps_of
from ..training.result import DenseResult
from ..training.schedules import DenseSchedule
from .data import collate_lists
from .loop import Step, momentum_sgd, on_device, train_dense
from .networks import detector

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["PAPER_ROWS", "PaperRow", "average_precision", "detector", "distill_detector"]


@dataclass(frozen=True)
class PaperRow:
    """A row of the paper's COCO table that torchvision's detectors can express, with the paper's AP beside.

    Parameters
    ----------
    architecture : str
        Of both networks, for `detector`.
    teacher, student : str
        ResNets by torchvision's names.
    intra_weight, inter_weight : float
        For `PatchCKALoss`.
    learning_rate : float
        For a batch of 16.
    epochs : int
        24: the schedule "2x".
    student_ap, distilled_ap, mimic_ap : float
        The paper's, in percent: without a teacher, with PCKA, and with plain feature imitation too.
    """

    architecture: str
    teacher: str
    student: str
    intra_weight: float
    inter_weight: float
    learning_rate: float
    epochs: int
    student_ap: float
    distilled_ap: float
    mimic_ap: float


PAPER_ROWS = {
    "retinanet_x101_r50": PaperRow(
        "retinanet",
        "resnext101_64x4d",
        "resnet50",
        10.0,
        0.0,
        0.01,
        24,
        student_ap=37.4,
        distilled_ap=40.3,
        mimic_ap=40.7,
    ),
    "fcos_r101_r50": PaperRow(
        "fcos", "resnet101", "resnet50", 10.0, 0.0, 0.01, 24, student_ap=38.5, distilled_ap=39.8, mimic_ap=40.7
    ),
}
"""The third row, Cascade Mask R-CNN X101 -> Faster R-CNN R50, has a teacher that torchvision does not have."""


def distill_detector(
    teacher: nn.Module | None,
    student: nn.Module,
    train: Dataset[Any],
    test: Dataset[Any] | None = None,
    loss: DistillationLoss | None = None,
    *,
    layer: str = "backbone",
    teacher_layer: str | None = None,
    levels: int = 4,
    steps: int = 1000,
    batch_size: int = 8,
    learning_rate: float = 0.01,
    schedule: Callable[[int, int], float] = DenseSchedule(),  # noqa: B008 - frozen, so one for all calls does no harm
    optimizer: Callable[..., torch.optim.Optimizer] = momentum_sgd,
    weight_decay: float = 1e-4,
    clip_norm: float | None = 10.0,
    mixed_precision: str = "no",
    workers: int = 0,
    seed: int = 0,
    output_dir: Path | str | None = None,
    log_every: int = 50,
    progress: bool = True,
    accelerator: Accelerator | None = None,
) -> DenseResult:
    """The trained student detector, its history and its COCO scores: detection losses plus those of the pyramid.

    The teacher's backbone sees the same tensor as the student's: scaled, normalised and padded by the student. Its
    heads do not run, so that it adds one forward pass of a backbone to a step. It stays in eval mode. Hooks, modes,
    gradient flags and random states are afterwards as before.

    Parameters
    ----------
    teacher : torch.nn.Module or None
        A torchvision detector, or anything with ``teacher_layer``. None trains without; teachers are trained so.
    student : torch.nn.Module
        A torchvision detector (`detector`): in train mode it gives a dict of losses. Trained in place.
    train, test : Dataset
        Of (image, target) as `CocoBoxes` gives them; without ``test`` nothing is scored.
    loss : DistillationLoss, optional
        Of the pyramids, `PatchCKALoss` say; called without logits. Required with a teacher.
    layer, teacher_layer : str
        Paths of the modules that give the dict of maps; the teacher's is the student's when None.
    levels : int
        How many of the first maps are compared.
    steps : int
        Steps of the optimiser.
    batch_size : int
        Pictures for each step and process.
    learning_rate : float
        At its highest; ``schedule(step, steps)`` multiplies it.
    schedule : callable
        `DenseSchedule` by default.
    optimizer : callable
        Called as ``optimizer(parameters, lr=..., weight_decay=...)``; SGD with momentum 0.9 by default.
    weight_decay : float
        Of all parameters.
    clip_norm : float, optional
        The gradient's largest norm.
    mixed_precision : {"no", "bf16", "fp16"}
        For the networks; the losses of this package compute in float32.
    workers : int
        Processes that load data.
    seed : int
        The same seed gives the same run on a CPU.
    output_dir : path, optional
        Receives last.safetensors, history.csv and scores.csv.
    log_every : int
        Steps for each row of the history.
    progress : bool
        Whether a progress bar is shown.
    accelerator : accelerate.Accelerator, optional
        Your own.

    Returns
    -------
    DenseResult
        ``scores`` as from `average_precision`.

    Raises
    ------
    TypeError
        If the layer gives no maps.
    ValueError
        If a setting is out of range, a layer does not exist, the networks normalise pictures differently, or there is a
        teacher without a loss or a loss without a teacher.
    ModuleNotFoundError
        If accelerate, torchmetrics or pycocotools is not installed.
    FloatingPointError
        If the training loss is no longer finite.

    References
    ----------
    Zhou et al., Rethinking Centered Kernel Alignment in Knowledge Distillation, IJCAI 2024, section 4; PAPER.md, PCKA.
    """
    for library in ("accelerate", "torchmetrics", "pycocotools"):
        require(library, "dense", "distill_detector()")
    if (teacher is None) != (loss is None):
        raise ValueError(
            "A teacher needs a `loss` that compares its pyramid with the student's, and a loss needs a teacher. Pass "
            "both, or neither to train the student alone."
        )
    if loss is not None:
        check_signature(loss)
    _check_same_pictures(teacher, student)
    with frozen(teacher), ExitStack() as stack:
        tap = source = None
        if teacher is not None:
            tap = stack.enter_context(MapTap(student, layer, levels, "student"))
            source = MapTap(teacher, teacher_layer or layer, levels, "teacher").layer_module

        def pyramids() -> tuple[list[Tensor], list[Tensor]]:
            """The student's maps of the last forward pass, and the teacher's of the same pictures."""
            assert tap is not None
            assert source is not None
            given, maps = tap.take()
            with torch.no_grad():
                return maps, maps_of(source(given), levels)

        def prepare(batch: Any) -> None:
            if teacher is None or loss is None:
                return
            teacher.to(batch[0][0].device)
            with modes_restored(student), torch.no_grad():
                student.eval()(batch[0])
            maps, theirs = pyramids()
            if callable(make := getattr(loss, "prepare", None)):
                make(maps, theirs)

        def step_of(accelerator: Accelerator) -> Step:
            def terms(batch: Any, model: nn.Module) -> dict[str, Tensor]:
                with accelerator.autocast():
                    found = dict(model(*batch))
                    maps, theirs = ([], []) if loss is None else pyramids()
                ours, taught = (Outputs(features=tuple(levels)) for levels in (maps, theirs))
                return found if loss is None else found | loss.terms(ours, taught)

            return terms

        def score(model: nn.Module, device: torch.device) -> dict[str, float]:
            assert test is not None
            return average_precision(model, test, batch_size=batch_size, device=device, progress=False)

        return train_dense(
            student,
            train,
            step_of,
            extra=loss,
            collate=collate_lists,
            prepare=prepare,
            score=None if test is None else score,
            steps=steps,
            batch_size=batch_size,
            learning_rate=learning_rate,
            schedule=schedule,
            optimizer=optimizer,
            weight_decay=weight_decay,
            clip_norm=clip_norm,
            mixed_precision=mixed_precision,
            workers=workers,
            seed=seed,
            output_dir=output_dir,
            log_every=log_every,
            progress=progress,
            accelerator=accelerator,
        )


def average_precision(
    model: nn.Module,
    data: Dataset[Any],
    *,
    batch_size: int = 8,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> dict[str, float]:
    """The COCO box scores of a detector: AP over IoU 0.50 to 0.95, AP50, AP75, and AP of small, medium, large objects.

    Parameters
    ----------
    model : torch.nn.Module
        In eval mode it gives a list of dicts with boxes, scores and labels.
    data : Dataset
        Of (image, target) as `CocoBoxes` gives them: detections within a crowd do not count against the detector, and
        an object's size is its annotated area. With targets of boxes and labels alone it is the area of the box.
    batch_size : int
        Pictures for each forward pass.
    device : torch.device, optional
        Where to compute; where the model is when None.
    progress : bool
        Whether a progress bar is shown.

    Returns
    -------
    dict of str to float
        AP, AP50, AP75, APs, APm, APl in [0, 1]; -1 where the data has no object of that size, as pycocotools has it.

    References
    ----------
    Lin et al., Microsoft COCO, ECCV 2014; computed by pycocotools through torchmetrics.
    """
    for library in ("torchmetrics", "pycocotools"):
        require(library, "dense", "average_precision()")
    from torchmetrics.detection import MeanAveragePrecision

    device = next(model.parameters()).device if device is None else torch.device(device)
    # pycocotools' own thresholds: torchmetrics' are rounded to float32, which moves a recall of 0.05 to the next one.
    metric = MeanAveragePrecision(
        box_format="xyxy",
        iou_type="bbox",
        iou_thresholds=np.linspace(0.5, 0.95, 10).tolist(),
        rec_thresholds=np.linspace(0.0, 1.0, 101).tolist(),
        backend="pycocotools",
    )
    loader = DataLoader(data, batch_size, collate_fn=collate_lists)
    with modes_restored(model), torch.no_grad():
        model.eval()
        for images, targets in tqdm(loader, disable=not progress, unit="batch"):
            found = on_device(model(on_device(images, device)), torch.device("cpu"))
            metric.update(found, [_scored(target) for target in targets])
    values = metric.compute()
    names = {
        "AP": "map",
        "AP50": "map_50",
        "AP75": "map_75",
        "APs": "map_small",
        "APm": "map_medium",
        "APl": "map_large",
    }
    return {name: float(values[key]) for name, key in names.items()}


def _scored(target: Mapping[str, Any]) -> dict[str, Tensor]:
    """What torchmetrics is given of one picture: everything annotated, or the boxes and labels where that is all."""
    return dict(target.get("annotated", {name: target[name] for name in ("boxes", "labels")}))


def _check_same_pictures(teacher: nn.Module | None, student: nn.Module) -> None:
    """An error when the teacher expects pictures that are normalised in another way than the student's."""
    transforms: Sequence[Any] = [getattr(model, "transform", None) for model in (teacher, student)]
    if any(transform is None for transform in transforms):
        return
    for name in ("image_mean", "image_std"):
        theirs, ours = (list(getattr(transform, name, [])) for transform in transforms)
        if theirs != ours:
            raise ValueError(
                f"The teacher's {name} is {theirs} and the student's {ours}, but the teacher's backbone sees the "
                "student's pictures. Build both with the same."
            )
