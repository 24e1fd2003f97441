"""Results of training: the history, the student and its scores."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor, nn

__all__ = ["DenseResult", "DistillationResult"]


@dataclass(frozen=True)
class DistillationResult:
    """History of a run of `distill`, the trained student and its best weights.

    Parameters
    ----------
    history : pandas.DataFrame
        One row for each epoch: epoch (from 1), train_loss, the mean of each weighted term, train_accuracy (if answers
        are classes), the main score, lr and seconds. Accuracies are fractions in [0, 1].
    student : torch.nn.Module
        The network that was passed, with the weights of the last epoch.
    best_state : dict of str to Tensor
        The state dict of the epoch with the best main score, on the CPU; of the last epoch without scores.
    diagnostics : pandas.DataFrame
        One row for each measurement: epoch, quantity ("cka", "gradient norm" or "gradient cosine"), first, second,
        value, chance and standard_error. Empty without diagnostics.
    notes : tuple of str
        Samples that were left out, and where the run was resumed.
    output_dir : pathlib.Path, optional
        Folder of best.safetensors, last.safetensors, history.csv, settings.json and the checkpoints.
    score_column : str or None
        Column of the main score, which chooses the best epoch: "test_accuracy", "test_loss" or that of the metric.
    higher_is_better : bool
        Whether a larger main score is better.
    teacher_score : float, optional
        Main score of the teacher on the test data, the ceiling of most students. None without a teacher, or if its
        outputs do not fit the targets.
    """

    history: pd.DataFrame
    student: nn.Module
    best_state: dict[str, Tensor]
    diagnostics: pd.DataFrame = field(default_factory=pd.DataFrame)
    notes: tuple[str, ...] = ()
    output_dir: Path | None = None
    score_column: str | None = "test_accuracy"
    higher_is_better: bool = True
    teacher_score: float | None = None

    @property
    def last_score(self) -> float:
        """Main score after the last epoch; NaN without one."""
        return float("nan") if self.score_column is None else float(self.history[self.score_column].iloc[-1])

    @property
    def best_score(self) -> float:
        """Best main score of any epoch; NaN without one. It is selected on the test data, as in published tables."""
        row = self._best_row
        return float("nan") if row is None else float(self.history[str(self.score_column)].iloc[row])

    @property
    def last_accuracy(self) -> float:
        """Test accuracy after the last epoch, in [0, 1]. Raise ValueError if the run has another score."""
        self._check_accuracy()
        return self.last_score

    @property
    def best_accuracy(self) -> float:
        """Best test accuracy of any epoch, in [0, 1]. Raise ValueError if the run has another score."""
        self._check_accuracy()
        return self.best_score

    @property
    def best_epoch(self) -> int:
        """First epoch (from 1) with the best score; the last one without scores."""
        row = self._best_row
        return int(self.history["epoch"].iloc[-1 if row is None else row])

    @property
    def _best_row(self) -> int | None:
        if self.score_column is None or self.history[self.score_column].isna().all():
            return None
        column = self.history[self.score_column]
        return int(column.argmax() if self.higher_is_better else column.argmin())

    def _check_accuracy(self) -> None:
        if self.score_column != "test_accuracy":
            raise ValueError(f"This run has no accuracy. Its score is {self.score_column!r}: see last_score.")

    @property
    def best_path(self) -> Path | None:
        """File of the best weights; None without an output directory."""
        return None if self.output_dir is None else self.output_dir / "best.safetensors"

    @property
    def last_path(self) -> Path | None:
        """File of the last weights; None without an output directory."""
        return None if self.output_dir is None else self.output_dir / "last.safetensors"

    def __repr__(self) -> str:
        where = "" if self.output_dir is None else f", in {self.output_dir}"
        epochs = f"{len(self.history)} epoch{'' if len(self.history) == 1 else 's'}"
        if self.score_column is None:
            return f"<DistillationResult: {epochs}, no score{where}>"
        name = self.score_column.replace("_", " ")
        last, best, *teacher = (
            f"{value:.2%}" if self.score_column == "test_accuracy" else f"{value:.4g}"
            for value in (self.last_score, self.best_score, self.teacher_score)
            if value is not None
        )
        taught = f", teacher {teacher[0]}" if teacher else ""
        return (
            f"<DistillationResult: {epochs}, {name} last {last}, best {best} (epoch {self.best_epoch}){taught}{where}>"
        )


@dataclass(frozen=True)
class DenseResult:
    """History of a run of `distill_detector` or `distill_segmenter`, the trained student and its scores.

    Parameters
    ----------
    history : pandas.DataFrame
        One row for every ``log_every`` steps, and for each step after which the test data was scored: step (from 1),
        loss, the mean of each term since the row before, lr and seconds since the start; and test_AP, test_mIoU, ...
        where it was scored. Means are over all processes.
    student : torch.nn.Module
        The network that was passed, with the weights of the last step.
    scores : dict of str to float
        Scores on the test data after the last step. Empty without test data.
    notes : tuple of str
        Where the run was resumed.
    output_dir : pathlib.Path, optional
        Folder of best.safetensors, last.safetensors, history.csv, scores.csv, settings.json and the checkpoints.
    best_state : dict of str to Tensor
        The state dict of the scored step with the best main score, on the CPU. Empty without test data.
    main_score : str
        Name of the score that decides which step is best: "AP" of detectors, "mIoU" of segmenters.
    """

    history: pd.DataFrame
    student: nn.Module
    scores: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    output_dir: Path | None = None
    best_state: dict[str, Tensor] = field(default_factory=dict)
    main_score: str = ""

    @property
    def last_score(self) -> float:
        """Main score after the last step; NaN without test data."""
        return self.scores.get(self.main_score, float("nan"))

    @property
    def best_score(self) -> float:
        """Best main score of any scored step; NaN without test data. It is selected on the test data."""
        return float("nan") if self.best_step is None else float(self._main_scores.max())

    @property
    def best_step(self) -> int | None:
        """First scored step with the best main score; None without test data, or if every score is NaN."""
        scores = self._main_scores.dropna()
        if scores.empty:
            return None
        label: Any = scores.idxmax()
        return int(self.history["step"][label])

    @property
    def best_path(self) -> Path | None:
        """File of the best weights; None without an output directory or without test data."""
        return self.output_dir / "best.safetensors" if self.output_dir is not None and self.best_state else None

    @property
    def _main_scores(self) -> pd.Series[float]:
        return self.history.get(f"test_{self.main_score}", pd.Series(dtype=float))

    @property
    def last_path(self) -> Path | None:
        """File of the last weights; None without an output directory."""
        return None if self.output_dir is None else self.output_dir / "last.safetensors"

    def __repr__(self) -> str:
        where = "" if self.output_dir is None else f", in {self.output_dir}"
        scored = (
            ""
            if self.best_step is None
            else (f", {self.main_score} last {self.last_score:.4f}, best {self.best_score:.4f} (step {self.best_step})")
        )
        steps = 0 if self.history.empty else int(self.history["step"].iloc[-1])
        return f"<DenseResult: {steps} steps{scored}{where}>"
