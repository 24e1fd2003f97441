"""Training loop of detectors and segmenters: the student's own loss plus the terms of a distillation loss."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from math import inf, isfinite, nan
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ...capture.allocator import memory_kept
from ...capture.state import modes_restored, random_states, random_states_restored, set_random_states
from ...identity import identity, weights_digest
from ...progress_bar import tqdm
from ..training.accelerator import accelerator_for
from ..training.averaging import WeightAverage
from ..training.learning_rates import LearningRates
from ..training.result import DenseResult
from ..training.run_files import RunFiles
from ..training.run_identity import (
    check_processes_agree,
    identity_at_start,
    networks_identity,
    samples_of,
    weights_at_start,
)
from ..training.run_state import RunState, checked_total
from ..training.seeding import seed_everything
from ..training.seen_data import check_same_data
from ..training.steps import average_gradients, same_buffers
from .batches import PictureBatches, WatchedPictures
from .data import collate_lists
from .settings import DenseSettings

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["DenseTask", "train_dense"]


@dataclass(frozen=True, kw_only=True)
class DenseTask:
    """The parts of a run that differ between detectors and segmenters.

    Parameters
    ----------
    teacher : torch.nn.Module or None
        The frozen teacher.
    student : torch.nn.Module
        The network that is trained in place.
    train : Dataset
        Its items are joined by ``collate``.
    loss : torch.nn.Module or None
        The distillation loss. Its own parameters are trained too.
    layers : dict
        Names of the compared layers: a run with other layers is refused.
    prepare : callable
        Called once with a batch, before the optimiser is built.
    terms : callable
        ``terms(batch, model, accelerator)`` returns the weighted terms of one step; ``model`` is the student, wrapped
        for mixed precision and DDP.
    collate : callable, optional
        Joins items into a batch; torch's default if None.
    test : Dataset, optional
        Without it nothing is scored.
    score : callable
        ``score(student, test, device)`` returns the scores.
    main_score : str
        Name of the score that decides which step is best; higher is better.
    """

    teacher: nn.Module | None
    student: nn.Module
    train: Dataset[Any]
    loss: nn.Module | None
    layers: dict[str, Any]
    prepare: Callable[[Any], None]
    terms: Callable[[Any, nn.Module, Accelerator], dict[str, Tensor]]
    score: Callable[[nn.Module, Dataset[Any], torch.device], dict[str, float]]
    main_score: str
    collate: Callable[[list[Any]], Any] | None = None
    test: Dataset[Any] | None = None


def train_dense(task: DenseTask, given: DenseSettings) -> DenseResult:
    """Train the student of ``task``; write and resume the run as `distill` does.

    Parameters
    ----------
    task : DenseTask
        Networks, data, and the functions that differ between detectors and segmenters.
    given : DenseSettings
        Settings of the run.

    Returns
    -------
    DenseResult
        The history and the scores.

    Raises
    ------
    ValueError
        If the output directory holds a run with other settings or data, there are fewer pictures than processes, or
        `score_every` is given without test data.
    CheckpointError
        If no checkpoint in the output directory can be read.
    FloatingPointError
        If the loss is no longer finite.
    """
    from accelerate.utils import gather_object

    student, steps, main_column = task.student, given.steps, f"test_{task.main_score}"
    if given.score_every is not None and task.test is None:
        raise ValueError("`score_every` scores on the test data, but `test` is None. Give test data, or leave it out.")
    with ExitStack() as stack:
        stack.enter_context(random_states_restored())
        stack.enter_context(modes_restored(student))
        accelerator = stack.enter_context(accelerator_for(given.accelerator, given.mixed_precision, 1.0))
        main, device = accelerator.is_main_process, accelerator.device

        # The data, the student and the loss.
        seed_everything(given.seed)
        batches = PictureBatches(task.train, task.collate, given, accelerator)
        networks = networks_identity(task.teacher, student, given.output_dir, given.resume)
        loss = nn.Module() if task.loss is None else task.loss
        for network in filter(None, (task.teacher, student)):
            network.to(device)
        stack.enter_context(memory_kept([student]))
        task.prepare(batches.sample())
        loss.to(device)

        # The optimiser, and the state of an earlier process.
        parameters = [p for p in [*student.parameters(), *loss.parameters()] if p.requires_grad]
        descent = given.optimizer(parameters, lr=given.learning_rate, weight_decay=given.weight_decay)
        rates = LearningRates(
            given.schedule, descent, given.learning_rate,
            unit="step", higher_is_better=None if task.test is None or given.score_every is None else True,
        )  # fmt: skip
        rates.check_length(0, steps)
        average = None if given.ema is None else WeightAverage(student, given.ema)
        scored = student if average is None else average.network
        model, descent = accelerator.prepare(student, descent)
        settings = {
            "steps": steps,
            "batch_size": given.batch_size,
            "steps_per_epoch": len(batches),
            "learning_rate": given.learning_rate,
            "schedule": identity(given.schedule),
            "optimizer": identity(given.optimizer),
            "weight_decay": given.weight_decay,
            "clip_norm": given.clip_norm,
            "ema": given.ema,
            "loss": identity_at_start(task.loss, given.output_dir, given.resume),
            "layers": task.layers,
            **networks,
            "teacher_weights": weights_digest(task.teacher),
            "student_weights": weights_at_start(student, given.output_dir, given.resume),
            "mixed_precision": accelerator.mixed_precision,
            "processes": accelerator.num_processes,
            "log_every": given.log_every,
            "score_every": given.score_every,
            "train_samples": batches.count,
            "test_samples": samples_of(task.test),
            "seed": given.seed,
        }
        check_processes_agree(settings)
        files = RunFiles(
            given.output_dir, settings, resume=given.resume, main=main, length="steps",
            extend=lambda before, now, saved: rates.extension_refused(
                (0, 0), (before, now), 0, saved["epoch"] * len(batches) + saved["step"]
            ),
        )  # fmt: skip
        run = RunState(files.state, accelerator.process_index)
        run.parts = {"rates": rates} | ({} if average is None else {"average": average})
        if files.state is not None:
            seed_everything(given.seed, 0, accelerator.process_index)  # as at the start of the epoch that is read again
            check_same_data("train", run.saved_seen["train"], batches.of_epoch(0), given.output_dir)
            if task.test is not None:
                seed_everything(given.seed, 0, accelerator.process_index)  # as before the test data was scored
                tests = DataLoader(task.test, 1, collate_fn=collate_lists)
                check_same_data("test", run.saved_seen["test"], tests, given.output_dir)
            run.load(student, loss, descent, accelerator)
        best: dict[str, Tensor] = {}
        if any(isfinite(row.get(main_column, nan)) for row in run.rows):
            best = files.best_state()
        files.open()
        descent.zero_grad()  # a run that was stopped in a step has left gradients on the caller's student

        done = run.epoch * len(batches) + run.step
        started = time.perf_counter() - run.seconds

        def save_checkpoint() -> None:
            # At the start of an epoch, the seed decides the random states.
            run.random = gather_object([random_states()]) if run.step else None
            run.seconds = time.perf_counter() - started
            files.save_checkpoint(run.state(student, loss, descent, accelerator))

        def due(done: int) -> bool:
            """Whether the test data is scored after this number of steps."""
            between = given.score_every is not None and done % given.score_every == 0
            return task.test is not None and done > 0 and (between or done == steps)

        def evaluate() -> None:
            """Score the student on the test data, add the scores to the last row, and save the weights."""
            nonlocal best
            assert task.test is not None
            new = not run.seen["test"].samples
            with random_states_restored():
                seed_everything(given.seed, 0, accelerator.process_index)
                same_buffers(scored, accelerator)
                data = WatchedPictures(task.test, run.seen["test"]) if new else task.test
                run.scores = task.score(scored, data, device)
            before = [row[main_column] for row in run.rows if isfinite(row.get(main_column, nan))]
            run.rows[-1] |= {f"test_{name}": value for name, value in run.scores.items()}
            rates.evaluated(run.scores[task.main_score])
            facts = {"seed": given.seed, "steps": run.rows[-1]["step"], **run.scores}
            if run.scores[task.main_score] > max(before, default=-inf):
                best = {name: tensor.detach().cpu().clone() for name, tensor in scored.state_dict().items()}
                files.save_weights("best", best, facts)
            files.save_weights("last", scored.state_dict(), facts)
            files.save_table("history", run.rows)
            save_checkpoint()

        if due(done) and main_column not in run.rows[-1]:  # an earlier process has stopped while it scored
            if run.random is not None:
                set_random_states(run.random[accelerator.process_index])
            evaluate()
        bar = stack.enter_context(tqdm(total=steps, initial=done, disable=not (given.progress and main), unit="step"))
        student.train()
        loss.train()
        while done < steps:
            seed_everything(given.seed, run.epoch, accelerator.process_index)
            if run.random is not None:
                set_random_states(run.random[accelerator.process_index])
            for batch in batches.of_epoch(run.epoch, first=run.step):
                if run.epoch == 0 and given.output_dir is not None:
                    run.seen["train"].add(batch)
                rates.begin_step(0, 0, done, steps)
                terms = task.terms(batch, model, accelerator)
                accelerator.backward(torch.stack(list(terms.values())).sum())
                average_gradients(accelerator, loss)
                if given.clip_norm is not None:
                    accelerator.clip_grad_norm_(parameters, given.clip_norm)
                descent.step()
                rates.end_step(descent.step_was_skipped)
                descent.zero_grad()
                if average is not None:
                    average.update()
                run.add(terms, 1, device)
                bar.update()
                done += 1
                if run.step == len(batches):
                    run.next_epoch()
                if done % given.log_every == 0 or done == steps or due(done):
                    means = run.means(accelerator)
                    total = checked_total(means, f"at step {done}", "set clip_norm")
                    seconds = time.perf_counter() - started
                    run.add_row({"step": done, "loss": total, **means, "lr": rates.rate, "seconds": seconds})
                    files.save_table("history", run.rows)
                if done == steps:
                    files.save_weights("last", scored.state_dict(), {"seed": given.seed, "steps": steps})
                asked = given.checkpoint_steps is not None and done % given.checkpoint_steps == 0
                if asked or run.step == 0 or done == steps or due(done):
                    save_checkpoint()
                if due(done):
                    evaluate()
                if done == steps:
                    break
        if run.scores:
            files.save_table("scores", [run.scores])
        if average is not None:
            average.give()
        return DenseResult(
            pd.DataFrame(run.rows), student, run.scores, run.notes, files.directory, best, task.main_score
        )
