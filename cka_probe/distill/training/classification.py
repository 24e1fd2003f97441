"""Train a classifier on labels and on a frozen teacher: `distill`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from ...capture.extras import require
from ...capture.state import frozen, modes_restored, random_states, random_states_restored, set_random_states
from ...identity import identity, weights_digest
from ..taps.tapped_model import TappedModel
from .accelerator import accelerator_for
from .batch_norm import synchronised_batch_norm
from .batches import Batch, evaluation_loader, split_batch, training_batches
from .diagnostics import Diagnostics, gradient_cosines, pair_similarities, similarities
from .preparation import check_arguments, choose_layers, fit_together
from .result import DistillationResult
from .run_files import RunFiles
from .run_identity import (
    check_processes_agree,
    extension_refused,
    identity_at_start,
    networks_identity,
    samples_of,
    weights_at_start,
)
from .run_state import RunState, checked_total
from .schedules import StepDecay
from .seeding import seed_everything
from .seen_data import SeenData, check_same_data
from .steps import accumulated_gradient, average_gradients, exact_gradient, same_buffers, weighted_terms
from .teacher_cache import cached_teacher

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["distill"]


def distill(
    teacher: nn.Module | None,
    student: nn.Module,
    train: Dataset[Any] | DataLoader[Any],
    test: Dataset[Any] | DataLoader[Any],
    loss: nn.Module | Callable[..., Any] | None = None,
    *,
    student_layers: Sequence[str] | str = "auto",
    teacher_layers: Sequence[str] | str | None = None,
    epochs: int = 240,
    batch_size: int | None = None,
    learning_rate: float = 0.05,
    schedule: Callable[[int, int], float] = StepDecay(),  # noqa: B008 - frozen: all calls may share it
    optimizer: Callable[..., torch.optim.Optimizer] = partial(torch.optim.SGD, momentum=0.9),  # noqa: B008
    weight_decay: float = 5e-4,
    ce_weight: float = 1.0,
    accumulation_steps: int = 1,
    accumulation: str = "exact",
    mixed_precision: str = "no",
    sync_batchnorm: bool = False,
    workers: int = 0,
    seed: int = 0,
    output_dir: Path | str | None = None,
    resume: bool = True,
    checkpoint_steps: int | None = None,
    tensorboard: bool = False,
    teacher_cache: Path | str | None = None,
    files: Mapping[str, str] | None = None,
    diagnostics: Diagnostics | None = None,
    progress: bool = True,
    accelerator: Accelerator | None = None,
) -> DistillationResult:
    """Train ``student`` on labels and on a frozen teacher's outputs; return its history and weights.

    The student is trained in place, by SGD on cross-entropy plus the terms of `loss`. The teacher stays in eval mode,
    so that its batch-norm statistics do not change. Hooks, modes, gradient flags and random states are restored at the
    end, also after an exception or Ctrl-C.

    A run with an `output_dir` saves a checkpoint after every epoch. A run that was killed resumes from there when it is
    called again with the same arguments. On a CPU it ends with the same weights, bit for bit.

    Under `accelerate launch` or torchrun every process trains on its part of each batch. The losses of this package
    gather the whole batch, so that the result is that of one process; with batch norm if `sync_batchnorm` is True.

    Parameters
    ----------
    teacher : torch.nn.Module or None
        None trains on the labels alone, as a teacher is trained.
    student : torch.nn.Module
        Any classifier with logits of shape (B, classes).
    train, test : Dataset or DataLoader
        Samples (input, label), or loaders of dicts with "labels". Data sets are loaded with seeded order and
        augmentation. If your own loader has a generator, it is reseeded.
    loss : torch.nn.Module, callable or None
        ``loss(student, teacher, target)`` of the `Outputs` of both networks. If it has a method ``terms``, its weighted
        terms are recorded one by one. None trains on the labels alone.
    student_layers, teacher_layers : sequence of str, or "auto"
        Layer paths whose activations the loss compares, pair by pair; `teacher_layers` defaults to `student_layers`.
        "auto" matches the stages of the two networks if the loss needs features.
    epochs : int
        Passes over `train`.
    batch_size : int, optional
        Samples for each step of the optimiser, over all processes (64 if None). Not with DataLoaders.
    learning_rate : float
        At the start; `schedule` multiplies it, and the rate of each parameter group that the optimiser makes.
    schedule : callable
        ``schedule(epoch, epochs)`` returns the factor of an epoch: `StepDecay` or `CosineDecay`.
    optimizer : callable
        Called as ``optimizer(parameters, lr=..., weight_decay=...)``; SGD with momentum 0.9 by default.
    weight_decay : float
        Weight decay of all parameters.
    ce_weight : float
        Weight of the cross-entropy with the labels.
    accumulation_steps : int
        Number of microbatches that each batch is divided into, to save memory.
    accumulation : {"exact", "mean"}
        "exact": the loss of the whole batch, for one more forward pass (for losses that relate samples, such as CKA);
        "mean": the mean of the losses of the microbatches.
    mixed_precision : {"no", "bf16", "fp16"}
        For the networks; losses see float32.
    sync_batchnorm : bool
        Whether batch norm uses the samples of all processes. Several processes need it to equal one; only on GPUs.
    workers : int
        Processes that load data sets.
    seed : int
        The same seed gives the same weights, bit for bit on a CPU, with any number of workers.
    output_dir : path, optional
        Folder for best.safetensors, last.safetensors, history.csv, settings.json and the checkpoints.
    resume : bool
        Whether to resume from a checkpoint in `output_dir`; False starts again.
    checkpoint_steps : int, optional
        Number of steps after which a checkpoint is also saved within an epoch.
    tensorboard : bool
        Whether the history also goes to ``output_dir/tensorboard``.
    teacher_cache : path, optional
        Folder for the teacher's outputs, which are computed once. For data sets without augmentation.
    files : mapping of str to str, optional
        Further text files of the run by name, for example its recipe. They are written into `output_dir` once the run
        is known to be new, or to be the one that is resumed.
    diagnostics : Diagnostics, optional
        When to measure teacher-student CKA and the agreement of the loss terms.
    progress : bool
        Whether a progress bar is shown.
    accelerator : accelerate.Accelerator, optional
        Your own, with a device or DDP options of your choice. It decides the mixed precision.

    Returns
    -------
    DistillationResult
        Accuracies are fractions in [0, 1].

    Raises
    ------
    TypeError
        If a data argument, a batch or a list of layers has the wrong type, or the loss takes other arguments.
    ValueError
        If an argument is out of range, a layer does not exist, batches are too small, the numbers of classes differ, or
        `output_dir` holds a run with other settings.
    FloatingPointError
        If the training loss is no longer finite.
    ModuleNotFoundError
        If accelerate or torchmetrics is not installed.
    CheckpointError
        If no checkpoint in `output_dir` can be read.
    OSError
        If a file cannot be written. The last good checkpoint is intact.

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
    from accelerate.utils import gather_object

    check_arguments(
        teacher,
        student,
        loss,
        epochs=epochs,
        learning_rate=learning_rate,
        ce_weight=ce_weight,
        accumulation_steps=accumulation_steps,
        accumulation=accumulation,
        diagnostics=diagnostics,
        output_dir=output_dir,
        teacher_cache=teacher_cache,
    )
    with ExitStack() as stack:
        stack.enter_context(random_states_restored())
        stack.enter_context(modes_restored(student))
        stack.enter_context(frozen(teacher))
        accelerator = stack.enter_context(accelerator_for(accelerator, mixed_precision, ce_weight))
        main, device = accelerator.is_main_process, accelerator.device

        # The data, the two networks with their taps, and the loss.
        seed_everything(seed)
        batches = training_batches(train, batch_size=batch_size, seed=seed, workers=workers, accelerator=accelerator)
        tests = evaluation_loader(test, batch_size=batch_size, workers=workers, accelerator=accelerator)
        networks = networks_identity(teacher, student, output_dir, resume)
        sample = batches.sample()
        for network in filter(None, (teacher, student)):
            network.to(device)
        stack.enter_context(synchronised_batch_norm(student, accelerator, sync_batchnorm))
        layers, layers_y = choose_layers(teacher, student, loss, sample, student_layers, teacher_layers)
        pupil = stack.enter_context(TappedModel(student, layers, "student"))
        master = None if teacher is None else stack.enter_context(TappedModel(teacher, layers_y, "teacher"))

        def ask_teacher(batch: Batch) -> Any:
            if master is None or loss is None:
                return None
            with torch.no_grad(), accelerator.autocast():
                return master(batch.inputs).in_float32()

        terms_of = partial(weighted_terms, loss, ce_weight)
        teach: Callable[[Batch], Any] = ask_teacher
        classes = fit_together(pupil, teach, loss, terms_of, sample, accelerator)
        if teacher_cache is not None and master is not None:
            teach = cached_teacher(teacher_cache, master, teach, batches, accelerator, progress and main)

        # The optimiser, and the state of an earlier process.
        extra = loss if isinstance(loss, nn.Module) else nn.Module()
        parameters = [p for p in [*student.parameters(), *extra.parameters()] if p.requires_grad]
        descent = optimizer(parameters, lr=learning_rate, weight_decay=weight_decay)
        rates = [group["lr"] for group in descent.param_groups]  # groups may have rates of their own
        model, descent = accelerator.prepare(pupil, descent)
        gradient = accumulated_gradient if accumulation == "mean" or loss is None else exact_gradient
        settings = {
            "epochs": epochs,
            "batch_size": batch_size,
            "steps_per_epoch": len(batches),
            "learning_rate": learning_rate,
            "schedule": identity(schedule),
            "optimizer": identity(optimizer),
            "weight_decay": weight_decay,
            "loss": identity_at_start(loss, output_dir, resume),
            "ce_weight": ce_weight,
            "student_layers": layers,
            "teacher_layers": layers_y,
            **networks,
            "teacher_weights": weights_digest(teacher),
            "student_weights": weights_at_start(student, output_dir, resume),
            "accumulation": [accumulation_steps, accumulation],
            "mixed_precision": accelerator.mixed_precision,
            "processes": accelerator.num_processes,
            "sync_batchnorm": sync_batchnorm and accelerator.num_processes > 1,
            "diagnostics": identity(diagnostics),
            "teacher_cache": teacher_cache is not None,
            "train_samples": samples_of(train),
            "test_samples": samples_of(test),
            "seed": seed,
        }
        check_processes_agree(settings)
        folder = RunFiles(
            output_dir, settings, resume=resume, main=main, tensorboard=tensorboard,
            extend=lambda before, now, saved: extension_refused(
                schedule, before, now, saved["epoch"] + bool(saved["step"])
            ), texts=files,
        )  # fmt: skip
        run = RunState(folder.state, accelerator.process_index)
        best: dict[str, Tensor] = {}
        if folder.state is not None:
            seed_everything(seed, 0, accelerator.process_index)  # as at the start of the epoch that is read again
            again = ((batch.inputs, batch.target) for batch in batches.of_epoch(0))
            check_same_data("train", run.saved_seen["train"], again, output_dir)
            check_same_data("test", run.saved_seen["test"], map(split_batch, tests), output_dir)
            run.load(student, extra, descent, accelerator)
            best = folder.best_state() if run.rows else {}
        folder.open()
        stack.callback(folder.close)
        descent.zero_grad()  # a run that was stopped in a step has left gradients on the caller's student

        total = epochs * len(batches)
        done = run.epoch * len(batches) + run.step
        bar = stack.enter_context(tqdm(total=total, initial=done, disable=not (progress and main), unit="step"))
        for epoch in range(run.epoch, epochs):
            started = time.perf_counter() - run.seconds
            seed_everything(seed, epoch, accelerator.process_index)
            if run.random is not None:
                set_random_states(run.random[accelerator.process_index])
            factor = schedule(epoch, epochs)
            for group, own_rate in zip(descent.param_groups, rates, strict=True):
                group["lr"] = factor * own_rate
            bar.set_description(f"epoch {epoch + 1}/{epochs}")
            pupil.train()
            extra.train()

            for batch in batches.of_epoch(epoch, first=run.step):
                if epoch == 0 and output_dir is not None:
                    run.seen["train"].add((batch.inputs, batch.target))
                logits, terms = gradient(accelerator, model, teach, terms_of, batch, accumulation_steps)
                average_gradients(accelerator, extra)
                descent.step()
                descent.zero_grad()
                run.add(_sums_of(batch, logits, terms), len(batch), device)
                bar.update()
                if checkpoint_steps and run.step % checkpoint_steps == 0 and run.step < len(batches):
                    run.random = gather_object([random_states()])
                    run.seconds = time.perf_counter() - started
                    folder.save_checkpoint(run.state(student, extra, descent, accelerator))

            means = run.means(accelerator)
            right = means.pop("right")
            total_loss = checked_total(means, f"in epoch {epoch + 1}", "the weight of the term that is not finite")
            row = {"epoch": epoch + 1, "train_loss": total_loss, **means, "train_accuracy": right}
            row["test_accuracy"] = _accuracy(pupil, tests, classes, accelerator, None if run.rows else run.seen["test"])
            row |= {"lr": factor * learning_rate, "seconds": time.perf_counter() - started}
            improved = not run.rows or row["test_accuracy"] > max(before["test_accuracy"] for before in run.rows)
            run.add_row(row)
            run.next_epoch()
            run.seconds = 0.0
            bar.set_postfix(loss=f"{row['train_loss']:.3f}", test=f"{row['test_accuracy']:.2%}")

            if diagnostics is not None and master is not None:
                share = -(-diagnostics.samples // accelerator.num_processes)
                agreement = partial(
                    similarities, master, pupil, tests, share, distributed=accelerator.num_processes > 1
                )
                # A loss of logits taps no layer: the outputs of the networks are compared instead.
                tapped = (layers_y, layers) if layers else ("", "")
                if run.epoch % diagnostics.every == 0 or run.epoch == epochs:
                    matrix = agreement(tapped)
                    pairs = (
                        zip(layers_y, layers, strict=True) if layers else zip(matrix.rows, matrix.columns, strict=True)
                    )
                    run.diagnostics += pair_similarities(run.epoch, matrix, list(pairs))
                    run.diagnostics += gradient_cosines(run.epoch, pupil, teach, terms_of, sample, accelerator)
                if diagnostics.heatmap_every and run.epoch % diagnostics.heatmap_every == 0:
                    chosen = diagnostics.heatmap_layers
                    both = tapped if chosen is None else (chosen, chosen)
                    folder.save_heatmap(agreement(both), run.epoch)

            facts = {"epoch": run.epoch, "test_accuracy": row["test_accuracy"], "seed": seed}
            if improved:
                best = {name: tensor.detach().cpu().clone() for name, tensor in student.state_dict().items()}
                folder.save_weights("best", best, facts)
            folder.save_weights("last", student.state_dict(), facts)
            folder.log_epoch(run.rows, run.diagnostics)
            folder.save_checkpoint(run.state(student, extra, descent, accelerator))

        return DistillationResult(
            history=pd.DataFrame(run.rows),
            student=student,
            best_state=best,
            diagnostics=pd.DataFrame(run.diagnostics),
            notes=(*batches.notes, *run.notes),
            output_dir=folder.directory,
        )


def _accuracy(
    model: TappedModel,
    loader: DataLoader[Any],
    classes: int,
    accelerator: Accelerator,
    seen: SeenData | None = None,
) -> float:
    """Fraction of right answers over a loader, in eval mode, over all processes; in [0, 1].

    The samples are added to ``seen``.
    """
    from torchmetrics.classification import MulticlassAccuracy  # takes seconds to import

    metric = MulticlassAccuracy(classes, average="micro", validate_args=False, sync_on_compute=False)
    metric = metric.to(accelerator.device)
    model.eval()
    same_buffers(model, accelerator)
    with torch.no_grad(), accelerator.autocast():
        for batch in loader:
            inputs, target = split_batch(batch)
            if seen is not None:
                seen.add((inputs, target))
            predicted = model(inputs).logits.argmax(1)
            metric.update(*accelerator.gather_for_metrics((predicted, target)))
    return float(metric.compute())


def _sums_of(batch: Batch, logits: Tensor, terms: dict[str, Tensor]) -> dict[str, Tensor]:
    """Each loss term times the batch size, and the number of right answers."""
    sums = {name: term * len(batch) for name, term in terms.items()}
    return {**sums, "right": (logits.argmax(1) == batch.target).sum()}
