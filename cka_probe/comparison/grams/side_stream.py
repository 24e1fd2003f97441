"""Compute Gram matrices on a second stream of the GPU, the side stream, while the forward pass goes on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch

from ...capture.progress import Resumable
from ...capture.trees import tensors

__all__ = ["LAG", "CudaStreams", "SideStream", "Streams"]

LAG = 4
"""Layers by which the side stream may lag behind. Their activations stay in memory until it has read them. The host
runs far ahead of the GPU, so without a bound the activations of the whole forward would stay."""


class Streams(Protocol):
    """The two streams of a ``SideStream``. A stream has ``wait_event``, and an event has ``query``."""

    def current(self) -> Any:
        """Return the stream of the forward pass."""
        ...

    def launch(self, work: Callable[[], Any]) -> tuple[Any, Any]:
        """Run ``work`` on the side stream after all work of the current stream. Return its result and an end event."""
        ...


class CudaStreams:
    """The current stream of an NVIDIA GPU, and a new side stream.

    Raises
    ------
    ValueError
        If the device is not an NVIDIA GPU.
    """

    def __init__(self, device: torch.device) -> None:
        if device.type != "cuda":
            raise ValueError(f"overlap=True is for an NVIDIA GPU, but the features are on {device}.")
        self.device = device
        self._side = torch.cuda.Stream(device)

    def current(self) -> torch.cuda.Stream:
        """Return the stream of the forward pass."""
        return torch.cuda.current_stream(self.device)

    def launch(self, work: Callable[[], Any]) -> tuple[Any, torch.cuda.Event]:
        """Run ``work`` on the side stream. Return its result and an event that marks the end of the work."""
        current = self.current()
        self._side.wait_stream(current)
        with torch.cuda.stream(self._side):
            result = work()
        for tensor in tensors(result):
            tensor.record_stream(current)  # its memory must not be reused before the current stream has read it
        return result, self._side.record_event()


class _Read(NamedTuple):
    """An activation that the side stream may still be reading."""

    name: str
    features: torch.Tensor
    version: int
    event: Any


class SideStream(Resumable):
    """Run the work of hooks on the side stream, and find the activations that changed in place before they were read.

    An operation in place (``ReLU(inplace=True)``, ``out += x``) may change an activation before the side stream has
    read it. So each read is kept with the version of its tensor until the read is over. If the version has changed by
    then, the result may be wrong: the minibatch must run again, and from then on the layer is computed on the stream of
    the forward. Changes that torch does not count (``x.data``, a kernel that writes through a pointer) are not noticed.

    The host never waits. The kept reads also hold the memory of the activations, so ``record_stream``, which would
    delay the reuse of this memory until the GPU has caught up with the host, is not needed.

    Parameters
    ----------
    streams : Streams
        ``CudaStreams``, or its replacement in a test.
    lag : int
        Largest number of unfinished reads.

    Attributes
    ----------
    changed_in_place : set of str
        Layers whose activation a later operation changes in place.
    """

    lasting = ("changed_in_place",)

    def __init__(self, streams: Streams, lag: int = LAG) -> None:
        self.changed_in_place: set[str] = set()
        self._streams = streams
        self._lag = lag
        self._reads: deque[_Read] = deque()
        self._home: Any = None
        self._changed = False

    def takes(self, name: str, features: torch.Tensor) -> bool:
        """Whether the features of this layer can be read on the side stream.

        False before the first ``end_forward``, because the stream of the forward is not known yet. Also False on any
        other stream, for a layer in ``changed_in_place``, and for a tensor without a version (inference mode).
        """
        self._drop_finished()
        known = self._home is not None and name not in self.changed_in_place and not features.is_inference()
        return known and bool(self._streams.current() == self._home)

    def run(self, name: str, features: torch.Tensor, work: Callable[[], Any]) -> Any:
        """Run ``work``, which reads ``features``, on the side stream. Use its result only after ``end_forward``."""
        version = features._version
        result, event = self._streams.launch(work)
        self._reads.append(_Read(name, features, version, event))
        return result

    def end_forward(self) -> bool:
        """Make the stream of the forward wait for all reads, and check them. Call it after each forward.

        Returns
        -------
        bool
            False if a result may be wrong; then its layer was added to ``changed_in_place``.
        """
        current = self._streams.current()
        if self._reads:
            # Once the stream waits for the last read, its later work comes after all reads. So tensors that are
            # unchanged now may be changed or freed later, and the next minibatch has no old read to check.
            current.wait_event(self._reads[-1].event)
            if current != self._home:
                self._home.wait_event(self._reads[-1].event)
            while self._reads:
                self._check(self._reads.popleft())
        self._home = current
        changed, self._changed = self._changed, False
        return not changed

    def _drop_finished(self) -> None:
        """Check and drop the finished reads. If too many are left, make the forward wait for the oldest."""
        while self._reads:
            read = self._reads[0]
            if not read.event.query():
                if len(self._reads) < self._lag:
                    return
                self._home.wait_event(read.event)
            self._check(self._reads.popleft())

    def _check(self, read: _Read) -> None:
        """Record the layer if its activation has changed since ``run``."""
        # A change after the read would be harmless, but the version does not tell when the change happened.
        if read.features._version != read.version:
            self.changed_in_place.add(read.name)
            self._changed = True
