"""What a comparison is made of, as texts: it is resumed, and processes work together, only if all are equal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..capture.batches import batch_count, expected_samples
from ..capture.layers import Selection
from ..capture.notes import first_line, listed
from ..capture.recorder import LayerRecorder
from ..capture.state import device_of, reduces_products
from ..identity import UNKNOWN, differences, identity, weights_digest
from .memory import parsed_memory
from .request import Request

__all__ = ["check_same_run", "comparison_identity", "data_size", "module_settings", "processes_differ", "settings_of"]


def comparison_identity(recorders: Sequence[LayerRecorder], request: Request, processes: int = 1) -> dict[str, str]:
    """Identity of each ingredient of a comparison but the data.

    Parameters
    ----------
    recorders : sequence of LayerRecorder
        One for each model, before the first batch.
    request : Request
        The options.
    processes : int
        Number of processes that compare together.

    Returns
    -------
    dict of str to str
        By ingredient. A text that begins with ``UNKNOWN`` says what cannot be identified.
    """
    found = {"models": ", ".join(recorder.name for recorder in recorders)}
    for recorder in recorders:
        device = device_of(recorder.model) if request.device is None else torch.device(request.device)
        found |= {
            f"weights of {recorder.name}": _weights(recorder.model),
            f"code of {recorder.name}": _code(recorder.model),
            f"layers of {recorder.name}": _layers(recorder.probe.selection),
            f"device of {recorder.name}": device.type,
        }
        found["precision of float32 products"] = "reduced" if reduces_products(device) else "full"
    kernel = identity(request.kernel)
    hsic = kernel if kernel.startswith(UNKNOWN) else f"{request.estimator} HSIC with {kernel}"
    return found | {
        "kernel and estimator": hsic,
        "p-values": "exact skewness and kurtosis"
        if request.permutations is None
        else f"{request.permutations} permutations",
        "outputs": str(request.outputs),
        "measure": request.measure if request.measure == "cka" else f"{request.measure} {request.options}",
        "pooling": identity(request.pooling),
        "forward": identity(request.forward),
        "autocast": str(request.autocast),
        "channels_last": str(request.channels_last),
        "sample_axis": str(request.sample_axis),
        "backend": request.backend,
        "tf32": str(request.tf32),
        "overlap": str(request.overlap),
        "data_y": "none" if request.data_y is None else "given",
        "kind of comparison": "compare_many" if request.square else "compare",
        "scope": str(request.scope),
        "memory": "a part of what is free" if request.memory is None else f"{parsed_memory(request.memory)} bytes",
        "route": request.route or "the fastest",
        "number of processes": str(processes),
    }


def _weights(model: nn.Module) -> str:
    try:
        return weights_digest(model)
    except (RuntimeError, NotImplementedError, TypeError) as error:  # on the meta device, or spread over processes
        return f"{UNKNOWN}: they cannot be read ({first_line(error)})"


def _code(model: nn.Module) -> str:
    """Identity of the classes of a model, of which layer has which, and of the settings of layers of torch."""
    modules = list(model.named_modules())
    classes = sorted({type(module) for _, module in modules}, key=lambda kind: (kind.__module__, kind.__qualname__))
    layers = [
        (path, type(module).__qualname__, module.extra_repr() if _is_of_torch(module) else "")
        for path, module in modules
    ]
    found = identity(classes)
    if found.startswith(UNKNOWN):
        return found
    return f"{len(classes)} classes in {len(layers)} modules #{identity([found, layers]).rpartition('#')[2]}"


def _is_of_torch(module: nn.Module) -> bool:
    return type(module).__module__.startswith(("torch.nn.", "torch.ao."))


def _layers(selection: Selection) -> str:
    fields = (
        selection.paths,
        sorted(selection.titles.items()),
        *(sorted((path, sorted(calls)) for path, calls in part.items()) for part in (selection.only, selection.never)),
    )
    names = [selection.name(path) for path in selection.paths]
    return f"{listed(names)} #{identity(fields).rpartition('#')[2]}"


def module_settings(model: nn.Module) -> dict[str, str]:
    """The numbers, texts and tensors in the attributes of all modules of a model, by their paths, as texts."""
    found: dict[str, str] = {}
    for path, module in model.named_modules():
        for key, value in vars(module).items():
            if key not in NO_SETTINGS and (text := _setting(value)) is not None:
                found[f"{path}.{key}" if path else key] = text
    return found


def settings_of(recorders: Sequence[LayerRecorder]) -> dict[str, str]:
    """``module_settings`` of the models of all recorders, with their names."""
    return {
        f"{setting} of {recorder.name}": text
        for recorder in recorders
        for setting, text in module_settings(recorder.model).items()
    }


NO_SETTINGS = frozenset({*vars(nn.Module()), "name_or_path"})


def _setting(value: Any) -> str | None:
    if isinstance(value, bool | int | float | complex | str | None):
        return repr(value)
    if isinstance(value, torch.Tensor):
        return None if value.is_meta else identity(value)
    if isinstance(value, tuple | list | dict | set) and len(value) <= 64:
        keys = sorted(value, key=repr) if isinstance(value, set) else list(value)
        texts = [_setting(part) for part in (*keys, *(value.values() if isinstance(value, dict) else ()))]
        return None if None in texts else f"{type(value).__name__}({', '.join(map(str, texts))})"
    return None


def data_size(request: Request) -> dict[str, int]:
    """Number of batches and of samples, as far as they are known before the data are read."""
    counts = {
        f"{what} in {name}": count(data)
        for name, data in (("`data`", request.data), ("`data_y`", request.data_y))
        for what, count in (("batches", batch_count), ("samples", _samples))
        if data is not None
    }
    return {name: number for name, number in counts.items() if number is not None}


def _samples(data: Any) -> int | None:
    try:
        return expected_samples(data)
    except Exception:  # batches of any form, for the caller's own forward
        return None


def check_same_run(
    where: Any,
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    sizes_before: Mapping[str, int],
    sizes_now: Mapping[str, int],
    settings_before: Mapping[str, str],
    settings_now: Mapping[str, str],
) -> None:
    """Raise ValueError unless a saved comparison has the same ingredients as this one.

    Parameters
    ----------
    where : path
        The file, for the message.
    before, now : mapping of str to str
        From ``comparison_identity``.
    sizes_before, sizes_now : mapping of str to int
        From ``data_size``. What one of them does not know is not compared.
    settings_before, settings_now : mapping of str to str
        From ``module_settings``, without what the forwards set.
    """
    # Of other models, every ingredient differs.
    keys = ("models",) if before.get("models") != now.get("models") else {**before, **now}
    found = differences(*({key: part[key] for key in keys if key in part} for part in (before, now)))
    found += differences(
        *({key: sizes[key] for key in sizes_before if key in sizes_now} for sizes in (sizes_before, sizes_now))
    )
    if not found:  # other models have other settings
        found = differences(settings_before, settings_now)[:3]
    if found:
        raise ValueError(
            f"{where} belongs to another comparison: {'; '.join(found)}. The file is unchanged. Give the same "
            "arguments to resume it; to start again, delete it or give another `checkpoint`."
        )


def processes_differ(identities: Sequence[Mapping[str, str]]) -> str | None:
    """A sentence that names the first ingredient in which the processes differ; None if there is none."""
    first = identities[0]
    for rank, other in enumerate(identities):
        for key in {**first, **other}:
            if first.get(key) != other.get(key):
                return (
                    f"The processes compare different things: {key} is {first.get(key, 'missing')} in process 0 and "
                    f"{other.get(key, 'missing')} in process {rank}. Give every process the same models and arguments, "
                    "and the same seed before the networks are built."
                )
    return None
