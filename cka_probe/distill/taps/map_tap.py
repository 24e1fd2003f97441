"""Tap the maps that a module returns, alone or as a dict (feature pyramid), with the autograd graph intact."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .tapped_model import check_layer_names

__all__ = ["MapTap", "maps_of"]


def maps_of(output: Any, levels: int | None = None) -> list[Tensor]:
    """The maps (B, C, H, W) in the output of a module, in its order.

    Parameters
    ----------
    output : Tensor, mapping, list or tuple
        Output of a module; a feature pyramid is a dict of maps.
    levels : int, optional
        Number of maps to keep, from the first; all by default.

    Returns
    -------
    list of Tensor
        At least one.

    Raises
    ------
    TypeError
        If there is no map in the output.
    ValueError
        If there are fewer than ``levels``.

    Examples
    --------
    >>> import torch
    >>> [tuple(level.shape) for level in maps_of({"0": torch.zeros(1, 2, 8, 8), "1": torch.zeros(1, 2, 4, 4)})]
    [(1, 2, 8, 8), (1, 2, 4, 4)]
    """
    values = (
        output.values() if isinstance(output, Mapping) else output if isinstance(output, (list, tuple)) else [output]
    )
    maps = [value for value in values if isinstance(value, Tensor) and value.ndim == 4]
    if not maps:
        raise TypeError(f"There is no map of shape (B, C, H, W) in the output, a {type(output).__name__}.")
    if levels is not None and len(maps) < levels:
        raise ValueError(f"`levels` is {levels}, but the output has {len(maps)} maps.")
    return maps[:levels]


class MapTap:
    """Keep a layer's input and its maps of the last forward pass. A context manager that owns one hook.

    Parameters
    ----------
    model : torch.nn.Module
        Any module.
    layer : str
        Path as in ``model.named_modules()``, for example "backbone" for torchvision's detectors.
    levels : int, optional
        Number of maps to keep, from the first; all by default.
    role : str
        Name of the model in messages, for example "student".

    Attributes
    ----------
    layer_module : torch.nn.Module
        The tapped module.

    Raises
    ------
    ValueError
        If the layer does not exist; the message gives the nearest names.

    Examples
    --------
    >>> import torch
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True))
    >>> with MapTap(net, "0") as tap:
    ...     _ = net(torch.zeros(1, 3, 8, 8))
    >>> given, maps = tap.take()
    >>> maps[0].shape
    torch.Size([1, 4, 8, 8])
    """

    def __init__(self, model: nn.Module, layer: str, levels: int | None = None, role: str = "model") -> None:
        check_layer_names(model, [layer], role)
        self.layer_module = model.get_submodule(layer)
        self.layer, self.levels, self.role = layer, levels, role
        self._calls = 0
        self._last: tuple[Any, list[Tensor]] = (None, [])
        self._handle: torch.utils.hooks.RemovableHandle | None = None

    def __enter__(self) -> MapTap:
        def keep(_module: nn.Module, given: tuple[Any, ...], output: Any) -> None:
            # Cloned, because a later in-place operation would change the maps before the loss reads them.
            self._calls += 1
            self._last = (given[0] if given else None, [z.clone() for z in maps_of(output, self.levels)])

        self._handle = self.layer_module.register_forward_hook(keep)
        return self

    def __exit__(self, *_error: object) -> None:
        if self._handle is not None:
            self._handle.remove()
        self._handle = None

    def take(self) -> tuple[Any, list[Tensor]]:
        """Return the layer's input and its maps, and forget them.

        Raises
        ------
        RuntimeError
            If the layer was not called since the last ``take``, or more than once.
        """
        calls, last = self._calls, self._last
        self.forget()
        if calls != 1:
            raise RuntimeError(
                f"The {self.role}'s layer {self.layer!r} was called {calls} times in one forward pass, but must be "
                "called once. Tap another layer."
            )
        return last

    def forget(self) -> None:
        """Forget the maps, after forward passes whose maps are not needed."""
        self._calls, self._last = 0, (None, [])
