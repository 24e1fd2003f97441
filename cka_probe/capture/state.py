"""Change the state of models and of torch for one block only: modes, devices, buffers, random generators, precision."""

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

__all__ = [
    "borrowed",
    "buffers_restored",
    "device_of",
    "frozen",
    "full_precision",
    "matmul_settings",
    "modes_restored",
    "moved",
    "random_states",
    "random_states_restored",
    "reduces_products",
    "set_random_states",
]


@contextmanager
def borrowed(models: Sequence[nn.Module], device: torch.device | str | None = None) -> Iterator[None]:
    """Inside the block, the models are in eval mode and on ``device``, and no gradients are computed.

    Restored afterwards, also after an exception: the mode of every submodule, the device of each model, grad mode, and
    the random generators of Python, numpy and torch. Compiled modules run eagerly inside the block, because compiled
    code may skip hooks.

    Parameters
    ----------
    models : sequence of torch.nn.Module
        The networks.
    device : device, optional
        Where they run. By default they stay where they are.
    """
    with random_states_restored(), moved(models, device), modes_restored(*models), torch.no_grad(), _eager():
        for model in models:
            model.eval()
        yield


def _eager() -> AbstractContextManager[None]:
    """Run compiled modules eagerly. If the compiler is not loaded, none exist, and it is not loaded (1 s) for this."""
    loaded = "torch._dynamo" in sys.modules
    return torch.compiler.set_stance("force_eager") if loaded else nullcontext()


@contextmanager
def frozen(model: nn.Module | None) -> Iterator[None]:
    """Put the model in eval mode and let no parameter require a gradient; restore both after the block."""
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
def modes_restored(*models: nn.Module | None) -> Iterator[None]:
    """Restore the train or eval mode of every submodule afterwards, also after an exception."""
    before = [(module, module.training) for model in models if model is not None for module in model.modules()]
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


@contextmanager
def buffers_restored(model: nn.Module) -> Iterator[None]:
    """Restore the buffers (running statistics of batch norm) afterwards, also after an exception."""
    before: list[tuple[Tensor, Tensor]] = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in before:
                buffer.copy_(value)


@contextmanager
def moved(models: Sequence[nn.Module], device: torch.device | str | None) -> Iterator[None]:
    """Move the models to ``device``, and back afterwards, also after an exception. None moves nothing."""
    homes = [] if device is None else [(model, device_of(model)) for model in models]
    try:
        for model, _ in homes:
            model.to(device)
        yield
    finally:
        for model, home in homes:
            model.to(home)


def device_of(model: nn.Module) -> torch.device:
    """Device of the first parameter or buffer; the CPU if the model has none."""
    first = next(chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if first is None else first.device


def random_states(devices: bool = True) -> dict[str, Any]:
    """States of the random generators of torch, numpy and Python, readable by ``torch.load(weights_only=True)``.

    Parameters
    ----------
    devices : bool
        Whether to include the generators of the GPUs. They are left out while CUDA is not initialised.

    Returns
    -------
    dict
        For ``set_random_states``.
    """
    states: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": _numpy_state(),
        "python": random.getstate(),
    }
    if devices and torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def _numpy_state() -> Any:
    state: Any = np.random.get_state(legacy=False)  # noqa: NPY002 - augmentations of users draw from it
    if state["bit_generator"] != "MT19937":
        return state  # another generator, set by numpy.random.set_bit_generator
    keys = torch.from_numpy(state["state"]["key"].astype(np.int64))
    return ["MT19937", keys, int(state["state"]["pos"]), int(state["has_gauss"]), float(state["gauss"])]


def set_random_states(states: dict[str, Any]) -> None:
    """Set the random generators to the states that ``random_states`` returned.

    Parameters
    ----------
    states : dict
        From ``random_states``. States of GPUs are ignored on a machine without CUDA.
    """
    torch.set_rng_state(states["torch"])
    numpy = states["numpy"]
    if not isinstance(numpy, dict):
        name, keys, *rest = numpy
        numpy = (name, keys.numpy().astype(np.uint32), *rest)
    np.random.set_state(numpy)  # noqa: NPY002 - as above
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"])


@contextmanager
def random_states_restored(devices: bool = True) -> Iterator[None]:
    """Restore the random generators afterwards, also after an exception."""
    states = random_states(devices)
    try:
        yield
    finally:
        set_random_states(states)
        if devices and "cuda" not in states and torch.cuda.is_initialized():
            # CUDA was initialised inside. Its generators had no state before, only the seed of the CPU's generator.
            torch.cuda.manual_seed_all(torch.initial_seed())


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Compute products of float32 in float32 in the block, even if the caller has turned on autocast, TF32 or bfloat16.

    The caller's precision is for the network. In a Gram matrix it would cause an error of 1e-3 (bfloat16) or 1e-4
    (TF32).
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


def reduces_products(device: torch.device) -> bool:
    """Whether torch computes products of float32 in TF32 or bfloat16 on this device."""
    matmul = matmul_settings(device)
    return matmul is not None and matmul.fp32_precision not in ("none", "ieee")


def matmul_settings(device: torch.device) -> Any:
    """Object whose ``fp32_precision`` sets how torch computes products on this device; None before torch 2.9."""
    backend = torch.backends.cuda if device.type == "cuda" else torch.backends.mkldnn
    matmul = getattr(backend, "matmul", None)
    return matmul if hasattr(matmul, "fp32_precision") else None
