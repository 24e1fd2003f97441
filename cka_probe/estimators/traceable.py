"""The namespace of arrays, found in a way that torch.compile can trace."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import array_api_compat

__all__ = ["array_namespace"]


def array_namespace(*arrays: Any) -> ModuleType:
    """As ``array_api_compat.array_namespace``, without its cache if all arrays are torch's.

    torch.compile warns of a cached function in each graph, because it does not know whether the cache matters.

    Examples
    --------
    >>> import torch
    >>> array_namespace(torch.zeros(1)).__name__
    'array_api_compat.torch'
    """
    if all(type(array).__module__.partition(".")[0] == "torch" for array in arrays):
        import array_api_compat.torch as namespace  # only here: the other libraries do not need torch

        return namespace
    return array_api_compat.array_namespace(*arrays)
