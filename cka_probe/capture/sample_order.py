"""Digest of the samples of a pass and their order, by which a later pass over the same data is known."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from .batches import as_tensors
from .trees import leaves, parts, tensors

__all__ = ["SampleOrder"]

DEPTH = 4
"""How deep the attributes of objects in a batch are read."""


class SampleOrder:
    """Running digest of the samples and their order.

    Two runs with equal digests read the same samples in the same order, as far as what is read of each sample shows.

    Parameters
    ----------
    every_number : bool
        Whether the sum of all numbers of each sample counts too, with shapes, dtypes, and the texts and numbers beside
        the tensors. Then one changed number is noticed.
    """

    def __init__(self, *, every_number: bool = False) -> None:
        self.every_number = every_number
        self._hash = hashlib.blake2b(digest_size=16)
        self._waiting: list[bytes | torch.Tensor] = []

    def update(self, batch: Any) -> None:
        """Add a batch: ``add(read(batch))``."""
        self.add(self.read(batch))

    def read(self, batch: Any) -> list[bytes | torch.Tensor]:
        """What counts of a batch: 64 to 127 evenly spaced numbers of each sample and tensor, or all if it has fewer.

        Of a batch without tensors (texts, objects that only the caller's forward reads) the leaves count as text. The
        result does not share memory with the batch.
        """
        numbers = as_tensors(batch)
        found = [part for tensor in tensors(numbers) for part in _dense(tensor)]
        if self.every_number:
            return [part for tensor in found for part in _all_of(tensor.detach())] + list(_beside(batch, DEPTH))
        read: list[bytes | torch.Tensor] = []
        for tensor in found:
            if tensor.ndim and tensor.numel():
                # As bytes, because numpy has no bfloat16.
                read.append(_few(tensor.detach().reshape(tensor.shape[0], -1)).view(torch.uint8))
        return read if found else list(_texts(batch))

    def add(self, read: list[bytes | torch.Tensor]) -> None:
        """Add what ``read`` returned. Nothing waits for a GPU."""
        self._waiting += read
        if all(not isinstance(part, torch.Tensor) or part.is_cpu for part in read):
            self._end_waiting()

    def hexdigest(self) -> str:
        """Digest of the batches so far, as 32 hexadecimal digits."""
        self._end_waiting()
        return self._hash.hexdigest()

    def _end_waiting(self) -> None:
        for part in self._waiting:
            self._hash.update(part.cpu().numpy().tobytes() if isinstance(part, torch.Tensor) else part)
        self._waiting = []


def _few(flat: torch.Tensor) -> torch.Tensor:
    """64 to 127 evenly spaced columns, or all if there are fewer, as a copy."""
    return flat[:, :: max(1, flat.shape[1] // 64)].clone(memory_format=torch.contiguous_format)


def _all_of(tensor: torch.Tensor) -> Iterator[bytes | torch.Tensor]:
    yield f"{tuple(tensor.shape)} {tensor.dtype}".encode()
    if tensor.numel():
        flat = tensor.reshape(tensor.shape[0] if tensor.ndim else 1, -1).contiguous().view(torch.uint8)
        yield _few(flat)
        # Four bytes at a time, added without a loss, so that one changed number changes the sum.
        whole = flat.shape[1] % 4 == 0 and flat.storage_offset() % 4 == 0
        yield (flat.view(torch.int32) if whole else flat).sum(1, dtype=torch.int64)


def _texts(batch: Any) -> Iterator[bytes | torch.Tensor]:
    """The leaves of a batch without tensors."""
    for leaf in leaves(batch):
        inside = leaf.to_dict() if callable(getattr(leaf, "to_dict", None)) else None  # a PyG graph
        if inside is not None and next(tensors(inside), None) is not None:
            yield from SampleOrder().read(inside)
        elif isinstance(leaf, str | bytes | int | float | None):
            yield repr(leaf).encode()


def _beside(batch: Any, depth: int) -> Iterator[bytes | torch.Tensor]:
    """What a batch holds beside its tensors and arrays of numbers: texts, numbers, and the insides of objects."""
    for leaf in leaves(batch):
        if isinstance(leaf, torch.Tensor):
            continue
        if isinstance(leaf, np.ndarray):
            if leaf.dtype.kind not in "biufc":
                yield repr(leaf.tolist()).encode()
            continue
        if isinstance(leaf, str | bytes | int | float | complex | None):
            yield repr(leaf).encode()
            continue
        yield type(leaf).__qualname__.encode()
        if callable(getattr(leaf, "to_dict", None)):  # a PyG graph
            inside: Any = leaf.to_dict()
        elif callable(getattr(leaf, "tobytes", None)):  # a picture
            yield leaf.tobytes()
            continue
        else:
            inside = getattr(leaf, "__dict__", None)
        if inside and depth and parts(inside) is not None:
            numbers = as_tensors(inside)
            yield from (part for tensor in tensors(numbers) for dense in _dense(tensor) for part in _all_of(dense))
            yield from _beside(inside, depth - 1)


def _dense(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The numbers of a tensor as dense tensors: the samples of a nested one, the indices and values of a sparse one."""
    if tensor.is_nested:
        return list(tensor.unbind())
    if tensor.is_quantized:
        return [tensor.dequantize()]
    if tensor.layout is torch.sparse_coo:
        coalesced = tensor.coalesce()
        return [coalesced.indices(), coalesced.values()]
    return [tensor if tensor.layout is torch.strided else tensor.to_dense()]
