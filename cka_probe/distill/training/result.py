"""What a distillation run gives back."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from torch import Tensor, nn

__all__ = ["DistillationResult"]


@dataclass(frozen=True)
class DistillationResult:
    """The history of a run, the trained student and its best weights.

    Parameters
    ----------
    history : pandas.DataFrame
        One row an epoch: epoch (from 1), train_loss, the mean of each weighted term, train_accuracy, test_accuracy, lr
        and seconds. Accuracies are fractions in [0, 1].
    student : torch.nn.Module
        The network that was passed in, with the weights of the last epoch.
    best_state : dict of str to Tensor
        The state dict of the epoch with the best test accuracy, on the CPU.
    diagnostics : pandas.DataFrame
        One row for each measurement: epoch, quantity ("cka" or "gradient cosine"), first, second, value, chance and
        standard_error; empty when no diagnostics were asked for.
    notes : tuple of str
        What a reader should know: samples left out, where the run was resumed.
    output_dir : pathlib.Path, optional
        Holds best.safetensors, last.safetensors, history.csv and the checkpoints.
    """

    history: pd.DataFrame
    student: nn.Module
    best_state: dict[str, Tensor]
    diagnostics: pd.DataFrame = field(default_factory=pd.DataFrame)
    notes: tuple[str, ...] = ()
    output_dir: Path | None = None

    @property
    def last_accuracy(self) -> float:
        """Test accuracy after the last epoch, in [0, 1]."""
        return float(self.history["test_accuracy"].iloc[-1])

    @property
    def best_accuracy(self) -> float:
        """The best test accuracy of any epoch, in [0, 1]. It is chosen on the test data, as published tables do."""
        return float(self.history["test_accuracy"].max())

    @property
    def best_epoch(self) -> int:
        """The first epoch (from 1) that reached the best accuracy."""
        return int(self.history["epoch"].iloc[self.history["test_accuracy"].argmax()])

    @property
    def best_path(self) -> Path | None:
        """Where the best weights lie, if there is an output directory."""
        return None if self.output_dir is None else self.output_dir / "best.safetensors"

    @property
    def last_path(self) -> Path | None:
        """Where the last weights lie, if there is an output directory."""
        return None if self.output_dir is None else self.output_dir / "last.safetensors"

    def __repr__(self) -> str:
        where = "" if self.output_dir is None else f", in {self.output_dir}"
        return (
            f"<DistillationResult: {len(self.history)} epochs, test accuracy last {self.last_accuracy:.2%}, "
            f"best {self.best_accuracy:.2%} (epoch {self.best_epoch}){where}>"
        )


@dataclass(frozen=True)
class DenseResult:
    """What a run of `distill_detector` or `distill_segmenter` gives back.

    Parameters
    ----------
    history : pandas.DataFrame
        One row every ``log_every`` steps: step (from 1), loss, the mean of each term since the row before, lr and
        seconds since the start.
    student : torch.nn.Module
        The network that was passed in, trained.
    scores : dict of str to float
        On the test data; empty without.
    notes : tuple of str
        What a reader should know.
    output_dir : pathlib.Path, optional
        Holds last.safetensors, history.csv and scores.csv.
    """

    history: pd.DataFrame
    student: nn.Module
    scores: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    output_dir: Path | None = None
