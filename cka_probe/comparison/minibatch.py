"""Compute minibatch CKA of models in one pass over the data (``scope="minibatch"``)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..capture.hooks import check_same_layers
from ..capture.progress import OtherDataError
from ..capture.sample_order import SampleOrder
from ..capture.state import device_of
from ..estimators.hsic import flat_centred
from ..estimators.kernels import Linear
from ..estimators.layer_grams import LayerGram, unit_stack
from ..estimators.measures.layer_mmd import row_kernel
from ..estimators.minibatch import MinibatchCKA
from ..estimators.minibatch_mmd import mmd_sums, unit_clouds
from ..similarity.matrix import SimilarityMatrix
from .checkpoint import CHECKPOINT_EVERY, Checkpoint, remove_checkpoint
from .grams.keeper import GramKeeper
from .minibatch_result import minibatch_result, mmd_result
from .notes import drift_notes, rows_are_samples
from .output_answers import Answers
from .places import filled, places, selected
from .processes import all_reduce
from .request import ComparedModel, Request
from .resumed import FirstBatchError, first_batch_note, in_half_precision
from .run_identity import comparison_identity, data_size, settings_of
from .together import Together, path_of_rank

__all__ = ["CHECKPOINT_EVERY", "MinibatchPass", "centred_rows", "run_minibatch"]


def run_minibatch(
    models: Sequence[ComparedModel], request: Request, meta: dict[str, Any], together: Together
) -> SimilarityMatrix:
    """Minibatch CKA of the models, in one pass over the data that starts from the checkpoint if there is one.

    Parameters
    ----------
    models : sequence of ComparedModel
        One, two, or with ``request.square`` any number.
    request : Request
        The options.
    meta : dict
        Added to ``meta`` of the result.
    together : Together
        The processes that compare together, inside its ``with`` block.

    Returns
    -------
    SimilarityMatrix
        The first model against the second; all layers against each other for one model or with ``request.square``.

    Raises
    ------
    ValueError, TypeError, CaptureError, OSError
        As ``compare``.
    RuntimeError
        If another process fails.
    KeyboardInterrupt
        If the user stops before a batch was used.
    """
    gathered = MinibatchPass(models, request, together.rank)
    answers = gathered.answers
    path = None if request.checkpoint is None else path_of_rank(Path(request.checkpoint), together)
    order = None if path is None else SampleOrder(every_number=True)
    # A bandwidth from the median of a batch, the biased estimator and distances depend on its size.
    cuts = isinstance(request.kernel, Linear) and request.estimator == "unbiased" and request.measure == "cka"
    minimum = gathered.statistics.minimum
    run = request.make_pass(gathered.recorders, minimum, order=order, held=[gathered], cuts=cuts)
    identity = {} if path is None and not together else comparison_identity(gathered.recorders, request, together.world)
    saved = None
    if path is not None and path.exists():
        saved = Checkpoint.of_same_run(path, gathered.home, identity, gathered.sizes, gathered.settings)
    together.start(identity)

    def save() -> None:
        if path is not None:
            gathered.read_keepers()
            Checkpoint(run.progress(), identity, gathered.sizes, gathered.settings).save(path)

    def after() -> None:
        if run.done % CHECKPOINT_EVERY == 0:
            save()
        together.look()

    def consume(index: int, kept: list[list[Any]], samples: int) -> None:
        gathered.consume(index, kept, samples)
        if index == 0 and saved is not None:
            gathered.check_first(saved)

    try:
        progress = None if saved is None else saved.progress
        run.run(request.data, answers.after(run, consume), data_y=request.data_y, after=after, resumed=progress)
    except (OtherDataError, FirstBatchError) as error:
        raise ValueError(f"{path} {error}") from None
    if run.interrupted:
        save()
        together.stop()
    if not together:
        run.require_batches()
    notes = [*run.notes, *gathered.notes()]
    others = together.end(interrupted=run.interrupted, notes=notes)
    if together:
        answers.all_reduce()
        all_reduce(gathered.statistics, gathered.recorders, gathered.home)
    if path is not None and others.interrupted and not run.interrupted and run.done:
        save()
    elif path is not None and not others.interrupted:
        remove_checkpoint(path)
    notes = [*others.notes, *answers.notes()]
    return gathered.result(notes, {**meta, **answers.found(), "partial": others.interrupted})


class MinibatchPass:
    """The recorders of a minibatch comparison, and the statistics of the batches so far.

    Parameters
    ----------
    models, request
        As ``run_minibatch``.
    rank : int
        Number of this process; each draws permutations of its own.

    Attributes
    ----------
    recorders : list of LayerRecorder
        One for each model; each keeps Gram matrices by a ``GramKeeper``.
    statistics : MinibatchCKA
        Sums over the batches so far.
    answers : Answers
        How alike the networks answer, if that is asked for.
    home : torch.device
        Device of the statistics: that on which the first model runs.
    """

    def __init__(self, models: Sequence[ComparedModel], request: Request, rank: int = 0) -> None:
        self.keepers = [
            GramKeeper(
                request.kernel,
                backend=request.backend,
                tf32=request.tf32,
                overlap=request.overlap,
                drift=rows_are_samples(request.pooling),
            )
            for _ in models
        ]
        self.recorders = [request.recorder(model, keeper) for model, keeper in zip(models, self.keepers, strict=True)]
        request.check_devices([recorder.model for recorder in self.recorders])
        self.answers = Answers(self.recorders, request)
        self.statistics = MinibatchCKA(
            kernel=request.kernel,
            estimator=request.estimator,
            permutations=request.permutations or 0,
            seed=(0, rank),
        )
        self.home = device_of(self.recorders[0].model) if request.device is None else torch.device(request.device)
        self._row_kernel = row_kernel(request.options.get("kernel")) if request.measure == "mmd" else None
        self._square = request.square or len(models) == 1
        self._models_in_result = request.square
        self.sizes = data_size(request)
        self.settings = {} if request.checkpoint is None else settings_of(self.recorders)
        self._loose = in_half_precision(self.recorders, request)
        self._first: dict[str, torch.Tensor] = {}
        """Sums after the first batch, by which a resumed run sees whether it computes the same."""
        self._resumed: list[str] = []

    def consume(self, index: int, kept: list[list[Any]], samples: int) -> None:
        """Add batch number ``index``: for each recorder the Gram matrices of its layers."""
        sides = [
            centred_rows(grams, self.statistics.estimator, self.home, keeper, recorder.names, index)
            for grams, recorder, keeper in zip(kept, self.recorders, self.keepers, strict=True)
        ]
        more = None if self._row_kernel is None else self._mmd_sums(kept, samples)
        if self._square:
            rows = sides[0][0] if len(sides) == 1 else torch.cat([rows for rows, _ in sides])
            scale = sides[0][1] if len(sides) == 1 else torch.cat([scale for _, scale in sides])
            self.statistics.update_rows(rows, scale, rows, scale, samples, more)
        else:
            (rows_x, scale_x), (rows_y, scale_y) = sides
            self.statistics.update_rows(rows_x, scale_x, rows_y, scale_y, samples, more)
        if index == 0:
            self._first = {name: self.statistics.sums[name] for name in ("cross", "self_x", "self_y")}

    def _mmd_sums(self, kept: list[list[Any]], samples: int) -> dict[str, torch.Tensor]:
        """Sums for the MMD of all pairs, from the same Gram matrices, centred with their diagonal."""
        assert self._row_kernel is not None
        clouds = []
        for grams in map(filled, kept):
            stack, _ = unit_stack([g.gram for g in grams], [g.factor for g in grams])
            clouds.append(unit_clouds(flat_centred(stack, "biased"), samples).to(self.home))
        if self._square:
            clouds = [torch.cat(clouds)]
        return mmd_sums(clouds[0], clouds[-1], self._row_kernel)

    def state(self) -> dict[str, Any]:
        """The statistics so far, those of the first batch, and notes on a resumption."""
        statistics = self.statistics
        return {
            "samples": statistics.samples,
            "batches": statistics.batches,
            "sums": dict(statistics.sums),
            "first": dict(self._first),
            "resumed": list(self._resumed),
            "answers": self.answers.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state; its sums are on ``home``."""
        statistics = self.statistics
        statistics.samples, statistics.batches, statistics.sums = (
            state["samples"],
            state["batches"],
            dict(state["sums"]),
        )
        self._first = dict(state["first"])
        self.answers.restore(state["answers"])
        self._resumed = list(dict.fromkeys([*state["resumed"], *self._resumed]))

    def read_keepers(self) -> None:
        """Read what the keepers gathered on the device. Raise CaptureError if a layer gave NaN or infinity."""
        for recorder, keeper in zip(self.recorders, self.keepers, strict=True):
            keeper.read(recorder.name, recorder.names)

    def notes(self) -> list[str]:
        """What the keepers of this process say about the layers.

        Raises
        ------
        CaptureError
            If a layer gave NaN or infinity.
        """
        notes = list(self._resumed)
        for recorder, keeper in zip(self.recorders, self.keepers, strict=True):
            notes += keeper.finish(recorder.name, recorder.names)
        notes += [note for recorder in self.recorders for note in recorder.notes()]
        for recorder, keeper in zip(self.recorders, self.keepers, strict=True):
            notes += keeper.findings.notes(recorder.name, recorder.names, recorder.compared)
        drifts = [keeper.batch_means.drift() if keeper.batch_means else None for keeper in self.keepers]
        return notes + drift_notes([(r.name, drift) for r, drift in zip(self.recorders, drifts, strict=True)])

    def result(self, notes: Sequence[str], meta: dict[str, Any]) -> SimilarityMatrix:
        """The similarities with their errors, p-values, chance levels, and notes added to ``notes``."""
        sides = [[(r.name, layer) for layer in r.compared] for r in self.recorders]
        if self._square:
            rows = columns = [named for side in sides for named in side]
            statistics = selected(self.statistics, places(self.recorders), places(self.recorders))
        else:
            rows, columns = sides
            statistics = selected(self.statistics, *(places([recorder]) for recorder in self.recorders))
        reasons: dict[tuple[str, str], str] = {}
        far: set[tuple[str, str]] = set()
        for recorder, keeper in zip(self.recorders, self.keepers, strict=True):
            reasons |= {(recorder.name, layer): why for layer, why in keeper.findings.reasons().items()}
            far |= {(recorder.name, layer) for layer in keeper.findings.far}
        cka = minibatch_result(
            statistics, rows, columns, notes, meta, models=self._models_in_result, reasons=reasons, far=far
        )
        return cka if self._row_kernel is None else mmd_result(cka, statistics, self._row_kernel)

    def check_first(self, saved: Checkpoint) -> None:
        """Compare the sums of the first batch with those of the earlier run.

        Raises
        ------
        FirstBatchError
            If they differ by more than rounding.
        """
        for recorder, state in zip(self.recorders, saved.progress.recorders, strict=True):
            check_same_layers(recorder.name, state["names"], recorder.names)
        sides = [[(r.name, layer) for layer in r.names] for r in self.recorders]
        if self._square:
            sides = [[named for side in sides for named in side]] * 2
        first = {key: total.to(self.home) for key, total in saved.progress.held[0]["first"].items()}
        note = first_batch_note(first, self._first, sides, exact=self.home.type == "cpu", loose=self._loose)
        self._resumed += [] if note is None else [note]


def centred_rows(
    kept: Sequence[LayerGram | None],
    estimator: str,
    device: torch.device,
    keeper: GramKeeper,
    names: Sequence[str],
    batch: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Flattened centred Gram matrices (layers, n * n) of one model and one batch, and their divisors, on ``device``.

    A layer that was left out since the first batch, whose Gram matrix is None, has zeros.
    """
    grams = filled(kept)
    stack, divisors = unit_stack([g.gram for g in grams], [g.factor for g in grams], estimator=estimator)
    rows = flat_centred(stack, estimator)
    keeper.observe(batch, names, grams, stack, rows)
    return rows.to(device), divisors.to(device)
