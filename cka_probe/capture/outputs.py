"""Turn what a layer returned into one dense tensor with the samples on axis 0, or say why that is not possible."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from .progress import Resumable
from .trees import parts

__all__ = [
    "OutputReader",
    "SampleAxisError",
    "UnfitOutputError",
    "by_chance",
    "candidates",
    "check_fit",
    "masks_by_infinity",
    "misplaced",
    "not_finite",
    "of_dtype",
]

PREFERRED = ("last_hidden_state", "logits")
"""Names that come first in an output with named parts."""

_SEQUENCE = (nn.RNNBase, nn.MultiheadAttention)
_TRANSFORMER_LAYER = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
_TRANSFORMER = (nn.TransformerEncoder, nn.TransformerDecoder, nn.Transformer)

_AXES: dict[type[nn.Module], int] = {
    kind: axes
    for axes, kinds in {
        2: (nn.Linear,),
        3: (nn.Conv1d, nn.ConvTranspose1d),
        4: (nn.Conv2d, nn.ConvTranspose2d),
        5: (nn.Conv3d, nn.ConvTranspose3d),
    }.items()
    for kind in kinds
}
"""Axes of the outputs of layers that also take a single sample; with fewer there is no axis of samples."""


class UnfitOutputError(Exception):
    """The output of a layer cannot be compared; the text is the reason, to follow "... was left out: "."""


class SampleAxisError(Exception):
    """A module reads other samples than the batch holds; the text follows "Layer ... of ..."."""


def candidates(output: Any) -> Iterator[torch.Tensor | PackedSequence]:
    """Yield the tensors that may stand for a layer's output, the likeliest first.

    These are all its tensors in order: the outputs of an LSTM before its state, the outputs of attention before its
    weights. Among named parts (a ModelOutput, a dataclass), the last hidden state and the logits come first.
    """
    if isinstance(output, torch.Tensor | PackedSequence):
        yield output
        return
    first: list[Any] = []
    if isinstance(output, Mapping):
        first = [output[name] for name in PREFERRED if name in output]
    elif not isinstance(output, tuple | list):
        first = [getattr(output, name, None) for name in PREFERRED]
    inside = parts(output) or ()
    for part in (*first, *(part for part in inside if not any(part is one for one in first))) if inside else ():
        yield from candidates(part)


def of_dtype(tensor: torch.Tensor) -> str:
    """The reason to leave out an output that holds no real numbers."""
    return f"its output is of dtype {tensor.dtype}"


def by_chance(length: int) -> str:
    """The reason to leave out an output whose axis 0 does not become shorter when the batch does."""
    return f"axis 0 of its output has length {length} by chance and holds no samples"


def misplaced(tensor: torch.Tensor, samples: int | None) -> str:
    """The reason to leave out an output that does not have the samples on axis 0."""
    return f"its output has shape {tuple(tensor.shape)}, so axis 0 does not hold the {samples} samples of the batch"


def not_finite(layer: str, model: str, batch: int, mask: torch.Tensor | None) -> str:
    """The message for NaN or infinity in the features of a layer; ``mask`` is that of its tokens, if it has any."""
    if mask is not None and not bool((empty := ~mask.bool().any(1)).sum() == 0):
        return f"Sample {int(empty.int().argmax())} of batch {batch} has no real token in its attention mask."
    return (
        f"Layer {layer!r} of {model} gave NaN or infinity in batch {batch}. Check the input and weights; half "
        "precision may have overflowed."
    )


def check_fit(tensor: torch.Tensor, samples: int | None, *, by_function: bool) -> None:
    """Raise UnfitOutputError if an output cannot be compared; a pooling function takes any dtype and axis 0."""
    if not tensor.dtype.is_floating_point and not by_function:
        raise UnfitOutputError(of_dtype(tensor))
    if tensor.ndim == 0:
        raise UnfitOutputError("its output is a single number")
    if tensor.numel() == 0:
        raise UnfitOutputError(f"its output is empty, of shape {tuple(tensor.shape)}")
    if samples not in (None, tensor.shape[0]) and not by_function:
        raise UnfitOutputError(misplaced(tensor, samples))


def masks_by_infinity(module: nn.Module, output: torch.Tensor) -> bool:
    """Whether infinity in an output is meant, as in scores before a softmax.

    A module without weights gave -inf, neither NaN nor +inf, and left some finite numbers of every sample.
    """
    if next(module.parameters(), None) is not None:
        return False
    rows = output.flatten(1)
    return not bool((rows.isnan() | rows.isposinf()).any()) and bool(rows.isfinite().any(1).all())


class OutputReader(Resumable):
    """Read the outputs of one model's layers.

    A layer whose output holds several tensors is read from the same place in every batch.

    Parameters
    ----------
    model : torch.nn.Module
        The network.
    sample_axis : int
        Axis of the batch that holds the samples. With 1, an output that has the samples on axis 1 is turned.

    Raises
    ------
    ValueError
        If ``sample_axis`` is not the number of an axis.
    """

    lasting = ("_places", "_turns")

    def __init__(self, model: nn.Module, sample_axis: int = 0) -> None:
        if type(sample_axis) is not int or sample_axis < 0:
            raise ValueError(f"`sample_axis` must be 0, 1 or another number of an axis, got {sample_axis!r}.")
        self.sample_axis = sample_axis
        self._places: dict[str, int] = {}
        self._turns: dict[str, bool] = {}
        # Modules that read sequences, and whether they put the samples first.
        self._batch_first: dict[int, bool] = {}
        for module in model.modules():
            if isinstance(module, _TRANSFORMER_LAYER + _TRANSFORMER):
                attention = next((m for m in module.modules() if isinstance(m, nn.MultiheadAttention)), None)
                if attention is not None and not attention.batch_first:
                    # Their linear layers and norms have time first, too.
                    self._batch_first |= dict.fromkeys(map(id, module.modules()), False)
            elif isinstance(module, _SEQUENCE):
                self._batch_first.setdefault(id(module), bool(module.batch_first))

    @property
    def has_time_first(self) -> bool:
        """Whether a module of the network puts time before the samples."""
        return not all(self._batch_first.values())

    def read(
        self, name: str, module: nn.Module, output: Any, samples: int | None, *, remember: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The tensor that stands for an output, with samples on axis 0.

        Parameters
        ----------
        name : str
            Name of the call.
        module : torch.nn.Module
            The module that was called.
        output : any
            What it returned.
        samples : int or None
            Number of samples, if it is known.
        remember : bool
            Whether later calls of this name read the same tensor of the output.

        Returns
        -------
        tensor : tensor (n, ...)
            Dense, and dequantised if the output was quantised.
        mask : tensor (n, t) or None
            For a PackedSequence and a nested tensor: 1 where a token is real. Then axis 1 holds the tokens.

        Raises
        ------
        UnfitOutputError
            If the output holds no tensor, or none that can be compared.
        SampleAxisError
            If the module reads other samples than the batch holds: it has ``batch_first=False``, and the batch has the
            samples first.
        """
        if isinstance(output, torch.Tensor):
            return self._plain(name, module, output, samples)
        found = list(candidates(output))
        if not found:
            holds = "" if output is None else ", which holds no tensor"
            raise UnfitOutputError(f"it returned {_kind(output)}{holds}")
        place = self._places.get(name)
        if place is not None:
            if place >= len(found):
                raise UnfitOutputError("the number of tensors in its output changed")
            return self._plain(name, module, found[place], samples)
        for place, candidate in enumerate(found):
            try:
                tensor, mask = self._plain(name, module, candidate, samples)
            except UnfitOutputError:
                continue
            if tensor.dtype.is_floating_point and tensor.ndim and samples in (None, tensor.shape[0]):
                if remember:
                    self._places[name] = place
                return tensor, mask
        # None fits: the first one gives the reason, if possible one of floating dtype.
        floating = (one for one in found if isinstance(one, PackedSequence) or one.is_floating_point())
        return self._plain(name, module, next(floating, found[0]), samples)

    def _plain(
        self, name: str, module: nn.Module, tensor: torch.Tensor | PackedSequence, samples: int | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if isinstance(tensor, PackedSequence):
            padded, lengths = pad_packed_sequence(tensor, batch_first=True)
            return padded, _real(lengths.to(padded.device), padded.shape[1])
        if tensor.is_nested:
            return _padded(tensor)
        if tensor.is_quantized:
            tensor = tensor.dequantize()
        elif tensor.layout is not torch.strided:
            tensor = tensor.to_dense()
        if tensor.is_meta:
            raise UnfitOutputError("its output is on the meta device, without numbers")
        if tensor.ndim < _AXES.get(type(module), 0):
            raise UnfitOutputError(
                f"{_kind(module)} was given a single sample without an axis of samples. If each item of the data is "
                "one sample, wrap it: torch.utils.data.DataLoader(data, batch_size=64)"
            )
        batch_first = self._batch_first.get(id(module)) if self._batch_first else None
        if batch_first is not None:
            return self._of_sequence(module, tensor, batch_first, samples), None
        return (tensor if self.sample_axis == 0 else self._turned(name, tensor, samples)), None

    def _of_sequence(
        self, module: nn.Module, tensor: torch.Tensor, batch_first: bool, samples: int | None
    ) -> torch.Tensor:
        """Output of an RNN, of attention, or of a part of a transformer of torch, with samples first."""
        if tensor.ndim == 2:
            raise UnfitOutputError(
                f"{_kind(module)} was given a single sequence without an axis of samples, so axis 0 of its output is "
                "time"
            )
        if tensor.ndim != 3:
            return tensor
        own, other = (0, 1) if batch_first else (1, 0)
        if samples is not None and tensor.shape[own] != samples and tensor.shape[other] == samples:
            if not batch_first and self.sample_axis == 0:
                remedy = (
                    "If the batch is (samples, time, ...), give the module batch_first=True or turn its input; if the "
                    "batch is (time, samples, ...), pass sample_axis=1."
                )
            else:
                remedy = f"Turn its input, or give the module batch_first={not batch_first}."
            raise SampleAxisError(
                f"has batch_first={batch_first}: it takes axis {own} of its input for the samples. Its output has "
                f"shape {tuple(tensor.shape)}, but the batch holds {samples} samples on axis {self.sample_axis}. "
                f"{remedy} Otherwise leave this layer out."
            )
        return tensor if batch_first else tensor.transpose(0, 1)

    def _turned(self, name: str, tensor: torch.Tensor, samples: int | None) -> torch.Tensor:
        """Output with samples first, of a model whose batches have them on ``sample_axis``."""
        axis = self.sample_axis
        if samples is None or tensor.ndim <= axis:
            return tensor
        first, there = tensor.shape[0] == samples, tensor.shape[axis] == samples
        if first != there:
            self._turns[name] = there
        elif there and name not in self._turns:
            raise UnfitOutputError(
                f"axes 0 and {axis} of its output have the length {samples}, so it is not known which holds the "
                "samples; take another batch size"
            )
        return tensor.movedim(axis, 0) if there and self._turns[name] else tensor


def _kind(thing: Any) -> str:
    return "None" if thing is None else type(thing).__name__


def _real(lengths: torch.Tensor, longest: int) -> torch.Tensor:
    return torch.arange(longest, device=lengths.device)[None] < lengths[:, None]


def _padded(nested: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Dense tensor with zeros where a sample is shorter, its tokens on axis 1, and the mask of the real tokens."""
    samples = nested.unbind()
    if not samples:
        raise UnfitOutputError("its output is empty")
    if len({sample.ndim for sample in samples}) > 1 or samples[0].ndim == 0:
        raise UnfitOutputError("its output is a nested tensor without an axis of tokens")
    shapes = [tuple(sample.shape) for sample in samples]
    ragged = [axis for axis, lengths in enumerate(zip(*shapes, strict=True)) if len(set(lengths)) > 1] or [0]
    if len(ragged) > 1:
        raise UnfitOutputError("its output is a nested tensor whose samples differ on more than one axis")
    lengths = torch.tensor([shape[ragged[0]] for shape in shapes], device=nested.device)
    dense = nn.utils.rnn.pad_sequence([sample.movedim(ragged[0], 0) for sample in samples], batch_first=True)
    return dense, _real(lengths, dense.shape[1])
