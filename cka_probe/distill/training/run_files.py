"""The directory of a run: settings, history, weights, checkpoints and TensorBoard's events."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ...capture.extras import require
from ...similarity.matrix import SimilarityMatrix
from .checkpoints import (
    CURRENT,
    INCOMING,
    PREVIOUS,
    CheckpointError,
    load_checkpoint,
    save_checkpoint,
    save_weights,
    write_whole,
)
from .checkpoints import write_whole as write

__all__ = ["RunFiles"]


class RunFiles:
    """Writes what a run leaves behind; without a directory, or in any process but the main one, it writes nothing.

    Parameters
    ----------
    directory : path, optional
        Made when it does not exist.
    settings : dict
        What decides the outcome of the run, as text and numbers. A directory holds one run: others are refused.
    resume : bool
        Whether to go on from a checkpoint in the directory. False removes what is there of an earlier run.
    main : bool
        Whether this process writes.
    tensorboard : bool
        Whether the history also goes to ``directory/tensorboard``.

    Raises
    ------
    ValueError
        If `tensorboard` is asked for without a directory, or the directory holds a run with other settings.
    CheckpointError
        If the directory's checkpoints are damaged.
    ModuleNotFoundError
        If TensorBoard is asked for and not installed.
    """

    def __init__(
        self,
        directory: Path | str | None,
        settings: dict[str, Any],
        *,
        resume: bool = True,
        main: bool = True,
        tensorboard: bool = False,
    ) -> None:
        if tensorboard and directory is None:
            raise ValueError("`tensorboard` needs an `output_dir` to write to.")
        self.directory = None if directory is None else Path(directory)
        self.settings = json.loads(json.dumps(settings))
        self.state: dict[str, Any] | None = None
        self._main = main
        self._board: Any = None
        if self.directory is None:
            return
        if resume:
            self.state = load_checkpoint(self.directory)
            if self.state is not None:
                self._check_settings(self.state["settings"])
        if not main:
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        if not resume:
            for name in (CURRENT, INCOMING, PREVIOUS, "best.safetensors", "last.safetensors"):
                (self.directory / name).unlink(missing_ok=True)
        write(self.directory / "settings.json", json.dumps(self.settings, indent=1))
        if tensorboard:
            self._board = _summary_writer(self.directory / "tensorboard", self.state)

    def _check_settings(self, before: dict[str, Any]) -> None:
        different = [
            f"{key} was {before.get(key)!r} and is now {self.settings.get(key)!r}"
            for key in {**before, **self.settings}
            if before.get(key) != self.settings.get(key)
        ]
        if different:
            raise ValueError(
                f"{self.directory} holds a run with other settings: {'; '.join(different)}. "
                "Use another output_dir, or resume=False to start again there."
            )

    def best_state(self) -> dict[str, Tensor]:
        """The best weights of the run that is resumed.

        Raises
        ------
        CheckpointError
            If the file is missing or damaged.
        """
        assert self.directory is not None
        path = self.directory / "best.safetensors"
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"The run cannot be resumed: its best weights {path} cannot be read ({error}). "
                "Pass resume=False to start again."
            ) from error

    def log(self, rows: list[dict[str, float]], diagnostics: list[dict[str, Any]]) -> None:
        """Writes the history so far as CSV, and its last row to TensorBoard."""
        if self.directory is None or not self._main:
            return
        write(self.directory / "history.csv", pd.DataFrame(rows).to_csv(index=False))
        if diagnostics:
            write(self.directory / "diagnostics.csv", pd.DataFrame(diagnostics).to_csv(index=False))
        if self._board is not None:
            epoch = int(rows[-1]["epoch"])
            for name, value in rows[-1].items():
                if name != "epoch":
                    self._board.add_scalar(name, value, epoch)
            for line in diagnostics:
                if line["epoch"] == epoch:
                    self._board.add_scalar(
                        "/".join(filter(None, (line["quantity"], line["first"], line["second"]))), line["value"], epoch
                    )
            self._board.flush()

    def save_weights(self, name: str, state: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Saves a state dict as ``name.safetensors``."""
        if self.directory is not None and self._main:
            save_weights(state, self.directory / f"{name}.safetensors", facts)

    def save_heatmap(self, matrix: SimilarityMatrix, epoch: int) -> None:
        """Saves a similarity matrix and its picture in ``heatmaps``."""
        if self.directory is not None and self._main:
            save_heatmap(matrix, self.directory / "heatmaps", epoch)

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Saves what a later process needs to go on from here."""
        if self.directory is not None and self._main:
            save_checkpoint(self.directory, {**state, "settings": self.settings})

    def close(self) -> None:
        """Closes TensorBoard's file."""
        if self._board is not None:
            self._board.close()


def _summary_writer(directory: Path, state: dict[str, Any] | None) -> Any:
    require("tensorboard", "tensorboard", "tensorboard=True")
    from torch.utils.tensorboard import SummaryWriter

    # Events of epochs that a killed run logged and the resumed one repeats are hidden.
    return SummaryWriter(str(directory), purge_step=None if state is None else state["epoch"] + 1)


def save_heatmap(matrix: SimilarityMatrix, directory: Path, epoch: int) -> None:
    """Saves a similarity matrix as ``epoch_NNN.npz`` and its heatmap as ``epoch_NNN.png``.

    Parameters
    ----------
    matrix : SimilarityMatrix
        Teacher's layers as rows, the student's as columns.
    directory : path
        Made when it does not exist.
    epoch : int
        Counted from 1.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    directory.mkdir(parents=True, exist_ok=True)
    matrix.save(directory / f"epoch_{epoch:03d}.npz")
    figure = Figure(figsize=(6, 5), layout="constrained")
    FigureCanvasAgg(figure)  # no window and no pyplot: a run must not touch the caller's figures
    axes = figure.add_subplot()
    matrix.plot(ax=axes)
    axes.set(title=f"epoch {epoch}", xlabel="student", ylabel="teacher")
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=150)
    write_whole(directory / f"epoch_{epoch:03d}.png", picture.getvalue())
