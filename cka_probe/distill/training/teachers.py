"""One teacher or several: the mean of their logits, and the layers of each beside those of the student."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..losses.contract import Outputs
from ..taps.tapped_model import TappedModel

__all__ = ["Teachers", "check_forward", "forward_of", "joined", "paired_layers"]


class Teachers:
    """The frozen teachers of a run.

    Parameters
    ----------
    tapped : sequence of TappedModel
        One for each teacher.

    Attributes
    ----------
    model : torch.nn.Module
        The teacher; of several a list of them.
    layers : tuple
        The tapped layers.
    """

    def __init__(self, tapped: Sequence[TappedModel]) -> None:
        self._tapped = tuple(tapped)
        first = self._tapped[0]
        self.model: nn.Module = joined([one.model for one in self._tapped])
        self.layers: tuple[Any, ...] = first.layers if len(tapped) == 1 else tuple(one.layers for one in self._tapped)
        self.first = first
        self.calls = first.calls

    def __call__(self, inputs: Any) -> Outputs:
        """Outputs for a batch: the mean of the logits, and the features of all teachers one after another."""
        if len(self._tapped) == 1:
            return self.first(inputs)
        outputs = [one(inputs) for one in self._tapped]
        shapes = sorted({tuple(one.logits.shape) for one in outputs})
        if len(shapes) > 1:
            raise ValueError(
                f"The teachers' outputs have the shapes {', '.join(map(str, shapes))}, so they have no mean. Give "
                "teachers of the same classes."
            )
        logits = torch.stack([one.logits.float() for one in outputs]).mean(0)
        return Outputs(logits, tuple(feature for one in outputs for feature in one.features), outputs[0].mask)


def joined(networks: Sequence[nn.Module]) -> nn.Module:
    """The network, or a module that holds several."""
    return networks[0] if len(networks) == 1 else nn.ModuleList(networks)


def paired_layers(pairs: Sequence[tuple[list[str], list[str]]]) -> tuple[list[str], list[int]]:
    """Layers of the student to tap, each once, and for each feature of the teachers which of them belongs to it.

    Examples
    --------
    >>> paired_layers([(["a", "b"], ["x", "y"]), (["b"], ["z"])])
    (['a', 'b'], [0, 1, 1])
    """
    wanted = [layer for layers, _ in pairs for layer in layers]
    once = list(dict.fromkeys(wanted))
    return once, [once.index(layer) for layer in wanted]


def check_forward(forward: Any) -> None:
    """Raise TypeError or ValueError unless `forward` is a function, or has one for "student" or "teacher"."""
    if forward is None or callable(forward):
        return
    if not isinstance(forward, Mapping):
        raise TypeError(
            "`forward` must be a function of (model, inputs), or a dict with one for the student and one for the "
            f"teacher, got {type(forward).__name__}."
        )
    for key, function in forward.items():
        if key not in ("student", "teacher"):
            raise ValueError(f'`forward` has the key {key!r}; it may have "student" and "teacher".')
        if not callable(function):
            raise TypeError(f"`forward`[{key!r}] must be a function of (model, inputs), got {type(function).__name__}.")


def forward_of(forward: Any, role: str) -> Callable[[nn.Module, Any], Tensor] | None:
    """The function by which the student or the teacher is called; None: called with the inputs."""
    if isinstance(forward, Mapping):
        return forward.get(role)
    return forward
