"""Files of a run: settings, history, weights and checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ...atomic_write import atomic_write
from ...identity import differences
from ...similarity.matrix import SimilarityMatrix
from ...similarity.text import safe_csv
from .checkpoints import (
    CURRENT,
    INCOMING,
    PREVIOUS,
    CheckpointError,
    load_checkpoint,
    save_checkpoint,
    save_weights,
)

__all__ = ["RunFiles"]


class RunFiles:
    """Write the files of a run. Without a directory, and in every process but the main one, nothing is written.

    Making the object reads the checkpoint and checks that it belongs to this run; ``open`` begins to write.

    Parameters
    ----------
    directory : path, optional
        Created if it does not exist.
    settings : dict
        Everything that decides the outcome of the run, as text and numbers. With `resume`, a directory that
        holds a run with other settings is refused.
    resume : bool
        Whether to resume from a checkpoint in the directory. False removes the checkpoints and weights of an earlier
        run.
    main : bool
        Whether this process writes.
    length : {"epochs", "steps"}
        The setting that is the length of the run.
    extend : callable, optional
        ``extend(length before, length now, saved state)`` returns why a run cannot go on to another length, or None.
        Without it, the length is a setting like any other.
    texts : dict of str to str, optional
        Further files by name, which ``open`` writes.

    Raises
    ------
    ValueError
        If `resume` is set and the directory holds a run with other settings.
    CheckpointError
        If `resume` is set and no checkpoint in the directory can be read.
    """

    def __init__(
        self,
        directory: Path | str | None,
        settings: dict[str, Any],
        *,
        resume: bool = True,
        main: bool = True,
        length: str = "epochs",
        extend: Callable[[int, int, dict[str, Any]], str | None] | None = None,
        texts: Mapping[str, str] | None = None,
    ) -> None:
        self.directory = None if directory is None else Path(directory)
        self.settings = json.loads(json.dumps(settings))
        self.state: dict[str, Any] | None = None
        self._main = main
        self._resume = resume
        self._texts = texts or {}
        if self.directory is not None and resume:
            self.state = load_checkpoint(self.directory)
            if self.state is not None:
                self._check_settings(self.state, length, extend)

    def _check_settings(
        self, state: dict[str, Any], length: str, extend: Callable[[int, int, dict[str, Any]], str | None] | None
    ) -> None:
        before = dict(state["settings"])
        was: Any = before.get(length)
        now: Any = self.settings.get(length)
        different = differences({**before, length: now} if extend is not None else before, self.settings)
        if not different and extend is not None and was != now:
            reason = extend(was, now, state)
            if reason is not None:
                raise ValueError(
                    f"{self.directory} holds a run of {was} {length}, which cannot become one of {now}: {reason}. "
                    "Use another output_dir, or resume=False to start again there."
                )
        if different:
            raise ValueError(
                f"{self.directory} holds a run with other settings: {'; '.join(different)}. "
                "Use another output_dir, or resume=False to start again there."
            )

    def open(self) -> None:
        """Create the directory and write the settings; without `resume`, remove what an earlier run has left.

        Raises
        ------
        OSError
            If the directory cannot be written.
        """
        if self.directory is None or not self._main:
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        if not self._resume:
            for name in (CURRENT, INCOMING, PREVIOUS, "best.safetensors", "last.safetensors"):
                (self.directory / name).unlink(missing_ok=True)
        for name, text in {"settings.json": json.dumps(self.settings, indent=1), **self._texts}.items():
            atomic_write(self.directory / name, text)

    def best_state(self) -> dict[str, Tensor]:
        """Best weights of the run that is resumed.

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

    def save_table(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Save rows as ``name.csv``."""
        if self.directory is not None and self._main:
            atomic_write(self.directory / f"{name}.csv", safe_csv(pd.DataFrame(rows)))

    def save_weights(self, name: str, state: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Save a state dict as ``name.safetensors``."""
        if self.directory is not None and self._main:
            save_weights(state, self.directory / f"{name}.safetensors", facts)

    def save_heatmap(self, matrix: SimilarityMatrix, epoch: int) -> None:
        """Save a similarity matrix as ``heatmaps/epoch_NNN.npz`` and its picture as ``heatmaps/epoch_NNN.png``.

        Parameters
        ----------
        matrix : SimilarityMatrix
            Layers of the teacher as rows, layers of the student as columns.
        epoch : int
            Counted from 1.
        """
        if self.directory is None or not self._main:
            return
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        folder = self.directory / "heatmaps"
        folder.mkdir(parents=True, exist_ok=True)
        matrix.save(folder / f"epoch_{epoch:03d}.npz")
        figure = Figure(figsize=(6, 5), layout="constrained")
        FigureCanvasAgg(figure)  # no window and no pyplot: a run must not change the caller's figures
        axes = figure.add_subplot()
        matrix.plot(ax=axes)
        axes.set(title=f"epoch {epoch}", xlabel="student", ylabel="teacher")
        atomic_write(folder / f"epoch_{epoch:03d}.png", lambda file: figure.savefig(file, format="png", dpi=150))

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Save everything that a later process needs to resume from here."""
        if self.directory is not None and self._main:
            save_checkpoint(self.directory, {**state, "settings": self.settings})
