"""Context managers that give back what a training run borrows: random states, train and eval modes, gradient flags."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = [
    "buffers_restored",
    "frozen",
    "modes_restored",
    "random_states",
    "random_states_restored",
    "set_random_states",
]


def random_states(devices: bool = True) -> dict[str, Any]:
    """The states of the generators of torch, numpy and Python, as values that ``torch.load(weights_only=True)`` reads.

    Parameters
    ----------
    devices : bool
        Whether the generators of the GPUs belong to it.

    Returns
    -------
    dict
        For `set_random_states`.
    """
    state: Any = np.random.get_state(legacy=True)  # noqa: NPY002
    states: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": [state[0], torch.from_numpy(state[1].astype(np.int64)), int(state[2]), int(state[3]), float(state[4])],
        "python": random.getstate(),
    }
    if devices and torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def set_random_states(states: dict[str, Any]) -> None:
    """Sets the generators to what `random_states` gave.

    Parameters
    ----------
    states : dict
        From `random_states`.
    """
    torch.set_rng_state(states["torch"])
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"])


@contextmanager
def random_states_restored(devices: bool = True) -> Iterator[None]:
    """The generators are afterwards as they were before, also after an exception."""
    states = random_states(devices)
    try:
        yield
    finally:
        set_random_states(states)


@contextmanager
def modes_restored(*models: nn.Module | None) -> Iterator[None]:
    """Every module's train or eval mode is afterwards as it was before, also after an exception."""
    before = [(module, module.training) for model in models if model is not None for module in model.modules()]
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


@contextmanager
def frozen(model: nn.Module | None) -> Iterator[None]:
    """The model is in eval mode and no parameter asks for a gradient; flags and modes are afterwards as before."""
    parameters = [] if model is None else list(model.parameters())
    flags = [parameter.requires_grad for parameter in parameters]
    with modes_restored(model):
        try:
            if model is not None:
                model.eval().requires_grad_(False)
            yield
        finally:
            for parameter, flag in zip(parameters, flags, strict=True):
                parameter.requires_grad_(flag)


@contextmanager
def buffers_restored(model: nn.Module) -> Iterator[None]:
    """Buffers (running statistics of batch norm) are afterwards as before, whatever forward passes happen inside."""
    before: list[tuple[Tensor, Tensor]] = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in before:
                buffer.copy_(value)
