"""The one reader of arrays from files: nothing is unpickled, and nothing is allocated that a file does not hold."""

from __future__ import annotations

import json
import math
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

__all__ = ["NpzFile", "check_uncompressed", "open_npz", "read_npy"]

LARGE = 2**26
"""Bytes up to which a file may unpack at any ratio: 64 MiB."""

RATIO = 200
"""A file that unpacks to more than ``LARGE`` bytes may hold at most this many times its own size."""

HEADER = 2**24 + 1024
"""Bytes of the JSON text of a file: 4 million characters, as numpy stores them."""

CHUNK = 2**20


class NpzFile(Mapping[str, np.ndarray]):
    """Arrays of an .npz file by name, each read when it is asked for. See ``open_npz``."""

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self.path = path
        self._archive = archive
        self._header: dict[str, Any] | None = None
        self._entries: dict[str, zipfile.ZipInfo] = {}
        for info in archive.infolist():
            name = info.filename.removesuffix(".npy")
            if name in self._entries:
                raise ValueError(f"it holds two arrays called {name!r}")
            self._entries[name] = info
        packed = path.stat().st_size
        unpacked = sum(info.file_size for info in self._entries.values())
        if unpacked > LARGE and unpacked > RATIO * packed:
            raise ValueError(
                f"{packed:,} bytes would unpack to {unpacked:,}, which no file of arrays of real data does"
            )

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of an array, without reading it."""
        with self._archive.open(self._entries[name]) as file:
            return _layout(file, self._entries[name].file_size)[0]

    def __getitem__(self, name: str) -> np.ndarray:
        with self._archive.open(self._entries[name]) as file:
            shape, order, dtype = _layout(file, self._entries[name].file_size)
            content = bytearray()
            while chunk := file.read(CHUNK):  # memory grows with what is there, not with what is claimed
                content += chunk
        if len(content) != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{name!r} ends after {len(content):,} bytes")
        return np.frombuffer(content, dtype).reshape(shape, order=order)

    def header(self) -> dict[str, Any]:
        """The JSON object in the entry "header", which is read once.

        Raises
        ------
        ValueError
            If there is none, or it is too long or nested too deeply.
        """
        if self._header is not None:
            return self._header
        if "header" not in self._entries:
            raise ValueError("it has no header")
        if self._entries["header"].file_size > HEADER:
            raise ValueError(f"its header has {self._entries['header'].file_size:,} bytes")
        try:
            found = json.loads(str(self["header"]))
        except RecursionError:
            raise ValueError("its header is nested too deeply") from None
        if not isinstance(found, dict):
            raise ValueError("its header is no JSON object")
        self._header = found
        return found


@contextmanager
def open_npz(path: str | Path) -> Iterator[NpzFile]:
    """Open an .npz file; its arrays are read as they are asked for.

    Parameters
    ----------
    path : path
        The file.

    Yields
    ------
    NpzFile
        A mapping of names to arrays.

    Raises
    ------
    OSError
        If the file cannot be opened.
    ValueError
        Here or when an array is read: if the file is no .npz file, is damaged, holds Python objects, claims arrays of
        another size than it holds, or would unpack to far more than its own size. The message gives the reason, not
        the path.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.savez(Path(folder) / "a.npz", x=np.arange(3))
    ...     with open_npz(Path(folder) / "a.npz") as arrays:
    ...         arrays.shape("x"), arrays["x"].tolist()
    ((3,), [0, 1, 2])
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            yield NpzFile(path, archive)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, OverflowError, MemoryError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
    except RuntimeError as error:  # an encrypted entry
        raise ValueError(str(error)) from error


def read_npy(path: str | Path, *, mapped: bool = False) -> np.ndarray:
    """The array of an .npy file.

    Parameters
    ----------
    path : path
        The file.
    mapped : bool
        Whether the array stays on the disk, read-only, and is read where it is used (``numpy.memmap``).

    Raises
    ------
    OSError
        If the file cannot be opened.
    ValueError
        If it is no .npy file, holds Python objects, or claims an array of another size than it holds. The message gives
        the reason, not the path.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(Path(folder) / "a.npy", np.arange(3))
    ...     read_npy(Path(folder) / "a.npy").tolist()
    [0, 1, 2]
    """
    path = Path(path)
    with path.open("rb") as file:
        _layout(file, path.stat().st_size)
    return np.load(path, allow_pickle=False, mmap_mode="r" if mapped else None)


def check_uncompressed(path: str | Path) -> None:
    """Raise ValueError if a file of ``torch.save`` holds packed entries: torch packs only TorchScript's code."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                if info.compress_type != zipfile.ZIP_STORED and "/code/" not in info.filename:
                    raise ValueError(f"{info.filename!r} in it is packed, which torch.save never does")


def _layout(file: IO[bytes], size: int) -> tuple[tuple[int, ...], Any, np.dtype[Any]]:
    """Shape, order and dtype in the header of an array, whose file has ``size`` bytes in all."""
    version = np.lib.format.read_magic(file)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"version {version} of numpy's format is not read")
    shape, fortran, dtype = readers[version](file)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which could run code")
    held, claimed = size - file.tell(), math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or held != claimed:
        raise ValueError(f"an array of shape {shape} and dtype {dtype} takes {claimed:,} bytes, but {held:,} are there")
    return shape, "F" if fortran else "C", dtype
