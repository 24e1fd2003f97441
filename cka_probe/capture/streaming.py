"""One pass of one or several models over the data: what every comparison, extraction and signature runs on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import ExitStack, nullcontext
from itertools import zip_longest
from typing import Any

import torch
from tqdm.auto import tqdm

from .batches import batch_size, call_model, certain_batch_size, joined_batches, none_is_small, unused_parts
from .recorder import LayerRecorder
from .state import borrowed, device_of, full_precision
from .trees import move, tensors

Consume = Callable[[int, list[list[Any]], int], None]
"""Called after each batch with its number, what each recorder kept, and the number of rows of features."""

_END = object()


def one_batch(data: Any) -> Iterable[Any]:
    """``data`` as an iterable of batches: a single tensor or mapping is one batch.

    Raises
    ------
    TypeError
        For a Dataset, whose items are single samples, and for what cannot be iterated.
    """
    if isinstance(data, torch.Tensor | Mapping):
        return [data]
    if isinstance(data, torch.utils.data.Dataset) and not isinstance(data, torch.utils.data.IterableDataset):
        raise TypeError(
            "`data` is a Dataset, whose items are single samples. Wrap it: "
            "torch.utils.data.DataLoader(data, batch_size=64)."
        )
    if not isinstance(data, Iterable):
        raise TypeError(f"`data` must be an iterable of batches, such as a DataLoader, got {type(data).__name__}.")
    return data


def paired(
    data: Iterable[Any], data_y: Iterable[Any], size_of: Callable[[Any], int | None] = batch_size
) -> Iterator[tuple[Any, Any]]:
    """Batches of both loaders side by side.

    Raises
    ------
    ValueError
        If one ends before the other, two batches differ in their number of samples, or a loader shuffles.
    """
    for name, loader in (("`data`", data), ("`data_y`", data_y)):
        sampler = getattr(loader, "sampler", None)
        if isinstance(sampler, torch.utils.data.RandomSampler) and sampler.generator is None:
            raise ValueError(
                f"{name} shuffles, so its samples are not in the order of the other. Turn shuffling off in both, or "
                "give both loaders generators of the same seed."
            )
    for index, (x, y) in enumerate(zip_longest(data, data_y, fillvalue=_END)):
        if x is _END or y is _END:
            short, long = ("`data`", "`data_y`") if x is _END else ("`data_y`", "`data`")
            raise ValueError(f"{short} ended after {index} batches, {long} goes on. Both must hold the same samples.")
        sizes = size_of(x), size_of(y)
        if None not in sizes and sizes[0] != sizes[1]:
            raise ValueError(
                f"Batch {index} holds {sizes[0]} samples in `data` and {sizes[1]} in `data_y`. "
                "Both must hold the same samples in the same order."
            )
        yield x, y


class SampleOrder:
    """A running digest of what the batches hold and in which order, from a few numbers of each sample.

    Two runs with equal digests saw the same samples in the same order.
    """

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=16)

    def update(self, batch: Any) -> None:
        """Take up to 64 evenly spaced numbers of each sample of each tensor of ``batch``."""
        for tensor in tensors(batch):
            if tensor.ndim:
                flat = tensor.detach().reshape(tensor.shape[0], -1)
                few = flat[:, :: max(1, flat.shape[1] // 64)].contiguous().cpu()
                # Bytes as they are: bfloat16 has no numpy dtype.
                self._hash.update(few.view(torch.uint8).numpy().tobytes())

    def hexdigest(self) -> str:
        """The digest so far."""
        return self._hash.hexdigest()


class Pass:
    """Runs all models on every batch in turn, then hands over what their hooks kept.

    Parameters
    ----------
    recorders : sequence of LayerRecorder
        One for each different model.
    minimum : int
        Batches with fewer samples are joined to a neighbour, or left out with a note.
    device : device, optional
        Where the models run; they go home afterwards.
    autocast : torch.dtype, optional
        Run the forwards in this precision.
    progress : bool
        Show a progress bar.
    label : str
        What the bar says.
    order : SampleOrder, optional
        Fed with every batch.

    Attributes
    ----------
    notes : list of str
        Batches that were left out.
    interrupted : bool
        Whether Ctrl-C ended the pass early.
    used, done : int
        Batches that entered the result, and batches gone over.
    digest : str
        Digest of the batches gone over, where ``order`` is given.
    """

    def __init__(
        self,
        recorders: Sequence[LayerRecorder],
        minimum: int,
        *,
        device: torch.device | str | None = None,
        autocast: torch.dtype | None = None,
        progress: bool = True,
        label: str = "compare",
        order: SampleOrder | None = None,
    ) -> None:
        self.recorders = recorders
        self.minimum = minimum
        self.device = device
        self.autocast = autocast
        self.progress = progress
        self.label = label
        self.order = order
        self.notes: list[str] = []
        self.interrupted = False
        self.used = 0
        self.done = 0
        self.digest = ""
        # What only the caller's forward understands is taken for samples only where there is no doubt.
        understood = all(recorder.forward is call_model for recorder in recorders)
        self._size_of = batch_size if understood else certain_batch_size

    def run(
        self,
        data: Any,
        consume: Consume,
        *,
        data_y: Any = None,
        skip: int = 0,
        skipped: Callable[[str], None] | None = None,
    ) -> None:
        """Go over ``data`` once.

        Parameters
        ----------
        data, data_y : iterable of batches
            ``data_y``, where given, feeds the second model.
        consume : callable
            Called after each batch that was used.
        skip : int
            Batches to pass over without running the models (a resumed run); they are still fed to ``order``.
        skipped : callable, optional
            Called with the digest of the skipped batches before the first model runs.

        Raises
        ------
        ValueError
            If no batch could be used, or the models disagree on the number of samples.
        KeyboardInterrupt
            If the user stops before the first batch is done; later, the pass ends there and ``interrupted`` is set.
        """
        batches = one_batch(data) if data_y is None else paired(one_batch(data), one_batch(data_y), self._size_of)
        shown = self._bar(batches, data)
        if data_y is None and none_is_small(data, self.minimum):
            joined: Iterable[tuple[Any, int]] = ((batch, 1) for batch in shown)
        else:
            joined = joined_batches(shown, self.minimum, self.notes, self._size_of)
        with borrowed([r.model for r in self.recorders], self.device), ExitStack() as hooks:
            for recorder in self.recorders:
                hooks.enter_context(recorder.probe)
            try:
                for index, (batch, _) in enumerate(joined):
                    if self.order is not None:
                        self.order.update(batch)
                    if index >= skip:
                        self._one(index, batch, data_y is not None, consume)
                    else:
                        self.used += 1
                    self.done = index + 1
                    self.digest = "" if self.order is None else self.order.hexdigest()
                    if self.done == skip and skipped is not None:
                        skipped(self.digest)
            except KeyboardInterrupt:
                if not self.used:
                    raise
                self.interrupted = True
                self.notes.append(f"stopped by the user after {self.used} batches: a partial result")

    def require_batches(self) -> None:
        """Raise a ValueError that says why no batch could be used, if none was."""
        if self.used:
            return
        if self.notes:
            raise ValueError(f"No batch could be used: {self.notes[0]}. Use a batch size of at least {self.minimum}.")
        raise ValueError("`data` yielded no batch. A generator can be used only once: pass a list or a DataLoader.")

    def _one(self, index: int, batch: Any, is_pair: bool, consume: Consume) -> None:
        kept, rows = [], []
        for place, recorder in enumerate(self.recorders):
            device = device_of(recorder.model)
            own = batch[place] if is_pair else batch
            if index == 0 and recorder.forward is call_model and unused_parts(own):
                self.notes.append(
                    f"{recorder.name} was given the first of the {len(own)} parts of each batch only; pass forward= to "
                    "use more"
                )
            own = move(own, device)
            with torch.autocast(device.type, self.autocast) if self.autocast is not None else nullcontext():
                try:
                    results, count = recorder.run(own, index, self._size_of(own))
                except RuntimeError as error:
                    if type(error) is RuntimeError:  # torch's words name neither the model nor the batch
                        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors(own)) or "no tensors"
                        error.add_note(f"This was {recorder.name} on batch {index}, of shape {shapes}.")
                    raise
            kept.append(results)
            rows.append(count)
        if len(set(rows)) > 1:
            raise ValueError(
                f"Batch {index} gives {rows[0]} rows of features in {self.recorders[0].name} and {rows[1]} in "
                f"{self.recorders[1].name}. Both must see the same samples, and the same positions where positions "
                "are samples."
            )
        if rows[0] < self.minimum:
            self.notes.append(f"batch {index} of {rows[0]} samples was left out: at least {self.minimum} are needed")
            return
        with full_precision(device_of(self.recorders[0].model)):
            consume(index, kept, rows[0])
        self.used += 1

    def _bar(self, batches: Iterable[Any], data: Any) -> Iterable[Any]:
        if not self.progress:
            return batches
        total = len(data) if isinstance(data, Sized) and not isinstance(data, torch.Tensor | Mapping) else None
        return tqdm(batches, desc=self.label, total=total, unit="batch", dynamic_ncols=True)
