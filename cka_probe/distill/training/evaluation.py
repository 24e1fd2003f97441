"""When the student is scored, when a run without improvement stops, and further columns of the history."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Evaluation", "stopped_early"]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """When `distill` scores the student on the test data, when it stops early, and which columns are added.

    Parameters
    ----------
    every : int, optional
        Steps between two evaluations. The history then has a row for each of them, with a column "step", instead of one
        for each epoch; the last step is always scored. None scores after each epoch.
    patience : int, optional
        The run stops after this number of evaluations in a row without a better score.
    columns : tuple of str
        "loss" adds ``test_loss``, the mean of `supervision` over the test samples; "top5" (or another number) adds
        ``test_top5``, the fraction of samples whose class is among the five largest logits.

    Raises
    ------
    TypeError
        If `columns` is a single text.
    ValueError
        If a number is below 1, or there is no such column.

    Examples
    --------
    >>> Evaluation(every=500, patience=4, columns=("loss", "top5")).ranks
    {'top5': 5}
    """

    every: int | None = None
    patience: int | None = None
    columns: Sequence[str] = ()

    def __post_init__(self) -> None:
        for name in ("every", "patience"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` of Evaluation must be at least 1, got {value}.")
        if isinstance(self.columns, str):
            raise TypeError(f"`columns` of Evaluation is a tuple of names, got the text {self.columns!r}.")
        for name in self.columns:
            if name != "loss" and not re.fullmatch(r"top[1-9]\d*", name):
                raise ValueError(
                    f'`columns` of Evaluation may hold "loss" and "top5" (or another number), got {name!r}.'
                )
        object.__setattr__(self, "columns", tuple(self.columns))

    @property
    def ranks(self) -> dict[str, int]:
        """The columns of accuracies by name, and among how many of the largest logits the class must be."""
        return {name: int(name[3:]) for name in self.columns if name != "loss"}


def stopped_early(
    rows: Sequence[dict[str, Any]], column: str, patience: int | None, higher_is_better: bool = True
) -> bool:
    """Whether the last ``patience`` rows of a history have no better score than the rows before them.

    Examples
    --------
    >>> rows = [{"test_accuracy": value} for value in (0.5, 0.7, 0.7, 0.6)]
    >>> stopped_early(rows, "test_accuracy", 2), stopped_early(rows, "test_accuracy", 3)
    (True, False)
    """
    if patience is None:
        return False
    scores = [row[column] if higher_is_better else -row[column] for row in rows]
    finite = [score for score in scores if score == score]  # NaN is no score
    if not finite:
        return len(rows) > patience
    return len(rows) - 1 - scores.index(max(finite)) >= patience
