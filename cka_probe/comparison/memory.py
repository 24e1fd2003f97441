"""How much memory a comparison over a whole data set may take, and how much the forward passes take beside it."""

from __future__ import annotations

import os
import re
from pathlib import Path

import torch

from ..capture.allocator import give_back_free_memory

__all__ = ["LEAST", "ForwardMeter", "HeapWatch", "checked_memory", "free_memory", "memory_text", "parsed_memory"]

UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
UNITS |= {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}

PART_OF_FREE = 3
"""By default a comparison takes one part in this many of the free memory."""

UNKNOWN = 4 * 2**30
"""Free memory where the system does not tell it, times ``PART_OF_FREE``."""

LEAST = 2**20
"""Smallest memory that can be asked for."""


def parsed_memory(memory: int | float | str) -> int:
    """Bytes from a number of bytes or a text such as "4GiB", "500 MB" or "1.5g".

    Raises
    ------
    ValueError
        If the text is no size, or the size is below 1 MiB.
    TypeError
        If it is neither a number nor a text.

    Examples
    --------
    >>> parsed_memory("1.5 GiB") == 3 * 2**29
    True
    """
    if isinstance(memory, bool) or not isinstance(memory, int | float | str):
        raise TypeError(f'`memory` must be a number of bytes or a text such as "4GiB", got {memory!r}.')
    if isinstance(memory, str):
        found = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-zA-Z]*)\s*", memory)
        if found is None or found[2].lower() not in UNITS:
            raise ValueError(f'`memory` must be a size such as "4GiB" or "500MB", got {memory!r}.')
        size = float(found[1]) * UNITS[found[2].lower()]
    else:
        size = float(memory)
    if not LEAST <= size < 2**60:
        raise ValueError(f'`memory` must be at least 1 MiB, got {memory!r}. Give bytes, or a size such as "4GiB".')
    return int(size)


def memory_text(size: float) -> str:
    """A number of bytes for people.

    Examples
    --------
    >>> memory_text(3 * 2**29), memory_text(2**20)
    ('1.5 GiB', '1 MiB')
    """
    for unit, name in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}" if size < 1000 * unit else f"{size / unit:.0f} {name}"
    return f"{size / 2**10:.3g} KiB" if size >= 2**10 else f"{size:.0f} bytes"


def checked_memory(memory: int | float | str | None, device: torch.device) -> int:
    """Bytes that a comparison may take on ``device``: those asked for, or a third of what is free there."""
    if memory is not None:
        return parsed_memory(memory)
    free = free_memory(device)
    return max(LEAST, free // PART_OF_FREE) if free is not None else UNKNOWN


def free_memory(device: torch.device) -> int | None:
    """Bytes that are free on a device; of the CPU also within the limits of a container. None if the system says none.

    A system that keeps files in memory frees that part when a program needs it, so it counts as free.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free) + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type != "cpu":
        return None
    found = [one for one in (_available(), _left_in_container()) if one is not None]
    return min(found, default=None)


def _available() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    try:  # macOS and others: what the machine has; half of it may be in use
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (AttributeError, OSError, ValueError):
        return None


def _left_in_container(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes up to the limit of the control group of this process (version 2, then 1)."""
    for limit, used, stat in (
        ("memory.max", "memory.current", "memory.stat"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
    ):
        try:
            most, now = int((root / limit).read_text()), int((root / used).read_text())
            files = [line.split() for line in (root / stat).read_text().splitlines()]
        except (OSError, ValueError):  # no limit is the text "max"
            continue
        cached = next((int(size) for name, size in files if name == "inactive_file"), 0)
        if most < 2**60:
            return max(0, most - now + cached)
    return None


class ForwardMeter:
    """Measure what a forward pass takes: the largest memory that is in use when one of its layers is done.

    Parameters
    ----------
    device : torch.device
        Where the network runs.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before = self._used()
        self.most = 0

    def see(self, kept: int) -> None:
        """Look, while ``kept`` bytes of what is in use belong to features that are kept."""
        used = self._used()
        if used is not None and self._before is not None:
            self.most = max(self.most, used - self._before - kept)

    def _used(self) -> int | None:
        return int(torch.cuda.memory_allocated(self._device)) if self._device.type == "cuda" else _resident()


class HeapWatch:
    """Give free memory of the heap back to the system whenever a comparison comes near its limit.

    What is kept of a layer splits the free memory between activations, so that the next activation does not fit
    there. So the heap grew with the number of batches, up to twice what was in use.

    Parameters
    ----------
    device : torch.device
        Where features are kept. On another device than the CPU nothing is done.
    limit : int
        Bytes that the comparison may take beside what is in use now.
    """

    def __init__(self, device: torch.device, limit: int) -> None:
        self._before = _resident() if device.type == "cpu" else None
        self._limit = limit
        self._passed = self._last = 0

    def see(self, size: int) -> None:
        """Look, if activations of a part of the limit have passed by since the last time; one has ``size`` bytes."""
        self._passed += size
        if self._before is None or self._passed < self._limit // 64:
            return
        self._passed = 0
        used = _resident()
        if used is None:
            return
        added = used - self._before
        if added > self._limit // 2 and added > self._last + self._limit // 32:
            give_back_free_memory()
            added = (_resident() or used) - self._before
            self._last = added
        self._last = min(self._last, added)


def _resident() -> int | None:
    """Bytes of memory of this process; None if the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_bytes().split()[1]) * _PAGE
    except (OSError, ValueError, IndexError):
        return None


_PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
