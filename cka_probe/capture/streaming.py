"""Run one or several models once over the data; every comparison, extraction and signature uses this pass."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from itertools import zip_longest
from typing import Any

import torch
from tqdm.auto import tqdm

from .batches import (
    batch_count,
    batch_size,
    call_model,
    certain_batch_size,
    joined_batches,
    none_is_small,
    unused_parts,
)
from .recorder import LayerRecorder
from .state import borrowed, device_of, full_precision
from .trees import move, tensors

__all__ = ["Consume", "Pass", "SampleOrder", "one_batch", "paired"]

Consume = Callable[[int, list[list[Any]], int], None]
"""Receives, after each batch, its number, the kept results of each recorder, and the number of rows of features."""

_END = object()


def one_batch(data: Any) -> Iterable[Any]:
    """Iterable of batches: ``data`` itself, or ``[data]`` if it is a single tensor or mapping.

    Raises
    ------
    TypeError
        If ``data`` is a Dataset, whose items are single samples, or cannot be iterated.
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
    """Yield the batches of both loaders in pairs.

    Raises
    ------
    ValueError
        If one loader ends before the other, two batches differ in their number of samples, or a loader shuffles
        without a generator of its own.
    """
    for name, loader in (("`data`", data), ("`data_y`", data_y)):
        sampler = getattr(loader, "sampler", None)
        if isinstance(sampler, torch.utils.data.RandomSampler) and sampler.generator is None:
            raise ValueError(
                f"{name} shuffles, so its samples are not in the order of the other. Turn shuffling off in both, or "
                "give both loaders generators with the same seed."
            )
    for index, (x, y) in enumerate(zip_longest(data, data_y, fillvalue=_END)):
        if x is _END or y is _END:
            short, long = ("`data`", "`data_y`") if x is _END else ("`data_y`", "`data`")
            raise ValueError(
                f"{short} ended after {index} batches, but {long} goes on. Both must hold the same samples."
            )
        sizes = size_of(x), size_of(y)
        if None not in sizes and sizes[0] != sizes[1]:
            raise ValueError(
                f"Batch {index} holds {sizes[0]} samples in `data` and {sizes[1]} in `data_y`. "
                "Both must hold the same samples in the same order."
            )
        yield x, y


class SampleOrder:
    """Running digest of the samples and their order, from at most 127 numbers of each tensor of each sample.

    Two runs with equal digests read the same samples in the same order, as far as these numbers show.
    """

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=16)

    def update(self, batch: Any) -> None:
        """Add 64 to 127 evenly spaced numbers of each sample of each tensor of ``batch``, or all if it has fewer."""
        for tensor in tensors(batch):
            if tensor.ndim:
                flat = tensor.detach().reshape(tensor.shape[0], -1)
                few = flat[:, :: max(1, flat.shape[1] // 64)].contiguous().cpu()
                # As bytes, because numpy has no bfloat16.
                self._hash.update(few.view(torch.uint8).numpy().tobytes())

    def hexdigest(self) -> str:
        """Digest of the batches so far, as 32 hexadecimal digits."""
        return self._hash.hexdigest()


class Pass:
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
    progress : bool
        Whether to show a progress bar.
    label : str
        Text of the progress bar.
    order : SampleOrder, optional
        Digest that is updated with every batch.

    Attributes
    ----------
    notes : list of str
        Batches and parts of batches that were left out.
    interrupted : bool
        Whether Ctrl-C ended the pass early.
    used, done : int
        Number of batches in the result, and of batches read.
    digest : str
        Digest of the batches read; empty without ``order``.
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
        # Batches for the caller's own forward may have any form: their size is known only if all tensors agree.
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
        """Read ``data`` once.

        Parameters
        ----------
        data, data_y : iterable of batches
            The second model reads ``data_y`` if it is given.
        consume : callable
            Called with the results of each batch that is used.
        skip : int
            Number of batches that a resumed run reads without running the models. They update ``order``.
        skipped : callable, optional
            Called with the digest of the skipped batches before the first model runs.

        Raises
        ------
        TypeError
            If ``data`` or one of its batches is of an unknown kind.
        ValueError
            If the models give different numbers of rows, or ``data`` and ``data_y`` do not match.
        CaptureError
            If a layer cannot be recorded.
        KeyboardInterrupt
            If the user stops before a batch was used. A later stop ends the pass and sets ``interrupted``.
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
        """Raise ValueError if no batch was used; the message says why."""
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
                    f"{recorder.name} was given only the first of the {len(own)} parts of each batch; pass forward= to "
                    "use more"
                )
            own = move(own, device)
            with torch.autocast(device.type, self.autocast) if self.autocast is not None else nullcontext():
                try:
                    results, count = recorder.run(own, index, self._size_of(own))
                except RuntimeError as error:
                    if type(error) is RuntimeError:  # from torch; it names neither the model nor the batch
                        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors(own)) or "no tensors"
                        error.add_note(f"This was {recorder.name} on batch {index}, of shape {shapes}.")
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
        with full_precision(device_of(self.recorders[0].model)):
            consume(index, kept, rows[0])
        self.used += 1

    def _bar(self, batches: Iterable[Any], data: Any) -> Iterable[Any]:
        if not self.progress:
            return batches
        return tqdm(batches, desc=self.label, total=batch_count(data), unit="batch", dynamic_ncols=True)
