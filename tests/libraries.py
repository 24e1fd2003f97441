"""The array libraries that every estimator is tested with, and how to look into their arrays."""

from __future__ import annotations

import importlib
import importlib.util

import numpy as np

PROMISED = ("numpy", "torch", "array_api_strict")
"""Always tested: array_api_strict stands in for CuPy where there is no GPU."""


def present() -> tuple[str, ...]:
    """The promised libraries, and CuPy where a GPU and CuPy are there."""
    if importlib.util.find_spec("cupy") is None:
        return PROMISED
    import torch

    return (*PROMISED, "cupy") if torch.cuda.is_available() else PROMISED


def namespace(name: str):
    """The array API namespace of a library; an ImportError fails the test, so that nothing hides by skipping."""
    if name == "array_api_strict":
        return importlib.import_module(name)
    return importlib.import_module(f"array_api_compat.{name}")


def to_numpy(array) -> np.ndarray:
    """A copy of the array in numpy."""
    if hasattr(array, "get"):
        return array.get()
    return array.detach().cpu().numpy().copy() if hasattr(array, "detach") else np.array(array)
