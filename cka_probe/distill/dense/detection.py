"""Train detectors with a distillation loss on feature pyramids; score them by the COCO metric."""

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

from ...capture.extras import require
from ...capture.state import evaluated, frozen
from ...capture.trees import move
from ...progress_bar import tqdm
from ..losses.contract import DistillationLoss, Outputs, check_signature
from ..taps.map_tap import MapTap, maps_of
from ..training.result import DenseResult
from ..training.schedules import DenseSchedule
from .data import collate_lists
from .loop import DenseTask, train_dense
from .networks import detector
from .settings import DenseSettings, momentum_sgd

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["PAPER_ROWS", "PaperRow", "average_precision", "detector", "distill_detector"]


@dataclass(frozen=True)
class PaperRow:
    """Settings and published AP of a row of the paper's COCO table that torchvision's detectors can express.

    Parameters
    ----------
    architecture : str
        Architecture of both networks, for `detector`.
    teacher, student : str
        Names of ResNets in torchvision.
    intra_weight, inter_weight : float
        Weights of `PatchCKALoss`.
    learning_rate : float
        For a batch of 16 pictures.
    epochs : int
        24, the schedule "2x".
    student_ap, distilled_ap, mimic_ap : float
        AP of the paper in percent: without a teacher, with PCKA, and with PCKA and feature imitation.
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
"""A third row, Cascade Mask R-CNN X101 to Faster R-CNN R50, needs a teacher that torchvision does not have."""


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
    schedule: Callable[..., Any] = DenseSchedule(),  # noqa: B008 - frozen: all calls may share it
    optimizer: Callable[..., torch.optim.Optimizer] = momentum_sgd,
    weight_decay: float = 1e-4,
    clip_norm: float | None = 10.0,
    ema: float | None = None,
    mixed_precision: str = "no",
    workers: int = 0,
    seed: int = 0,
    output_dir: Path | str | None = None,
    resume: bool = True,
    checkpoint_steps: int | None = None,
    log_every: int = 50,
    score_every: int | None = None,
    progress: bool = True,
    accelerator: Accelerator | None = None,
) -> DenseResult:
    """Train a detector on its own losses and on a loss of the feature pyramids; return its history and COCO scores.

    The teacher's backbone gets the same tensor as the student's: scaled, normalised and padded by the student. The
    teacher's heads do not run, so that a step costs one more forward pass of a backbone. The teacher stays in eval
    mode. Hooks, modes, gradient flags and random states are restored at the end.

    A run with an `output_dir` saves a checkpoint after every pass over the data. A run that was killed resumes from
    there when it is called again with the same arguments. On a CPU it ends with the same weights, bit for bit.

    Parameters
    ----------
    teacher : torch.nn.Module or None
        A torchvision detector, or any module with ``teacher_layer``. None trains the student alone, as a teacher is
        trained.
    student : torch.nn.Module
        A torchvision detector (`detector`), which returns a dict of losses in train mode. It is trained in place.
    train, test : Dataset
        Items (image, target) as in `CocoBoxes`. Without ``test`` nothing is scored.
    loss : DistillationLoss, optional
        A loss of features, such as `PatchCKALoss`; it gets no logits. Required with a teacher.
    layer, teacher_layer : str
        Paths of the modules that return the dict of maps; ``teacher_layer`` is ``layer`` if None.
    levels : int
        Number of maps that are compared, from the first on.
    steps : int
        Steps of the optimiser.
    batch_size : int
        Pictures for each step and process.
    learning_rate : float
        Highest value; ``schedule(step, steps)`` multiplies it.
    schedule : callable
        `DenseSchedule` by default. It may also be a function of the optimiser that returns an LRScheduler of torch,
        which is advanced after each step (`ReduceLROnPlateau`: after each time the test data is scored).
    optimizer : callable
        Called as ``optimizer(parameters, lr=..., weight_decay=...)``; SGD with momentum 0.9 by default.
    weight_decay : float
        Weight decay of all parameters.
    clip_norm : float, optional
        Largest norm of the gradient; a larger gradient is scaled down. None does not clip.
    ema : float, optional
        Decay of a moving average of the student's weights, for example 0.999. The average is then what is scored and
        saved, and what the student holds after the last step.
    mixed_precision : {"no", "bf16", "fp16"}
        For the networks; the losses of this package compute in float32. "fp16" needs a GPU.
    workers : int
        Processes that load data.
    seed : int
        The same seed gives the same run on a CPU.
    output_dir : path, optional
        Folder for last.safetensors, history.csv, scores.csv, settings.json, the checkpoints and, with test data,
        best.safetensors. A finished run goes on to more `steps` if `schedule` gives the finished ones the same rates.
    resume : bool
        Whether to resume from a checkpoint in `output_dir`; False starts again.
    checkpoint_steps : int, optional
        Number of steps after which a checkpoint is also saved within a pass over the data.
    log_every : int
        Steps between the rows of the history.
    score_every : int, optional
        Steps between scores on the test data. The history keeps them, and best.safetensors the weights with the best
        AP. None scores after the last step only.
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
        If the layer returns no maps, `schedule` has none of the known forms, or the loss takes other arguments than
        (student, teacher, target).
    ValueError
        If a setting is out of range, a layer does not exist, the networks normalise pictures differently, there is a
        teacher without a loss or a loss without a teacher, there are fewer pictures than processes, or `output_dir`
        holds a run with other settings.
    CheckpointError
        If no checkpoint in `output_dir` can be read.
    ModuleNotFoundError
        If accelerate, torchmetrics or pycocotools is not installed.
    FloatingPointError
        If the training loss is no longer finite.

    References
    ----------
    Zhou et al., Rethinking Centered Kernel Alignment in Knowledge Distillation, IJCAI 2024, section 4;
    docs/paper.md, section 1.
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
    settings = DenseSettings(
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        schedule=schedule,
        optimizer=optimizer,
        weight_decay=weight_decay,
        clip_norm=clip_norm,
        ema=ema,
        mixed_precision=mixed_precision,
        workers=workers,
        seed=seed,
        output_dir=output_dir,
        resume=resume,
        checkpoint_steps=checkpoint_steps,
        log_every=log_every,
        score_every=score_every,
        progress=progress,
        accelerator=accelerator,
    )
    with frozen(teacher), ExitStack() as stack:
        tap = source = None
        if teacher is not None:
            tap = stack.enter_context(MapTap(student, layer, levels, "student"))
            source = MapTap(teacher, teacher_layer or layer, levels, "teacher").layer_module

        def pyramids() -> tuple[list[Tensor], list[Tensor]]:
            """Maps of the student's last forward pass, and the teacher's maps of the same pictures."""
            assert tap is not None
            assert source is not None
            given, maps = tap.take()
            with torch.no_grad():
                return maps, maps_of(source(given), levels)

        def prepare(batch: Any) -> None:
            if teacher is None or loss is None:
                return
            with evaluated(student), torch.no_grad():
                student(batch[0])
            maps, theirs = pyramids()
            if callable(make := getattr(loss, "prepare", None)):
                make(maps, theirs)

        def terms(batch: Any, model: nn.Module, accelerator: Accelerator) -> dict[str, Tensor]:
            with accelerator.autocast():
                found = dict(model(*batch))
                maps, theirs = ([], []) if loss is None else pyramids()
            ours, taught = (Outputs(features=tuple(levels)) for levels in (maps, theirs))
            return found if loss is None else found | loss.terms(ours, taught)

        def score(model: nn.Module, data: Dataset[Any], device: torch.device) -> dict[str, float]:
            found = average_precision(model, data, batch_size=batch_size, device=device, progress=False)
            if tap is not None:
                tap.forget()
            return found

        task = DenseTask(
            teacher=teacher,
            student=student,
            train=train,
            test=test,
            loss=loss,
            layers={"layer": layer, "teacher_layer": teacher_layer or layer, "levels": levels},
            prepare=prepare,
            terms=terms,
            collate=collate_lists,
            score=score,
            main_score="AP",
        )
        return train_dense(task, settings)


def average_precision(
    model: nn.Module,
    data: Dataset[Any],
    *,
    batch_size: int = 8,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> dict[str, float]:
    """COCO box scores of a detector: AP over IoU 0.50 to 0.95, AP50, AP75, and AP of small, medium and large objects.

    Parameters
    ----------
    model : torch.nn.Module
        Returns a list of dicts with boxes, scores and labels in eval mode.
    data : Dataset
        Items (image, target) as in `CocoBoxes`. Detections within a crowd do not count as wrong, and the size of an
        object is its annotated area. If targets have only boxes and labels, it is the area of the box.
    batch_size : int
        Pictures for each forward pass.
    device : torch.device, optional
        Device of the computation; the model's if None.
    progress : bool
        Whether a progress bar is shown.

    Returns
    -------
    dict of str to float
        AP, AP50, AP75, APs, APm, APl in [0, 1]; -1 if the data has no object of that size, as in pycocotools.

    Raises
    ------
    ModuleNotFoundError
        If torchmetrics or pycocotools is not installed.

    References
    ----------
    Lin et al., Microsoft COCO, ECCV 2014; computed by pycocotools through torchmetrics.
    """
    for library in ("torchmetrics", "pycocotools"):
        require(library, "dense", "average_precision()")
    from torchmetrics.detection import MeanAveragePrecision

    device = next(model.parameters()).device if device is None else torch.device(device)
    # The thresholds of pycocotools. Those of torchmetrics are float32, which counts a recall of 0.05 at the next one.
    metric = MeanAveragePrecision(
        box_format="xyxy",
        iou_type="bbox",
        iou_thresholds=np.linspace(0.5, 0.95, 10).tolist(),
        rec_thresholds=np.linspace(0.0, 1.0, 101).tolist(),
        backend="pycocotools",
    )
    loader = DataLoader(data, batch_size, collate_fn=collate_lists)
    with evaluated(model), torch.no_grad():
        for images, targets in tqdm(loader, disable=not progress, unit="batch"):
            found = move(model(move(images, device)), torch.device("cpu"))
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
    """Target for torchmetrics: all annotations of the picture, or else its boxes and labels."""
    return dict(target.get("annotated", {name: target[name] for name in ("boxes", "labels")}))


def _check_same_pictures(teacher: nn.Module | None, student: nn.Module) -> None:
    """Raise ValueError if the teacher normalises pictures in another way than the student."""
    transforms: Sequence[Any] = [getattr(model, "transform", None) for model in (teacher, student)]
    if any(transform is None for transform in transforms):
        return
    for name in ("image_mean", "image_std"):
        theirs, ours = (list(getattr(transform, name, [])) for transform in transforms)
        if theirs != ours:
            raise ValueError(
                f"The teacher's {name} is {theirs} and the student's {ours}, but the teacher's backbone gets the "
                "student's pictures. Build both with the same values."
            )
