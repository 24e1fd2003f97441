"""Forward hooks that copy the activations of chosen layers, or pass each to a function, and are always removed."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import torch
from torch import nn

from .layers import Layers, select_layers, unwrap
from .pooling import Pooling, check_pooling, pool
from .trees import first_tensor, samples_first

__all__ = ["CaptureError", "Probe", "Receiver"]

Receiver = Callable[[str, nn.Module, torch.Tensor], None]
"""Receives the name of a call ("layer1.0.relu", its second call "layer1.0.relu#2"), the module and its output."""


class CaptureError(RuntimeError):
    """A layer's output cannot be turned into features; the message names the model and the layer."""


class Probe:
    """Record the features of chosen layers in a forward pass.

    The hooks exist only inside the ``with`` block; they are removed also when the forward raises. Each activation is
    pooled and copied inside its hook, so that a later operation in place cannot change it. Features carry gradients if
    the caller's grad mode is on.

    Parameters
    ----------
    model : torch.nn.Module
        The network. The caller runs it. It may be wrapped (DataParallel, torch.compile).
    layers : str, type, callable or sequence
        As in ``capture.layers.select_layers``.
    pooling : str, callable or None
        As in ``capture.pooling.pool``; None keeps the shape of the activation.
    receiver : callable, optional
        Called inside each hook with (name, module, output tensor). ``features`` then stays empty.

    Raises
    ------
    ValueError, TypeError
        If ``layers`` or ``pooling`` is not valid for the model.
    RuntimeError
        If the probe is entered a second time before its block ends.
    CaptureError
        In the forward pass, if an output holds no tensor or ``pooling`` does not fit its shape.

    Attributes
    ----------
    features : dict of str to tensor (n, d)
        Features of the latest forward, in the order of execution. A layer that ran twice has "name" and "name#2".

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(inplace=True))
    >>> with Probe(net, "leaves") as probe:
    ...     _ = net(torch.ones(2, 4))
    >>> {name: tuple(x.shape) for name, x in probe.features.items()}
    {'0': (2, 3), '1': (2, 3)}
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Layers = "leaves",
        pooling: Pooling | None = "flatten",
        *,
        receiver: Receiver | None = None,
    ) -> None:
        if pooling is not None:
            check_pooling(pooling)
        self.model = unwrap(model)
        self.selection = select_layers(model, layers)
        self.pooling = pooling
        self.receiver = receiver or self._keep
        self.features: dict[str, torch.Tensor] = {}
        self._calls: dict[str, int] = {}
        self._handles: list[Any] = []

    def _keep(self, name: str, module: nn.Module, tensor: torch.Tensor) -> None:
        if self.pooling is None:
            self.features[name] = tensor.clone()
            return
        try:
            features = pool(samples_first(module, tensor), self.pooling)
        except ValueError as error:
            raise CaptureError(f"Layer {name!r} of {type(self.model).__name__}: {error}.") from error
        # Pooling may return a view, which shares the activation's memory.
        shared = features.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()
        self.features[name] = features.clone() if shared else features

    def _start(self, _module: nn.Module, _inputs: Any) -> None:
        self.features = {}
        self._calls = {}

    def _hook(self, path: str) -> Callable[..., None]:
        def hook(module: nn.Module, _inputs: Any, output: Any) -> None:
            count = self._calls.get(path, 0) + 1
            self._calls[path] = count
            tensor = first_tensor(output)
            name = path or "model"
            name = name if count == 1 else f"{name}#{count}"
            if tensor is None:
                raise CaptureError(
                    f"Layer {name!r} of {type(self.model).__name__} returned {type(output).__name__}, which holds "
                    "no tensor. Leave the layer out of `layers`."
                )
            self.receiver(name, module, tensor)

        return hook

    def __enter__(self) -> Self:
        if self._handles:
            raise RuntimeError("This Probe is already active: a second `with` would run every hook twice.")
        modules = dict(self.model.named_modules(remove_duplicate=False))
        try:
            self._handles.append(self.model.register_forward_pre_hook(self._start))
            seen: set[int] = set()
            for path in self.selection.paths:
                # A module with two paths needs only one hook, because the hook runs at every call of the module.
                if id(modules[path]) not in seen:
                    seen.add(id(modules[path]))
                    self._handles.append(modules[path].register_forward_hook(self._hook(path)))
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()

    def _remove(self) -> None:
        while self._handles:
            self._handles.pop().remove()

    @property
    def silent(self) -> list[str]:
        """Selected layers that did not run in the latest forward."""
        modules = dict(self.model.named_modules(remove_duplicate=False))
        ran = {id(modules[path]) for path in self._calls}
        return [path for path in self.selection.paths if id(modules[path]) not in ran]
