"""Collect the features of chosen layers over a whole data set, on the device of the model."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .batches import Forward, expected_samples
from .buffers import Budget, FeatureBuffer, as_cupy, require_cupy
from .keeping import NotFiniteError
from .layers import Layers
from .networks import check_device
from .pooling import Pooling
from .recorder import LayerRecorder
from .streaming import Pass

__all__ = ["Features", "extract"]


class Features(dict[str, Any]):
    """Features (n, d) by layer name, and ``notes`` on layers and batches that were left out or moved off the device."""

    notes: tuple[str, ...] = ()


def extract(
    model: nn.Module,
    data: Iterable[Any],
    layers: Layers = "leaves",
    *,
    exclude: Layers | None = None,
    backend: str = "torch",
    pooling: Pooling = "auto",
    forward: Forward | None = None,
    sample_axis: int = 0,
    dtype: torch.dtype | None = None,
    budget: int | None = None,
    folder: str | Path | None = None,
    device: torch.device | str | None = None,
    channels_last: bool = False,
    progress: bool = True,
) -> Features:
    """Features (n, d) of every selected layer over the whole data set, by layer name.

    Parameters
    ----------
    model : torch.nn.Module
        The network. It runs in eval mode without gradients; its modes are restored afterwards.
    data, layers, exclude, pooling, forward, sample_axis, device, channels_last, progress
        As in ``compare``.
    backend : "torch" or "cupy"
        Whether the features are tensors, or CuPy arrays that share the memory of the tensors on the GPU.
    dtype : torch.dtype, optional
        Precision of the features. By default that of the model's outputs, float32 for half precision.
    budget : int, optional
        Bytes of features that may stay on the device. Layers beyond it go to page-locked host memory, with a note.
    folder : path, optional
        Layers beyond the budget go to files in this folder instead, mapped into memory.

    Returns
    -------
    dict of str to array (n, d)
        In the order of execution. Its attribute ``notes`` names the layers and batches that were left out or moved.

    Raises
    ------
    ValueError, TypeError, CaptureError
        As in ``compare``; ValueError also if ``backend`` is unknown or ``budget`` is negative.
    ModuleNotFoundError, RuntimeError
        If ``backend`` is "cupy" and CuPy is not installed or there is no GPU.
    KeyboardInterrupt
        If the user stops the pass: the features would not cover the data set.

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
    if device is not None:
        check_device(device)
    shared = Budget(budget)
    buffers: dict[str, FeatureBuffer] = {}
    rows = expected_samples(data) if pooling not in ("spatial", "all") and sample_axis == 0 else None

    def keep(name: str, features: torch.Tensor) -> None:
        if not features.is_cuda and not bool(torch.isfinite(features).all()):
            raise NotFiniteError
        if name not in buffers:
            buffers[name] = FeatureBuffer(rows=rows, dtype=dtype, budget=shared, folder=folder)
        buffers[name].append(features)

    recorder = LayerRecorder(model, "model", layers, pooling, keep, forward, exclude=exclude, sample_axis=sample_axis)
    run = Pass([recorder], 1, device=device, channels_last=channels_last, progress=progress, label="extract")
    run.run(data, lambda _index, _kept, _samples: None)
    if run.interrupted:
        raise KeyboardInterrupt("The pass was interrupted: the features do not cover the data set.")
    run.require_batches()
    result = Features()
    notes = [*run.notes, *recorder.notes(name=False)]
    for name in recorder.compared:
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
