"""The distillation run: a frozen teacher, a student with taps, one loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchmetrics.classification import MulticlassAccuracy
from tqdm.auto import tqdm

from .batches import Batch, seed_everything, split_batch, test_loader, training_batches
from .checkpoints import save_weights, write_whole
from .restoring import frozen, modes_restored, random_states_restored
from .result import DistillationResult
from .schedules import StepDecay
from .steps import accumulated_gradient, exact_gradient, weighted_terms
from .taps import TappedModel

__all__ = ["distill"]


def distill(
    teacher: nn.Module | None,
    student: nn.Module,
    train: Dataset[Any] | DataLoader[Any],
    test: Dataset[Any] | DataLoader[Any],
    loss: nn.Module | Callable[..., Any] | None = None,
    *,
    student_layers: Sequence[str] = (),
    teacher_layers: Sequence[str] | None = None,
    epochs: int = 240,
    batch_size: int | None = None,
    learning_rate: float = 0.05,
    schedule: Callable[[int, int], float] = StepDecay(),  # noqa: B008 - frozen, so one for all calls does no harm
    optimizer: Callable[..., torch.optim.Optimizer] = partial(torch.optim.SGD, momentum=0.9),  # noqa: B008
    weight_decay: float = 5e-4,
    ce_weight: float = 1.0,
    accumulation_steps: int = 1,
    accumulation: str = "exact",
    mixed_precision: str = "no",
    workers: int = 0,
    seed: int = 0,
    output_dir: Path | str | None = None,
    progress: bool = True,
    accelerator: Accelerator | None = None,
) -> DistillationResult:
    """The history and weights of a student trained on labels and on what a frozen teacher makes of the same samples.

    The student is trained in place, by SGD on cross-entropy plus the terms of `loss`. The teacher stays in eval mode,
    so that its batch-norm statistics do not move. Hooks, modes, gradient flags and random states are afterwards as
    before, also after an exception or Ctrl-C.

    Parameters
    ----------
    teacher : torch.nn.Module or None
        None trains with the labels alone; teachers are trained so.
    student : torch.nn.Module
        Any classifier with logits of shape (B, classes).
    train, test : Dataset or DataLoader
        Of (input, label), or loaders of dicts with "labels". Data sets are loaded with seeded order and augmentation.
    loss : torch.nn.Module, callable or None
        ``loss(student_logits, teacher_logits, student_features, teacher_features, target)``; its weighted ``terms``,
        where it has them, are recorded one by one. None trains with the labels alone.
    student_layers, teacher_layers : sequence of str
        Layer paths whose activations the loss compares, pair by pair. `teacher_layers` defaults to `student_layers`.
    epochs : int
        Passes over `train`.
    batch_size : int, optional
        Samples for each step of the optimiser, over all processes (64 when None). Not with DataLoaders.
    learning_rate : float
        At the start; `schedule` multiplies it.
    schedule : callable
        ``schedule(epoch, epochs)`` gives the factor of an epoch: `StepDecay` or `CosineDecay`.
    optimizer : callable
        Called as ``optimizer(parameters, lr=..., weight_decay=...)``; SGD with momentum 0.9 by default.
    weight_decay : float
        Of all parameters.
    ce_weight : float
        Weight of the cross-entropy with the labels.
    accumulation_steps : int
        Each batch is computed in that many microbatches, to save memory.
    accumulation : {"exact", "mean"}
        "exact": the loss of the whole batch, at the price of one more forward pass (for losses that relate samples, CKA
        among them); "mean": the mean of the microbatches' losses.
    mixed_precision : {"no", "bf16", "fp16"}
        For the networks; losses see float32.
    workers : int
        Processes that load data sets.
    seed : int
        The same seed gives the same weights bit for bit on a CPU, whatever the number of workers.
    output_dir : path, optional
        Receives ``best.safetensors``, ``last.safetensors`` and ``history.csv``.
    progress : bool
        Whether a progress bar is shown.
    accelerator : accelerate.Accelerator, optional
        Your own, with DDP or a device of your choice; it brings its own mixed precision.

    Returns
    -------
    DistillationResult
        Accuracies are fractions in [0, 1].

    Raises
    ------
    TypeError
        If a data argument, a batch or a layer list is of the wrong kind.
    ValueError
        If an argument is out of range, a layer does not exist, batches are too small, or the class counts do not fit.
    FloatingPointError
        If the training loss is no longer finite.

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
    teacher_layers = student_layers if teacher_layers is None else teacher_layers
    _check(teacher, student, loss, student_layers, teacher_layers, epochs, learning_rate, ce_weight)
    _check_accumulation(accumulation_steps, accumulation)
    directory = None if output_dir is None else Path(output_dir)

    with ExitStack() as stack:
        stack.enter_context(random_states_restored())
        stack.enter_context(modes_restored(student))
        stack.enter_context(frozen(teacher))
        accelerator = stack.enter_context(_accelerator(accelerator, mixed_precision, ce_weight))
        main = accelerator.is_main_process
        device = accelerator.device

        seed_everything(seed)
        batches = training_batches(train, batch_size=batch_size, seed=seed, workers=workers, accelerator=accelerator)
        tests = test_loader(test, batch_size=batch_size, workers=workers, accelerator=accelerator)
        pupil = stack.enter_context(TappedModel(student, student_layers, "student")).to(device)
        master = None
        if teacher is not None and loss is not None:
            master = stack.enter_context(TappedModel(teacher, teacher_layers, "teacher")).to(device)

        def teach(batch: Batch) -> Any:
            if master is None:
                return None
            with torch.no_grad(), accelerator.autocast():
                logits, features = master(batch.inputs)
            return logits.float(), [feature.float() for feature in features]

        terms_of = partial(weighted_terms, loss, ce_weight)
        classes = _prepare(pupil, teach, loss, terms_of, batches.sample(), accelerator)
        extra = loss if isinstance(loss, nn.Module) else nn.Module()
        parameters = [p for p in [*student.parameters(), *extra.parameters()] if p.requires_grad]
        descent = optimizer(parameters, lr=learning_rate, weight_decay=weight_decay)
        model, descent = accelerator.prepare(pupil, descent)
        gradient = accumulated_gradient if accumulation == "mean" or loss is None else exact_gradient

        rows: list[dict[str, float]] = []
        best: dict[str, Tensor] = {}
        bar = stack.enter_context(tqdm(total=epochs * len(batches), disable=not (progress and main), unit="step"))
        for epoch in range(epochs):
            started = time.perf_counter()
            seed_everything(seed, epoch, accelerator.process_index)
            rate = learning_rate * schedule(epoch, epochs)
            for group in descent.param_groups:
                group["lr"] = rate
            bar.set_description(f"epoch {epoch + 1}/{epochs}")
            pupil.train()
            extra.train()
            sums = torch.zeros(2, dtype=torch.float64, device=device)  # samples, right answers
            term_sums: dict[str, Tensor] = {}
            for batch in batches.of_epoch(epoch):
                logits, terms = gradient(accelerator, model, teach, terms_of, batch, accumulation_steps)
                _average_gradients(accelerator, extra)
                descent.step()
                descent.zero_grad()

                sums += torch.stack([sums.new_tensor(len(batch)), (logits.argmax(1) == batch.target).sum()])
                for name, term in terms.items():
                    term_sums[name] = term_sums.get(name, 0) + term.double() * len(batch)
                bar.update()

            totals = accelerator.reduce(torch.cat([sums, torch.stack(list(term_sums.values()))])).tolist()
            means = dict(zip(term_sums, (total / totals[0] for total in totals[2:]), strict=True))
            row = {
                "epoch": epoch + 1,
                "train_loss": sum(means.values()),
                **means,
                "train_accuracy": totals[1] / totals[0],
            }
            if not torch.tensor(row["train_loss"]).isfinite():
                raise FloatingPointError(
                    f"The training loss is {row['train_loss']} in epoch {epoch + 1} ({means}). "
                    "Lower the learning rate or the weight of the term that is not finite."
                )
            row["test_accuracy"] = accuracy(pupil, tests, classes, accelerator)
            row |= {"lr": rate, "seconds": time.perf_counter() - started}
            improved = not rows or row["test_accuracy"] > max(r["test_accuracy"] for r in rows)
            rows.append(row)
            bar.set_postfix(loss=f"{row['train_loss']:.3f}", test=f"{row['test_accuracy']:.2%}")

            if improved:
                best = {name: tensor.detach().cpu().clone() for name, tensor in student.state_dict().items()}
            if directory is not None and main:
                directory.mkdir(parents=True, exist_ok=True)
                facts = {"epoch": epoch + 1, "test_accuracy": row["test_accuracy"], "seed": seed}
                if improved:
                    save_weights(best, directory / "best.safetensors", facts)
                save_weights(student, directory / "last.safetensors", facts)
                write_whole(directory / "history.csv", pd.DataFrame(rows).to_csv(index=False))

        return DistillationResult(
            history=pd.DataFrame(rows), student=student, best_state=best, notes=batches.notes, output_dir=directory
        )


def accuracy(model: TappedModel, loader: DataLoader[Any], classes: int, accelerator: Accelerator) -> float:
    """The fraction of right answers over a loader, in eval mode, over all processes; in [0, 1]."""
    metric = MulticlassAccuracy(classes, average="micro", validate_args=False, sync_on_compute=False)
    metric = metric.to(accelerator.device)
    model.eval()
    if accelerator.num_processes > 1:  # every process judges its part of the data by the same batch-norm statistics
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, src=0)
    with torch.no_grad(), accelerator.autocast():
        for batch in loader:
            inputs, target = split_batch(batch)
            predicted = model(inputs)[0].argmax(1)
            metric.update(*accelerator.gather_for_metrics((predicted, target)))
    return float(metric.compute())


@contextmanager
def _accelerator(given: Accelerator | None, mixed_precision: str, ce_weight: float) -> Iterator[Accelerator]:
    """The caller's accelerator, or one of our own that leaves no settings behind in accelerate's global state."""
    if given is not None:
        if mixed_precision not in ("no", given.mixed_precision):
            raise ValueError(
                f"mixed_precision={mixed_precision!r}, but the accelerator that you pass has "
                f"{given.mixed_precision!r}. Set it there."
            )
        yield given
        return
    if mixed_precision not in ("no", "bf16", "fp16"):
        raise ValueError(f'mixed_precision must be "no", "bf16" or "fp16", got {mixed_precision!r}.')
    alone = not AcceleratorState._shared_state
    # Without cross-entropy a feature loss may leave the classifier without a gradient, which DDP must be told.
    unused = DistributedDataParallelKwargs(find_unused_parameters=ce_weight == 0)
    accelerator = Accelerator(mixed_precision=mixed_precision, kwargs_handlers=[unused])
    try:
        yield accelerator
    finally:
        accelerator.free_memory()
        if alone:
            AcceleratorState._reset_state()


def _check(
    teacher: nn.Module | None,
    student: nn.Module,
    loss: Any,
    student_layers: Sequence[str],
    teacher_layers: Sequence[str],
    epochs: int,
    learning_rate: float,
    ce_weight: float,
) -> None:
    for name, model in (("teacher", teacher), ("student", student)):
        if not isinstance(model, nn.Module) and not (name == "teacher" and model is None):
            raise TypeError(f"{name} must be a torch.nn.Module, got {type(model).__name__}.")
    if teacher is not None and {id(p) for p in teacher.parameters()} & {id(p) for p in student.parameters()}:
        raise ValueError(
            "teacher and student share parameters; the teacher is frozen, so give the student its own copy."
        )
    if loss is not None and not callable(loss):
        raise TypeError(f"loss must be a module, a function or None, got {type(loss).__name__}.")
    if loss is not None and teacher is None:
        raise ValueError(
            "loss compares the student with a teacher, but teacher is None. Pass loss=None to train alone."
        )
    if loss is None and ce_weight == 0:
        raise ValueError("There is nothing to minimise: loss is None and ce_weight is 0.")
    if len(student_layers) != len(teacher_layers):
        raise ValueError(
            f"student_layers and teacher_layers are compared pair by pair, got {len(student_layers)} and "
            f"{len(teacher_layers)} layers."
        )
    if epochs < 1:
        raise ValueError(f"epochs must be at least 1, got {epochs}.")
    if not learning_rate > 0:
        raise ValueError(f"learning_rate must be positive, got {learning_rate}.")


def _check_accumulation(steps: int, accumulation: str) -> None:
    if steps < 1:
        raise ValueError(f"accumulation_steps must be at least 1, got {steps}.")
    if accumulation not in ("exact", "mean"):
        raise ValueError(f'accumulation must be "exact" or "mean", got {accumulation!r}.')


def _prepare(
    pupil: TappedModel,
    teach: Callable[[Batch], Any],
    loss: Any,
    terms_of: Callable[..., dict[str, Tensor]],
    sample: Batch,
    accelerator: Accelerator,
) -> int:
    """The number of classes, after a sample batch has shown that both networks, labels and loss fit together."""
    pupil.eval()
    with torch.no_grad(), accelerator.autocast():
        logits, features = pupil(sample.inputs)
    logits, features = logits.float(), [feature.float() for feature in features]
    taught = teach(sample)
    classes = logits.shape[-1]
    largest = int(sample.target.max())
    if largest >= classes:
        raise ValueError(f"train has the label {largest}, but the student has {classes} classes (0 to {classes - 1}).")
    if taught is None:
        return classes
    if hasattr(loss, "prepare"):
        loss.prepare(features, taught[1])
    if isinstance(loss, nn.Module):
        loss.to(accelerator.device)
    try:
        with torch.no_grad():
            terms_of((logits, features), taught, sample.target)
    except Exception as error:
        # A loss on features alone may well join networks of different classes; so the loss itself is asked.
        if taught[0].shape[-1] != classes:
            raise ValueError(
                f"The teacher has {taught[0].shape[-1]} classes and the student {classes}; this loss compares their "
                "logits. Give both the same classes."
            ) from error
        raise
    return classes


def _average_gradients(accelerator: Accelerator, loss: nn.Module) -> None:
    """What DDP does for the student, for a loss with parameters of its own."""
    if accelerator.num_processes > 1:
        for parameter in loss.parameters():
            if parameter.grad is not None:
                parameter.grad = accelerator.reduce(parameter.grad, reduction="mean")
