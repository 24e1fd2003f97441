"""What a comparison was asked to do, for the scopes that do it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..capture.buffers import require_cupy
from ..capture.state import device_of
from ..capture.streaming import Pass, SampleOrder
from ..estimators.kernels import Kernel, Linear
from ..estimators.validation import check_estimator

SCOPES = ("minibatch", "dataset")

BACKENDS = ("torch", "cupy")


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
    backend: str
    tf32: bool
    overlap: bool
    progress: bool
    square: bool

    def __post_init__(self) -> None:
        if self.scope not in SCOPES:
            raise ValueError(f'`scope` must be "minibatch" or "dataset", got {self.scope!r}.')
        if self.backend not in BACKENDS:
            raise ValueError(f'`backend` must be "torch" or "cupy", got {self.backend!r}.')
        if self.scope != "minibatch" and (self.backend != "torch" or self.tf32 or self.overlap):
            raise ValueError('`backend`, `tf32` and `overlap` are for scope="minibatch". Leave them out.')
        if self.backend == "cupy":
            require_cupy()
        if self.device is not None:
            _check_device(self.device)

    def check_devices(self, models: Sequence[nn.Module]) -> None:
        """Raise a ValueError unless all models run where ``backend``, ``tf32`` and ``overlap`` have a meaning."""
        asked = {'backend="cupy"': self.backend == "cupy", "tf32=True": self.tf32, "overlap=True": self.overlap}
        option = next((option for option, given in asked.items() if given), None)
        if option is None:
            return
        for model in models:
            device = device_of(model) if self.device is None else torch.device(self.device)
            if device.type != "cuda":
                raise ValueError(
                    f'{option} is for an NVIDIA GPU, but {type(model).__name__} is on {device}. Pass device="cuda".'
                )

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


def make_request(
    data: Iterable[Any],
    *,
    kernel: Kernel | None,
    estimator: str,
    scope: str | None,
    measure: str,
    square: bool,
    data_y: Iterable[Any] | None = None,
    device: torch.device | str | None = None,
    autocast: torch.dtype | None = None,
    checkpoint: str | Path | None = None,
    distributed: bool = False,
    backend: str = "torch",
    tf32: bool = False,
    overlap: bool = False,
    progress: bool = True,
) -> Request:
    """A request with what was left out filled in: the linear kernel, and the scope that the measure has.

    Raises
    ------
    ValueError
        For an unknown measure, estimator, scope or backend, and for those that do not go together.
    """
    kernel = kernel or Linear()
    if measure != "cka":
        _check_measure(measure, kernel)
        if scope == "minibatch":
            raise ValueError(f'The measure {measure!r} has no minibatch form. Use scope="dataset".')
    check_estimator(estimator)
    return Request(
        data=data,
        data_y=data_y,
        kernel=kernel,
        estimator=estimator,
        scope=scope or ("minibatch" if measure == "cka" else "dataset"),
        measure=measure,
        device=device,
        autocast=autocast,
        checkpoint=None if checkpoint is None else Path(checkpoint),
        distributed=distributed,
        backend=backend,
        tf32=tf32,
        overlap=overlap,
        progress=progress,
        square=square,
    )


def _check_device(device: torch.device | str) -> None:
    """Raise a ValueError unless there is such a device."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"`device`: {str(device)!r} cannot be used here. torch says: {reason}") from error


def _check_measure(measure: str, kernel: Any) -> None:
    """Raise a ValueError for an unknown measure, or a kernel that it would not use."""
    if measure == "cka":
        return
    from ..estimators.measures.catalogue import MEASURES

    if measure not in MEASURES:
        raise ValueError(f"No measure is called {measure!r}. There are: cka, {', '.join(MEASURES)}.")
    if not isinstance(kernel, Linear):
        raise ValueError(f"The measure {measure!r} does not use a kernel. Leave `kernel` out.")
