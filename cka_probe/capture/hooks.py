"""Forward hooks that copy the activations of chosen layers, or pass each to a function, and are always removed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from threading import get_ident
from types import TracebackType
from typing import Any, Self

import torch
from torch import nn

from .channels import ChannelAxes
from .layers import Layers, select_layers, unwrap
from .pooling import Pooling, check_pooling, pool, reads_positions
from .progress import Resumable
from .trees import first_tensor, samples_first
from .wrappers import compiled_parts, eagerly, named_layers

__all__ = ["CaptureError", "Probe", "Receiver", "check_same_layers"]

Receiver = Callable[[str, nn.Module, Any], None]
"""Receives the name of a call ("layer1.0.relu", its second call "layer1.0.relu#2"), the module and its output."""


class CaptureError(RuntimeError):
    """A layer's output cannot be turned into features; the message names the model and the layer."""


def check_same_layers(model: str, before: Sequence[str], now: Sequence[str]) -> None:
    """Raise CaptureError if the first batch of a resumed run has run other layers than that of the earlier run."""
    if before and now and list(before) != list(now):
        odd = ", ".join(map(repr, (sorted({*before} ^ {*now}) or list(now))[:3]))
        raise CaptureError(f"{model} did not run the same layers as before it was interrupted: {odd}.")


class Probe(Resumable):
    """Record the features of chosen layers in a forward pass.

    The hooks exist only inside the ``with`` block; they are removed also when the forward raises. Each activation is
    pooled and copied inside its hook, so that a later operation in place cannot change it. Features carry gradients if
    the caller's grad mode is on.

    A pass is one forward of the network. Calls of its modules outside a pass are not recorded: by another network that
    shares them, by gradient checkpointing in the backward, or by another thread than that of the ``with`` block. A
    network that runs through a method of its own (``forward_features``, ``encode``) shows no start of a pass: put
    ``with probe.one_pass():`` around each.

    Parameters
    ----------
    model : torch.nn.Module
        The network. The caller runs it. It may be wrapped (DataParallel, torch.compile).
    layers : str, type, callable, mapping or sequence
        As in ``compare``.
    pooling : str, callable or None
        As in ``capture.pooling.pool``; None keeps the shape of the activation.
    receiver : callable, optional
        Called inside each hook with (name, module, output tensor). ``features`` then stays empty.
    exclude : same forms as `layers`, optional
        Layers to leave out, as in ``compare``.
    outputs : bool
        Whether ``receiver`` is given the outputs as they are, instead of the tensor that stands for each. Then calls
        outside ``one_pass`` do not count: another network that is compared may run this one as a part of itself.
    axes : bool
        Whether ``receiver`` asks for ``channels``.

    Raises
    ------
    ValueError, TypeError
        If ``layers``, ``exclude`` or ``pooling`` is not valid for the model.
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

    parts = ("_axes",)

    def __init__(
        self,
        model: nn.Module,
        layers: Layers = "leaves",
        pooling: Pooling | None = "flatten",
        *,
        receiver: Receiver | None = None,
        exclude: Layers | None = None,
        outputs: bool = False,
        axes: bool = False,
    ) -> None:
        if pooling is not None:
            check_pooling(pooling)
        self.selection = select_layers(model, layers, exclude)
        self.model = unwrap(model)
        self.pooling = pooling
        self.receiver = receiver or self._keep
        self.features: dict[str, torch.Tensor] = {}
        self._outputs = outputs
        asks = axes or (receiver is None and reads_positions(pooling))
        self._axes = ChannelAxes(self.model, self.selection.paths) if asks else None
        self._wrapped = model
        self._keeps = receiver is None
        self._compiled: list[nn.Module] | None = None
        self._calls: dict[str, int] = {}
        self._open = ExitStack()
        self._active = False
        self._thread = get_ident()
        """The thread whose calls are recorded."""
        self._depth = 0
        """Calls of the network that have begun and not ended."""
        self._managed = False
        """Whether a pass is on whose beginning and end the caller gives."""
        self._whole = False
        """Whether passes can be told from what is outside them: the network was called, or the caller gives them."""

    def _keep(self, name: str, module: nn.Module, tensor: torch.Tensor) -> None:
        if self.pooling is None:
            self.features[name] = tensor.clone()
            return
        try:
            tensor = samples_first(module, tensor)
            features = pool(tensor, self.pooling, channels=self.channels(name, module, tensor))
        except ValueError as error:
            raise CaptureError(f"Layer {name!r} of {type(self.model).__name__}: {error}.") from error
        # Pooling may return a view, which shares the activation's memory.
        shared = features.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()
        self.features[name] = features.clone() if shared else features

    @contextmanager
    def one_pass(self) -> Iterator[None]:
        """Record one pass: what the network runs inside this ``with`` block, in this thread, through any method.

        The network may be called twice in it: its second call, and those of its layers, are "name#2". ``features``
        starts empty.
        """
        before = self._managed, self._thread
        self._managed, self._thread, self._whole = True, get_ident(), True
        self._begin()
        try:
            with eagerly(self._compiled_parts()), self._axes.watched() if self._axes is not None else nullcontext():
                yield
        finally:
            self._managed, self._thread = before

    def channels(self, name: str, module: nn.Module, output: torch.Tensor) -> int | None:
        """Axis of the channels, 1 or -1, in an output with samples first; None if nothing says it.

        To be asked inside the hook. The first answer for a name holds.
        """
        return None if self._axes is None else self._axes.of(name, module, output)

    def notes(self, names: Collection[str]) -> list[str]:
        """Sentences about those of ``names`` whose axes are in doubt."""
        return [] if self._axes is None else self._axes.notes(names)

    def _begin(self) -> None:
        self.features = {}
        self._calls = {}
        if self._axes is not None:
            self._axes.restart()

    def _compiled_parts(self) -> list[nn.Module]:
        if self._compiled is None:
            self._compiled = compiled_parts(self._wrapped)
        return self._compiled

    def _enter_model(self, _module: nn.Module, _inputs: Any) -> None:
        if self._managed or self._outputs or not self._in_thread():
            return
        if not self._depth:
            self._begin()
            self._whole = True
        self._depth += 1

    def _leave_model(self, _module: nn.Module, _inputs: Any, _output: Any) -> None:
        if not self._managed and self._in_thread():
            self._depth = max(0, self._depth - 1)

    def _in_thread(self) -> bool:
        """Whether this is the thread whose calls are recorded. torch.compile cannot trace the question."""
        return torch.compiler.is_compiling() or self._thread == get_ident()

    def _records(self) -> bool:
        """Whether a call belongs to a pass."""
        return (self._managed or (not self._outputs and (self._depth > 0 or not self._whole))) and self._in_thread()

    def _hook(self, path: str) -> Callable[..., None]:
        only, never = self.selection.only.get(path), self.selection.never.get(path, ())
        first = self.selection.name(path)

        def hook(module: nn.Module, _inputs: Any, output: Any) -> None:
            if not self._records():
                return
            count = self._calls.get(path, 0) + 1
            self._calls[path] = count
            if (only is not None and count not in only) or count in never:
                return
            name = first if count == 1 else self.selection.name(path, count)
            if self._outputs:
                self._give(name, module, output)
                return
            tensor = first_tensor(output)
            if tensor is None:
                raise CaptureError(
                    f"Layer {name!r} of {type(self.model).__name__} returned {type(output).__name__}, which holds "
                    "no tensor. Leave the layer out of `layers`."
                )
            self._give(name, module, tensor)

        return hook

    def _give(self, name: str, module: nn.Module, output: Any) -> None:
        try:
            self.receiver(name, module, output)
        except RuntimeError as error:
            if not isinstance(error, CaptureError):  # from torch; it names no layer
                error.add_note(f"This was at the output of layer {name!r} of {type(self.model).__name__}.")
            raise

    def __enter__(self) -> Self:
        if self._active:
            raise RuntimeError("This Probe is already active: a second `with` would run every hook twice.")
        modules = named_layers(self.model)
        self._thread, self._depth, self._whole, self._compiled = get_ident(), 0, False, None
        with ExitStack() as opening:
            handles = [self.model.register_forward_pre_hook(self._enter_model)]
            opening.callback(_remove, handles)
            hooked = [path for path in self.selection.paths if not isinstance(modules[path], torch.jit.ScriptModule)]
            handles += [modules[path].register_forward_hook(self._hook(path)) for path in hooked]
            # Registered last, so that it runs after the hook that records the network's own output.
            handles.append(self.model.register_forward_hook(self._leave_model, always_call=True))
            if self._keeps:
                opening.enter_context(eagerly(self._compiled_parts()))
                if self._axes is not None:
                    opening.enter_context(self._axes.watched())
            self._open = opening.pop_all()
        self._active = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._active = False
        self._open.close()

    @property
    def scripted(self) -> list[str]:
        """Names of the selected layers in TorchScript, which runs no hooks; ``silent`` holds them too."""
        modules = named_layers(self.model)
        scripted = [path for path in self.selection.paths if isinstance(modules[path], torch.jit.ScriptModule)]
        return [self.selection.name(path) for path in scripted]

    @property
    def silent(self) -> list[str]:
        """Names of the selected layers, or calls of layers, that did not run in the latest pass."""
        selection = self.selection
        names: list[str] = []
        for path in selection.paths:
            wanted = sorted(selection.only.get(path, (1,)))
            names += [selection.name(path, call) for call in wanted if call > self._calls.get(path, 0)]
        return names


def _remove(handles: list[Any]) -> None:
    while handles:
        handles.pop().remove()
