"""Train segmenters with a distillation loss on class scores and features; score them by the mean IoU."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from ...capture.extras import require
from ...capture.state import evaluated, frozen
from ...capture.trees import move
from ...progress_bar import tqdm
from ..losses.contract import DistillationLoss, Outputs, check_signature
from ..taps.map_tap import MapTap
from ..training.result import DenseResult
from ..training.schedules import DenseSchedule
from .data import IGNORED
from .loop import DenseTask, train_dense
from .networks import segmenter
from .settings import DenseSettings, momentum_sgd

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["distill_segmenter", "mean_iou", "segmenter"]


def distill_segmenter(
    teacher: nn.Module | None,
    student: nn.Module,
    train: Dataset[Any],
    test: Dataset[Any] | None = None,
    loss: DistillationLoss | None = None,
    *,
    layer: str = "classifier",
    teacher_layer: str | None = None,
    features: str | None = None,
    teacher_features: str | None = None,
    steps: int = 1000,
    batch_size: int = 8,
    learning_rate: float = 0.01,
    schedule: Callable[..., Any] = DenseSchedule(),  # noqa: B008 - frozen: all calls may share it
    optimizer: Callable[..., torch.optim.Optimizer] = momentum_sgd,
    weight_decay: float = 5e-4,
    clip_norm: float | None = None,
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
    """Train a segmenter on the cross-entropy of pixels and the terms of ``loss``; return its history and mean IoU.

    The loss gets the class scores of both networks, before they are upsampled, as logits (`SegmentationCKALoss`). With
    ``features`` it also gets the maps of another layer as features (`PatchCKALoss`, `CWDLoss`). The teacher stays in
    eval mode. A run with an `output_dir` is saved and resumed as in `distill_detector`.

    Parameters
    ----------
    teacher : torch.nn.Module or None
        A segmenter of the same classes. None trains the student alone, as a teacher is trained.
    student : torch.nn.Module
        Returns class scores (B, P, H, W), or a dict with them as "out". It is trained in place.
    train, test : Dataset
        Items (image, labels) as in `LabelMaps`. Without ``test`` nothing is scored.
    loss : DistillationLoss, optional
        Required with a teacher.
    layer, teacher_layer : str
        Paths of the modules that return the scores; ``teacher_layer`` is ``layer`` if None.
    features, teacher_features : str, optional
        Paths of the modules whose maps are the features. None compares no features; ``teacher_features`` is
        ``features`` if None.
    steps, batch_size, learning_rate, schedule, optimizer, weight_decay, clip_norm, ema, mixed_precision
        As in `distill_detector`.
    workers, seed, output_dir, resume, checkpoint_steps, log_every, score_every, progress, accelerator
        As in `distill_detector`.

    Returns
    -------
    DenseResult
        ``scores`` as from `mean_iou`.

    Raises
    ------
    TypeError
        If a layer returns no maps, `schedule` has none of the known forms, or the loss takes other arguments than
        (student, teacher, target).
    ValueError
        If a setting is out of range, a layer does not exist, a label is larger than the number of scores, there is a
        teacher without a loss or a loss without a teacher, `teacher_features` is given without `features`, there are
        fewer pictures than processes, or `output_dir` holds a run with other settings.
    CheckpointError
        If no checkpoint in `output_dir` can be read.
    ModuleNotFoundError
        If accelerate or torchmetrics is not installed.
    FloatingPointError
        If the training loss is no longer finite.

    References
    ----------
    Zhou et al., Rethinking Centered Kernel Alignment in Knowledge Distillation, IJCAI 2024; docs/paper.md, section 1.
    """
    for library in ("accelerate", "torchmetrics"):
        require(library, "distill", "distill_segmenter()")
    if (teacher is None) != (loss is None):
        raise ValueError(
            "A teacher needs a `loss` that compares its scores with the student's, and a loss needs a teacher. Pass "
            "both, or neither to train the student alone."
        )
    if loss is not None:
        check_signature(loss)
    if features is None and teacher_features is not None:
        raise ValueError("`teacher_features` are compared with the student's: name its layer with `features` too.")
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
        taps: list[tuple[MapTap, MapTap]] = []
        if teacher is not None:
            for ours, theirs in ((layer, teacher_layer), (features, teacher_features)):
                if ours is not None:
                    pair = MapTap(student, ours, None, "student"), MapTap(teacher, theirs or ours, None, "teacher")
                    taps.append((stack.enter_context(pair[0]), stack.enter_context(pair[1])))

        def seen(images: Tensor) -> tuple[Outputs, Outputs]:
            """Outputs of the student's last forward pass, and the teacher's outputs of the same images."""
            assert teacher is not None
            with torch.no_grad():
                teacher(images)
            maps = [(ours.take()[1], theirs.take()[1]) for ours, theirs in taps]
            logits, others = maps[0], maps[1] if len(maps) > 1 else ([], [])
            return Outputs(logits[0][0], tuple(others[0])), Outputs(logits[1][0], tuple(others[1]))

        def prepare(batch: Any) -> None:
            images, labels = batch
            with evaluated(student), torch.no_grad():
                scores = _scores(student(images))
            known = labels[labels != IGNORED]
            if len(known) and int(known.max()) >= scores.shape[1]:
                raise ValueError(
                    f"`train` has the label {int(known.max())}, but the student scores {scores.shape[1]} classes."
                )
            if teacher is not None:
                ours, theirs = seen(images)
                if callable(make := getattr(loss, "prepare", None)) and features is not None:
                    make(ours.features, theirs.features)

        def terms(batch: Any, model: nn.Module, accelerator: Accelerator) -> dict[str, Tensor]:
            images, labels = batch
            with accelerator.autocast():
                scores = _scores(model(images))
                outputs = None if loss is None else seen(images)
            # A mean over no pixel would be NaN. A batch without known pixels has loss 0.
            total = functional.cross_entropy(scores.float(), labels, ignore_index=IGNORED, reduction="sum")
            found = {"cross_entropy": total / (labels != IGNORED).sum().clamp(min=1)}
            return found if loss is None or outputs is None else found | loss.terms(*outputs, labels)

        def score(model: nn.Module, data: Dataset[Any], device: torch.device) -> dict[str, float]:
            found = mean_iou(model, data, batch_size=batch_size, device=device, progress=False)
            for ours, _ in taps:
                ours.forget()
            return found

        layers = {
            "layer": layer,
            "teacher_layer": teacher_layer or layer,
            "features": features,
            "teacher_features": teacher_features or features,
        }
        task = DenseTask(
            teacher=teacher,
            student=student,
            train=train,
            test=test,
            loss=loss,
            layers=layers,
            prepare=prepare,
            terms=terms,
            score=score,
            main_score="mIoU",
        )
        return train_dense(task, settings)


def mean_iou(
    model: nn.Module,
    data: Dataset[Any],
    *,
    batch_size: int = 8,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> dict[str, float]:
    """Intersection over union of each class over all pixels of the data, and the mean over classes.

    Parameters
    ----------
    model : torch.nn.Module
        Returns class scores (B, P, H, W), or a dict with them as "out".
    data : Dataset
        Items (image, labels) as in `LabelMaps`.
    batch_size : int
        Pictures for each forward pass; 1 if their sizes differ.
    device : torch.device, optional
        Device of the computation; the model's if None.
    progress : bool
        Whether a progress bar is shown.

    Returns
    -------
    dict of str to float
        "mIoU" and "IoU 0", "IoU 1", ... in [0, 1]. A class that neither occurs nor is predicted is NaN, and is left
        out of the mean.

    Raises
    ------
    ValueError
        If the data is empty.
    ModuleNotFoundError
        If torchmetrics is not installed.

    References
    ----------
    Everingham et al., The Pascal Visual Object Classes Challenge, IJCV 2010, section 4.3.
    """
    require("torchmetrics", "distill", "mean_iou()")
    from torchmetrics.classification import MulticlassJaccardIndex

    device = next(model.parameters()).device if device is None else torch.device(device)
    metric: MulticlassJaccardIndex | None = None
    loader = DataLoader(data, batch_size)
    with evaluated(model), torch.no_grad():
        for images, labels in tqdm(loader, disable=not progress, unit="batch"):
            scores = _scores(model(move(images, device)))
            scores = functional.interpolate(scores, labels.shape[1:], mode="bilinear", align_corners=False)
            if metric is None:
                metric = MulticlassJaccardIndex(
                    scores.shape[1], average="none", ignore_index=IGNORED, zero_division=float("nan")
                )
            metric.update(scores.argmax(1).cpu(), labels)
    if metric is None:
        raise ValueError("The data is empty, so it has no IoU.")
    values = metric.compute().double()
    return {"mIoU": float(values.nanmean()), **{f"IoU {number}": float(value) for number, value in enumerate(values)}}


def _scores(output: Any) -> Tensor:
    return output["out"] if isinstance(output, dict) else output
