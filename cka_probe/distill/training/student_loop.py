"""The run of `distill`: set up, resume, train, score, and write the files."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from ...capture.allocator import memory_kept
from ...capture.memory_format import channels_last
from ...capture.state import frozen, modes_restored, random_states, random_states_restored, set_random_states
from ...identity import identity, weights_digest
from ...progress_bar import tqdm
from ..losses.contract import Outputs
from ..losses.weight_schedules import set_progress
from ..taps.tapped_model import TappedModel
from .accelerator import accelerator_for
from .averaging import WeightAverage
from .batch_norm import synchronised_batch_norm
from .batch_parts import split_batch
from .batches import Batch, evaluation_loader, training_batches
from .callbacks import Callbacks, Moment
from .compiled import compiled, is_compiled, plain_names, reset_graphs, uncompiled
from .diagnostics import gradient_cosines, measured
from .evaluation import stopped_early
from .learning_rates import LearningRates
from .preparation import choose_layers, fit_together
from .result import DistillationResult
from .run_files import RunFiles
from .run_identity import check_processes_agree, identity_at_start, networks_identity, samples_of, weights_at_start
from .run_state import RunState, checked_total
from .scoring import Scorer, right_answers
from .seeding import seed_everything
from .seen_data import check_same_data
from .settings import Settings
from .steps import accumulated_gradient, average_gradients, exact_gradient, weighted_terms
from .supervision import Supervision
from .teacher_cache import cached_teacher
from .teachers import Teachers, forward_of, joined, paired_layers
from .trackers import trackers_of, values_of

__all__ = ["train_student"]


def train_student(
    teachers: Sequence[nn.Module],
    student: nn.Module,
    train: Any,
    test: Any,
    loss: nn.Module | Callable[..., Any] | None,
    given: Settings,
) -> DistillationResult:
    """Train ``student`` as `distill` says; write and resume the run.

    Parameters
    ----------
    teachers : sequence of torch.nn.Module
        None, one or several.
    student, train, test, loss
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
    # torch.compile may have wrapped the networks; weights and layers are those of the networks inside.
    caller, student = student, uncompiled(student)
    callers, teachers = teachers, [uncompiled(one) for one in teachers]
    teacher = joined(teachers) if teachers else None
    supervision = Supervision(given.supervision, student)
    with ExitStack() as stack:
        stack.enter_context(random_states_restored())
        stack.enter_context(modes_restored(student))
        stack.enter_context(frozen(teacher))
        weight = given.ce_weight if supervision else 0.0
        accelerator = stack.enter_context(accelerator_for(given.accelerator, given.mixed_precision, weight))
        main, device = accelerator.is_main_process, accelerator.device

        # The data, the two networks with their taps, and the loss.
        seed_everything(given.seed)
        loading: Any = {"batch_size": given.batch_size, "workers": given.workers, "accelerator": accelerator}
        batches = training_batches(
            train, seed=given.seed, labelled=bool(supervision), max_steps=given.max_steps, **loading
        )
        epochs = given.epochs if given.max_steps is None else 1
        tests = None if test is None else evaluation_loader(test, **loading)
        read_tests = () if tests is None else tests
        networks = networks_identity(teacher, student, given.output_dir, given.resume)
        sample = batches.sample()
        both = [network.to(device) for network in (*teachers, student)]
        stack.enter_context(memory_kept(both))
        stack.enter_context(channels_last(both, given.channels_last))
        average = None if given.ema is None else WeightAverage(student, given.ema)
        scored: nn.Module = student if average is None else average.network
        stack.enter_context(synchronised_batch_norm(student, accelerator, given.sync_batchnorm))
        pairs = [
            choose_layers(one, student, loss, sample, given.student_layers, own, given.forward)
            for one, own in zip(teachers, layers_of_each(given.teacher_layers, len(teachers)), strict=True)
        ]
        layers, places = paired_layers(pairs)
        called = [compiled(network, given.compile) for network in (*callers, caller)]
        if layers:
            reset_graphs(*called)
        pupil = stack.enter_context(TappedModel(called[-1], layers, "student", forward_of(given.forward, "student")))
        tapped = [
            stack.enter_context(TappedModel(network, own, "teacher", forward_of(given.forward, "teacher")))
            for network, (_, own) in zip(called[:-1], pairs, strict=True)
        ]
        master = Teachers(tapped) if tapped else None

        def ask_teacher(batch: Batch) -> Any:
            if master is None or loss is None:
                return None
            with torch.no_grad(), accelerator.autocast():
                return master(batch.inputs).in_float32()

        def terms_of(outputs: Outputs, taught: Outputs | None, target: Any) -> dict[str, Tensor]:
            if len(teachers) > 1:  # beside the features of each teacher
                outputs = outputs._replace(features=tuple(outputs.features[place] for place in places))
            terms = weighted_terms(loss, supervision, given.ce_weight, outputs, taught, target)
            if accelerator.num_processes > 1 and supervision.name in terms:
                terms[supervision.name] = terms[supervision.name] * supervision.share_of_process(target, accelerator)
            return terms

        teach: Callable[[Batch], Any] = ask_teacher
        first_output = fit_together(pupil, teach, loss, supervision, terms_of, sample, accelerator)
        score = Scorer(
            tests, supervision, given.metric, (first_output, sample.target), accelerator, given.evaluation,
            forward_of(given.forward, "student"),
        )  # fmt: skip
        if given.teacher_cache is not None and master is not None:
            teach = cached_teacher(given.teacher_cache, master, teach, batches, accelerator, given.progress and main)

        # The optimiser, and the state of an earlier process.
        extra = loss if isinstance(loss, nn.Module) else nn.Module()
        parameters = [p for p in [*student.parameters(), *extra.parameters()] if p.requires_grad]
        descent = given.optimizer(parameters, lr=given.learning_rate, weight_decay=given.weight_decay)
        rates = LearningRates(
            given.schedule, descent, given.learning_rate,
            unit="epoch" if given.max_steps is None else "step",
            higher_is_better=None if score.column is None else score.higher_is_better,
        )  # fmt: skip
        total = epochs * len(batches)
        rates.check_length(epochs, total)
        model, descent = accelerator.prepare(pupil, descent)
        alone = loss is None and supervision.is_mean(sample.target)
        gradient = accumulated_gradient if given.accumulation == "mean" or alone else exact_gradient
        if alone and given.accumulation == "exact":  # the same gradient with one forward pass less
            gradient = partial(accumulated_gradient, weigh=lambda batch: supervision.weight_of(batch.target))
        settings = {
            "epochs": epochs,
            "max_steps": given.max_steps,
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
            "compile": [is_compiled(network) for network in called],
            "loss": identity_at_start(loss, given.output_dir, given.resume),
            "supervision": identity(given.supervision),
            "ce_weight": given.ce_weight,
            "metric": None if given.metric is None else identity(given.metric),
            "forward": identity(given.forward),
            "student_layers": layers if len(teachers) < 2 else [own for own, _ in pairs],
            "teacher_layers": pairs[0][1] if len(teachers) == 1 else [own for _, own in pairs],
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
            splits = (split_batch(batch, labelled=bool(supervision)) for batch in read_tests)
            check_same_data("test", run.saved_seen["test"], splits, given.output_dir)
            run.load(student, extra, descent, accelerator)
            best = folder.best_state() if run.rows else {}
        folder.open()
        descent.zero_grad()  # a run that was stopped in a step has left gradients on the caller's student

        if master is not None and "teacher" not in run.scores:
            with random_states_restored():
                found = score.of_teacher(master)
            if found is not None:
                run.scores["teacher"] = found
                run.notes += score.notes_on_teacher(found)
        ceiling = run.scores.get("teacher")

        done = run.epoch * length + run.step
        keys = [int(row.get("step", row["epoch"])) for row in run.rows]
        first = None if folder.state is None else max(keys, default=0) + 1
        log = stack.enter_context(trackers_of(accelerator, given.log_with, folder.directory, folder.settings, first))
        bar = stack.enter_context(tqdm(total=total, initial=done, disable=not (given.progress and main), unit="step"))
        if ceiling is not None and given.progress and main and not done:
            bar.write(f"teacher: {score.shown(ceiling)} ({score.column})")
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
            right, answers = means.pop("right", None), means.pop("answers", None)
            total_loss = checked_total(means, f"in epoch {epoch + 1}", "the weight of the term that is not finite")
            row: dict[str, Any] = {"epoch": epoch + 1} | ({} if given.evaluation.every is None else {"step": done})
            row |= {"train_loss": total_loss, **means}
            row |= {} if right is None or not answers else {"train_accuracy": right / answers}
            with random_states_restored():
                first = not run.rows
                row |= score(pupil if average is None else scored, run.seen["test"] if first else None, first=first)
            row |= {"lr": rates.rate, "seconds": time.perf_counter() - started}
            started = time.perf_counter()
            facts: dict[str, Any] = {"epoch": epoch + 1, "seed": given.seed}
            shown = {"loss": f"{row['train_loss']:.3f}"}
            improved = score.column is None  # without a score the last weights are the best known
            if score.column is not None:
                value = row[score.column]
                improved = score.better(value, [before[score.column] for before in run.rows])
                rates.evaluated(value)
                facts[score.column] = value
                shown["test"] = score.shown(value)
            run.add_row(row)
            bar.set_postfix(shown)
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

        def measure(ended: bool) -> None:
            """Diagnose the student after an epoch."""
            if given.diagnostics is None or master is None:
                return
            lines, heatmap = measured(
                given.diagnostics, run.epoch, ended or run.epoch == epochs, (tapped[0], pupil), read_tests,
                (pairs[0][1], pairs[0][0]),
                lambda: gradient_cosines(run.epoch, pupil, teach, terms_of, sample, accelerator),
                accelerator.num_processes,
            )  # fmt: skip
            run.diagnostics += lines
            if heatmap is not None:
                folder.save_heatmap(heatmap, run.epoch)

        def close(whole: bool, ended: bool, moment: Moment) -> bool:
            """Score and save what is due after a step; return whether the run ends."""
            every = given.evaluation.every
            scoring = ended or (whole if every is None else done % every == 0 or done == total)
            if whole:
                rates.end_epoch()
            if scoring:
                add_row(run.epoch)
                if callbacks.on_epoch(replace(moment, row=run.rows[-1])) and not ended:
                    ended = True
                    run.notes += (f"ended by a callback after step {done}",)
                ended = early() or ended
            if whole:
                run.next_epoch()
                measure(ended)
            if scoring:
                row = run.rows[-1]
                log(values_of(row, run.diagnostics), int(row.get("step", row["epoch"])))
                folder.save_table("history", run.rows)
                if run.diagnostics:
                    folder.save_table("diagnostics", run.diagnostics)
            asked = given.checkpoint_steps is not None and run.step % given.checkpoint_steps == 0
            if scoring or whole or asked:
                save_checkpoint()
            return ended

        early = partial(
            stopped_early, run.rows, score.column or "", given.evaluation.patience, score.higher_is_better
        )  # fmt: skip
        ended = early()
        while run.epoch < epochs and not ended:
            epoch = run.epoch
            done = epoch * length + run.step
            seed_everything(given.seed, epoch, accelerator.process_index)
            if run.random is not None:
                set_random_states(run.random[accelerator.process_index])
            bar.set_description(f"{given.run_name}epoch {epoch + 1}/{epochs}")
            pupil.train()
            extra.train()
            for batch in batches.of_epoch(epoch, first=run.step):
                if epoch == 0 and given.output_dir is not None:
                    run.seen["train"].add((batch.inputs, batch.target))
                rates.begin_step(epoch, epochs, done, total)
                set_progress(loss, done / total)
                logits, terms = gradient(accelerator, model, teach, terms_of, batch, given.accumulation_steps)
                average_gradients(accelerator, extra)
                if given.clip_norm is not None:
                    accelerator.clip_grad_norm_(parameters, given.clip_norm)
                descent.step()
                rates.end_step(descent.step_was_skipped)
                descent.zero_grad()
                if average is not None:
                    average.update()
                run.add(_sums_of(batch, logits, terms, supervision), len(batch), device)
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
                ended = close(whole, ended, moment(terms=terms))
                if ended:
                    break
            if run.epoch == epoch and not ended:  # the loader had fewer batches than its length says
                done = (epoch + 1) * length
                ended = close(True, False, moment(terms=terms))
        if average is not None:
            average.give()
        notes = (*supervision.notes, *batches.notes, *run.notes)
        if early():
            last = int(run.rows[-1]["epoch"])
            patience = given.evaluation.patience
            notes += (f"stopped after epoch {last}: no better {score.column} in the last {patience} evaluations",)
        return DistillationResult(
            history=pd.DataFrame(run.rows),
            student=caller,
            best_state=best,
            diagnostics=pd.DataFrame(run.diagnostics),
            notes=notes,
            output_dir=folder.directory,
            score_column=score.column,
            higher_is_better=score.higher_is_better,
            teacher_score=ceiling,
        )


def _sums_of(batch: Batch, logits: Tensor, terms: dict[str, Tensor], supervision: Supervision) -> dict[str, Tensor]:
    """Each loss term times the batch size, and the numbers of right answers and of answers."""
    sums = {name: term * len(batch) for name, term in terms.items()}
    return sums | right_answers(supervision, logits, batch.target)


def layers_of_each(teacher_layers: Any, teachers: int) -> list[Any]:
    """The argument `teacher_layers` for each teacher: one list for all, or a list of lists."""
    several = isinstance(teacher_layers, list | tuple) and any(isinstance(one, list | tuple) for one in teacher_layers)
    if not several:
        return [teacher_layers] * teachers
    if len(teacher_layers) != teachers:
        raise ValueError(f"`teacher_layers` has {len(teacher_layers)} lists for {teachers} teachers.")
    return list(teacher_layers)
