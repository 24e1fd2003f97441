"""From what hooks kept to a SimilarityMatrix: minibatch statistics of one pass, saved half-way, shared by processes."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..capture.recorder import LayerRecorder
from ..capture.state import device_of
from ..capture.streaming import SampleOrder
from ..estimators.kernels import Kernel
from ..estimators.layer_grams import LayerGram, unit_stack
from ..estimators.minibatch import MinibatchCKA
from ..similarity.matrix import SimilarityMatrix
from .grams.keeper import GramKeeper
from .request import Request

CHECKPOINT_EVERY = 20
"""Batches between two saves of a comparison with ``checkpoint=``."""


def centred_rows(
    kept: Sequence[LayerGram],
    estimator: str,
    device: torch.device,
    keeper: GramKeeper,
    names: Sequence[str],
    batch: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Flattened centred Gram matrices (layers, n * n) of one model and one batch, and their divisors, on ``device``."""
    stack, divisors = unit_stack([g.gram for g in kept], [g.factor for g in kept])
    rows = keeper.centred(stack, estimator)
    keeper.observe(batch, names, stack, rows)
    return rows.to(device), divisors.to(device)


class MinibatchPass:
    """Gathers minibatch CKA while a ``Pass`` runs; every pair of the first two recorders, or all layers of all.

    Parameters
    ----------
    recorders : sequence of LayerRecorder
        One, two, or with ``square`` any number; each keeps by a ``GramKeeper``.
    kernel, estimator
        As ``compare``.
    square : bool
        All layers of all recorders against each other.
    """

    def __init__(
        self, recorders: Sequence[LayerRecorder], kernel: Kernel, estimator: str, *, square: bool = False
    ) -> None:
        self.recorders = recorders
        self.keepers = [recorder.keep for recorder in recorders if isinstance(recorder.keep, GramKeeper)]
        self.square = square or len(recorders) == 1
        self.statistics = MinibatchCKA(kernel=kernel, estimator=estimator)
        self.home = device_of(recorders[0].model)
        self.found: list[str] = []

    def consume(self, index: int, kept: list[list[Any]], samples: int) -> None:
        """Add one batch."""
        sides = [
            centred_rows(grams, self.statistics.estimator, self.home, keeper, recorder.names, index)
            for grams, recorder, keeper in zip(kept, self.recorders, self.keepers, strict=True)
        ]
        if self.square:
            rows = sides[0][0] if len(sides) == 1 else torch.cat([rows for rows, _ in sides])
            scale = sides[0][1] if len(sides) == 1 else torch.cat([scale for _, scale in sides])
            self.statistics.update_rows(rows, scale, rows, scale, samples)
        else:
            (rows_x, scale_x), (rows_y, scale_y) = sides
            self.statistics.update_rows(rows_x, scale_x, rows_y, scale_y, samples)

    @property
    def _sides(self) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
        """(model, layer) of each row and column."""
        named = [[(r.name, layer) for layer in r.names] for r in self.recorders]
        if self.square:
            every = [pair for side in named for pair in side]
            return every, every
        return named[0], named[1]

    def finish(self) -> None:
        """Read what the keepers found on the device, once.

        Raises
        ------
        CaptureError
            If a layer gave NaN or infinity.
        """
        for recorder, keeper in zip(self.recorders, self.keepers, strict=True):
            self.found += keeper.finish(recorder.name, recorder.names)

    def result(self, notes: Sequence[str], meta: dict[str, Any], *, models: bool = False) -> SimilarityMatrix:
        """The similarities with their errors, p-values, chance levels and notes."""
        self.finish()
        rows, columns = self._sides
        notes = [
            *notes,
            *self.found,
            *(note for r in self.recorders for note in r.notes()),
        ]
        return minibatch_result(self.statistics, rows, columns, notes, meta, models=models)

    def all_reduce(self) -> None:
        """Add up the statistics of all processes of torch.distributed; every process then holds those of all data.

        A process whose shard was empty takes part with zeros.

        Raises
        ------
        ValueError
            If the processes compared different layers, or none of them had data.
        """
        import torch.distributed as dist

        mine = {
            "layers": [(r.name, r.names, r.left_out) for r in self.recorders],
            "shapes": {k: tuple(v.shape) for k, v in self.statistics.sums.items()},
            "samples": self.statistics.samples,
            "batches": self.statistics.batches,
        }
        gathered: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(gathered, mine)
        full = [part for part in gathered if part["batches"]]
        if not full:
            raise ValueError("No process had a batch to compare.")
        if any(part["layers"] != full[0]["layers"] for part in full):
            raise ValueError("The processes compared different layers. Every process must run the same models.")
        for recorder, (_, names, left_out) in zip(self.recorders, full[0]["layers"], strict=True):
            recorder.names, recorder.left_out = names, left_out
        sums = self.statistics.sums or {
            name: torch.zeros(shape, dtype=torch.float64, device=self.home) for name, shape in full[0]["shapes"].items()
        }
        sums = {name: total.clone() for name, total in sums.items()}
        for name in sorted(sums):
            dist.all_reduce(sums[name])
        self.statistics.sums = sums
        self.statistics.samples = sum(part["samples"] for part in gathered)
        self.statistics.batches = sum(part["batches"] for part in gathered)

    def save(self, path: Path, order: str, done: int) -> None:
        """Write everything that a resumed run needs, whole or not at all.

        Raises
        ------
        CaptureError
            If a layer gave NaN or infinity: what is saved is finite.
        """
        self.finish()
        state = self.statistics.state_dict()
        sums: dict[str, Any] = {f"sum_{name}": _numpy(total) for name, total in state.pop("sums").items()}
        header = {
            **state,
            "format": "cka_probe.checkpoint",
            "done": done,
            "order": order,
            "layers": [(r.name, r.names, r.left_out) for r in self.recorders],
            "modes": [keeper.modes for keeper in self.keepers],
        }
        temporary = path.with_name(f".{path.name}.part")
        try:
            with temporary.open("wb") as file:
                np.savez(file, header=np.array(json.dumps(header)), **sums)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def load(self, path: Path) -> tuple[int, str]:
        """Go on from a checkpoint: how many batches it holds, and the digest of their samples.

        Raises
        ------
        ValueError
            If the file is no checkpoint, or of another comparison.
        """
        try:
            with np.load(path, allow_pickle=False) as archive:
                header = json.loads(str(archive["header"]))
                sums = {n[4:]: torch.from_numpy(archive[n]).to(self.home) for n in archive.files if n != "header"}
            if header["format"] != "cka_probe.checkpoint":
                raise KeyError(header["format"])
        except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise ValueError(
                f"{path} is not a checkpoint of a comparison, or is damaged ({error}). Delete it to start anew."
            ) from error
        names = [name for name, _, _ in header["layers"]]
        if names != [r.name for r in self.recorders]:
            raise ValueError(
                f"{path} is a checkpoint of {', '.join(names)}, not of {', '.join(r.name for r in self.recorders)}."
            )
        try:
            self.statistics.load_state_dict({**header, "sums": sums})
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        for recorder, (_, layers, left_out) in zip(self.recorders, header["layers"], strict=True):
            recorder.names, recorder.left_out = layers, left_out
        for keeper, modes in zip(self.keepers, header["modes"], strict=True):
            keeper.modes = modes
        return int(header["done"]), str(header["order"])


def run_minibatch(
    recorders: list[LayerRecorder], request: Request, meta: dict[str, Any], *, models: bool = False
) -> SimilarityMatrix:
    """One pass with minibatch statistics, from a checkpoint where there is one."""
    gathered = MinibatchPass(recorders, request.kernel, request.estimator, square=request.square)
    path = request.checkpoint
    order = SampleOrder() if path is not None else None
    run = request.make_pass(recorders, gathered.statistics.minimum, order)
    skip, seen_before = gathered.load(path) if path is not None and path.exists() else (0, "")

    def consume(index: int, kept: list[list[Any]], samples: int) -> None:
        gathered.consume(index, kept, samples)
        if path is not None and order is not None and (index + 1) % CHECKPOINT_EVERY == 0:
            gathered.save(path, order.hexdigest(), index + 1)

    def same_samples(digest: str) -> None:
        if digest != seen_before:
            raise ValueError(
                f"{path} was made from other samples, or in another order. Turn shuffling off, or delete the file."
            )

    run.run(request.data, consume, data_y=request.data_y, skip=skip, skipped=same_samples)
    if path is not None and run.interrupted:
        gathered.save(path, run.digest, run.done)
    if request.distributed:
        gathered.all_reduce()
    else:
        run.require_batches()
    if path is not None and not run.interrupted:
        path.unlink(missing_ok=True)
    return gathered.result(run.notes, {**meta, "partial": run.interrupted}, models=models)


def minibatch_result(
    statistics: MinibatchCKA,
    rows: Sequence[tuple[str, str]],
    columns: Sequence[tuple[str, str]],
    notes: Sequence[str],
    meta: dict[str, Any],
    *,
    models: bool = False,
) -> SimilarityMatrix:
    """The similarities of (model, layer) rows and columns, with errors, p-values, chance levels and dead layers."""
    notes = [*notes]
    for side, key in [(rows, "self_x")] if columns == rows else [(rows, "self_x"), (columns, "self_y")]:
        dead = _numpy(statistics.sums[key]).ravel() <= 0
        notes += [
            f"{model}: {layer!r} is constant over the samples of every batch, so its similarity is undefined"
            for (model, layer), is_dead in zip(side, dead, strict=True)
            if is_dead
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
