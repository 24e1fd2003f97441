"""A network that also returns the activations of some layers, with the autograd graph intact."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...capture.batches import Forward
from ...capture.hooks import Probe
from ...capture.layers import unknown_layer, unwrap
from ...capture.trees import first_tensor
from ...capture.wrappers import compiled_parts, named_layers
from ..losses.contract import Outputs
from .running import RealTokens, own_inputs, run_network

__all__ = ["TappedModel", "check_layer_names"]


class TappedModel(nn.Module):
    """A model whose forward pass returns its logits and the activations of the tapped layers, as `Outputs`.

    The taps are the hooks of a `Probe`. Entering the ``with`` block sets them, leaving it removes them, also after an
    exception. An activation that a later operation changes in place (torchvision's ResNets apply ReLU in place) is
    cloned before the change. The first forward pass in train mode, and the first in eval mode, clone all activations to
    learn which ones this concerns. Clones stay in the autograd graph.

    Parameters
    ----------
    model : torch.nn.Module
        Any module. It is neither copied nor changed.
    layers : sequence of str
        Layer paths as in ``model.named_modules()``. The features come out in this order. A layer may be named twice.
    role : str
        Name of the model in messages, for example "student". A "student" or a "teacher" reads its own entry of inputs
        {"student": ..., "teacher": ...}.
    forward : callable, optional
        ``forward(model, inputs)`` runs the model and returns its output.

    Raises
    ------
    ValueError
        If a layer path does not exist in the model; the message gives the nearest names.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(inplace=True), nn.Linear(8, 3))
    >>> with TappedModel(net, ["0"]) as tapped:
    ...     outputs = tapped(torch.zeros(2, 4))
    >>> outputs.logits.shape, outputs.features[0].shape
    (torch.Size([2, 3]), torch.Size([2, 8]))
    """

    def __init__(
        self, model: nn.Module, layers: Sequence[str] = (), role: str = "model", forward: Forward | None = None
    ) -> None:
        super().__init__()
        check_layer_names(model, layers, role)
        self.model = model
        self.layers = tuple(layers)
        self.role = role
        self.calls = forward
        self._real_tokens = RealTokens(self.layers, role)
        self._probe: Probe | None = None
        self._kept: dict[str, _Kept] = {}
        # For train and for eval mode: the calls whose outputs are changed in place later on.
        self._in_place: dict[bool, set[str]] = {}
        self._stack = ExitStack()

    def __enter__(self) -> TappedModel:
        if self.layers:
            probe = Probe(self.model, list(dict.fromkeys(self.layers)), pooling=None, receiver=self._keep)
            self._probe = self._stack.enter_context(probe)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()
        self._probe = None

    def forward(self, inputs: Any) -> Outputs:
        """The logits and the tapped activations for one batch of inputs.

        Parameters
        ----------
        inputs : Tensor, mapping, tuple or list
            A mapping (for example a tokenizer's batch) is passed to the model as keyword arguments, a tuple or list of
            several inputs as several arguments.

        Returns
        -------
        Outputs
            Features in the order of ``layers``; the mask that the model was given as ``attention_mask`` or, negated, as
            ``src_key_padding_mask``.

        Raises
        ------
        ValueError
            If a tapped layer was called twice, or not at all; or layers of an encoder and a decoder with different
            masks are tapped.
        TypeError
            If the model does not take the inputs, or its output contains no tensor.
        RuntimeError
            If an activation was changed in place that was not changed in the first forward pass.
        """
        self._kept = {}
        output, arguments = run_network(self.model, own_inputs(inputs, self.role), self.calls)
        named = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
        logits = first_tensor(output if named is None else named)
        if logits is None:
            raise TypeError(f"The {self.role} returns a {type(output).__name__} without a tensor.")
        mask = self._real_tokens(arguments)
        if self._probe is None:
            return Outputs(logits, mask=mask)
        kept, self._kept = self._kept, {}
        for layer in self.layers:
            if f"{layer}#2" in kept:
                raise ValueError(
                    f"The {self.role}'s layer {layer!r} is called more than once in one forward pass, so its "
                    "activation is ambiguous. Tap a layer that is called once."
                )
            if layer not in kept and compiled_parts(self.model):
                raise ValueError(
                    f"The {self.role}'s layer {layer!r} ran in a graph of torch.compile that was made before the taps "
                    "and runs no hooks. Call torch.compiler.reset() before training, or pass the network uncompiled."
                )
            if layer not in kept:
                raise ValueError(
                    f"The {self.role}'s layer {layer!r} was not called in the forward pass, so it has no activation. "
                    "Tap a layer that the forward pass uses."
                )
        self._check_in_place(kept)
        return Outputs(logits, tuple(kept[layer].features for layer in self.layers), mask)

    def _keep(self, name: str, _module: nn.Module, output: Tensor) -> None:
        if torch.compiler.is_compiling():  # the graph may overwrite the output, and has no count of changes
            copy = output.clone()
            self._kept[name] = _Kept(copy, copy, None)
            return
        if output.is_inference():  # torch does not count changes of inference tensors
            self._kept[name] = _Kept(output.clone(), output, None)
            return
        known = self._in_place.get(self.model.training)
        copied = known is None or name in known
        # The version now is that of the unchanged output.
        self._kept[name] = _Kept(output.clone() if copied else output, output, output._version)

    def _check_in_place(self, kept: Mapping[str, _Kept]) -> None:
        watched = {name: part for name, part in kept.items() if part.version is not None}
        changed = {name for name, part in watched.items() if part.version != part.output._version}
        if not watched:
            return
        known = self._in_place.setdefault(self.model.training, changed)
        if unforeseen := sorted(changed - known):
            known |= changed
            raise RuntimeError(
                f"The output of the {self.role}'s layer {unforeseen[0]!r} was changed in place by this forward pass, "
                "but not by the first one, so the tapped activation is not the layer's output. Replace the in-place "
                "operation, or tap another layer."
            )


class _Kept(NamedTuple):
    """A tapped activation."""

    features: Tensor
    """The layer's output or a clone of it."""
    output: Tensor
    """The layer's output itself."""
    version: int | None
    """Number of in-place changes of ``output`` before the tap; None for inference tensors."""


def check_layer_names(model: nn.Module, layers: Sequence[str], role: str = "model") -> None:
    """Raise ValueError, with the nearest names, if the model does not have one of the layers.

    Parameters
    ----------
    model : torch.nn.Module
        Any module.
    layers : sequence of str
        Layer paths.
    role : str
        Name of the model in the message.

    Raises
    ------
    TypeError
        If `layers` is a single string instead of a sequence of them.
    ValueError
        If a path is not in ``model.named_modules()``.
    """
    if isinstance(layers, str):
        raise TypeError(f"{role}_layers must be a sequence of layer paths, got the single string {layers!r}.")
    names = named_layers(unwrap(model))
    for layer in layers:
        if layer not in names:
            raise ValueError(f"`{role}_layers`: {unknown_layer(str(layer), names, type(unwrap(model)).__name__)}")
