"""The files of a comparison over a whole data set with ``checkpoint=``: its state, and its features if it keeps any."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..capture.streaming import Consume, Pass
from .checkpoint import CHECKPOINT_EVERY, Checkpoint, remove_checkpoint
from .dataset_pass import DatasetPass
from .dataset_state import pass_state, restore_pass
from .feature_blocks import FeatureFile
from .held import let_go
from .keeping import see_batch
from .output_answers import Answers
from .request import ComparedModel, Request
from .resumed import FirstBatchError, in_half_precision, marks_note
from .run_identity import comparison_identity, data_size, settings_of
from .same_samples import SameSamples

__all__ = ["DatasetCheckpoint"]


class DatasetCheckpoint:
    """The checkpoint of one comparison; without ``request.checkpoint`` nothing here reads or writes.

    Parameters
    ----------
    models, request
        As ``run_dataset``.
    home : torch.device
        Where the statistics are kept.
    processes : int
        Number of processes that compare together.

    Attributes
    ----------
    identity : dict of str to str
        Of the comparison, if it has a checkpoint or runs in several processes.
    saved : Checkpoint or None
        Of an earlier run, until the pass is over that it had begun.

    Raises
    ------
    ValueError
        If the file is not a checkpoint, belongs to another comparison, or cannot be resumed.
    """

    def __init__(
        self, models: Sequence[ComparedModel], request: Request, home: torch.device, processes: int = 1
    ) -> None:
        self.path = None if request.checkpoint is None else Path(request.checkpoint)
        self.identity: dict[str, str] = {}
        self.saved: Checkpoint | None = None
        self._home = home
        if self.path is None and processes == 1:
            return
        recorders = [request.recorder(model, lambda *_: None) for model in models]
        self.identity = comparison_identity(recorders, request, processes)
        if self.path is None:
            return
        self._sizes, self._settings = data_size(request), settings_of(recorders)
        self._loose = in_half_precision(recorders, request)
        if self.path.exists():
            self.saved = Checkpoint.of_same_run(self.path, home, self.identity, self._sizes, self._settings)

    def __bool__(self) -> bool:
        return self.path is not None

    @property
    def within(self) -> bool:
        """Whether the earlier run has ended inside a pass, which goes on from there."""
        return self.saved is not None and bool(self.saved.state["within"])

    def new_file(self) -> FeatureFile:
        """The empty file of the features, which outlasts this process."""
        return FeatureFile(path=self._beside())

    def _beside(self) -> Path:
        assert self.path is not None
        return self.path.with_name(self.path.name + ".features")

    def restore(self, gathered: DatasetPass, order: SameSamples) -> FeatureFile | None:
        """Give ``gathered`` and ``order`` the saved state. Return the file of the features if it goes on with one.

        Raises
        ------
        ValueError
            If that file is missing or too short.
        """
        assert self.saved is not None
        state, file = self.saved.state, None
        if state["file"]:
            path = self._beside()
            size = path.stat().st_size if path.exists() else 0
            if size < state["file"]:
                raise ValueError(
                    f"{self.path} cannot be resumed: {path} with the features is missing or too short. Put it back, or "
                    f"delete {self.path} to start again."
                )
            file = FeatureFile(path=path, size=state["file"])
        restore_pass(gathered, state["pass"], file)
        order.digests = list(state["order"])
        order.go_on(0, is_first=gathered.passes_done == 0)
        return file

    def checked(self, gathered: DatasetPass, consume: Consume) -> Consume:
        """``consume`` for a pass that goes on: the first batch runs again only to be compared with the earlier run."""

        def first(index: int, kept: list[list[Any]], samples: int) -> None:
            if index or not self.within:
                consume(index, kept, samples)
                return
            let_go([held for side in kept for held in side])
            see_batch(gathered, index)
            self.check_first(gathered)

        return first

    def check_first(self, gathered: DatasetPass) -> None:
        """Compare what the first batch gives with what it gave in the earlier run.

        Raises
        ------
        ValueError
            If it differs by more than rounding.
        """
        assert self.saved is not None
        try:
            before = self.saved.state["pass"]["marks"]
            note = marks_note(before, gathered.seen, exact=self._home.type == "cpu", loose=self._loose)
        except FirstBatchError as error:
            raise ValueError(f"{self.path} {error}") from None
        if note is not None and note not in gathered.notes:
            gathered.notes.append(note)

    def is_due(self, run: Pass, gathered: DatasetPass) -> bool:
        """Whether the state is saved after this batch."""
        return self.path is not None and gathered.lasting and run.done % CHECKPOINT_EVERY == 0

    def save(
        self, run: Pass, gathered: DatasetPass, answers: Answers, order: SameSamples, *, notes: Any, names: Any
    ) -> None:
        """Write the state as it is between two batches, or after a pass. Raise OSError if it cannot be written."""
        if self.path is None:
            return
        file = gathered.kept_by.file if gathered.kept_by is not None and gathered.persists else None
        if file is not None:
            file.sync()
        state = {
            "within": gathered.batches > 0,
            "file": 0 if file is None else file.size,
            "pass": pass_state(gathered),
            "answers": answers.state(),
            "order": order.digests,
            "notes": list(notes),
            "names": names,
        }
        Checkpoint(run.progress(), self.identity, self._sizes, self._settings, state).save(self.path)

    def remove(self) -> None:
        """Remove the files: the comparison is done, or begins again."""
        if self.path is not None:
            remove_checkpoint(self.path)
            self._beside().unlink(missing_ok=True)
