"""Run a model batch by batch, check and pool each layer's output inside its hook, and keep a result of it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from .batches import Forward, attention_mask, call_model
from .hooks import CaptureError, Probe
from .layers import Layers, unwrap
from .pooling import Pooling, check_pooling, pool
from .state import device_of, full_precision, reduces_products
from .trees import copied, samples_first
from .wrappers import called_model

__all__ = ["Keep", "LayerRecorder", "NotFiniteError", "ReviewingKeep"]

Keep = Callable[[str, torch.Tensor], Any]
"""Maps a layer's name and its features (n, d) to the result that is kept: a Gram matrix, a copy."""


class NotFiniteError(ValueError):
    """Features hold NaN or infinity."""


@runtime_checkable
class ReviewingKeep(Protocol):
    """A ``keep`` that checks its results after each forward of the model and may request a second forward.

    Attributes
    ----------
    takes_half : bool
        Whether features may come in half precision; a recorder casts them to float32 for any other ``keep``.
    reviewed : bool
        The recorder sets it to True: ``review`` will be called after every forward.
    """

    takes_half: bool
    reviewed: bool

    def __call__(self, name: str, features: torch.Tensor) -> Any:
        """Return what is kept of one layer."""

    def review(self, kept: Mapping[str, Any]) -> bool:
        """Return whether the results of this forward are valid. If not, the model runs on the same batch again."""


LISTED = 6
"""Number of layers that a note names."""


class LayerRecorder:
    """Run one model batch by batch and keep the result of ``keep`` for each selected layer.

    Every layer must run equally often in every batch, and its output must have the samples on axis 0 and hold finite
    real numbers of a floating dtype. The recorder checks this.

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
    exclude : optional
        As in ``compare``.

    Attributes
    ----------
    names : list of str
        Names of the recorded calls in the order of execution; known after the first batch.
    left_out : dict of str to str
        Layers that a pattern picked but that cannot be compared, with the reason.

    Raises
    ------
    ValueError, TypeError
        If ``layers`` or ``pooling`` is not valid for the model, or the model is on the meta device.
    """

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
    ) -> None:
        check_pooling(pooling)
        self.model, self._called = unwrap(model), called_model(model)
        self.name = f"{name} ({type(self.model).__name__})"
        if device_of(self.model).type == "meta":
            raise ValueError(
                f"{self.name} is on the meta device: it has shapes but no weights. Load its weights first."
            )
        self.pooling = pooling
        self.keep = keep
        self.forward = forward or call_model
        self._reviewer = keep if isinstance(keep, ReviewingKeep) else None
        self._takes_half = self._reviewer is not None and self._reviewer.takes_half
        if self._reviewer is not None:
            self._reviewer.reviewed = True
        self.probe = Probe(model, layers, pooling=None, receiver=self._receive, exclude=exclude)
        self.names: list[str] = []
        self.left_out: dict[str, str] = {}
        self._kept: dict[str, Any] = {}
        self._rows: dict[str, int] = {}
        self._batch = 0
        self._samples: int | None = None
        self._mask: torch.Tensor | None = None
        self._reduced = False
        self._token_axes: dict[str, int | None] = {}
        self._previous: weakref.ref[torch.Tensor] | None = None
        self._previous_name, self._previous_version = "", 0

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
            Result of ``keep`` for each layer, in the order of ``names``.
        rows : int
            Number of rows of the features: samples, or positions with pooling "spatial" or "all".

        Raises
        ------
        CaptureError
            If a layer breaks one of the rules of the class; the message names the layer.
        """
        self._batch, self._samples, self._mask = index, samples, attention_mask(batch)
        self._reduced = reduces_products(device_of(self.model))
        self._pass(batch)
        while self._reviewer is not None and not self._reviewer.review(self._kept):
            self._pass(batch)
        if not self.names:
            self._set_names()
        if self._kept.keys() != set(self.names):
            odd = sorted(set(self._kept) ^ set(self.names))
            raise CaptureError(
                f"{self.name} did not run the same layers in batch {index} as before: {', '.join(map(repr, odd[:3]))} "
                "ran only in some. Leave these layers out, or give every batch the same shape."
            )
        rows = {self._rows[name] for name in self.names}
        if len(rows) > 1:
            by_rows = {count: next(n for n in self.names if self._rows[n] == count) for count in sorted(rows)}
            listed = ", ".join(f"{name!r} has {count}" for count, name in by_rows.items())
            raise CaptureError(
                f"{self.name}: with pooling {self.pooling!r} the layers differ in their number of positions "
                f"({listed}). Choose layers of one resolution, or another pooling."
            )
        return [self._kept[name] for name in self.names], rows.pop()

    def _pass(self, batch: Any) -> None:
        self._kept, self._rows, self._previous = {}, {}, None
        with self.probe.one_pass():
            self.forward(self._called, copied(batch))  # a forward may change its input, and a minibatch may run twice

    def _set_names(self) -> None:
        """Set ``names`` from the first batch. Leave out layers that a pattern picked but that did not run."""
        for path in self.probe.silent:
            if self.probe.selection.is_named(path):
                raise CaptureError(
                    f"Layer {path!r} of {self.name} was selected by name but did not run in the forward pass. A "
                    "function may compute its output without calling the module; choose the module around it."
                )
            self.left_out.setdefault(path, "it did not run in the forward pass")
        self.names = list(self._kept)
        if not self.names:
            reasons = "; ".join(f"{name!r}: {why}" for name, why in list(self.left_out.items())[:3])
            raise CaptureError(f"No selected layer of {self.name} can be compared. {reasons}")

    def notes(self) -> list[str]:
        """Layers that were left out, in one line for each reason."""
        reasons: dict[str, list[str]] = {}
        for name, why in self.left_out.items():
            reasons.setdefault(why, []).append(name)
        lines = []
        for why, names in reasons.items():
            listed = ", ".join(map(repr, names[:LISTED])) + (f" and {len(names) - LISTED} more" * (len(names) > LISTED))
            lines.append(f"{self.name}: {listed} {'was' if len(names) == 1 else 'were'} left out: {why}")
        return lines

    def _receive(self, name: str, module: nn.Module, tensor: torch.Tensor) -> None:
        if name in self.left_out:
            return
        previous = self._previous() if self._previous is not None else None
        fresh, tensor = tensor, samples_first(module, tensor)
        version = _version(fresh)
        if fresh is previous and fresh is tensor and version is not None and version == self._previous_version:
            # Dropout in eval mode and Identity return their input: the result of the previous layer holds.
            self._kept[name], self._rows[name] = self._kept[self._previous_name], self._rows[self._previous_name]
            return
        reason = self._unfit(tensor)
        if reason is not None:
            self._leave_out(name, reason)
            return
        # The hook runs inside the caller's autocast, which would compute the Gram matrix in half precision too.
        if self._reduced or torch.is_autocast_enabled(tensor.device.type):
            with full_precision(tensor.device):
                self._record(name, tensor)
        else:
            self._record(name, tensor)

        if name in self._kept and version is not None and self._kept[name] is not None and fresh is tensor:
            self._previous, self._previous_name, self._previous_version = weakref.ref(fresh), name, version

    def _leave_out(self, name: str, reason: str) -> None:
        if self.probe.selection.is_named(name) or name in self.names:
            raise CaptureError(f"Layer {name!r} of {self.name} cannot be compared: {reason}.")
        self.left_out[name] = reason

    def _record(self, name: str, tensor: torch.Tensor) -> None:
        tokens, mask = self._with_tokens(name, tensor)
        try:
            features = pool(tokens, self.pooling, mask)
        except ValueError as error:
            raise CaptureError(f"Layer {name!r} of {self.name}: {error}.") from error
        except Exception as error:
            if not callable(self.pooling):
                raise
            raise CaptureError(
                f"Layer {name!r} of {self.name}: the pooling function failed on an activation of shape "
                f"{tuple(tensor.shape)}: {error}"
            ) from error
        if callable(self.pooling) and self._samples not in (None, tensor.shape[0], features.shape[0]):
            self._leave_out(name, self._misplaced(tensor))
            return
        if features.dtype not in (torch.float32, torch.float64) and not self._takes_half:
            features = features.float()
        try:
            self._kept[name] = self.keep(name, features)
        except NotFiniteError:
            raise CaptureError(self._not_finite(name)) from None
        self._rows[name] = features.shape[0]

    def _with_tokens(self, name: str, tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Activation with its tokens on axis 1, and their mask; the activation itself and None if it has no tokens.

        The first batch decides which axis holds the tokens. Otherwise a batch with as many tokens as heads would be
        pooled along the wrong axis.
        """
        mask = self._mask
        if mask is None or callable(self.pooling) or tensor.ndim < 3 or tensor.shape[0] != mask.shape[0]:
            return tensor, None
        axes = [axis for axis in range(1, tensor.ndim) if tensor.shape[axis] == mask.shape[1]]
        axis = self._token_axes.setdefault(name, axes[0] if axes else None)
        if axis is None:
            return tensor, None
        if axis not in axes:
            raise CaptureError(
                f"Layer {name!r} of {self.name} has shape {tuple(tensor.shape)} in batch {self._batch}: its axis "
                f"{axis} no longer holds the {mask.shape[1]} tokens of the attention mask. Leave the layer out, or "
                "pass a pooling function."
            )
        return tensor.movedim(axis, 1), mask

    def _not_finite(self, name: str) -> str:
        if self._mask is not None and not bool((empty := ~self._mask.bool().any(1)).sum() == 0):
            sample = int(empty.int().argmax())
            return f"Sample {sample} of batch {self._batch} has no real token in its attention mask."
        return (
            f"Layer {name!r} of {self.name} gave NaN or infinity in batch {self._batch}. Check the input and "
            "weights; half precision may have overflowed."
        )

    def _unfit(self, tensor: torch.Tensor) -> str | None:
        """Reason why an output cannot be compared; None if it can."""
        if not tensor.dtype.is_floating_point:
            return f"its output is of dtype {tensor.dtype}"
        if tensor.ndim == 0:
            return "its output is a single number"
        if self._samples is None:
            self._samples = tensor.shape[0]
        if tensor.shape[0] != self._samples and not callable(self.pooling):
            return self._misplaced(tensor)
        if tensor.numel() == 0:
            return f"its output is empty, of shape {tuple(tensor.shape)}"
        return None

    def _misplaced(self, tensor: torch.Tensor) -> str:
        return (
            f"its output has shape {tuple(tensor.shape)}, so axis 0 does not hold the {self._samples} samples of the "
            "batch"
        )


def _version(tensor: torch.Tensor) -> int | None:
    """Number of changes of the tensor in place; None in inference mode, where torch does not count them."""
    return None if tensor.is_inference() else tensor._version
