"""Compute minibatch CKA of models in one pass over the data (``scope="minibatch"``)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..capture.state import device_of
from ..capture.streaming import SampleOrder
from ..estimators.hsic import flat_centred
from ..estimators.layer_grams import LayerGram, unit_stack
from ..estimators.minibatch import MinibatchCKA
from ..similarity.matrix import SimilarityMatrix
from .checkpoint import Checkpoint
from .grams.keeper import GramKeeper
from .notes import drift_notes, one_batch_notes, rows_are_samples, undefined_notes
from .places import filled, places, selected
from .processes import all_reduce, check_processes_agree, raise_failures
from .request import ComparedModel, Request
from .run_identity import check_same_run, comparison_identity, data_size

__all__ = ["CHECKPOINT_EVERY", "MinibatchPass", "centred_rows", "minibatch_result", "run_minibatch"]

ONE_BATCH = 0.5
"""Sum of the squared weights of the batches in a layer above which one batch is said to decide its values.

One batch then has two thirds of the weight or more; the sum is 1 over the number of batches if all weigh alike."""

MANY_BATCHES, MANY_SAMPLES = 6, 8
"""Fewer batches, or fewer samples in each, reach `ONE_BATCH` by chance: the spread of four samples is hardly known."""

STOPPED = "stopped by the user"
"""Begins the note of a pass that Ctrl-C ended, which a resumed one does not have."""

CHECKPOINT_EVERY = 20
"""Batches between two saves of a comparison with ``checkpoint=``."""


def run_minibatch(models: Sequence[ComparedModel], request: Request, meta: dict[str, Any]) -> SimilarityMatrix:
    """Minibatch CKA of the models, in one pass over the data that starts from the checkpoint if there is one.

    Parameters
    ----------
    models : sequence of ComparedModel
        One, two, or with ``request.square`` any number.
    request : Request
        The options.
    meta : dict
        Added to ``meta`` of the result.

    Returns
    -------
    SimilarityMatrix
        The first model against the second; all layers against each other for one model or with ``request.square``.

    Raises
    ------
    ValueError, TypeError, CaptureError, OSError
        As ``compare``.
    KeyboardInterrupt
        If the user stops before a batch was used.
    """
    gathered = MinibatchPass(models, request)
    path = None if request.checkpoint is None else Path(request.checkpoint)
    order = None if path is None else SampleOrder(every_number=True)
    run = request.make_pass(gathered.recorders, gathered.statistics.minimum, order=order)
    identity = comparison_identity(gathered.recorders, request) if path is not None or request.distributed else {}
    if request.distributed:
        check_processes_agree(identity)
    skip, seen_before = gathered.resume(path, identity) if path is not None and path.exists() else (0, "")

    def save(path: Path, digest: str, done: int) -> None:
        gathered.checkpoint(digest, done, run.notes, identity).save(path)

    def consume(index: int, kept: list[list[Any]], samples: int) -> None:
        gathered.consume(index, kept, samples)
        if path is not None and order is not None and (index + 1) % CHECKPOINT_EVERY == 0:
            save(path, order.hexdigest(), index + 1)

    def same_samples(digest: str) -> None:
        if digest != seen_before:
            raise ValueError(
                f"{path} was made from other samples, or in another order. Turn shuffling off, or delete the file."
            )

    failure: BaseException | None = None
    try:
        run.run(request.data, consume, data_y=request.data_y, skip=skip, skipped=same_samples)
    except BaseException as error:
        failure = error
        if not request.distributed:
            raise
    if request.distributed:
        raise_failures(failure)
    if run.done < skip:
        raise ValueError(
            f"{path} holds the first {skip} batches, but the data ended after {run.done}. Give the same data again, or "
            "delete the file."
        )
    if path is not None and run.interrupted:
        save(path, run.digest, run.done)
    if request.distributed:
        all_reduce(gathered.statistics, gathered.recorders, gathered.home)
    else:
        run.require_batches()
    if path is not None and not run.interrupted:
        path.unlink(missing_ok=True)
    return gathered.result(run.notes, {**meta, "partial": run.interrupted})


class MinibatchPass:
    """The recorders of a minibatch comparison, and the statistics of the batches so far.

    Parameters
    ----------
    models, request
        As ``run_minibatch``.

    Attributes
    ----------
    recorders : list of LayerRecorder
        One for each model; each keeps Gram matrices by a ``GramKeeper``.
    statistics : MinibatchCKA
        Sums over the batches so far.
    home : torch.device
        Device of the statistics: that on which the first model runs.
    """

    def __init__(self, models: Sequence[ComparedModel], request: Request) -> None:
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
        self.statistics = MinibatchCKA(kernel=request.kernel, estimator=request.estimator)
        self.home = device_of(self.recorders[0].model) if request.device is None else torch.device(request.device)
        self._square = request.square or len(models) == 1
        self._models_in_result = request.square
        self._notes: list[str] = []
        self._notes_before: list[str] = []
        self._sizes = data_size(request)

    def consume(self, index: int, kept: list[list[Any]], samples: int) -> None:
        """Add batch number ``index``: for each recorder the Gram matrices of its layers."""
        sides = [
            centred_rows(grams, self.statistics.estimator, self.home, keeper, recorder.names, index)
            for grams, recorder, keeper in zip(kept, self.recorders, self.keepers, strict=True)
        ]
        if self._square:
            rows = sides[0][0] if len(sides) == 1 else torch.cat([rows for rows, _ in sides])
            scale = sides[0][1] if len(sides) == 1 else torch.cat([scale for _, scale in sides])
            self.statistics.update_rows(rows, scale, rows, scale, samples)
        else:
            (rows_x, scale_x), (rows_y, scale_y) = sides
            self.statistics.update_rows(rows_x, scale_x, rows_y, scale_y, samples)

    def _read_keepers(self) -> None:
        """Read what the keepers gathered on the device. Raise CaptureError if a layer gave NaN or infinity."""
        for recorder, keeper in zip(self.recorders, self.keepers, strict=True):
            self._notes += keeper.finish(recorder.name, recorder.names)

    def result(self, notes: Sequence[str], meta: dict[str, Any]) -> SimilarityMatrix:
        """The similarities with their errors, p-values, chance levels and notes.

        Raises
        ------
        CaptureError
            If a layer gave NaN or infinity.
        """
        self._read_keepers()
        notes = list(dict.fromkeys([*self._notes_before, *notes]))  # a resumed pass repeats those of its first batch
        sides = [[(r.name, layer) for layer in r.compared] for r in self.recorders]
        if self._square:
            rows = columns = [named for side in sides for named in side]
            statistics = selected(self.statistics, places(self.recorders), places(self.recorders))
        else:
            rows, columns = sides
            statistics = selected(self.statistics, *(places([recorder]) for recorder in self.recorders))
        notes = [*notes, *self._notes, *(note for r in self.recorders for note in r.notes())]
        reasons: dict[tuple[str, str], str] = {}
        far: set[tuple[str, str]] = set()
        for recorder, keeper in zip(self.recorders, self.keepers, strict=True):
            notes += keeper.findings.notes(recorder.name, recorder.names, recorder.compared)
            reasons |= {(recorder.name, layer): why for layer, why in keeper.findings.reasons().items()}
            far |= {(recorder.name, layer) for layer in keeper.findings.far}
        drifts = [keeper.batch_means.drift() if keeper.batch_means else None for keeper in self.keepers]
        notes += drift_notes([(recorder.name, drift) for recorder, drift in zip(self.recorders, drifts, strict=True)])
        return minibatch_result(
            statistics, rows, columns, notes, meta, models=self._models_in_result, reasons=reasons, far=far
        )

    def checkpoint(self, order: str, done: int, notes: Sequence[str], identity: dict[str, str]) -> Checkpoint:
        """The state after ``done`` batches with the digest ``order``, the notes of the pass and its identity.

        Raises
        ------
        CaptureError
            If a layer gave NaN or infinity: a checkpoint holds finite numbers only.
        """
        self._read_keepers()
        return Checkpoint(
            done=done,
            order=order,
            layers=[(r.name, r.names, r.left_out) for r in self.recorders],
            keepers=[keeper.state() for keeper in self.keepers],
            notes=[note for note in (*self._notes_before, *notes, *self._notes) if not note.startswith(STOPPED)],
            identity=identity,
            sizes=self._sizes,
            statistics=self.statistics.state_dict(),
        )

    def resume(self, path: Path, identity: dict[str, str]) -> tuple[int, str]:
        """Load the state of a checkpoint.

        Parameters
        ----------
        path : path
            The file.
        identity : dict of str to str
            Of this comparison.

        Returns
        -------
        done : int
            Batches that the checkpoint holds.
        order : str
            Digest of their samples.

        Raises
        ------
        ValueError
            If the file is not a checkpoint, or belongs to another comparison; the message names what differs.
        """
        saved = Checkpoint.load(path, self.home)
        check_same_run(path, saved.identity, identity, saved.sizes, self._sizes)
        try:
            self.statistics.load_state_dict(saved.statistics)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        for recorder, (_, layers, left_out) in zip(self.recorders, saved.layers, strict=True):
            recorder.names, recorder.left_out = layers, left_out
        for keeper, state in zip(self.keepers, saved.keepers, strict=True):
            keeper.restore(state, self.home)
        self._notes_before = saved.notes
        return saved.done, saved.order


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


def minibatch_result(
    statistics: MinibatchCKA,
    rows: Sequence[tuple[str, str]],
    columns: Sequence[tuple[str, str]],
    notes: Sequence[str],
    meta: dict[str, Any],
    *,
    models: bool = False,
    reasons: Mapping[tuple[str, str], str] | None = None,
    far: Collection[tuple[str, str]] = (),
) -> SimilarityMatrix:
    """The result of accumulated statistics, with notes on layers that are constant or rest on one batch.

    Parameters
    ----------
    statistics : MinibatchCKA
        Of at least one batch.
    rows, columns : sequence of (str, str)
        Model and layer of each row and column.
    notes : sequence of str
        Notes so far.
    meta : dict
        Added to ``meta`` of the result.
    models : bool
        Whether the result gives the model of each row and column.
    reasons : mapping of (str, str) to str, optional
        For layers without any spread that are not constant, by model and layer, what they are.
    far : collection of (str, str)
        Layers with a note on one far sample, which need no note on its batch.
    """
    undefined: dict[tuple[str, str], str] = {}  # a layer of a square result is in it once
    one_batch: dict[tuple[str, str], None] = {}
    for side, own, square in ((rows, "self_x", "x2"), (columns, "self_y", "y2")):
        weight = _numpy(statistics.sums[own]).ravel()
        for named, total in zip(side, weight, strict=True):
            if total <= 0:
                undefined[named] = (reasons or {}).get(named, "constant over the samples of every batch")
        if statistics.batches >= MANY_BATCHES and statistics.samples >= MANY_SAMPLES * statistics.batches:
            with np.errstate(divide="ignore", invalid="ignore"):
                share = _numpy(statistics.sums[square]).ravel() / weight / weight
            one_batch |= dict.fromkeys(named for named, part in zip(side, share, strict=True) if ONE_BATCH < part < 1.1)
    notes = [
        *notes,
        *undefined_notes(undefined),
        *one_batch_notes([layer for layer in one_batch if layer not in far], statistics.batches),
    ]
    return SimilarityMatrix(
        _numpy(statistics.compute()),
        [layer for _, layer in rows],
        [layer for _, layer in columns],
        standard_error=_numpy(statistics.standard_error()) if statistics.batches > 1 else None,
        p_value=_numpy(statistics.p_value()) if statistics.estimator == "unbiased" else None,
        chance=_numpy(statistics.chance_level()),
        notes=notes,
        measure="cka",
        meta={
            "kernel": repr(statistics.kernel),
            "estimator": statistics.estimator,
            "scope": "minibatch",
            "samples": statistics.samples,
            "batches": statistics.batches,
            "degrees_of_freedom": statistics.batches - 1,
            **meta,
        },
        row_models=[model for model, _ in rows] if models else None,
        column_models=[model for model, _ in columns] if models else None,
    )


def _numpy(values: Any) -> np.ndarray:
    return values.cpu().numpy()
