"""Nested state (containers of numbers, texts and tensors) as JSON and arrays, and back; nothing is pickled."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from ..capture.masks import Place
from ..capture.trial import Trial
from ..estimators.dataset.routes import Route, Slice
from .grams.findings import FarSample
from .grams.measures import Above

__all__ = ["packed", "unpacked"]

RECORDS: dict[str, Any] = {kind.__name__: kind for kind in (Above, FarSample, Place, Route, Slice, Trial)}
"""Small classes of the package that a state may hold, by name."""

CONTAINERS: dict[str, Any] = {kind.__name__: kind for kind in (tuple, set, deque)}


def packed(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    """The value as plain JSON. Its tensors and arrays are added to ``arrays``.

    Raises
    ------
    TypeError
        If it holds an object of another kind.

    Examples
    --------
    >>> packed({"modes": {"fc": "raw"}, "careful": {"fc"}}, {})
    {'dict': [['modes', {'dict': [['fc', 'raw']]}], ['careful', {'set': ['fc']}]]}
    """
    if isinstance(value, bool | int | float | str | None):
        return value
    if isinstance(value, torch.Tensor):
        name = f"state_{len(arrays)}"
        flat = value.detach().cpu().contiguous().reshape(-1)
        arrays[name] = flat.view(torch.uint8).numpy()
        return {"tensor": [name, str(value.dtype).removeprefix("torch."), list(value.shape)]}
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        name = f"state_{len(arrays)}"
        arrays[name] = value
        return {"array": name}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    name = type(value).__name__
    if RECORDS.get(name) is type(value):
        fields: dict[str, Any] = value._asdict() if hasattr(value, "_asdict") else vars(value)
        return {name: [[key, packed(part, arrays)] for key, part in fields.items()]}
    if isinstance(value, Mapping):
        return {"dict": [[packed(key, arrays), packed(part, arrays)] for key, part in value.items()]}
    if type(value) is list:
        return [packed(part, arrays) for part in value]
    if CONTAINERS.get(name) is type(value):
        parts = sorted(value, key=repr) if isinstance(value, set) else value
        return {name: [packed(part, arrays) for part in parts]}
    raise TypeError(f"an object of the class {name} cannot be saved")


def unpacked(value: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """What ``packed`` was given, with tensors on the CPU.

    Raises
    ------
    ValueError, TypeError, KeyError
        If the JSON is not what ``packed`` returns, or an array is missing or of another size.
    """
    if isinstance(value, list):
        return [unpacked(part, arrays) for part in value]
    if not isinstance(value, dict):
        return value
    [(kind, inside)] = value.items()
    if kind == "tensor":
        name, dtype, shape = inside
        content, dtype = arrays[name].copy(), _dtype(dtype)
        flat = torch.frombuffer(content, dtype=dtype) if content.size else torch.empty(0, dtype=dtype)
        return flat.reshape(shape)
    if kind == "array":
        return arrays[inside]
    if kind == "dtype":
        return _dtype(inside)
    if kind == "dict":
        return {unpacked(key, arrays): unpacked(part, arrays) for key, part in inside}
    if kind in RECORDS:
        return RECORDS[kind](**{key: unpacked(part, arrays) for key, part in inside})
    return CONTAINERS[kind](unpacked(part, arrays) for part in inside)


def _dtype(name: str) -> torch.dtype:
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"{name!r} is no dtype of torch")
    return found
