"""What a comparison was asked to do, for the scopes that do it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .estimators.kernels import Kernel
from .streaming import Pass, SampleOrder

SCOPES = ("minibatch", "dataset")


@dataclass(frozen=True)
class Request:
    """The arguments of ``compare`` that do not belong to a single model.

    ``square`` asks for all layers of all models against each other.
    """

    data: Iterable[Any]
    data_y: Iterable[Any] | None
    kernel: Kernel
    estimator: str
    scope: str
    measure: str
    device: torch.device | str | None
    autocast: torch.dtype | None
    checkpoint: Path | None
    distributed: bool
    progress: bool
    square: bool

    def __post_init__(self) -> None:
        if self.scope not in SCOPES:
            raise ValueError(f'`scope` must be "minibatch" or "dataset", got {self.scope!r}.')

    def make_pass(self, recorders: list[Any], minimum: int, order: SampleOrder | None = None) -> Pass:
        """A pass of these models over the data."""
        return Pass(
            recorders,
            minimum,
            device=self.device,
            autocast=self.autocast,
            progress=self.progress,
            order=order,
        )
