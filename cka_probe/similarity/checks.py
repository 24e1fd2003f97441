"""Check and convert the fields of a similarity matrix."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["as_json", "as_matrix", "as_names"]


def as_matrix(array: ArrayLike, name: str) -> NDArray[np.float64]:
    """Read-only copy (R, C) of an array in float64.

    Raises
    ------
    TypeError
        If the array holds no real numbers; the message calls it ``name``.
    ValueError
        If it has no two axes.
    """
    result = np.asarray(array)
    if result.dtype.kind not in "fiub":
        raise TypeError(f"`{name}` must hold real numbers, got dtype {result.dtype}.")
    if result.ndim != 2:
        raise ValueError(f"`{name}` must have shape (rows, columns), got {result.shape}.")
    result = np.array(result, dtype=np.float64)
    result.flags.writeable = False
    return result


def as_names(names: Sequence[str], name: str, count: int | None = None) -> tuple[str, ...]:
    """Names as a tuple of str.

    Raises
    ------
    TypeError
        If they are a single string or hold anything but strings; the message calls them ``name``.
    ValueError
        If their number is not ``count``.
    """
    if isinstance(names, str):
        raise TypeError(f"`{name}` must be a sequence of strings, got the single string {names!r}. Write [{names!r}].")
    try:
        result = tuple(names)
    except TypeError:
        raise TypeError(f"`{name}` must be a sequence of strings, got {type(names).__name__}.") from None
    for item in result:
        if not isinstance(item, str):
            raise TypeError(f"`{name}` must hold strings, got {item!r} of type {type(item).__name__}.")
    if count is not None and len(result) != count:
        axis = "rows" if name.startswith("row") else "columns"
        raise ValueError(f"`values` has {count} {axis}, so `{name}` must hold {count} names; got {len(result)}.")
    return tuple(str(item) for item in result)  # numpy strings become str


def as_json(meta: Mapping[str, Any] | None) -> dict[str, Any]:
    """``meta`` as it is after saving and loading, so that a loaded matrix equals the saved one.

    Raises
    ------
    TypeError
        If it is no mapping, or a value cannot be written as JSON.
    """

    def plain(value: Any) -> Any:
        if isinstance(value, np.generic | np.ndarray):
            return value.tolist()
        raise TypeError(f"{type(value).__name__} {value!r}")

    if meta is None:
        return {}
    if not isinstance(meta, Mapping):
        raise TypeError(f"`meta` must be a dict, got {type(meta).__name__}.")
    result = {}
    for key, value in meta.items():
        try:
            result[str(key)] = json.loads(json.dumps(value, default=plain))
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"`meta[{key!r}]` cannot be saved as JSON ({error}). Pass numbers, strings, lists or dicts."
            ) from error
    return result
