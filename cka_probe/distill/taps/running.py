"""Run a network on the inputs of a batch, by a function of the user's if there is one, and find its mask of tokens."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ...capture.batches import Forward, call_model
from ...capture.masks import MASKS
from ...capture.notes import first_line
from ...capture.wrappers import compiled_parts

__all__ = ["RealTokens", "own_inputs", "run_network", "takes_each"]

# Beginnings of the names of what the decoder of an encoder-decoder is given.
DECODER = ("decoder_", "tgt")
SIDES = frozenset({"student", "teacher"})


def own_inputs(inputs: Any, role: str) -> Any:
    """The inputs of one network: all of them, or its entry of a dict with the keys "student" and "teacher"."""
    return inputs[role] if isinstance(inputs, Mapping) and role in SIDES and set(inputs) == SIDES else inputs


def run_network(model: nn.Module, inputs: Any, forward: Forward | None = None) -> tuple[Any, dict[str, Any]]:
    """Run a network on the inputs of a batch.

    Parameters
    ----------
    model : torch.nn.Module
        The network.
    inputs : Tensor, mapping, tuple or list
        A mapping is passed as keyword arguments. A tuple or list of several inputs is passed as several arguments if
        the network takes as many, otherwise as it is.
    forward : callable, optional
        ``forward(model, inputs)`` runs the network instead.

    Returns
    -------
    output : any
        What the network, or `forward`, returns.
    arguments : dict of str to any
        What the network was given, by the names of its arguments as far as they are known.

    Raises
    ------
    TypeError
        If the network does not take the inputs.
    """
    if forward is not None:
        return _run_as_told(model, inputs, forward)
    if isinstance(inputs, Mapping):
        return call_model(model, inputs), dict(inputs)
    if isinstance(inputs, tuple | list) and takes_each(model, *inputs):
        return model(*inputs), _named(model, inputs, {})
    try:
        return model(inputs), {}
    except TypeError as error:
        if not isinstance(inputs, tuple | list):
            raise
        raise TypeError(
            f"The forward of {type(model).__name__} does not take a {type(inputs).__name__} of {len(inputs)} inputs "
            f"({first_line(error)}). Say how it is run: forward=lambda model, inputs: model(inputs[0]); "
            'or, if teacher and student have inputs of their own, forward={"student": lambda model, inputs: '
            'model(inputs[0]), "teacher": lambda model, inputs: model(inputs[1])}.'
        ) from error


def _run_as_told(model: nn.Module, inputs: Any, forward: Forward) -> tuple[Any, dict[str, Any]]:
    """Run a network by the user's function, and watch which arguments it is given."""
    # A compiled network runs no hook that comes later.
    watched = not compiled_parts(model)
    calls: list[dict[str, Any]] = []

    def watch(module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        calls.append(_named(module, arguments, keywords))

    handle = model.register_forward_pre_hook(watch, with_kwargs=True) if watched else None
    try:
        output = forward(model, inputs)
    finally:
        if handle is not None:
            handle.remove()
    return output, calls[0] if calls else dict(inputs) if isinstance(inputs, Mapping) else {}


def takes_each(model: nn.Module, *inputs: Any) -> bool:
    """Whether a network takes these inputs as one argument each."""
    try:
        inspect.signature(model.forward).bind(*inputs)
    except (TypeError, ValueError):
        return False
    return True


def _named(model: nn.Module, inputs: Sequence[Any], keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a call by name, with those that the signature collects in ``**kwargs``."""
    try:
        signature = inspect.signature(model.forward)
        named = dict(signature.bind_partial(*inputs, **keywords).arguments)
    except (TypeError, ValueError):
        return dict(keywords)
    collected = [p.name for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD]
    return {**named, **(named.get(collected[0], {}) if collected else {})}


class RealTokens:
    """Find the mask of the real tokens among the arguments of a network.

    Masks are arguments (B, T) with the names that `cka_probe.compare` knows: "attention_mask", and those of torch's
    transformers, "src_key_padding_mask" and others, where True is padding. An encoder-decoder has two: the mask of the
    decoder's tokens belongs to layers in the decoder, and to the logits if no layer is tapped.

    Parameters
    ----------
    layers : sequence of str
        The tapped layers.
    role : str
        Name of the network in messages.
    """

    def __init__(self, layers: Sequence[str], role: str) -> None:
        inside = [any(part.startswith("decoder") for part in layer.split(".")) for layer in layers]
        self._in_decoder = all(inside)
        self._mixed = any(inside) and not all(inside)
        self._role = role
        self._zero_is_real: dict[str, bool] = {}

    def __call__(self, arguments: Mapping[str, Any]) -> Tensor | None:
        """Mask (B, T), True or nonzero for the real tokens; None if the network is given none.

        Raises
        ------
        ValueError
            If the network has masks for an encoder and a decoder, and layers of both are tapped.
        """
        given = {key: arguments.get(key) for key in MASKS}
        masks = {key: mask for key, mask in given.items() if isinstance(mask, Tensor) and mask.ndim == 2}
        if any(key.startswith(DECODER) and isinstance(value, Tensor) for key, value in arguments.items()):
            if masks and self._mixed:
                raise ValueError(
                    f"Layers of the encoder and of the decoder of the {self._role} are tapped, which have different "
                    "padding. Tap layers of one of the two."
                )
            masks = {key: mask for key, mask in masks.items() if key.startswith(DECODER) == self._in_decoder}
        for key, mask in masks.items():
            return self._nonzero_if_real(key, mask)
        return None

    def _nonzero_if_real(self, key: str, mask: Tensor) -> Tensor:
        # A mask that is added to the scores is 0 where a token is real. The first batch shows it, which has no 1.
        if key not in self._zero_is_real:
            added = mask.dtype.is_floating_point and not bool((mask == 1).any())
            self._zero_is_real[key] = added or key.endswith("key_padding_mask")
        return mask == 0 if self._zero_is_real[key] else mask
