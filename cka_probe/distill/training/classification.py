"""Train a classifier on labels and on a frozen teacher: `distill`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ...capture.extras import require
from .diagnostics import Diagnostics
from .evaluation import Evaluation
from .model_card import save_card
from .preparation import check_arguments
from .result import DistillationResult
from .schedules import StepDecay
from .settings import Settings
from .student_loop import train_student

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torchmetrics import Metric

__all__ = ["distill"]


def distill(
    teacher: nn.Module | Sequence[nn.Module] | None,
    student: nn.Module,
    train: Dataset[Any] | DataLoader[Any],
    test: Dataset[Any] | DataLoader[Any] | None,
    loss: nn.Module | Callable[..., Any] | None = None,
    *,
    student_layers: Sequence[str] | str = "auto",
    teacher_layers: Sequence[str] | str | None = None,
    epochs: int = 240,
    batch_size: int | None = None,
    learning_rate: float = 0.05,
    schedule: Callable[..., Any] = StepDecay(),  # noqa: B008 - frozen: all calls may share it
    optimizer: Callable[..., torch.optim.Optimizer] = partial(torch.optim.SGD, momentum=0.9),  # noqa: B008
    weight_decay: float = 5e-4,
    clip_norm: float | None = None,
    ema: float | None = None,
    supervision: Callable[[Tensor, Tensor], Tensor] | str | None = "cross_entropy",
    ce_weight: float = 1.0,
    metric: Metric | None = None,
    forward: Callable[[nn.Module, Any], Any] | Mapping[str, Callable[[nn.Module, Any], Any]] | None = None,
    max_steps: int | None = None,
    evaluation: Evaluation = Evaluation(),  # noqa: B008
    seed: int = 0,
    output_dir: Path | str | None = None,
    resume: bool = True,
    accumulation_steps: int = 1,
    accumulation: str = "exact",
    mixed_precision: str = "no",
    sync_batchnorm: bool = False,
    channels_last: bool = False,
    compile: bool = False,
    workers: int = 0,
    checkpoint_steps: int | None = None,
    log_with: Any = None,
    callbacks: Sequence[Any] = (),
    teacher_cache: Path | str | None = None,
    files: Mapping[str, str] | None = None,
    diagnostics: Diagnostics | None = None,
    progress: bool | str = True,
    accelerator: Accelerator | None = None,
) -> DistillationResult:
    """Train ``student`` on targets and on a frozen teacher's outputs; return its history and weights.

    The student is trained in place, by SGD on cross-entropy, or another supervision, plus the terms of `loss`. The
    teacher stays in eval mode, so that its batch-norm statistics do not change. Hooks, modes, gradient flags and random
    states are restored at the end, also after an exception or Ctrl-C.

    A run with an `output_dir` saves a checkpoint after every epoch. A run that was killed resumes from there when it is
    called again with the same arguments. On a CPU it ends with the same weights, bit for bit.

    Under `accelerate launch` or torchrun every process trains on its part of each batch. The losses of this package
    gather the whole batch, so that the result is that of one process; with batch norm if `sync_batchnorm` is True.

    Parameters
    ----------
    teacher : torch.nn.Module, list of them or None
        None trains on the targets alone, as a teacher is trained. Of several teachers, the loss sees the mean of the
        logits and the features of all.
    student : torch.nn.Module
        Any network whose output is a tensor, or has ``logits``.
    train, test : Dataset or DataLoader
        Samples (input, target), (input, target, index), or dicts with "labels", which are passed to the networks as
        keywords. Without targets (``supervision=None``) the inputs alone. Data sets are loaded with seeded order and
        augmentation. If your own loader has a generator, it is reseeded. Without `test` (None) nothing is scored, and
        the best weights are the last.
    loss : torch.nn.Module, callable or None
        ``loss(student, teacher, target)`` of the `Outputs` of both networks. If it has a method ``terms``, its weighted
        terms are recorded one by one. None trains on the labels alone.
    student_layers, teacher_layers : sequence of str, or "auto"
        Layer paths whose activations the loss compares, pair by pair; `teacher_layers` defaults to `student_layers`.
        "auto" matches the stages of the two networks if the loss needs features. For several teachers,
        `teacher_layers` may be a list of lists.
    epochs : int
        Passes over `train`.
    batch_size : int, optional
        Samples for each step of the optimiser, over all processes (64 if None). Not with DataLoaders.
    learning_rate : float
        At the start; `schedule` multiplies it, and the rate of each parameter group that the optimiser makes.
    schedule : callable
        ``schedule(epoch, epochs)`` returns the factor of an epoch: `StepDecay` or `CosineDecay`, with a warm-up if you
        like. It may also be a function of the optimiser that returns any LRScheduler of torch, which is advanced after
        each epoch; `ReduceLROnPlateau` gets the main score. Inside `PerStep` both count steps.
    optimizer : callable
        Called as ``optimizer(parameters, lr=..., weight_decay=...)``; SGD with momentum 0.9 by default.
    weight_decay : float
        Weight decay of all parameters.
    clip_norm : float, optional
        Largest norm of the gradient; a larger gradient is scaled down.
    ema : float, optional
        Decay of a moving average of the student's weights and running statistics, for example 0.999. The average is
        then what is scored and saved, and what the student holds after the last step.
    supervision : callable, "cross_entropy" or None
        ``supervision(output, target)`` returns the loss of the student on the targets, a scalar: any loss of torch or
        of your own, such as ``CrossEntropyLoss(label_smoothing=0.1)``, ``BCEWithLogitsLoss()`` or ``MSELoss()``.
        Cross-entropy takes class numbers (B,), probabilities (B, classes) as mixup gives them, tokens (B, T) beside an
        output (B, T, classes), where -100 does not count, and label maps; for a causal language model of transformers
        it compares each token with the prediction from those before. None: there are no targets.
    ce_weight : float
        Weight of the supervision.
    metric : torchmetrics.Metric, optional
        Main score, which chooses the best epoch by its ``higher_is_better``. By default the accuracy if the targets are
        classes, else the supervision on the test data ("test_loss", lower is better).
    forward : callable, or dict of callables for "student" and "teacher", optional
        ``forward(model, inputs)`` returns the output, where a network is not called as ``model(inputs)``. With a dict
        the two networks may take different parts of the inputs.
    max_steps : int, optional
        Number of steps of the run, in place of `epochs`; the data are read as often as needed. Loaders without length
        need it. The schedule counts steps then.
    evaluation : Evaluation
        When the student is scored, after how many scores without improvement the run stops, and further columns, such
        as top-5 and the test loss. By default it is scored after each epoch.
    seed : int
        The same seed gives the same weights, bit for bit on a CPU, with any number of workers.
    output_dir : path, optional
        Folder for best.safetensors, last.safetensors, history.csv, settings.json, the checkpoints and, at the end, the
        model card student.md. `load_student` reads it.
    resume : bool
        Whether to resume from a checkpoint in `output_dir`; False starts again.

    Other Parameters
    ----------------
    accumulation_steps : int
        Number of microbatches that each batch is divided into, to save memory.
    accumulation : {"exact", "mean"}
        "exact": the loss of the whole batch, for one more forward pass (for losses that relate samples, such as CKA);
        "mean": the mean of the losses of the microbatches.
    mixed_precision : {"no", "bf16", "fp16"}
        For the networks; losses see float32. "fp16" needs a GPU.
    sync_batchnorm : bool
        Whether batch norm uses the samples of all processes. Several processes need it to equal one; only on GPUs.
    channels_last : bool
        Whether filters and images have their channels last in memory during the run, which is often faster.
    compile : bool
        Whether both networks run under ``torch.compile(network, dynamic=False)``. Networks that you have compiled
        yourself, with other options, may be passed too. Files have the names of the uncompiled network.
    workers : int
        Processes that load data sets.
    checkpoint_steps : int, optional
        Number of steps after which a checkpoint is also saved within an epoch.
    log_with : str, GeneralTracker or list of them, optional
        Trackers of accelerate that get the rows of the history: "tensorboard" (in ``output_dir/tensorboard``), "wandb",
        ... Trackers that your own `accelerator` has started get them too.
    callbacks : list of objects
        With methods ``on_step(moment)``, called after each step, or ``on_epoch(moment)``, called after each row of the
        history; see `Moment`. If one returns True, the run ends after that step and can be resumed. With several
        processes it must do so in all of them.
    teacher_cache : path, optional
        Folder for the teacher's outputs, which are computed once. For data sets without augmentation.
    files : mapping of str to str, optional
        Further text files of the run by name, for example its recipe. They are written into `output_dir` once the run
        is known to be new, or to be the one that is resumed.
    diagnostics : Diagnostics, optional
        When to measure teacher-student CKA and the agreement of the loss terms.
    progress : bool or str
        Whether a progress bar is shown; a text is its name, such as "rcka, seed 0".
    accelerator : accelerate.Accelerator, optional
        Your own, with a device or DDP options of your choice. It decides the mixed precision.

    Returns
    -------
    DistillationResult
        Accuracies are fractions in [0, 1].

    Raises
    ------
    TypeError
        If a data argument, a batch, a list of layers, the schedule, a callback or a tracker has the wrong type, or the
        loss takes other arguments.
    ValueError
        If an argument is out of range, a layer does not exist, batches are too small, the targets do not fit the output
        or the supervision, the numbers of classes differ, or `output_dir` holds a run with other settings.
    FloatingPointError
        If the training loss is no longer finite.
    ModuleNotFoundError
        If accelerate, torchmetrics or the library of a tracker is not installed.
    CheckpointError
        If no checkpoint in `output_dir` can be read.
    OSError
        If a file cannot be written. The last good checkpoint is intact.
    RuntimeError
        If another process of the run has ended, or does not answer for 15 minutes.

    References
    ----------
    Zhou et al., Rethinking Centered Kernel Alignment in Knowledge Distillation, IJCAI 2024, equations 12 to 14.

    Examples
    --------
    >>> import torch
    >>> from torch.utils.data import TensorDataset
    >>> data = TensorDataset(torch.randn(32, 4), torch.arange(32) % 2)
    >>> result = distill(None, torch.nn.Linear(4, 2), data, data, epochs=2, batch_size=8, progress=False)
    >>> result.history.columns.tolist()
    ['epoch', 'train_loss', 'cross_entropy', 'train_accuracy', 'test_accuracy', 'lr', 'seconds']
    """
    for library in ("accelerate", "torchmetrics"):
        require(library, "distill", "distill()")
    settings = Settings(
        student_layers=student_layers,
        teacher_layers=teacher_layers,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        schedule=schedule,
        optimizer=optimizer,
        weight_decay=weight_decay,
        clip_norm=clip_norm,
        ema=ema,
        supervision=supervision,
        ce_weight=ce_weight,
        metric=metric,
        forward=forward,
        max_steps=max_steps,
        evaluation=evaluation,
        seed=seed,
        output_dir=output_dir,
        resume=resume,
        accumulation_steps=accumulation_steps,
        accumulation=accumulation,
        mixed_precision=mixed_precision,
        sync_batchnorm=sync_batchnorm,
        channels_last=channels_last,
        compile=compile,
        workers=workers,
        checkpoint_steps=checkpoint_steps,
        log_with=log_with,
        callbacks=callbacks,
        teacher_cache=teacher_cache,
        files=files,
        diagnostics=diagnostics,
        progress=progress,
        accelerator=accelerator,
    )
    teachers: list[Any] = [] if teacher is None else list(teacher) if isinstance(teacher, list | tuple) else [teacher]
    check_arguments(teachers, student, loss, settings)
    result = train_student(teachers, student, train, test, loss, settings)
    save_card(result, teachers, student, train, test)
    return result
