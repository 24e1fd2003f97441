"""The run of `distill`: set up, resume, train, score, and write the files."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ...capture.state import frozen, modes_restored, random_states, random_states_restored, set_random_states
from ...identity import identity, weights_digest
from ..taps.tapped_model import TappedModel
from .accelerator import accelerator_for
from .averaging import WeightAverage
from .batch_norm import synchronised_batch_norm
from .batches import Batch, evaluation_loader, split_batch, training_batches
from .callbacks import Callbacks, Moment
from .compiled import compiled, is_compiled, plain_names, reset_graphs, uncompiled
from .diagnostics import gradient_cosines, measured
from .evaluation import stopped_early
from .learning_rates import LearningRates
from .memory_format import channels_last
from .preparation import choose_layers, fit_together
from .result import DistillationResult
from .run_files import RunFiles
from .run_identity import check_processes_agree, identity_at_start, networks_identity, samples_of, weights_at_start
from .run_state import RunState, checked_total
from .scoring import Scorer
from .seeding import seed_everything
from .seen_data import check_same_data
from .settings import Settings
from .steps import accumulated_gradient, average_gradients, exact_gradient, tell_progress, weighted_terms
from .teacher_cache import cached_teacher
from .trackers import trackers_of, values_of

__all__ = ["train_student"]


def train_student(
    teacher: nn.Module | None,
    student: nn.Module,
    train: Any,
    test: Any,
    loss: nn.Module | Callable[..., Any] | None,
    given: Settings,
) -> DistillationResult:
    """Train ``student`` as `distill` says; write and resume the run.

    Parameters
    ----------
    teacher, student, train, test, loss
        As in `distill`.
    given : Settings
        The options of the run.

    Returns
    -------
    DistillationResult
        The history and the weights.
    """
    from accelerate.utils import gather_object

    callbacks = Callbacks(given.callbacks)
    callers = (
        teacher,
        student,
    )  # torch.compile may have wrapped them; weights and layers are those of the networks inside
    teacher, student = None if teacher is None else uncompiled(teacher), uncompiled(student)
    with ExitStack() as stack:
        stack.enter_context(random_states_restored())
        stack.enter_context(modes_restored(student))
        stack.enter_context(frozen(teacher))
        accelerator = stack.enter_context(accelerator_for(given.accelerator, given.mixed_precision, given.ce_weight))
        main, device = accelerator.is_main_process, accelerator.device

        # The data, the two networks with their taps, and the loss.
        seed_everything(given.seed)
        loading: Any = {"batch_size": given.batch_size, "workers": given.workers, "accelerator": accelerator}
        batches = training_batches(train, seed=given.seed, **loading)
        tests = evaluation_loader(test, **loading)
        networks = networks_identity(teacher, student, given.output_dir, given.resume)
        sample = batches.sample()
        both = [network for network in (teacher, student) if network is not None]
        for network in both:
            network.to(device)
        stack.enter_context(channels_last(both, given.channels_last))
        average = None if given.ema is None else WeightAverage(student, given.ema)
        scored: nn.Module = student if average is None else average.network
        stack.enter_context(synchronised_batch_norm(student, accelerator, given.sync_batchnorm))
        layers, layers_y = choose_layers(teacher, student, loss, sample, given.student_layers, given.teacher_layers)
        called = [None if network is None else compiled(network, given.compile) for network in callers]
        if layers:
            reset_graphs(*called)
        assert called[1] is not None
        pupil = stack.enter_context(TappedModel(called[1], layers, "student"))
        master = None if called[0] is None else stack.enter_context(TappedModel(called[0], layers_y, "teacher"))

        def ask_teacher(batch: Batch) -> Any:
            if master is None or loss is None:
                return None
            with torch.no_grad(), accelerator.autocast():
                return master(batch.inputs).in_float32()

        terms_of = partial(weighted_terms, loss, given.ce_weight)
        teach: Callable[[Batch], Any] = ask_teacher
        classes = fit_together(pupil, teach, loss, terms_of, sample, accelerator)
        score = Scorer(tests, classes, accelerator, given.evaluation)
        if given.teacher_cache is not None and master is not None:
            teach = cached_teacher(given.teacher_cache, master, teach, batches, accelerator, given.progress and main)

        # The optimiser, and the state of an earlier process.
        extra = loss if isinstance(loss, nn.Module) else nn.Module()
        parameters = [p for p in [*student.parameters(), *extra.parameters()] if p.requires_grad]
        descent = given.optimizer(parameters, lr=given.learning_rate, weight_decay=given.weight_decay)
        rates = LearningRates(given.schedule, descent, given.learning_rate)
        total = given.epochs * len(batches)
        rates.check_length(given.epochs, total)
        model, descent = accelerator.prepare(pupil, descent)
        gradient = accumulated_gradient if given.accumulation == "mean" or loss is None else exact_gradient
        settings = {
            "epochs": given.epochs,
            "batch_size": given.batch_size,
            "steps_per_epoch": len(batches),
            "learning_rate": given.learning_rate,
            "schedule": identity(given.schedule),
            "optimizer": identity(given.optimizer),
            "weight_decay": given.weight_decay,
            "clip_norm": given.clip_norm,
            "ema": given.ema,
            "evaluate_every": given.evaluation.every,
            "patience": given.evaluation.patience,
            "columns": list(given.evaluation.columns),
            "channels_last": given.channels_last,
            "compile": [is_compiled(network) for network in called if network is not None],
            "loss": identity_at_start(loss, given.output_dir, given.resume),
            "ce_weight": given.ce_weight,
            "student_layers": layers,
            "teacher_layers": layers_y,
            **networks,
            "teacher_weights": weights_digest(teacher),
            "student_weights": weights_at_start(student, given.output_dir, given.resume),
            "accumulation": [given.accumulation_steps, given.accumulation],
            "mixed_precision": accelerator.mixed_precision,
            "processes": accelerator.num_processes,
            "sync_batchnorm": given.sync_batchnorm and accelerator.num_processes > 1,
            "diagnostics": identity(given.diagnostics),
            "teacher_cache": given.teacher_cache is not None,
            "train_samples": samples_of(train),
            "test_samples": samples_of(test),
            "seed": given.seed,
        }
        check_processes_agree(settings)
        length = len(batches)
        folder = RunFiles(
            given.output_dir, settings, resume=given.resume, main=main, texts=given.files,
            extend=lambda before, now, saved: rates.extension_refused(
                (before, now), (before * length, now * length), saved["epoch"] + bool(saved["step"]),
                saved["epoch"] * length + saved["step"],
            ),
        )  # fmt: skip
        run = RunState(folder.state, accelerator.process_index)
        run.parts = {"rates": rates, "callbacks": callbacks} | ({} if average is None else {"average": average})
        best: dict[str, Tensor] = {}
        if folder.state is not None:
            seed_everything(given.seed, 0, accelerator.process_index)  # as at the start of the epoch that is read again
            again = ((batch.inputs, batch.target) for batch in batches.of_epoch(0))
            check_same_data("train", run.saved_seen["train"], again, given.output_dir)
            check_same_data("test", run.saved_seen["test"], map(split_batch, tests), given.output_dir)
            run.load(student, extra, descent, accelerator)
            best = folder.best_state() if run.rows else {}
        folder.open()
        descent.zero_grad()  # a run that was stopped in a step has left gradients on the caller's student

        done = run.epoch * length + run.step
        keys = [int(row.get("step", row["epoch"])) for row in run.rows]
        first = None if folder.state is None else max(keys, default=0) + 1
        log = stack.enter_context(trackers_of(accelerator, given.log_with, folder.directory, folder.settings, first))
        bar = stack.enter_context(tqdm(total=total, initial=done, disable=not (given.progress and main), unit="step"))
        started = time.perf_counter() - run.seconds

        def save_checkpoint() -> None:
            # At the start of an epoch, the seed decides the random states.
            run.random = gather_object([random_states()]) if run.step else None
            run.seconds = time.perf_counter() - started
            folder.save_checkpoint(run.state(student, extra, descent, accelerator))

        def add_row(epoch: int) -> None:
            """Score the student, add a row to the history, and save the weights."""
            nonlocal best, started
            means = run.means(accelerator)
            right = means.pop("right")
            total_loss = checked_total(means, f"in epoch {epoch + 1}", "the weight of the term that is not finite")
            row: dict[str, Any] = {"epoch": epoch + 1} | ({} if given.evaluation.every is None else {"step": done})
            row |= {"train_loss": total_loss, **means, "train_accuracy": right}
            with random_states_restored():
                row |= score(pupil if average is None else scored, None if run.rows else run.seen["test"])
            row |= {"lr": rates.rate, "seconds": time.perf_counter() - started}
            started = time.perf_counter()
            improved = not run.rows or row["test_accuracy"] > max(before["test_accuracy"] for before in run.rows)
            run.add_row(row)
            rates.evaluated(row["test_accuracy"])
            bar.set_postfix(loss=f"{row['train_loss']:.3f}", test=f"{row['test_accuracy']:.2%}")
            facts = {"epoch": epoch + 1, "test_accuracy": row["test_accuracy"], "seed": given.seed}
            state = plain_names(scored.state_dict())
            if improved:
                best = {
                    name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
                    for name, tensor in state.items()
                }
                folder.save_weights("best", best, facts)
            folder.save_weights("last", state, facts)
            pupil.train()
            extra.train()

        def measure() -> None:
            """Diagnose the student after an epoch."""
            if given.diagnostics is None or master is None:
                return
            lines, heatmap = measured(
                given.diagnostics, run.epoch, ended or run.epoch == given.epochs, (master, pupil), tests,
                (layers_y, layers), lambda: gradient_cosines(run.epoch, pupil, teach, terms_of, sample, accelerator),
                accelerator.num_processes,
            )  # fmt: skip
            run.diagnostics += lines
            if heatmap is not None:
                folder.save_heatmap(heatmap, run.epoch)

        early = partial(stopped_early, run.rows, "test_accuracy", given.evaluation.patience)
        ended = early()
        while run.epoch < given.epochs and not ended:
            epoch = run.epoch
            seed_everything(given.seed, epoch, accelerator.process_index)
            if run.random is not None:
                set_random_states(run.random[accelerator.process_index])
            bar.set_description(f"epoch {epoch + 1}/{given.epochs}")
            pupil.train()
            extra.train()
            for batch in batches.of_epoch(epoch, first=run.step):
                if epoch == 0 and given.output_dir is not None:
                    run.seen["train"].add((batch.inputs, batch.target))
                rates.begin_step(epoch, given.epochs, done, total)
                tell_progress(loss, done / total)
                logits, terms = gradient(accelerator, model, teach, terms_of, batch, given.accumulation_steps)
                average_gradients(accelerator, extra)
                if given.clip_norm is not None:
                    accelerator.clip_grad_norm_(parameters, given.clip_norm)
                descent.step()
                rates.end_step(descent.step_was_skipped)
                descent.zero_grad()
                if average is not None:
                    average.update()
                run.add(_sums_of(batch, logits, terms), len(batch), device)
                bar.update()
                done += 1

                # The end of the epoch, of the time between two evaluations, or of the run.
                whole = run.step == length
                moment = partial(
                    Moment, epoch + 1, done, total, rates.rate, student, averaged=None if average is None else scored
                )
                ended = callbacks.on_step(moment(terms=terms))
                if ended:
                    run.notes += (f"ended by a callback after step {done}",)
                every = given.evaluation.every
                scoring = ended or (whole if every is None else done % every == 0 or done == total)
                if whole:
                    rates.end_epoch()
                if scoring:
                    add_row(epoch)
                    if callbacks.on_epoch(moment(terms=terms, row=run.rows[-1])) and not ended:
                        ended = True
                        run.notes += (f"ended by a callback after step {done}",)
                    ended = early() or ended
                if whole:
                    run.next_epoch()
                    measure()
                if scoring:
                    log(values_of(run.rows[-1], run.diagnostics), int(run.rows[-1].get("step", epoch + 1)))
                    folder.save_table("history", run.rows)
                    if run.diagnostics:
                        folder.save_table("diagnostics", run.diagnostics)
                asked = given.checkpoint_steps is not None and run.step % given.checkpoint_steps == 0
                if scoring or whole or asked:
                    save_checkpoint()
                if ended:
                    break
        if average is not None:
            average.give()
        notes = (*batches.notes, *run.notes)
        if early():
            last = int(run.rows[-1]["epoch"])
            patience = given.evaluation.patience
            notes += (f"stopped after epoch {last}: no better test_accuracy in the last {patience} evaluations",)
        return DistillationResult(
            history=pd.DataFrame(run.rows),
            student=callers[1],
            best_state=best,
            diagnostics=pd.DataFrame(run.diagnostics),
            notes=notes,
            output_dir=folder.directory,
        )


def _sums_of(batch: Batch, logits: Tensor, terms: dict[str, Tensor]) -> dict[str, Tensor]:
    """Each loss term times the batch size, and the number of right answers."""
    sums = {name: term * len(batch) for name, term in terms.items()}
    return {**sums, "right": (logits.argmax(1) == batch.target).sum()}
