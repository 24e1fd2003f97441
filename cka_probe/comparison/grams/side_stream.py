"""SideStream: what a hook computes on a second stream of the GPU, while the forward goes on on its own."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import torch

LAG = 4
"""Layers that the side stream may lie behind. Their activations stay in memory until it is done with them, and the host
runs far ahead of the GPU: without a bound, those of the whole forward would."""


class Streams(Protocol):
    """The two streams of a ``SideStream``; a stream has ``wait_event``, an event has ``query``."""

    def current(self) -> Any:
        """The stream that the forward is on."""
        ...

    def launch(self, work: Callable[[], Any]) -> tuple[Any, Any]:
        """The result of ``work`` on the side stream, after all that the current one was given; the event after it."""
        ...


class CudaStreams:
    """The current stream of an NVIDIA GPU and one beside it.

    Raises
    ------
    ValueError
        For any other device.
    """

    def __init__(self, device: torch.device) -> None:
        if device.type != "cuda":
            raise ValueError(f"overlap=True is for an NVIDIA GPU, but the features are on {device}.")
        self.device = device
        self._side = torch.cuda.Stream(device)

    def current(self) -> torch.cuda.Stream:
        """The stream that the forward is on."""
        return torch.cuda.current_stream(self.device)

    def launch(self, work: Callable[[], Any]) -> tuple[Any, torch.cuda.Event]:
        """The result of ``work`` on the side stream, and the event after it."""
        current = self.current()
        self._side.wait_stream(current)
        with torch.cuda.stream(self._side):
            result = work()
        for tensor in tensors_in(result):
            tensor.record_stream(current)  # where it will be used: its memory waits for that when it is freed
        return result, self._side.record_event()


def tensors_in(result: Any) -> Iterator[torch.Tensor]:
    """The tensors in nested tuples."""
    if isinstance(result, torch.Tensor):
        yield result
    elif isinstance(result, tuple):
        for part in result:
            yield from tensors_in(part)


class _Read(NamedTuple):
    """An activation that the side stream may still be reading."""

    name: str
    features: torch.Tensor
    version: int
    event: Any


class SideStream:
    """Runs what hooks compute beside the forward, and tells what a later operation may have spoilt.

    The hazard: an operation in place (``ReLU(inplace=True)``, ``out += x``) changes an activation that the side stream
    has yet to read. Nobody knows beforehand, so each read is kept with the version of its tensor until it is known to
    be over. A version that changed before that makes it doubtful: its minibatch has to be run again, and the layer
    stays on the stream of the forward from then on. What torch does not count as a change cannot be seen: ``x.data``,
    or a kernel that writes through a bare pointer.

    Nothing here waits on the host. The references also guard the memory, so ``record_stream``, which would keep the
    allocator from using it again until the GPU has caught up with the host, is not needed for the activations.

    Parameters
    ----------
    streams : Streams
        ``CudaStreams``, or what a test puts in its place.
    lag : int
        Reads that may be outstanding.

    Attributes
    ----------
    spoilt : set of str
        Layers that a later operation changes in place.
    """

    def __init__(self, streams: Streams, lag: int = LAG) -> None:
        self.spoilt: set[str] = set()
        self._streams = streams
        self._lag = lag
        self._reads: deque[_Read] = deque()
        self._home: Any = None
        self._doubt = False

    def takes(self, name: str, features: torch.Tensor) -> bool:
        """Whether the features of this layer can be read beside the forward.

        Not before the first ``settle``, which shows what stream a forward runs on; not from another stream than that;
        not tensors without a version (inference mode).
        """
        self._look()
        known = self._home is not None and name not in self.spoilt and not features.is_inference()
        return known and bool(self._streams.current() == self._home)

    def run(self, name: str, features: torch.Tensor, work: Callable[[], Any]) -> Any:
        """The result of ``work``, which reads ``features``, on the side stream; to be used after ``settle`` only."""
        version = features._version
        result, event = self._streams.launch(work)
        self._reads.append(_Read(name, features, version, event))
        return result

    def settle(self) -> bool:
        """End a forward: results may be used on its stream from here on.

        Returns
        -------
        bool
            False if a result is doubtful; then ``spoilt`` has grown.
        """
        current = self._streams.current()
        if self._reads:
            # Once the stream waits for the last read, whatever it is given later comes after all reads. So what is
            # unchanged now may be changed or freed at will, and no read is left for the next minibatch to judge.
            current.wait_event(self._reads[-1].event)
            if current != self._home:
                self._home.wait_event(self._reads[-1].event)
            while self._reads:
                self._judge(self._reads.popleft())
        self._home = current
        doubt, self._doubt = self._doubt, False
        return not doubt

    def _look(self) -> None:
        """Let go of reads that are over, and make the forward wait for the oldest when there are too many."""
        while self._reads:
            read = self._reads[0]
            if not read.event.query():
                if len(self._reads) < self._lag:
                    return
                self._home.wait_event(read.event)
            self._judge(self._reads.popleft())

    def _judge(self, read: _Read) -> None:
        # Changed after the event was done, or after the wait, would be harmless, but that cannot be told.
        if read.features._version != read.version:
            self.spoilt.add(read.name)
            self._doubt = True
