"""The options of a comparison, their defaults and their checks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..capture.batches import Forward
from ..capture.buffers import require_cupy
from ..capture.keeping import Keep
from ..capture.layers import Layers
from ..capture.nearest import nearest_hint
from ..capture.networks import check_device
from ..capture.pooling import Pooling, check_pooling
from ..capture.progress import HasState
from ..capture.recorder import LayerRecorder
from ..capture.sample_order import SampleOrder
from ..capture.state import device_of
from ..capture.streaming import Pass
from ..estimators.calibration import check_permutations
from ..estimators.dataset.routes import ROUTES
from ..estimators.kernels import Linear
from ..estimators.validation import check_estimator
from .checks import check_autocast, check_checkpoint, check_forward, check_process_group, checked_kernel
from .memory import parsed_memory

__all__ = ["BACKENDS", "SCOPES", "ComparedModel", "Request"]

SCOPES = ("minibatch", "dataset")

BACKENDS = ("torch", "cupy")


@dataclass(frozen=True)
class ComparedModel:
    """One model of a comparison: its name in messages, and the selection of its layers as in ``compare``."""

    model: nn.Module
    name: str
    layers: Layers
    exclude: Layers | None = None


@dataclass
class Request:
    """The options that hold for all models of a comparison.

    ``square`` compares all layers of all models with each other, as ``compare_many`` does. ``options`` are those of the
    measure, checked by ``check_measure_options``. Every other field is the parameter of ``compare`` with the same name.
    In a finished request ``kernel`` and ``scope`` are never None.

    Raises
    ------
    ValueError
        If a value is unknown, or two options contradict each other.
    TypeError
        If an option is of the wrong kind: a class or a name as the kernel, a forward that does not take two arguments.
    ModuleNotFoundError, RuntimeError
        If ``backend="cupy"`` and CuPy or the GPU is missing. RuntimeError also if ``distributed`` is set and
        torch.distributed is not initialised.
    OSError
        If the checkpoint cannot be written.
    """

    data: Iterable[Any]
    data_y: Iterable[Any] | None = None
    kernel: Any = None  # a Kernel in a finished request
    estimator: str = "unbiased"
    scope: str | None = None
    measure: str = "cka"
    pooling: Pooling = "auto"
    forward: Forward | None = None
    device: torch.device | str | None = None
    autocast: torch.dtype | None = None
    channels_last: bool = False
    checkpoint: str | Path | None = None
    distributed: bool = False
    backend: str = "torch"
    tf32: bool = False
    overlap: bool = False
    progress: bool = True
    square: bool = False
    sample_axis: int = 0
    permutations: int | None = None
    outputs: bool = False
    memory: int | float | str | None = None
    route: str | None = None
    options: dict[str, Any] = field(default_factory=dict)  # of the measure

    def __post_init__(self) -> None:
        given = self.kernel
        self.kernel = checked_kernel(given)
        self._check_measure(given)
        self.scope = self.scope or ("minibatch" if self.measure == "cka" else "dataset")
        check_estimator(self.estimator)
        if self.scope not in SCOPES:
            raise ValueError(f'`scope` must be "minibatch" or "dataset", got {self.scope!r}.')
        if self.backend not in BACKENDS:
            raise ValueError(f'`backend` must be "torch" or "cupy", got {self.backend!r}.')
        if self.permutations is not None and (self.scope == "dataset") == (self.measure == "cka"):
            raise ValueError(
                '`permutations` is for CKA with scope="minibatch" and for other measures with scope="dataset". For CKA '
                "of all samples, use cka_probe.estimators.cka_matrix_test on the features of cka_probe.extract."
            )
        if self.scope == "dataset":
            self._check_dataset_scope()
        self._check_memory()
        if self.backend == "cupy":
            require_cupy()
        if self.device is not None:
            check_device(self.device)
        check_pooling(self.pooling)
        check_forward(self.forward)
        check_autocast(self.autocast)
        if self.distributed:
            check_process_group()
        if self.permutations is not None:
            check_permutations(self.permutations)
        if self.checkpoint is not None:
            check_checkpoint(self.checkpoint, self.kernel)

    @property
    def pooling_name(self) -> str:
        """Name of the pooling in results."""
        return self.pooling if isinstance(self.pooling, str) else getattr(self.pooling, "__name__", repr(self.pooling))

    def _check_measure(self, kernel: Any) -> None:
        if not isinstance(self.measure, str):
            raise TypeError(f"`measure` must be a name such as 'cka', got {self.measure!r}.")
        if self.measure == "cka":
            return
        from ..estimators.measures.catalogue import MEASURES

        if self.measure not in MEASURES:
            hint = nearest_hint(self.measure, ["cka", *MEASURES], kind="The measures")
            raise ValueError(f"No measure is called {self.measure!r}. {hint}")
        if kernel is not None and "kernel" in MEASURES[self.measure].options:
            self.options = {**self.options, "kernel": kernel}
            MEASURES[self.measure].try_options(self.options)
            self.kernel = Linear()
        if not isinstance(self.kernel, Linear):
            raise ValueError(f"The measure {self.measure!r} does not use a kernel. Leave `kernel` out.")
        if self.scope == "minibatch" and self.measure != "mmd":
            raise ValueError(f'The measure {self.measure!r} has no minibatch form. Use scope="dataset".')
        if self.scope == "minibatch":
            if not self.options.get("centred", True):
                raise ValueError('`centred=False` is for scope="dataset". The Gram matrices of hooks are centred.')
            self.kernel = checked_kernel(self.options.get("gram_kernel"))

    def _check_dataset_scope(self) -> None:
        if self.backend != "torch" or self.tf32 or self.overlap:
            raise ValueError('`backend`, `tf32` and `overlap` are for scope="minibatch". Leave them out.')
        if self.distributed and self.checkpoint is not None:
            raise ValueError(
                'scope="dataset" in several processes has no checkpoint. Leave `checkpoint` out to start again after a '
                'stop, leave `distributed` out to run in one process, or use scope="minibatch", which has both.'
            )

    def _check_memory(self) -> None:
        for name, given in (("memory", self.memory), ("route", self.route)):
            if given is not None and self.scope == "minibatch":
                raise ValueError(f'`{name}` is for scope="dataset". A minibatch comparison keeps no features.')
        if self.memory is not None:
            parsed_memory(self.memory)
        if self.route is not None and self.route not in ROUTES:
            listed = ", ".join(map(repr, ROUTES))
            raise ValueError(f"`route` must be one of {listed}, or None for the fastest that fits, got {self.route!r}.")
        if self.route is not None and self.measure != "cka":
            raise ValueError(f"`route` is for CKA; {self.measure!r} takes the features of all samples. Leave it out.")

    def check_devices(self, models: Sequence[nn.Module]) -> None:
        """Raise ValueError if an option needs an NVIDIA GPU and a model runs on another device."""
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

    def recorder(self, model: ComparedModel, keep: Keep) -> LayerRecorder:
        """Return the recorder that runs one model and calls ``keep`` on its features."""
        recorder = LayerRecorder(
            model.model,
            model.name,
            model.layers,
            self.pooling,
            keep,
            self.forward,
            exclude=model.exclude,
            sample_axis=self.sample_axis,
        )
        if self.square:
            recorder.name = model.name  # In `compare_many` the user chose the name, so messages do not add the class.
        return recorder

    def make_pass(
        self,
        recorders: Sequence[LayerRecorder],
        minimum: int,
        *,
        order: SampleOrder | None = None,
        held: Sequence[HasState] = (),
        label: str = "compare",
        cuts: bool = False,
    ) -> Pass:
        """Return a ``Pass`` of the recorders with the options of this request; see ``Pass`` for the parameters."""
        return Pass(
            recorders,
            minimum,
            device=self.device,
            autocast=self.autocast,
            channels_last=self.channels_last,
            progress=self.progress,
            label=label,
            order=order,
            held=held,
            cuts=cuts,
        )
