"""Run a model batch by batch, check and pool each layer's output inside its hook, and keep a result of it."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from torch import nn

from .batches import Forward, call_model
from .hooks import CaptureError, Probe, check_same_layers
from .keeping import Keep, NotFiniteError, ReviewingKeep
from .layers import Layers, unwrap
from .masks import TokenMasks
from .networks import check_network, check_weights
from .notes import left_out_notes
from .outputs import (
    OutputReader,
    SampleAxisError,
    UnfitOutputError,
    by_chance,
    check_fit,
    masks_by_infinity,
    misplaced,
    not_finite,
    of_dtype,
)
from .plain_outputs import LastOutput, PlainOutputs
from .pooling import Pooling, check_pooling, pool, reads_positions
from .progress import Resumable
from .state import device_of, full_precision, reduces_products
from .trees import copied
from .trial import ChanceLengths, loose_lengths, without_trace
from .unchanged import UNCHANGED, UnchangedOutputs
from .wrappers import called_model

__all__ = ["LayerRecorder"]


class LayerRecorder(Resumable):
    """Run one model batch by batch and keep the result of ``keep`` for each selected layer.

    Every layer must run equally often in every batch, and its output must have the samples on axis 0 and hold finite
    real numbers of a floating dtype. A layer that breaks this is left out; it is an error if the caller wrote out its
    name, or if it gives NaN or infinity.

    Parameters
    ----------
    model : torch.nn.Module
        The network.
    name : str
        Name of the network in messages.
    layers, pooling
        As in ``compare``.
    keep : callable
        Called inside the hook with the layer's name and its pooled features. If it has the methods of
        ``ReviewingKeep``, ``review`` is called after each forward and may request a second one.
    forward : callable, optional
        ``forward(model, batch)``, used instead of ``call_model``.
    exclude, sample_axis : optional
        As in ``compare``.

    Attributes
    ----------
    names : list of str
        Names of the recorded calls in the order of execution; known after the first batch.
    left_out : dict of str to str
        Layers that a pattern picked but that cannot be compared, with the reason. One that is left out after the first
        batch stays in ``names``, and its result is None from then on.

    Raises
    ------
    ValueError, TypeError
        If ``layers`` or ``pooling`` is not valid for the model, or the model is on the meta device.
    """

    lasting = ("names", "left_out", "_fresh")
    parts = ("probe", "_reader", "_masks", "_unchanged", "keep")

    def __init__(
        self,
        model: nn.Module,
        name: str,
        layers: Layers,
        pooling: Pooling,
        keep: Keep,
        forward: Forward | None = None,
        *,
        exclude: Layers | None = None,
        sample_axis: int = 0,
    ) -> None:
        check_pooling(pooling)
        check_network(model, "`model`")
        self.model, self.called = unwrap(model), called_model(model)
        self.name = f"{name} ({type(self.model).__name__})"
        check_weights(self.model, self.name)
        self.pooling = pooling
        self.keep = keep
        self.forward = forward or call_model
        self._reviewer = keep if isinstance(keep, ReviewingKeep) else None
        self._takes_half = self._reviewer is not None and self._reviewer.takes_half
        self._any_order = self._reviewer is not None and self._reviewer.takes_any_order
        if self._reviewer is not None:
            self._reviewer.reviewed = True
        asks = reads_positions(pooling)
        self.probe = Probe(model, layers, None, receiver=self._receive, exclude=exclude, outputs=True, axes=asks)
        self.sample_axis = sample_axis
        self._reader = OutputReader(self.model, sample_axis)
        two_sided = bool(getattr(getattr(self.model, "config", None), "is_encoder_decoder", False))
        self._masks = TokenMasks(two_sided)
        # Position embeddings have no samples; transformers and RNNs may put time before them.
        embeds = any(isinstance(module, nn.Embedding) for module in self.model.modules())
        self._doubtful = embeds or self._reader.has_time_first or sample_axis != 0
        self._loose = loose_lengths(self.model)
        self._plain = PlainOutputs(self._any_order) if pooling in ("auto", "flatten") and sample_axis == 0 else None
        self._unchanged = UnchangedOutputs()
        self._lengths = ChanceLengths(sample_axis)
        self._trial: dict[str, tuple[int, ...]] | None = None
        self._fresh = True
        """Whether no batch has been run yet."""
        self.first_output: Any = None
        self.keeps_output, self.output = False, None
        self.names: list[str] = []
        self.left_out: dict[str, str] = {}
        self._kept: dict[str, Any] = {}
        self._rows: dict[str, int] = {}
        self._batch, self._reduced, self._close = 0, False, True
        self._samples: int | None = None
        self._last = LastOutput()

    def run(self, batch: Any, index: int, samples: int | None) -> tuple[list[Any], int]:
        """Run the model on one batch.

        Parameters
        ----------
        batch : any
            A batch on the model's device.
        index : int
            Number of the batch, for messages.
        samples : int or None
            Number of samples. None means the length of axis 0 of the first layer's output.

        Returns
        -------
        kept : list
            Result of ``keep`` for each layer, in the order of ``names``; None for a layer that was left out since.
        rows : int
            Number of rows of the features: samples, or positions with pooling "spatial" or "all".

        Raises
        ------
        CaptureError
            If a layer breaks one of the rules of the class; the message names the layer.
        """
        self._batch, self._samples = index, samples
        self._reduced = reduces_products(device_of(self.model))
        self._prepare(batch)
        self._pass(batch)
        while self._reviewer is not None and not self._reviewer.review(self._kept):
            self._pass(batch)
        if self._unchanged.watching:
            for name in self._unchanged.end():
                self._leave_out(name, UNCHANGED)
        if self._fresh and not self._masks.masks:
            for name, length in self._lengths.found_later(batch, self._samples, self._shapes):
                self._leave_out(name, by_chance(length))
        if not self.names:
            self._set_names()
        self._leave_out_odd()
        self._fresh = False
        present = [name for name in self.names if name in self._kept]
        if not present:
            reasons = "; ".join(f"{name!r}: {why}" for name, why in list(self.left_out.items())[:3])
            raise CaptureError(f"No selected layer of {self.name} can be compared. {reasons}")
        rows = {self._rows[name] for name in present}
        if len(rows) > 1:
            by_rows = {count: next(n for n in present if self._rows[n] == count) for count in sorted(rows)}
            listed = ", ".join(f"{name!r} has {count}" for count, name in by_rows.items())
            raise CaptureError(
                f"{self.name}: with pooling {self.pooling!r} the layers differ in their number of positions "
                f"({listed}). Choose layers of one resolution, or another pooling."
            )
        return [self._kept.get(name) for name in self.names], rows.pop()

    def _prepare(self, batch: Any) -> None:
        """Prepare for a batch. If axes may have equal lengths by chance, run the model on a part of the first one."""
        if self._unchanged.watching:
            self._unchanged.start(batch)
        if not callable(self.pooling):
            self._masks.start(batch, self._shapes)
        if self._fresh and not self._masks.masks and (self._doubtful or self._samples in self._loose):
            self._lengths.run(batch, self._samples, self._shapes)

    def _shapes(self, batch: Any, samples: int) -> dict[str, tuple[int, ...]]:
        """Shape of the output of each call on the batch of a trial."""
        self._trial, own, self._samples = {}, self._samples, samples
        try:
            with without_trace(self.model), self.probe.one_pass():
                self.forward(self.called, batch)
            return self._trial
        finally:
            self._trial, self._samples = None, own

    def _pass(self, batch: Any) -> None:
        self._kept, self._rows = {}, {}
        self._last.forget()
        self._unchanged.begin_pass()
        self._close = self._fresh or self._reduced or self._unchanged.watching or bool(self._masks.masks)
        with self.probe.one_pass():
            # A forward may change its input, and a minibatch may run twice.
            output = self.forward(self.called, copied(batch, when_written=True))
        self.first_output = output if self._fresh else None
        self.output = output if self.keeps_output else None

    def _set_names(self) -> None:
        """Set ``names`` from the first batch. Leave out layers that a pattern picked but that did not run."""
        for path in self.probe.silent:
            if self.probe.selection.is_named(path):
                raise CaptureError(
                    f"Layer {path!r} of {self.name} was selected by name but did not run in the forward pass. A "
                    "function may compute its output without calling the module; choose the module around it."
                )
            scripted = path in self.probe.scripted
            reason = "it is in TorchScript, which runs no hooks" if scripted else "it did not run in the forward pass"
            self.left_out.setdefault(path, reason)
        self.names = list(self._kept)

    def _leave_out_odd(self) -> None:
        """Leave out layers that ran in some batches only."""
        if self._kept.keys() == (slots := set(self.names)):
            return
        odd = [name for name in self._kept if name not in slots]
        odd += [name for name in self.names if name not in self._kept and name not in self.left_out]
        for name in odd:
            self._leave_out(name, "it ran in some batches only")

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state. Raise CaptureError as ``check_same_layers``."""
        check_same_layers(self.name, state["names"], self.names)
        super().restore(state)

    def notes(self, *, name: bool = True) -> list[str]:
        """Layers that were left out or pooled without a mask, one line for each kind, with the name of the model."""
        notes = [*left_out_notes(self.left_out), *self._masks.notes(self.compared), *self.probe.notes(self.compared)]
        return [f"{self.name}: {note}" if name else note for note in notes]

    @property
    def compared(self) -> list[str]:
        """``names`` without the layers that were left out after the first batch."""
        return [name for name in self.names if name not in self.left_out]

    def _receive(self, name: str, module: nn.Module, output: Any) -> None:
        if self._trial is not None:
            with suppress(UnfitOutputError):
                tensor, _ = self._read(name, module, output)
                self._trial[name] = tuple(tensor.shape)
            return
        if name in self.left_out:
            return
        if self._last.is_same(output):
            self._repeat(name)
            return
        mask = features = None
        try:
            if self._plain is not None and not self._close:
                features = self._plain.features(name, output, self._samples)
            if features is None:
                tensor, mask = self._read(name, module, output)
                self._check(name, tensor)
                # The hook runs inside the caller's autocast, which would compute the Gram matrix in half precision too.
                if self._reduced or torch.is_autocast_enabled(tensor.device.type):
                    with full_precision(tensor.device):
                        self._record(name, module, tensor, mask)
                else:
                    self._record(name, module, tensor, mask)
            elif self._last.is_viewed_by(output):
                self._repeat(name)
                return
            else:
                tensor = output
                self._hold(name, module, output, features)
        except UnfitOutputError as error:
            self._leave_out(name, str(error))
            return
        if tensor is output and self._kept[name] is not None:
            self._last.take(name, tensor)
            if features is None and mask is None and self._plain is not None:
                self._plain.learn(name, tensor)

    def _repeat(self, name: str) -> None:
        """Keep for a layer the result of the layer before."""
        self._kept[name], self._rows[name] = self._kept[self._last.name], self._rows[self._last.name]
        self._unchanged.repeat(name, self._last.name)

    def _read(self, name: str, module: nn.Module, output: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        try:
            return self._reader.read(name, module, output, self._samples, remember=self._trial is None)
        except SampleAxisError as error:
            raise CaptureError(f"Layer {name!r} of {self.name} {error}") from None

    def _leave_out(self, name: str, reason: str) -> None:
        if self.probe.selection.is_named(name):
            where = f" in batch {self._batch}" if self.names else ""
            raise CaptureError(f"Layer {name!r} of {self.name} cannot be compared{where}: {reason}.")
        self.left_out[name] = reason
        self._kept.pop(name, None)

    def _record(self, name: str, module: nn.Module, tensor: torch.Tensor, mask: torch.Tensor | None) -> None:
        if mask is None and self._masks.masks and not callable(self.pooling):
            tensor, mask = self._with_tokens(name, tensor)
        features = self._features(name, module, tensor, mask)
        if features.dtype not in (torch.float32, torch.float64) and not self._takes_half:
            features = features.float()
        self._hold(name, module, tensor, features, mask)
        if self._unchanged.watching:
            self._unchanged.see(name, features)

    def _hold(
        self,
        name: str,
        module: nn.Module,
        tensor: torch.Tensor,
        features: torch.Tensor,
        mask: torch.Tensor | None = None,
    ) -> None:
        try:
            if self._fresh and features.device.type != "cpu" and not bool(torch.isfinite(features).all()):
                raise NotFiniteError  # most keepers find it only at the end on a GPU
            self._kept[name] = self.keep(name, features)
        except NotFiniteError:
            if masks_by_infinity(module, tensor):
                raise UnfitOutputError("its output holds -inf, as that of a mask does") from None
            raise CaptureError(not_finite(name, self.name, self._batch, mask)) from None
        self._rows[name] = features.shape[0]

    def _features(self, name: str, module: nn.Module, tensor: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Pool an activation. Raise UnfitOutputError if what comes out cannot be compared."""
        try:
            axis = self.probe.channels(name, module, tensor)
            features = pool(tensor, self.pooling, mask, axis, any_order=self._any_order, by_product=True)
        except ValueError as error:
            if callable(self.pooling):
                raise CaptureError(f"Layer {name!r} of {self.name}: {error}.") from error
            raise UnfitOutputError(str(error)) from error
        except Exception as error:
            if not callable(self.pooling):
                raise
            if not tensor.dtype.is_floating_point:
                raise UnfitOutputError(of_dtype(tensor)) from error
            raise CaptureError(
                f"Layer {name!r} of {self.name}: the pooling function failed on an activation of shape "
                f"{tuple(tensor.shape)}: {error}"
            ) from error
        if not features.dtype.is_floating_point:
            raise UnfitOutputError(of_dtype(tensor))
        if callable(self.pooling) and self._samples not in (None, tensor.shape[0], features.shape[0]):
            raise UnfitOutputError(misplaced(tensor, self._samples))
        return features

    def _with_tokens(self, name: str, tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Activation with its tokens on axis 1, and their mask; the activation itself and None if no mask is for it."""
        place = self._masks.place(name, tensor.shape)
        mask = None if place is None else self._masks.masks.get(place.key)
        if place is None or mask is None:
            return tensor, None
        if tensor.ndim <= place.axis or tensor.shape[place.axis] != mask.shape[1] or len(tensor) != len(mask):
            raise UnfitOutputError(
                f"its output has shape {tuple(tensor.shape)}, whose axis {place.axis} no longer holds the "
                f"{mask.shape[1]} tokens of the {place.key}"
            )
        return tensor.movedim(place.axis, 1), mask

    def _check(self, name: str, tensor: torch.Tensor) -> None:
        """Raise UnfitOutputError if an output cannot be compared. A pooling function may be given more than others."""
        if self._samples is None and tensor.dtype.is_floating_point and tensor.ndim:
            self._samples = tensor.shape[0]
        check_fit(tensor, self._samples, by_function=callable(self.pooling))
        if not self._fresh or callable(self.pooling):
            return
        shape = tuple(tensor.shape)
        if self._lengths.is_chance(name, shape) or self._masks.keeps_length(name, shape):
            raise UnfitOutputError(by_chance(shape[0]))
        self._lengths.see(name, shape)
