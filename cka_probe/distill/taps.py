"""A network that also returns the activations of some of its layers, with the autograd graph intact."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["TappedModel", "check_layers"]


class TappedModel(nn.Module):
    """A model whose forward pass returns its logits and the activations of the tapped layers.

    The taps are forward hooks, set on entering the ``with`` block and removed on leaving it, whatever happens in it.
    Each tap hands on a clone of the activation, because a later in-place operation (torchvision's ResNets apply ReLU in
    place) would otherwise change the tapped values; the clone stays in the autograd graph.

    Parameters
    ----------
    model : torch.nn.Module
        Any module. It is not copied and its own attributes do not change.
    layers : sequence of str
        Layer paths as in ``model.named_modules()``; the features come out in this order.
    role : str
        What the model is called in error messages, e.g. "student".

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
    ...     logits, features = tapped(torch.zeros(2, 4))
    >>> logits.shape, features[0].shape
    (torch.Size([2, 3]), torch.Size([2, 8]))
    """

    def __init__(self, model: nn.Module, layers: Sequence[str] = (), role: str = "model") -> None:
        super().__init__()
        check_layers(model, layers, role)
        self.model = model
        self.layers = tuple(layers)
        self.role = role
        self._handles: list[Any] = []
        self._record: dict[str, Tensor] | None = None

    def __enter__(self) -> TappedModel:
        modules = dict(self.model.named_modules())
        for name in dict.fromkeys(self.layers):
            self._handles.append(modules[name].register_forward_hook(self._hook(name)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        while self._handles:
            self._handles.pop().remove()
        self._record = None

    def _hook(self, name: str) -> Any:
        def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if self._record is None:  # the model is called outside the tapped forward, or recomputed by checkpointing
                return
            if name in self._record:
                raise ValueError(
                    f"{self.role} layer {name!r} is called more than once in one forward pass, so its activation is "
                    "ambiguous. Tap a layer that is called once."
                )
            self._record[name] = _tensor_of(output, f"{self.role} layer {name!r}").clone()

        return keep

    def forward(self, inputs: Any) -> tuple[Tensor, list[Tensor]]:
        """The logits and the tapped activations for one batch of inputs.

        Parameters
        ----------
        inputs : Tensor or mapping
            A mapping (a tokenizer's batch, say) is passed to the model as keywords.

        Returns
        -------
        tuple
            ``(logits, features)``, features in the order of ``layers``.

        Raises
        ------
        ValueError
            If a tapped layer was called twice, or not at all.
        TypeError
            If the model or a tapped layer returns something without a tensor in it.
        """
        self._record = {}
        try:
            output = self.model(**inputs) if isinstance(inputs, Mapping) else self.model(inputs)
            silent = [name for name in self.layers if name not in self._record]
            if silent:
                raise ValueError(
                    f"{self.role} layer {silent[0]!r} was not called in the forward pass (or no taps are set), so it "
                    "has no activation. Tap a layer that the forward pass uses."
                )
            features = [self._record[name] for name in self.layers]
        finally:
            self._record = None
        return _tensor_of(output, f"the {self.role}"), features


def check_layers(model: nn.Module, layers: Sequence[str], role: str = "model") -> None:
    """An error with the nearest names for the first layer path that `model` does not have; otherwise nothing.

    Parameters
    ----------
    model : torch.nn.Module
        The model that should have the layers.
    layers : sequence of str
        Layer paths.
    role : str
        What the model is called in the message.

    Raises
    ------
    TypeError
        If `layers` is a single string instead of a sequence of them.
    ValueError
        If a path is not in ``model.named_modules()``.
    """
    if isinstance(layers, str):
        raise TypeError(f"{role}_layers must be a sequence of layer paths, got the single string {layers!r}.")
    names = [name for name, _ in model.named_modules() if name]
    for layer in layers:
        if layer in names:
            continue
        near = difflib.get_close_matches(str(layer), names, n=3, cutoff=0.4) or names[:5]
        raise ValueError(
            f"The {role} ({type(model).__name__}) has no layer {layer!r}. Nearest names: "
            f"{', '.join(map(repr, near)) or 'it has no named layers'}."
        )


def _tensor_of(output: Any, whose: str) -> Tensor:
    """The tensor in a module's output: itself, the ``logits`` of a model output, or the first one of a tuple."""
    if isinstance(output, Tensor):
        return output
    logits = getattr(output, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    values = output.values() if isinstance(output, Mapping) else output
    if isinstance(output, (Mapping, tuple, list)):
        for value in values:
            if isinstance(value, torch.Tensor):
                return value
    raise TypeError(f"{whose} returns a {type(output).__name__} without a tensor; a tensor, tuple or dict is expected.")
