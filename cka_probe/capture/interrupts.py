"""Ctrl-C, and other signals with a handler in Python, wait while a batch is in work."""

from __future__ import annotations

import inspect
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import Any, Self

__all__ = ["SIGNALS", "Interrupts"]

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK", "SIGUSR1", "SIGUSR2")
"""Signals by which a user or a cluster stops a program or asks it to save."""


class Interrupts:
    """Inside the ``with`` block, signals are passed to their handlers only where ``allowed`` or ``free`` says so.

    A batch that Ctrl-C stops half-way might be in one sum and not in another. So a signal waits until the batch is
    done; then the handler of before is called, which raises KeyboardInterrupt for Ctrl-C. A second signal of the same
    kind does not wait. Signals without a handler in Python, such as SIGKILL, and other threads than the main one, which
    receive no signals, are as ever.

    Examples
    --------
    >>> with Interrupts() as interrupts:
    ...     interrupts.hold()
    ...     signal.raise_signal(signal.SIGINT)
    ...     try:
    ...         with interrupts.allowed():
    ...             print("not reached")
    ...     except KeyboardInterrupt:
    ...         print("stopped between two batches")
    stopped between two batches
    """

    def __init__(self) -> None:
        self._handlers: dict[int, Any] = {}
        self._waiting: list[int] = []
        self._held = False

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for name in SIGNALS:
                number = getattr(signal, name, None)
                handler = None if number is None else signal.getsignal(number)
                if number is not None and callable(handler):
                    self._handlers[number] = handler
                    with suppress(ValueError):  # in a second interpreter of the process
                        signal.signal(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._handlers.items():
            if signal.getsignal(number) == self._receive:  # the network may have set a handler of its own
                signal.signal(number, handler)
        self._deliver()

    def hold(self) -> None:
        """From now on signals wait."""
        self._held = True

    @contextmanager
    def allowed(self) -> Iterator[None]:
        """Pass on the signals that wait, and in the block those that come."""
        self._held = False
        self._deliver()
        try:
            yield
        finally:
            self._held = True

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._held and number not in self._waiting:
            self._waiting.append(number)
            return
        if number in self._waiting:
            self._waiting.remove(number)
        self._handlers[number](number, frame)

    def _deliver(self) -> None:
        while self._waiting:
            number = self._waiting.pop(0)
            self._handlers[number](number, inspect.currentframe())
