"""The loop that detectors and segmenters share: a student's own loss plus what a frozen teacher's maps add."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from ...capture.state import modes_restored, random_states_restored
from ..training.accelerator import accelerator_for
from ..training.batches import seed_everything
from ..training.checkpoints import save_weights, write_whole
from ..training.result import DenseResult

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["momentum_sgd", "train_dense"]


Step = Callable[[Any, nn.Module], dict[str, Tensor]]
"""From a batch on the device and the student (wrapped for mixed precision and DDP) to weighted terms."""


def train_dense(
    student: nn.Module,
    train: Dataset[Any],
    step_of: Callable[[Accelerator], Step],
    *,
    extra: nn.Module | None,
    collate: Callable[..., Any] | None,
    prepare: Callable[[Any], None],
    score: Callable[[nn.Module, torch.device], dict[str, float]] | None,
    steps: int,
    batch_size: int,
    learning_rate: float,
    schedule: Callable[[int, int], float],
    optimizer: Callable[..., torch.optim.Optimizer],
    weight_decay: float,
    clip_norm: float | None,
    mixed_precision: str,
    workers: int,
    seed: int,
    output_dir: Path | str | None,
    log_every: int,
    progress: bool,
    accelerator: Accelerator | None,
) -> DenseResult:
    """Trains the student in place; see `distill_detector` for the parameters that it passes on.

    Parameters
    ----------
    student : torch.nn.Module
        What is trained.
    train : Dataset
        Of items that ``collate`` joins to a batch.
    step_of : callable
        Given the accelerator, makes the function from (batch, student) to the weighted terms of one step.
    extra : torch.nn.Module, optional
        The distillation loss, whose own parameters are trained too.
    collate : callable, optional
        Joins items; torch's default when None.
    prepare : callable
        Called once with a batch on the device, before the optimiser is built.
    score : callable, optional
        Called after the last step with the student, in eval mode, and the device.
    **settings
        See `distill_detector`.

    Returns
    -------
    DenseResult
        With the history and the scores.

    Raises
    ------
    ValueError
        If a setting is out of range.
    FloatingPointError
        If the loss is no longer finite.
    """
    for name, value in (("steps", steps), ("batch_size", batch_size), ("log_every", log_every)):
        if value < 1:
            raise ValueError(f"`{name}` must be at least 1, got {value}.")
    if not learning_rate > 0:
        raise ValueError(f"`learning_rate` must be positive, got {learning_rate}.")
    if clip_norm is not None and not clip_norm > 0:
        raise ValueError(f"`clip_norm` must be positive or None, got {clip_norm}.")
    directory = None if output_dir is None else Path(output_dir)
    if directory is not None:
        directory.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        stack.enter_context(random_states_restored())
        stack.enter_context(modes_restored(student))
        accelerator = stack.enter_context(accelerator_for(accelerator, mixed_precision, 1.0))
        main, device = accelerator.is_main_process, accelerator.device
        seed_everything(seed)
        loader = DataLoader(
            train,
            batch_size,
            shuffle=True,
            drop_last=len(train) > batch_size,  # type: ignore[arg-type]
            num_workers=workers,
            collate_fn=collate,
            generator=torch.Generator().manual_seed(seed),
        )
        loss = nn.Module() if extra is None else extra
        student.to(device)
        prepare(on_device(next(iter(loader)), device))
        loss.to(device)
        parameters = [p for p in [*student.parameters(), *loss.parameters()] if p.requires_grad]
        descent = optimizer(parameters, lr=learning_rate, weight_decay=weight_decay)
        model, descent, loader = accelerator.prepare(student, descent, loader)
        step_terms = step_of(accelerator)
        seed_everything(seed, 1, accelerator.process_index)

        student.train()
        loss.train()
        rows: list[dict[str, float]] = []
        sums: dict[str, Tensor] = {}
        started, since = time.perf_counter(), 0
        batches = _endless(loader)
        for step in tqdm(range(steps), disable=not (progress and main), unit="step"):
            rate = learning_rate * schedule(step, steps)
            for group in descent.param_groups:
                group["lr"] = rate
            terms = step_terms(on_device(next(batches), device), model)
            accelerator.backward(torch.stack(list(terms.values())).sum())
            if clip_norm is not None:
                accelerator.clip_grad_norm_(parameters, clip_norm)
            descent.step()
            descent.zero_grad()
            since += 1
            for name, term in terms.items():
                sums[name] = sums.get(name, torch.zeros((), device=device)) + term.detach()
            if since == log_every or step == steps - 1:
                means = {name: float(value) / since for name, value in sums.items()}
                row = {"step": step + 1, "loss": sum(means.values()), **means}
                if not math.isfinite(row["loss"]):
                    raise FloatingPointError(
                        f"The training loss is {row['loss']} at step {step + 1} ({means}). Lower the learning rate, or "
                        "set clip_norm."
                    )
                rows.append({**row, "lr": rate, "seconds": time.perf_counter() - started})
                sums, since = {}, 0
        scores: dict[str, float] = {}
        if score is not None:
            student.eval()
            scores = score(student, device)
        history = pd.DataFrame(rows)
        if directory is not None and main:
            save_weights(student, directory / "last.safetensors", {"seed": seed, "steps": steps, **scores})
            write_whole(directory / "history.csv", _csv(history))
            write_whole(directory / "scores.csv", _csv(pd.DataFrame([scores])))
    return DenseResult(history, student, scores, output_dir=directory)


def on_device(value: Any, device: torch.device) -> Any:
    """Tensors in lists, tuples and dicts moved to the device."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, dict):
        return {key: on_device(entry, device) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(on_device(entry, device) for entry in value)
    return value


def _endless(loader: DataLoader[Any]) -> Iterator[Any]:
    while True:
        yield from loader


def _csv(table: pd.DataFrame) -> str:
    stream = io.StringIO()
    table.to_csv(stream, index=False)
    return stream.getvalue()


momentum_sgd = partial(torch.optim.SGD, momentum=0.9)
"""The optimiser of the detectors' and segmenters' recipes."""
