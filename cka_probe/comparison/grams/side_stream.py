"""SideStream: compute Gram matrices on a second stream of the GPU while the forward pass goes on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch

from ...capture.trees import tensors

__all__ = ["LAG", "CudaStreams", "SideStream", "Streams"]

LAG = 4
"""Layers by which the side stream may lag behind. Their activations stay in memory until it has read them. The host
runs far ahead of the GPU, so without a bound the activations of the whole forward would stay."""


class Streams(Protocol):
    """The two streams of a ``SideStream``. A stream has ``wait_event``, and an event has ``query``."""

    def current(self) -> Any:
        """The stream of the forward pass."""
        ...

    def launch(self, work: Callable[[], Any]) -> tuple[Any, Any]:
        """Run ``work`` on the side stream after all work of the current stream; its result, and an event after it."""
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
        """The stream of the forward pass."""
        return torch.cuda.current_stream(self.device)

    def launch(self, work: Callable[[], Any]) -> tuple[Any, torch.cuda.Event]:
        """Run ``work`` on the side stream; its result, and an event after it."""
        current = self.current()
        self._side.wait_stream(current)
        with torch.cuda.stream(self._side):
            result = work()
        for tensor in tensors(result):
            tensor.record_stream(current)  # the current stream uses it, so its memory must not be reused before that
        return result, self._side.record_event()


class _Read(NamedTuple):
    """An activation that the side stream may still be reading."""

    name: str
    features: torch.Tensor
    version: int
    event: Any


class SideStream:
    """Runs the work of hooks on the side stream, and finds which results a later operation may have spoilt.

    An operation in place (``ReLU(inplace=True)``, ``out += x``) may change an activation before the side stream has
    read it. So each read is kept with the version of its tensor until the read is certainly over. If the version
    changed before that, the result is doubtful: the minibatch must run again, and from then on the layer stays on the
    stream of the forward. Changes that torch does not count (``x.data``, a kernel that writes through a pointer) are
    not noticed.

    Nothing here waits on the host. The kept reads also hold the memory of the activations, so they need no
    ``record_stream``, which would delay its reuse until the GPU has caught up with the host.

    Parameters
    ----------
    streams : Streams
        ``CudaStreams``, or a stand-in of a test.
    lag : int
        Largest number of outstanding reads.

    Attributes
    ----------
    spoilt : set of str
        Layers whose activation a later operation changes in place.
    """

    def __init__(self, streams: Streams, lag: int = LAG) -> None:
        self.spoilt: set[str] = set()
        self._streams = streams
        self._lag = lag
        self._reads: deque[_Read] = deque()
        self._home: Any = None
        self._doubt = False

    def takes(self, name: str, features: torch.Tensor) -> bool:
        """Whether the features of this layer can be read on the side stream.

        This is False before the first ``settle``, which finds the stream of the forward; on another stream than that;
        for a layer in ``spoilt``; and for tensors without a version (inference mode).
        """
        self._look()
        known = self._home is not None and name not in self.spoilt and not features.is_inference()
        return known and bool(self._streams.current() == self._home)

    def run(self, name: str, features: torch.Tensor, work: Callable[[], Any]) -> Any:
        """Run ``work``, which reads ``features``, on the side stream. Its result may be used only after ``settle``."""
        version = features._version
        result, event = self._streams.launch(work)
        self._reads.append(_Read(name, features, version, event))
        return result

    def settle(self) -> bool:
        """End a forward pass, so that its stream may use the results.

        Returns
        -------
        bool
            False if a result is doubtful; then its layer was added to ``spoilt``.
        """
        current = self._streams.current()
        if self._reads:
            # Once the stream waits for the last read, its later work comes after all reads. So tensors that are
            # unchanged now may be changed or freed, and no read is left to judge in the next minibatch.
            current.wait_event(self._reads[-1].event)
            if current != self._home:
                self._home.wait_event(self._reads[-1].event)
            while self._reads:
                self._judge(self._reads.popleft())
        self._home = current
        doubt, self._doubt = self._doubt, False
        return not doubt

    def _look(self) -> None:
        """Drop the reads that are over. If too many are left, make the forward wait for the oldest."""
        while self._reads:
            read = self._reads[0]
            if not read.event.query():
                if len(self._reads) < self._lag:
                    return
                self._home.wait_event(read.event)
            self._judge(self._reads.popleft())

    def _judge(self, read: _Read) -> None:
        # A change after the read would be harmless, but the version does not tell when the change came.
        if read.features._version != read.version:
            self.spoilt.add(read.name)
            self._doubt = True
