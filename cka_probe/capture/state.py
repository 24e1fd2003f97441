"""What a comparison borrows and gives back: modes, device, grad mode, random number generators, precision."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def device_of(model: nn.Module) -> torch.device:
    """The device of the first parameter or buffer; the CPU for a model without any."""
    first = next(chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if first is None else first.device


@contextmanager
def borrowed(models: Sequence[nn.Module], device: torch.device | str | None = None) -> Iterator[None]:
    """Models in eval mode without gradients (on ``device``), and everything as it was on the way out.

    Restored whatever happens: the mode of every submodule, the device, grad mode, and the state of the random number
    generators of Python, numpy and torch. Compiled modules run eagerly inside, since compiled code may skip hooks.
    """
    modes = [(module, module.training) for model in models for module in model.modules()]
    homes = [(model, device_of(model)) for model in models]
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002 - users draw from it
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else None
    try:
        for model in models:
            model.eval()
            if device is not None:
                model.to(device)
        with torch.no_grad(), _eager():
            yield
    finally:
        for module, training in modes:
            module.training = training
        if device is not None:
            for model, home in homes:
                model.to(home)
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002 - as above
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)


def _eager() -> AbstractContextManager[None]:
    """Compiled modules run eagerly inside; there are none before torch.compile has loaded its tracer (1 s)."""
    loaded = "torch._dynamo" in sys.modules
    return torch.compiler.set_stance("force_eager") if loaded else nullcontext()


def reduces_products(device: torch.device) -> bool:
    """Whether torch is set to take products of float32 in TF32 or bfloat16 on this device."""
    matmul = matmul_settings(device)
    return matmul is not None and matmul.fp32_precision not in ("none", "ieee")


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Products of float32 in float32: without the autocast, TF32 or bfloat16 that the caller has turned on.

    Those are for the network. A Gram matrix in bfloat16 would be off by 1e-3, in TF32 by 1e-4.
    """
    matmul = matmul_settings(device) if reduces_products(device) else None
    before = None if matmul is None else matmul.fp32_precision
    try:
        if matmul is not None:
            matmul.fp32_precision = "ieee"
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        if matmul is not None:
            matmul.fp32_precision = before


def matmul_settings(device: torch.device) -> Any:
    """Where torch keeps the precision of matrix products of this kind of device; None before torch 2.9."""
    backend = torch.backends.cuda if device.type == "cuda" else torch.backends.mkldnn
    matmul = getattr(backend, "matmul", None)
    return matmul if hasattr(matmul, "fp32_precision") else None


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
