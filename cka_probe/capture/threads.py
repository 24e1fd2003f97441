"""Several threads at once: one comparison at a time for each model, and state of the whole process that they share."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from torch import nn

__all__ = ["SharedChange", "exclusive"]

_free = threading.Condition()
_holders: dict[int, tuple[int, int]] = {}  # part of a model: the thread that uses it, and how many blocks it is in
_waiting: dict[int, frozenset[int]] = {}  # thread: the parts that it waits for


@contextmanager
def exclusive(models: Sequence[nn.Module]) -> Iterator[None]:
    """Let only this thread use the models inside the block. Other threads wait until it ends.

    Hooks and modes belong to a module, not to a thread: two comparisons of one network at once would record each
    other's activations. Two models overlap if they share a module, a parameter or a buffer. Models without a common
    part run side by side. A thread may nest these blocks.

    Raises
    ------
    RuntimeError
        If the threads would wait for each other forever: each is inside a block and waits for the other's model.
    """
    held = list(models)  # alive while the block lasts, so that no other object gets the same id
    parts = _parts(held)
    me = threading.get_ident()
    with _free:
        _waiting[me] = parts
        try:
            while others := _owners(parts) - {me}:
                if _waits_for(me, others):
                    raise RuntimeError(
                        f"Two threads wait for each other's networks ({', '.join(type(m).__name__ for m in held)}): "
                        "each compares one and asks for the other. Compare the networks in one thread."
                    )
                _free.wait(timeout=1.0)
        finally:
            del _waiting[me]
        for part in parts:
            _holders[part] = (me, _holders[part][1] + 1 if _holders.get(part, (None,))[0] == me else 1)
    try:
        yield
    finally:
        with _free:
            for part in parts:
                owner, depth = _holders.get(part, (me, 1))
                if depth > 1:
                    _holders[part] = (owner, depth - 1)
                else:
                    _holders.pop(part, None)
            _free.notify_all()


def _parts(models: Iterable[nn.Module]) -> frozenset[int]:
    parts: set[int] = set()
    for model in models:
        for module in model.modules():
            parts.add(id(module))
            parts.update(id(tensor) for tensor in module._parameters.values() if tensor is not None)
            parts.update(id(tensor) for tensor in module._buffers.values() if tensor is not None)
    return frozenset(parts)


def _owners(parts: Iterable[int]) -> set[int]:
    """Threads that use one of the parts. A thread that has ended, for example inside a Probe, uses nothing."""
    owners = {_holders[part][0] for part in parts if part in _holders}
    return owners & {thread.ident for thread in threading.enumerate()} if owners else owners


def _waits_for(me: int, threads: Iterable[int]) -> bool:
    """Whether one of the threads waits for this one, directly or through others."""
    seen: set[int] = set()
    todo = list(threads)
    while todo:
        thread = todo.pop()
        if thread == me:
            return True
        if thread not in seen:
            seen.add(thread)
            todo += _owners(_waiting.get(thread, ())) - {thread}
    return False


class SharedChange:
    """A change of state of the whole process: the first thread that asks makes it, the last one undoes it.

    If each thread restored what it found, the last one would restore the change that another thread had made.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0
        self._undo: Callable[[], None] = _nothing

    @contextmanager
    def made(self, change: Callable[[], Callable[[], None]]) -> Iterator[None]:
        """Call ``change`` unless it holds already; what it returns undoes it at the end of the last block."""
        with self._lock:
            if not self._count:
                self._undo = change()
            self._count += 1
        try:
            yield
        finally:
            with self._lock:
                self._count -= 1
                if not self._count:
                    self._undo()


def _nothing() -> None:
    pass
