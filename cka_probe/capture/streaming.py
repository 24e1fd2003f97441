"""Run one or several models once over the data; every comparison, extraction and signature uses this pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from itertools import chain, count
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from ..progress_bar import tqdm
from .allocator import memory_kept
from .batches import as_tensors, batch_count, batch_size, call_model, certain_batch_size, likely_batch_size
from .boundaries import Boundaries
from .dropped import notes_on_dropped, notes_on_withheld
from .hooks import CaptureError
from .interrupts import Interrupts
from .joining import joined_batches, none_is_small
from .memory_format import channels_last
from .own_state import OwnState, Runs
from .progress import HasState, OtherDataError, Progress
from .random_draws import RandomDraws
from .recorder import LayerRecorder
from .sample_order import SampleOrder
from .sources import checked_samples, cut, is_one_batch, one_batch, paired, smaller_batches
from .state import borrowed, device_of, full_precision, random_states_restored
from .trees import copied, move, shape_text, tensors
from .trial import copies_of_one, without_trace

__all__ = ["Consume", "Pass", "SampleOrder"]

Consume = Callable[[int, list[list[Any]], int], None]
"""Receives, after each batch, its number, the kept results of each recorder, and the number of rows of features."""


_END = object()


class Pass(Boundaries):
    """Run all models on each batch, and pass the results that their hooks kept to a function.

    Parameters
    ----------
    recorders : sequence of LayerRecorder
        One for each distinct model.
    minimum : int
        Smallest number of samples. A smaller batch is joined to the batch beside it, or left out with a note.
    device : device, optional
        Device of the models during the pass; they are moved back afterwards.
    autocast : torch.dtype, optional
        Precision of the forward passes.
    channels_last : bool
        Whether images and filters have their channels last in memory during the pass.
    progress : bool
        Whether to show a progress bar.
    label : str
        Text of the progress bar.
    order : SampleOrder, optional
        Digest that is updated with every batch.
    held : sequence of HasState
        What ``consume`` changes. Their states belong to ``progress``.
    cuts : bool
        Whether large batches may be cut, because the result does not depend on their size.

    Attributes
    ----------
    notes : list of str
        Batches and parts of batches that were left out.
    interrupted : bool
        Whether Ctrl-C ended the pass early.
    used, done : int
        Number of batches in the result, and of batches read.
    batch : any
        The batch, as the caller gave it, while ``consume`` runs.
    """

    def __init__(
        self,
        recorders: Sequence[LayerRecorder],
        minimum: int,
        *,
        device: torch.device | str | None = None,
        autocast: torch.dtype | None = None,
        channels_last: bool = False,
        progress: bool = True,
        label: str = "compare",
        order: SampleOrder | None = None,
        held: Sequence[HasState] = (),
        cuts: bool = False,
    ) -> None:
        super().__init__(recorders, order, held)
        self.cuts = cuts
        self.recorders = recorders
        self.minimum = minimum
        self.device = device
        self.autocast = autocast
        self.channels_last = channels_last
        self.shows_progress = progress
        self.label = label
        self.interrupted = False
        self._consuming = False
        self.batch: Any = None
        self._states: dict[int, OwnState] = {}
        # Batches for the caller's own forward may have any form: their size is known only if all tensors agree.
        self._understood = all(recorder.forward is call_model for recorder in recorders)
        self._axis = recorders[0].sample_axis
        self._copies: list[torch.cuda.Event] = []

    def _size_of(self, batch: Any) -> int | None:
        """Number of samples, if batches can be joined by it."""
        return batch_size(batch, self._axis) if self._understood else certain_batch_size(batch, self._axis)

    def run(
        self,
        data: Any,
        consume: Consume,
        *,
        data_y: Any = None,
        after: Callable[[], None] | None = None,
        resumed: Progress | None = None,
    ) -> None:
        """Read ``data`` once.

        Signals wait for the end of a batch. If an interruption comes from inside a batch all the same, that batch is in
        nothing: not in the states of recorders and held objects, not in the notes, not in the digest.

        Parameters
        ----------
        data, data_y : iterable of batches
            The second model reads ``data_y`` if it is given.
        consume : callable
            Called with the results of each batch that is used.
        after : callable, optional
            Called after each batch of which the models ran, when ``progress`` may be read.
        resumed : Progress, optional
            Progress of an earlier run over the same data. Its batches are read and compared by their digest; then the
            pass goes on from there. The models run on the first batch again: a cache may hold something of it, and its
            results show whether the models still compute what they did.

        Raises
        ------
        TypeError
            If ``data`` or one of its batches is of an unknown kind.
        ValueError
            If the models give different numbers of rows, or ``data`` and ``data_y`` do not match.
        OtherDataError
            If the data are others than those of the resumed run, or end before they were read as far.
        CaptureError
            If a layer cannot be recorded, or the resumed run had other layers.
        KeyboardInterrupt
            If the user stops before a batch was used. A later stop ends the pass and sets ``interrupted``.
        """
        shown = self._bar(*self._source(data, data_y))
        fresh = type(data) is DataLoader and data_y is None  # it does not fill its page-locked tensors again
        skip = 0 if resumed is None else resumed.done
        models = [recorder.model for recorder in self.recorders]
        with (
            borrowed(models, self.device),
            memory_kept(models),
            Interrupts() as interrupts,
            ExitStack() as hooks,
        ):
            interrupts.hold()
            hooks.enter_context(channels_last(models, self.channels_last))
            for recorder in self.recorders:
                hooks.enter_context(recorder.probe)
            self._states = {id(r.model): OwnState(r.model, r.name) for r in reversed(self.recorders)}
            self.networks = list(self._states.values())
            for state in self.networks:
                hooks.callback(self._end_state, state)
            # Inside the block: the first step into a DataLoader draws from the random generator of the caller.
            if data_y is None and none_is_small(data, self.minimum):
                joined: Iterable[tuple[Any, int]] = ((batch, 1) for batch in shown)
            else:
                joined = joined_batches(shown, self.minimum, self.notes, self._size_of, self._axis)
            if self.cuts and self._understood and self._axis == 0 and data_y is None:
                joined = smaller_batches(joined, self.notes)
            batches = iter(joined)
            try:
                self.take_mark()
                for index in count():
                    with interrupts.allowed():  # a batch is in all sums, or in none
                        batch, items = next(batches, (_END, 0))
                    if batch is _END:
                        break
                    read = [] if self.order is None else self.order.read(batch)
                    if index == 0:
                        self.check_first(resumed, read)
                    if index >= skip or index == 0:
                        with nullcontext() if index else self.first_batch(resumed):
                            self._one(index, batch, data_y is not None, consume, items)
                        self._end_copies(fresh)
                    self.count(read)
                    if resumed is not None and self.done == skip:
                        self.go_on(resumed)
                        self._states.clear()  # what a first batch shows has been seen
                    if self.done >= skip:
                        self.take_mark()
                        if after is not None and index >= skip:
                            after()
            except KeyboardInterrupt:
                self.undo()
                if not self.used or (self._consuming and not self.held):
                    raise
                self.interrupted = True
                self.notes.append(f"stopped by the user after {self.used} batches: a partial result")
        if self.done < skip:
            raise OtherDataError(
                f"holds the first {skip} batches, but the data ended after {self.done}. Give the same data again, or "
                "delete the file."
            )

    def _end_state(self, state: OwnState) -> None:
        self.notes += state.finish()

    def require_batches(self) -> None:
        """Raise ValueError if no batch was used; the message says why."""
        if self.used:
            return
        if self.notes:
            raise ValueError(f"No batch could be used: {self.notes[0]}. Use a batch size of at least {self.minimum}.")
        raise ValueError("`data` yielded no batch. A generator can be used only once: pass a list or a DataLoader.")

    def _source(self, data: Any, data_y: Any) -> tuple[Iterable[Any], int | None]:
        """The batches, and their number if it is known. One large batch is cut."""
        batches = one_batch(data)
        batches_y = None if data_y is None else one_batch(data_y, "data_y")
        if self._understood and self._axis == 0 and is_one_batch(data) and (data_y is None or is_one_batch(data_y)):
            pieces, pieces_y = cut(data), None if data_y is None else cut(data_y)
            if pieces_y is None or len(pieces_y) == len(pieces):
                batches, batches_y = pieces, pieces_y
                if len(pieces) > 1 and self.minimum > 1:
                    self.notes.append(
                        f"the data are one batch of {batch_size(data)} samples; it was cut into {len(pieces)} "
                        f"minibatches of at most {batch_size(pieces[0])}. To choose the size, give batches: "
                        "data.split(256), or a DataLoader"
                    )
        total = len(batches) if is_one_batch(data) and isinstance(batches, list) else batch_count(data)
        if batches_y is not None:
            return paired(batches, batches_y, self._size_of), total
        return checked_samples(batches, self.notes) if self._understood else batches, total

    def _one(self, index: int, batch: Any, is_pair: bool, consume: Consume, items: int) -> None:
        kept, rows = [], []
        for place, recorder in enumerate(self.recorders):
            device = device_of(recorder.model)
            own = batch[place] if is_pair else batch
            if recorder.forward is call_model:
                own = as_tensors(own, _floating_dtype(recorder.model))
                if index == 0:
                    self.notes += notes_on_dropped(recorder.name, recorder.model, own)
                samples = batch_size(own, self._axis)
            else:
                samples = likely_batch_size(own, self._axis)
            own = self._sent(own, device)
            with torch.autocast(device.type, self.autocast) if self.autocast is not None else nullcontext():
                try:
                    state = self._states.pop(id(recorder.model), None)
                    draws = None if state is None else RandomDraws(recorder.name, recorder.model)
                    results, count = recorder.run(own, index, samples)
                    first, recorder.first_output = recorder.first_output, None
                    if state is not None and draws is not None:
                        runs = partial(_unrecorded, recorder, own)
                        others = None if samples is None else copies_of_one(own, samples, self._axis)
                        with random_states_restored():
                            state.after_first(runs, first, others)
                        self.notes += draws.notes(
                            partial(_again, runs, recorder.model), recorder.model, recorder.compared
                        )
                except CaptureError:
                    raise
                except Exception as error:  # of the network, which names neither itself nor the batch
                    error.add_note(self._where(recorder.name, index, own, items))
                    if recorder.forward is call_model:
                        for note in notes_on_withheld(recorder.model, own):
                            error.add_note(note)
                    raise
            kept.append(results)
            rows.append(count)
        if len(set(rows)) > 1:
            raise ValueError(
                f"Batch {index} gives {rows[0]} rows of features in {self.recorders[0].name} and {rows[1]} in "
                f"{self.recorders[1].name}. Both must see the same samples, and with pooling 'spatial' or 'all' the "
                "same positions."
            )
        if rows[0] < self.minimum:
            self.notes.append(f"batch {index} of {rows[0]} samples was left out: at least {self.minimum} are needed")
            return
        self._consuming, self.batch = True, batch[0] if is_pair else batch
        with full_precision(device_of(self.recorders[0].model)):
            consume(index, kept, rows[0])
        self.used += 1
        self._consuming, self.batch = False, None

    def _where(self, name: str, index: int, batch: Any, items: int) -> str:
        """Note for an error inside a network: which network, which batch."""
        found = list(tensors(batch))
        shapes = ", ".join(shape_text(tensor) for tensor in found) or "no tensors"
        text = f"This was {name} on batch {index}, of shape {shapes}."
        if items > 1 and found and found[0].ndim <= 3:
            text += (
                f" It was joined from {items} items of `data`, because each seemed to hold fewer than {self.minimum} "
                "samples. If each is one sample, wrap `data`: torch.utils.data.DataLoader(data, batch_size=64)."
            )
        return text

    def _sent(self, batch: Any, device: torch.device) -> Any:
        """The batch on the device. From page-locked memory it may still be on its way when this returns."""
        sent = move(batch, device)
        if device.type == "cuda" and any(tensor.is_pinned() for tensor in tensors(batch) if tensor.is_cpu):
            self._copies.append(torch.cuda.current_stream(device).record_event())
        return sent

    def _end_copies(self, fresh: bool) -> None:
        """Wait until page-locked memory has been read, unless the loader gives ``fresh`` memory for each batch."""
        while self._copies:
            event = self._copies.pop()
            if not fresh:
                event.synchronize()

    def _bar(self, batches: Iterable[Any], total: int | None) -> Iterable[Any]:
        if not self.shows_progress:
            return batches
        # Through chain(), because tqdm asks for the length of what it is given, and a loader may raise then.
        return tqdm(chain(batches), desc=self.label, total=total, unit="batch", dynamic_ncols=True)


@contextmanager
def _unrecorded(recorder: LayerRecorder, batch: Any) -> Iterator[Callable[..., Any]]:
    """A function that runs the model on ``batch`` or another batch; the recorder sees nothing of it."""
    recorder.probe.__exit__(None, None, None)
    try:
        yield lambda other=batch: recorder.forward(recorder.called, copied(other))
    finally:
        recorder.probe.__enter__()


def _again(runs: Runs, model: nn.Module) -> Any:
    """Output of a run; what it changes in the model (a counter, a cache) is undone."""
    with runs() as run, without_trace(model):
        return run()


def _floating_dtype(model: nn.Module) -> torch.dtype:
    """Dtype of the first weight or buffer of floating numbers."""
    found = (tensor.dtype for tensor in chain(model.parameters(), model.buffers()) if tensor.is_floating_point())
    return next(found, torch.get_default_dtype())
