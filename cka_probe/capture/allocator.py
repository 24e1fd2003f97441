"""Keep freed memory in the process while models run on a CPU, instead of giving it back after each activation.

The allocator of glibc takes every large array from the system and returns it when it is freed. The system clears each
page again, so a network with large activations spends up to half of its forward pass in page faults.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache

from torch import nn

from .networks import device_of
from .threads import SharedChange

__all__ = ["SWITCH", "give_back_free_memory", "memory_kept"]

SWITCH = "CKA_PROBE_KEEP_MEMORY"
"""Environment variable; "0" leaves the allocator as it is."""

_TRIM, _MMAP = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h

_INSIDE = {_MMAP: 2**30, _TRIM: 2**31 - 1}

# glibc raises both thresholds by itself up to these values, as soon as a large array has been freed. Setting one ends
# that rule for good, so the values that it would have reached are put back.
_AFTER = {_MMAP: 2**25, _TRIM: 2**26}

_BELOW, _ABOVE = 3 * 2**23, 3 * 2**24
"""Sizes of arrays below and above the largest threshold that glibc's own rule reaches."""


def memory_kept(models: Sequence[nn.Module]) -> AbstractContextManager[None]:
    """Inside the block, memory that a model on the CPU frees is kept for the next activation.

    At the end free memory goes back to the system. Blocks may be nested, and be in several threads: the first one
    makes the change, the last one undoes it. Nothing happens if no model is on the CPU, on systems without glibc, with
    another allocator (jemalloc, tcmalloc), if the user has set the thresholds (``MALLOC_TRIM_THRESHOLD_``,
    ``GLIBC_TUNABLES``, ``mallopt``), or if the environment variable ``CKA_PROBE_KEEP_MEMORY`` is "0".

    Parameters
    ----------
    models : sequence of torch.nn.Module
        The networks, on their devices.
    """
    wanted = os.environ.get(SWITCH, "1") != "0" and any(device_of(model).type == "cpu" for model in models)
    return _kept.made(_keep) if wanted and _glibc() is not None else nullcontext()


def give_back_free_memory() -> None:
    """Give the pages of the heap that hold nothing back to the system, also between arrays in use. Only with glibc."""
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)


_kept = SharedChange()
_is_changed = False


@cache
def _glibc() -> ctypes.PyDLL | None:
    """The C library if it is glibc. PyDLL: no other thread of Python runs during a call."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        library = ctypes.PyDLL(None)
        library.malloc.argtypes, library.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
        library.free.argtypes, library.free.restype = [ctypes.c_void_p], None
        library.malloc_trim.argtypes = [ctypes.c_size_t]
        library.mallopt.argtypes = [ctypes.c_int, ctypes.c_int]
        library.mallinfo.restype = _Info32
        if hasattr(library, "mallinfo2"):
            library.mallinfo2.restype = _Info
    except (AttributeError, OSError):
        return None
    os.register_at_fork(after_in_child=_end_in_child)
    return library


_FIELDS = ["arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"]


class _Info(ctypes.Structure):
    """``struct mallinfo2`` of malloc.h: ``hblks`` arrays from the system, bytes in use and free in the heap."""

    _fields_ = tuple((name, ctypes.c_size_t) for name in _FIELDS)


class _Info32(ctypes.Structure):
    """``struct mallinfo``, whose numbers of bytes are those of ``mallinfo2`` modulo 2^32."""

    _fields_ = tuple((name, ctypes.c_uint) for name in _FIELDS)


def _info(library: ctypes.PyDLL) -> _Info | _Info32:
    """The state of the heap; ``mallinfo2`` exists since glibc 2.33."""
    found: _Info | _Info32 = library.mallinfo2() if hasattr(library, "mallinfo2") else library.mallinfo()
    return found


def _keep() -> Callable[[], None]:
    global _is_changed
    library = _glibc()
    if library is None or not _follows_own_rule(library):
        return lambda: None
    _is_changed = True
    if not library.mallopt(_MMAP, _INSIDE[_MMAP]):  # old versions allow no more than this
        library.mallopt(_MMAP, _AFTER[_MMAP])
    library.mallopt(_TRIM, _INSIDE[_TRIM])

    def undo() -> None:
        _put_back(library)
        if _info(library).fordblks > _AFTER[_TRIM]:
            library.malloc_trim(0)

    return undo


def _put_back(library: ctypes.PyDLL) -> None:
    global _is_changed
    _is_changed = False
    for number, value in _AFTER.items():
        library.mallopt(number, value)


def _end_in_child() -> None:
    """A worker of a data loader may be forked inside the block, and never reaches its end."""
    library = _glibc()
    if _is_changed and library is not None:
        _put_back(library)


def _follows_own_rule(library: ctypes.PyDLL) -> bool:
    """Whether malloc is that of glibc, with the thresholds of glibc's own rule; there is no function that tells.

    By that rule arrays of ``_BELOW`` are taken from the heap once one of this size has been freed. Of arrays of
    ``_ABOVE`` only those are that fit into what is free there already.
    """
    _mapped(library, _BELOW)
    return _mapped(library, _BELOW) == 0 and bool(_mapped(library, _ABOVE))


def _mapped(library: ctypes.PyDLL, size: int) -> int | None:
    """How many of some arrays of a size come directly from the system, not from the heap; None if not from glibc.

    There are so many that what is free in the heap cannot hold them all. They are not written to, so they take no
    memory.
    """
    before = _info(library)
    arrays = [library.malloc(size) for _ in range(before.fordblks // size + 1)]
    after = _info(library)
    for array in arrays:
        library.free(array)
    if after.hblks > before.hblks:
        return int(after.hblks - before.hblks)
    return 0 if all(arrays) and (after.uordblks - before.uordblks) % 2**32 >= size else None
