"""What the caller passes as a network: check that it is one and has weights, and find the device that it runs on."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from itertools import chain
from os import PathLike
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from .notes import first_line

__all__ = ["check_device", "check_movable", "check_network", "check_weights", "device_of"]

ORDER = "Networks come before the data: compare(model_x, model_y, data)."


def check_network(model: Any, what: str) -> None:
    """Raise TypeError unless ``model`` is a network; messages call it ``what``.

    Raises
    ------
    TypeError
        If it is anything else: data, a state dict, a path, a class, a function. The message says what it is.

    Examples
    --------
    >>> check_network(nn.Linear, "`model_x`")
    Traceback (most recent call last):
    TypeError: `model_x` is the class Linear, not a network (torch.nn.Module). Make a network of it: Linear(...).
    """
    if not isinstance(model, nn.Module):
        is_what, remedy = _instead_of_network(model)
        raise TypeError(f"{what} is {is_what}, not a network (torch.nn.Module). {remedy}")


def _instead_of_network(model: Any) -> tuple[str, str]:
    kind = type(model).__name__
    if model is None:
        return "None", "The function that should have built the network may return nothing."
    if isinstance(model, str):
        return f"the text {model!r}", "Build the network first; weights in a file go into it with load_state_dict."
    if isinstance(model, PathLike):
        return f"the path {str(model)!r}", "Build the network, and load the weights with load_state_dict."
    if isinstance(model, Mapping):
        return _instead_of_mapping(model)
    if isinstance(model, type):
        remedy = f"Make a network of it: {model.__name__}(...)." if issubclass(model, nn.Module) else "Pass a network."
        return f"the class {model.__name__}", remedy
    if isinstance(model, torch.Tensor | np.ndarray | DataLoader | Dataset):
        return f"data ({kind})", ORDER
    if hasattr(model, "missing_keys") and hasattr(model, "unexpected_keys"):
        return "what load_state_dict returns", "Pass the network itself; load_state_dict changes it in place."
    if isinstance(model, tuple | list):
        if any(isinstance(part, nn.Module) for part in model):
            return f"a {kind} with networks", "Pass one of them; compare_many takes several by name, in a dict."
        return f"a {kind}", ORDER
    if (inner := _network_inside(model)) is not None:
        return f"a {kind}", f"Its attribute `{inner}` is a network: pass that."
    if inspect.isroutine(model):
        name = getattr(model, "__name__", kind)
        return f"the function {name}", "If it builds a network, call it and pass the result."
    return f"of the type {kind}", "Pass the network itself."


def _instead_of_mapping(model: Mapping[Any, Any]) -> tuple[str, str]:
    kind = type(model).__name__
    values = list(model.values())
    if values and all(isinstance(value, nn.Module) for value in values):
        return f"a {kind} of networks", "Pass one of them; compare_many takes several by name."
    if values and all(isinstance(value, torch.Tensor) for value in values):
        if any(str(key).endswith(("weight", "bias")) for key in model):
            return "a state dict: weights without the network", "Build the network and call its load_state_dict."
        return f"a {kind} of tensors", ORDER
    for key, value in model.items():
        if isinstance(value, nn.Module):
            return f"a {kind}", f"Its entry {key!r} is a network: pass that."
    for key, value in model.items():
        if isinstance(value, Mapping) and value and all(isinstance(v, torch.Tensor) for v in value.values()):
            return f"a {kind}", f"Build the network and call its load_state_dict with the entry {key!r}."
    return f"a {kind}", "Pass the network itself."


def _network_inside(model: Any) -> str | None:
    """Attribute of a pipeline or trainer that holds a network; None if there is none."""
    attributes = getattr(model, "__dict__", {})
    likely = ("model", "module", "net", "network", "unet", "transformer", "backbone", *attributes)
    return next((name for name in likely if isinstance(attributes.get(name), nn.Module)), None)


def check_weights(model: nn.Module, name: str) -> None:
    """Raise ValueError if a weight is on the meta device and nothing will load it; messages call the model ``name``.

    Weights that accelerate keeps in host memory or on disk are on the meta device between two forward passes: hooks
    load them.
    """
    missing = [path for path, tensor in chain(model.named_parameters(), model.named_buffers()) if tensor.is_meta]
    if not missing or any(getattr(hook, "offload", False) for hook in _hooks(model)):
        return
    if len(missing) == sum(1 for _ in chain(model.parameters(), model.buffers())):
        raise ValueError(f"{name} is on the meta device: it has shapes but no weights. Load its weights first.")
    raise ValueError(
        f"{len(missing)} weights of {name} are on the meta device, {missing[0]!r} among them: they have shapes but no "
        "numbers. Load all of its weights first."
    )


def check_movable(model: nn.Module, device: torch.device | str) -> None:
    """Raise ValueError if accelerate's hooks decide on which device the model runs, and it is not ``device``."""
    hooked = _hooked_device(model)
    if hooked is None:
        return
    raise ValueError(
        f"`device`: {type(model).__name__} is offloaded or spread over devices by accelerate's hooks, which run it on "
        f"{hooked}; it cannot be moved to {device}. Leave `device` out."
    )


def check_device(device: torch.device | str) -> None:
    """Raise ValueError if torch cannot use the device."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, TypeError, AssertionError, NotImplementedError) as error:
        reason = first_line(error)
        raise ValueError(f"`device`: {str(device)!r} cannot be used here. torch says: {reason}") from error


def device_of(model: nn.Module) -> torch.device:
    """Device on which the model runs: that of its first weight, or the one to which hooks of accelerate bring it."""
    first = next(chain(model.parameters(), model.buffers()), None)
    if "_hf_hook" in vars(model) or (first is not None and first.is_meta):
        hooked = _hooked_device(model)
        if hooked is not None:
            return hooked
    return torch.device("cpu") if first is None else first.device


def _hooked_device(model: nn.Module) -> torch.device | None:
    for hook in _hooks(model):
        device = getattr(hook, "execution_device", None)
        if device is not None:
            return torch.device(device)
    return None


def _hooks(model: nn.Module) -> Iterator[Any]:
    """Hooks of accelerate: they load the weights of a module before its forward, and move its inputs."""
    for module in model.modules():
        hook = vars(module).get("_hf_hook")
        if hook is not None:
            yield from getattr(hook, "hooks", (hook,))
