"""Hold the features of a whole data set on their device, within a memory budget; share them with CuPy."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .extras import require

__all__ = ["Budget", "FeatureBuffer", "as_cupy", "require_cupy"]


class Budget:
    """Bytes that all buffers of one extraction together may hold on their device.

    Parameters
    ----------
    limit : int or None
        Number of bytes; None for no limit.

    Raises
    ------
    ValueError
        If ``limit`` is negative.
    """

    def __init__(self, limit: int | None = None) -> None:
        if limit is not None and limit < 0:
            raise ValueError(f"`budget` must be a number of bytes or None, got {limit}.")
        self.limit = limit
        self.used = 0

    def take(self, size: int) -> bool:
        """Reserve ``size`` bytes, or release them if negative. Return False if the limit would be exceeded."""
        if self.limit is not None and size > 0 and self.used + size > self.limit:
            return False
        self.used += size
        return True


class FeatureBuffer:
    """Growing array of features (rows, width) on the device of the features.

    It is allocated once if ``rows`` is given; otherwise it doubles its size when it is full. If the budget is exceeded,
    all rows move to page-locked host memory, or to a file in ``folder`` that is mapped into memory.

    Parameters
    ----------
    rows : int, optional
        Expected number of rows.
    dtype : torch.dtype, optional
        Precision of the rows. By default that of the first features.
    budget : Budget, optional
        Budget of this buffer; several buffers may share one. By default there is no limit.
    folder : path, optional
        Folder of the file that is used instead of host memory.

    Attributes
    ----------
    place : "device", "host" or "file"
        Where the rows are now.
    count : int
        Number of rows so far.
    file : path or None
        File that holds the rows, if they were moved to one. The caller deletes it.

    Examples
    --------
    >>> buffer = FeatureBuffer()
    >>> buffer.append(torch.ones(2, 3)); buffer.append(torch.zeros(1, 3))
    >>> buffer.rows().shape
    torch.Size([3, 3])
    """

    def __init__(
        self,
        *,
        rows: int | None = None,
        dtype: torch.dtype | None = None,
        budget: Budget | None = None,
        folder: str | Path | None = None,
    ) -> None:
        self.dtype = dtype
        self.budget = budget or Budget()
        self.folder = None if folder is None else Path(folder)
        self.place = "device"
        self.count = 0
        self._hint = rows
        self._data: torch.Tensor | None = None
        self._reserved = 0
        self.file: Path | None = None

    def append(self, features: torch.Tensor) -> None:
        """Append ``features`` (n, width).

        Raises
        ------
        ValueError
            If their width differs from that of the rows before.
        """
        features = features.detach()
        if self.dtype is None:
            self.dtype = features.dtype
        if self.file is None:
            self._make_room(features)
        width = self._width
        if features.shape[1] != width:
            raise ValueError(f"The features have width {features.shape[1]}, those before had {width}.")
        if self.file is not None:
            self._write(features)
        else:
            assert self._data is not None
            self._data[self.count : self.count + len(features)].copy_(features, non_blocking=self.place == "device")
        self.count += len(features)

    def _make_room(self, features: torch.Tensor) -> None:
        needed = self.count + len(features)
        if self._data is not None and needed <= len(self._data):
            return
        assert self.dtype is not None
        self._width = features.shape[1] if self._data is None else self._data.shape[1]
        rows = max(needed, self._hint or 0, 0 if self._data is None else 2 * len(self._data))
        row_size = self._width * self.dtype.itemsize
        size = rows * row_size
        if self.place == "device" and not self.budget.take(size - self._reserved):
            rows = max(needed, self._hint or 0)
            self._spill()
            if self.file is not None:
                return
        elif self.place == "device":
            self._reserved = size
        pinned = self.place == "host" and torch.cuda.is_available()
        device = features.device if self.place == "device" else torch.device("cpu")
        fresh = torch.empty((rows, self._width), dtype=self.dtype, device=device, pin_memory=pinned)
        if self._data is not None:
            fresh[: self.count].copy_(self._data[: self.count])
        self._data = fresh

    def _spill(self) -> None:
        self.budget.take(-self._reserved)
        self._reserved = 0
        if self.folder is None:
            self.place = "host"
            return
        self.place = "file"
        handle, name = tempfile.mkstemp(dir=self.folder, suffix=".features")
        os.close(handle)
        self.file = Path(name)
        if self._data is not None:
            self._write(self._data[: self.count])
            self._data = None

    def _write(self, features: torch.Tensor) -> None:
        assert self.file is not None
        with self.file.open("ab") as file:
            file.write(features.to("cpu", self.dtype).contiguous().view(torch.uint8).numpy().tobytes())

    def rows(self) -> torch.Tensor:
        """All rows so far (count, width), as a view of the buffer or of the mapped file.

        Raises
        ------
        ValueError
            If no features were appended.
        """
        if self.file is not None:
            assert self.dtype is not None
            mapped = np.memmap(self.file, dtype=np.uint8, mode="r+")
            return torch.from_numpy(mapped).view(self.dtype).view(self.count, self._width)
        if self._data is None:
            raise ValueError("No features were appended to this buffer.")
        return self._data[: self.count]


def require_cupy() -> Any:
    """Return the module CuPy.

    Raises
    ------
    ModuleNotFoundError
        If CuPy is not installed; the message gives the command that installs it.
    RuntimeError
        If there is no NVIDIA GPU.
    """
    cuda = (torch.version.cuda or "13").partition(".")[0]
    require("cupy", f"cuda{cuda}", 'backend="cupy"')
    import cupy

    if not torch.cuda.is_available():
        raise RuntimeError('backend="cupy" needs an NVIDIA GPU, and torch finds none. Use backend="torch".')
    return cupy


def as_cupy(tensor: torch.Tensor) -> Any:
    """CuPy array that shares the memory of a GPU tensor by DLPack, without a copy.

    Raises
    ------
    ModuleNotFoundError, RuntimeError
        If CuPy is not installed or there is no GPU.
    ValueError
        If the tensor is not on a GPU, or its dtype is bfloat16, which CuPy does not have.
    """
    cupy = require_cupy()
    if not tensor.is_cuda:
        raise ValueError(
            f"Only a tensor on a GPU can share its memory with a CuPy array; this one is on {tensor.device}."
        )
    if tensor.dtype == torch.bfloat16:
        raise ValueError("CuPy has no bfloat16. Extract with dtype=torch.float32 or torch.float16.")
    return cupy.from_dlpack(tensor.detach())
