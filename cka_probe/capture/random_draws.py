"""Notice a forward that draws random numbers on which the compared layers depend: noise, or dropout in eval mode."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from .notes import listed
from .state import random_states, random_states_restored
from .trees import tensors
from .wrappers import named_layers

__all__ = ["RandomDraws"]


class RandomDraws:
    """Look whether the first forward of a network moved a random generator, and which layers that concerns.

    Some networks draw numbers that they do not use in eval mode. So, only if a generator moved, the network runs twice
    more on the first batch, with two seeds: the layers whose outputs differ depend on the draws. The generators are
    afterwards as after the first forward. Generators in attributes of the network count too.

    Parameters
    ----------
    name : str
        The network's name in the note.
    model : torch.nn.Module, optional
        The network, whose own generators are watched too.
    """

    def __init__(self, name: str, model: nn.Module | None = None) -> None:
        self.name = name
        self._own = [] if model is None else _generators(model)
        self._before = self._states()

    def _states(self) -> list[Any]:
        return [random_states(), *(generator.get_state() for generator in self._own)]

    def notes(self, again: Callable[[], Any], model: nn.Module, names: Sequence[str]) -> list[str]:
        """A note if the layers depend on random numbers; to be called after the first forward.

        Parameters
        ----------
        again : callable
            Runs the first batch once more.
        model : torch.nn.Module
            The network.
        names : sequence of str
            The calls that are compared. Those that were renamed are not looked at.
        """
        if _equal(self._before, now := self._states()):
            return []
        every = {"model": model} | named_layers(model)
        layers = {
            path: every[path] for path in dict.fromkeys(name.partition("#")[0] for name in names) if path in every
        }
        with random_states_restored():
            first, second = (_seeded_outputs(again, layers, seed, self._own) for seed in (0, 1))
        for generator, state in zip(self._own, now[1:], strict=True):
            generator.set_state(state)
        random_layers = [name for name in first if not _equal(first[name], second.get(name))]
        if not random_layers:
            return []
        return [
            f"{self.name}: its forward draws random numbers, on which {listed(random_layers)} depend"
            f"{'s' * (len(random_layers) == 1)}. So the values differ from run to run, and two copies of one network "
            "differ. Turn the noise off in eval mode; or call torch.manual_seed before, which repeats the values"
        ]


def _generators(model: nn.Module) -> list[torch.Generator]:
    """The generators of torch in the attributes of the modules."""
    found = {id(one): one for m in model.modules() for one in vars(m).values() if isinstance(one, torch.Generator)}
    return list(found.values())


def _seeded_outputs(
    again: Callable[[], Any], layers: Mapping[str, nn.Module], seed: int, own: Sequence[torch.Generator]
) -> dict[str, list[torch.Tensor]]:
    """Mean and mean size of each tensor that each layer returned, in a run with this seed."""
    torch.manual_seed(seed)
    for generator in own:
        generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - the generator that a forward would use
    found: dict[str, list[torch.Tensor]] = {}

    def record(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            for tensor in tensors(output):
                if tensor.is_floating_point() and tensor.layout is torch.strided and not tensor.is_nested:
                    numbers = tensor.detach().double()
                    found.setdefault(name, []).append(torch.stack([numbers.mean(), numbers.abs().mean()]))

        return hook

    handles = [module.register_forward_hook(record(name)) for name, module in layers.items()]
    try:
        again()
    finally:
        for handle in handles:
            handle.remove()
    return found


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())  # NaN equals itself here
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(_equal, a, b))
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return np.array_equal(a, b)
    return bool(a == b)
