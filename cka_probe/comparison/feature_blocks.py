"""The features of one layer over a data set, batch by batch: in memory, or in a file."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

__all__ = ["FeatureBlocks", "FeatureFile", "FilePart", "disk_room"]

PANEL = 2**14
"""Columns that lie together in the file, so that some columns of all samples are read in few pieces."""


def disk_room(folder: Path | None = None, *, any_kind: bool = False) -> int:
    """Bytes that features may take in a folder, that for temporary files when left out.

    0 if it is not writable, or, unless it may be of ``any_kind``, in memory.
    """
    folder = Path(tempfile.gettempdir()) if folder is None else folder
    try:
        if not os.access(folder, os.W_OK) or (not any_kind and _is_in_memory(folder)):
            return 0
        return int(shutil.disk_usage(folder).free * 0.8)
    except OSError:
        return 0


def _is_in_memory(folder: Path) -> bool:
    try:
        mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return False
    here = folder.resolve()
    holding = [(len(where), kind) for _, where, kind, *_ in mounts if here.is_relative_to(where)]
    return max(holding, default=(0, ""))[1] in ("tmpfs", "ramfs")


class FilePart:
    """Features (n, d) of one batch in a ``FeatureFile``, from the byte ``start`` on."""

    def __init__(self, file: FeatureFile, start: int, shape: tuple[int, int], dtype: torch.dtype) -> None:
        self._file, self.start = file, start
        self.shape, self.dtype = shape, dtype

    def read(self, rows: slice, columns: slice) -> torch.Tensor:
        """Some rows and columns, as a tensor on the CPU."""
        n, width = self.shape
        first, last, step = rows.indices(n)
        out = torch.empty((last - first, columns.stop - columns.start), dtype=self.dtype)
        size = self.dtype.itemsize
        for panel in range(columns.start // PANEL * PANEL, columns.stop, PANEL):
            wide = min(PANEL, width - panel)
            a, b = max(panel, columns.start), min(panel + wide, columns.stop)
            place = self.start + size * (n * panel + first * wide)
            block = self._file.read(place, (last - first, wide), self.dtype)
            out[:, a - columns.start : b - columns.start] = block[:, a - panel : b - panel]
        return out[::step]


class FeatureFile:
    """A file that features are written to: a temporary one, which is gone after its ``with`` block.

    Where the system allows it (not Windows), the temporary one has no name, so that it is gone too if this process is
    killed.

    Parameters
    ----------
    path : path, optional
        A file that stays, and is made new unless ``size`` is given.
    size : int
        Bytes of it that hold features already.
    """

    def __init__(self, path: Path | None = None, size: int = 0) -> None:
        self.size = size
        self.seconds = 0.0
        """Time that writing has taken."""
        self.stays = path is not None
        if path is None:
            handle, name = tempfile.mkstemp(prefix="cka_probe_", suffix=".features")
            self._file = os.fdopen(handle, "w+b", buffering=0)
            if os.name == "posix":
                Path(name).unlink()
        else:
            name = str(path)
            self._file = path.open("r+b" if size else "w+b", buffering=0)
            self._file.truncate(size)
        self.path = Path(name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if not self.stays:
            self.path.unlink(missing_ok=True)

    def sync(self) -> None:
        """Wait until all that was written is on the disk."""
        os.fsync(self._file.fileno())

    def write(self, features: torch.Tensor) -> FilePart:
        """Append features (n, d), panel by panel.

        Raises
        ------
        OSError
            If the disk is full.
        """
        n, width = features.shape
        part = FilePart(self, self.size, (n, width), features.dtype)
        self._file.seek(self.size)  # what came later in an earlier run is written over
        started = time.perf_counter()
        try:
            for start in range(0, width, PANEL):
                panel = features[:, start : start + PANEL].to("cpu").contiguous()
                data = memoryview(panel.view(torch.uint8).numpy().data).cast("B")
                while data:
                    data = data[self._file.write(data) :]
        except OSError as error:
            raise OSError(
                error.errno,
                f"The features of the data set do not fit on the disk ({error.strerror}). Set TMPDIR to a folder with "
                "more room, or give more memory, fewer layers or a pooling that narrows them",
                str(self.path),
            ) from error
        self.size += n * width * features.dtype.itemsize
        self.seconds += time.perf_counter() - started
        return part

    def read(self, place: int, shape: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
        """Numbers from a place in the file."""
        count = shape[0] * shape[1] * dtype.itemsize
        out = torch.empty(shape, dtype=dtype)
        into = memoryview(out.view(torch.uint8).numpy().data).cast("B")
        self._file.seek(place)
        done = 0
        while done < count:
            got = self._file.readinto(into[done:])
            if not got:
                raise OSError(f"The file {self.path} of features ended early.")
            done += got
        return out


class FeatureBlocks:
    """Some or all columns of the features of one layer, in blocks of samples; ``Features`` of the estimators.

    Parameters
    ----------
    blocks : sequence of tensor (n_i, d) or FilePart
        One for each batch.
    device : torch.device
        Where parts are read to.
    """

    def __init__(self, blocks: Sequence[torch.Tensor | FilePart], device: torch.device) -> None:
        self.blocks = blocks
        self.device = device

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of samples and of columns."""
        return sum(block.shape[0] for block in self.blocks), self.blocks[0].shape[1]

    def columns(self, start: int, stop: int) -> torch.Tensor:
        """Some columns of all samples."""
        return self._joined([_read(block, slice(None), slice(start, stop)) for block in self.blocks])

    def rows(self, start: int, stop: int, step: int = 1) -> torch.Tensor:
        """All columns of some samples."""
        every = slice(0, self.shape[1])
        parts, before = [], 0
        for block in self.blocks:
            n = block.shape[0]
            first = start - before if start >= before else (start - before) % step
            if first < min(n, stop - before):
                parts.append(_read(block, slice(first, min(n, stop - before), step), every))
            before += n
        return self._joined(parts)

    def _joined(self, parts: list[torch.Tensor]) -> torch.Tensor:
        parts = [part.to(self.device) for part in parts]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def _read(block: torch.Tensor | FilePart, rows: slice, columns: slice) -> torch.Tensor:
    return block.read(rows, columns) if isinstance(block, FilePart) else block[rows, columns]
