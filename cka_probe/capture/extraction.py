"""extract: features of chosen layers over a whole data set, left on the device where they were made."""

from __future__ import annotations

from collections.abc import Iterable, Sized
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .batches import Forward
from .buffers import Budget, FeatureBuffer, as_cupy, require_cupy
from .layers import Layers
from .pooling import Pooling
from .recorder import LayerRecorder, NotFiniteError
from .streaming import Pass


class Features(dict[str, Any]):
    """Features by layer name, and ``notes`` on what was left out or moved off the device."""

    notes: tuple[str, ...] = ()


def extract(
    model: nn.Module,
    data: Iterable[Any],
    layers: Layers = "leaves",
    *,
    backend: str = "torch",
    pooling: Pooling = "auto",
    forward: Forward | None = None,
    dtype: torch.dtype | None = None,
    budget: int | None = None,
    folder: str | Path | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> Features:
    """Features (n, d) of every selected layer over the whole data set, by layer name.

    Parameters
    ----------
    model : torch.nn.Module
        The network, run in eval mode without gradients; restored afterwards.
    data, layers, pooling, forward, device, progress
        As ``compare``.
    backend : "torch" or "cupy"
        Tensors, or CuPy arrays that share the same GPU memory.
    dtype : torch.dtype, optional
        Keep the features in this precision; as the model makes them when left out (half precision becomes float32).
    budget : int, optional
        Bytes that may stay on the device. Layers that do not fit go to page-locked host memory, with a note.
    folder : path, optional
        Layers that do not fit the budget go to files here instead, mapped into memory.

    Returns
    -------
    dict of str to array (n, d)
        In the order of execution; its ``notes`` say what was left out or moved.

    Raises
    ------
    ValueError, TypeError, CaptureError
        As ``compare``, and for an unknown backend.
    ModuleNotFoundError, RuntimeError
        If CuPy is asked for and is not installed, or there is no GPU.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(8, 4), nn.ReLU())
    >>> {name: tuple(x.shape) for name, x in extract(net, torch.ones(10, 8), progress=False).items()}
    {'0': (10, 4), '1': (10, 4)}
    """
    if backend not in ("torch", "cupy"):
        raise ValueError(f'`backend` must be "torch" or "cupy", got {backend!r}.')
    if backend == "cupy":
        require_cupy()
    shared = Budget(budget)
    buffers: dict[str, FeatureBuffer] = {}
    rows = _expected_rows(data) if pooling not in ("spatial", "all") else None

    def keep(name: str, features: torch.Tensor) -> None:
        if not features.is_cuda and not bool(torch.isfinite(features).all()):
            raise NotFiniteError
        if name not in buffers:
            buffers[name] = FeatureBuffer(rows=rows, dtype=dtype, budget=shared, folder=folder)
        buffers[name].append(features)

    recorder = LayerRecorder(model, "model", layers, pooling, keep, forward)
    run = Pass([recorder], 1, device=device, progress=progress, label="extract")
    run.run(data, lambda _index, _kept, _samples: None)
    if run.interrupted:
        raise KeyboardInterrupt("The pass was interrupted: the features do not cover the data set.")
    run.require_batches()
    result = Features()
    notes = [*run.notes, *(f"{layer!r} was left out: {why}" for layer, why in recorder.left_out.items())]
    for name in recorder.names:
        buffer = buffers[name]
        tensor = buffer.rows()
        if tensor.is_cuda and not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"Layer {name!r} gave NaN or infinity. Check the input and weights.")
        if buffer.place != "device":
            where = "host memory" if buffer.file is None else str(buffer.file)
            notes.append(f"{name!r} passed the budget of {budget} bytes and is in {where}")
        result[name] = as_cupy(tensor) if backend == "cupy" and buffer.place == "device" else tensor
    result.notes = tuple(notes)
    return result


def _expected_rows(data: Any) -> int | None:
    """The number of samples, where a data loader can tell."""
    if isinstance(data, torch.Tensor):
        return len(data)
    dataset = getattr(data, "dataset", None)
    return len(dataset) if isinstance(dataset, Sized) else None
