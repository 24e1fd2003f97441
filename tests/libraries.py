"""The array libraries that every estimator is tested with."""

from __future__ import annotations

import importlib
import importlib.util

import numpy as np

PROMISED = ("numpy", "torch", "array_api_strict")
"""Libraries that are always tested; array_api_strict takes the place of CuPy without a GPU."""


def present() -> tuple[str, ...]:
    """The libraries to test: the promised ones, and CuPy if it is installed and there is a GPU."""
    if importlib.util.find_spec("cupy") is None:
        return PROMISED
    import torch

    return (*PROMISED, "cupy") if torch.cuda.is_available() else PROMISED


def namespace(name: str):
    """The array API namespace of a library. A missing library fails the test: no test is skipped unseen."""
    if name == "array_api_strict":
        return importlib.import_module(name)
    return importlib.import_module(f"array_api_compat.{name}")


def to_numpy(array) -> np.ndarray:
    """A copy of the array as a numpy array."""
    if hasattr(array, "get"):
        return array.get()
    return array.detach().cpu().numpy().copy() if hasattr(array, "detach") else np.array(array)
