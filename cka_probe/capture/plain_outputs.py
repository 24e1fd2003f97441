"""The usual output in a few looks: a dense tensor of the kind that the layer gave before, or what the last one gave."""

from __future__ import annotations

import weakref
from typing import Any

import torch

__all__ = ["LastOutput", "PlainOutputs"]


class PlainOutputs:
    """Layers that gave a dense tensor of real numbers which was compared as it is: flattened, without a mask.

    A later output of the same kind needs neither ``OutputReader`` nor ``pool``, which take longer than the Gram matrix
    of a narrow layer.

    Parameters
    ----------
    any_order : bool
        Whether the features may come in the order in which they lie in memory.
    """

    def __init__(self, any_order: bool) -> None:
        self.any_order = any_order
        self._kinds: dict[str, tuple[torch.dtype, int]] = {}

    def learn(self, name: str, output: torch.Tensor) -> None:
        """Keep the kind of an output that was compared as it is."""
        if output.dtype in (torch.float32, torch.float64) and output.ndim >= 2:
            self._kinds[name] = output.dtype, output.ndim

    def features(self, name: str, output: Any, samples: int | None) -> torch.Tensor | None:
        """A view (samples, d) of the output; None if it must be looked at closely."""
        kind = self._kinds.get(name)
        if (
            kind is None
            or type(output) is not torch.Tensor
            or output.dtype is not kind[0]
            or output.layout is not torch.strided
            or output.is_nested
            or output.is_meta
            or output.ndim != kind[1]
            or output.shape[0] != samples
            or not output.numel()
            or torch.is_autocast_enabled(output.device.type)
        ):
            return None
        if output.is_contiguous():
            return output if kind[1] == 2 else output.view(samples, -1)
        if self.any_order and kind[1] == 4 and output.is_contiguous(memory_format=torch.channels_last):
            return output.permute(0, 2, 3, 1).view(samples, -1)
        return None


class LastOutput:
    """The output that was recorded last, by which a layer that hands on its input is known.

    Dropout in eval mode and Identity return their input, Flatten a view of it, and a block what its last layer
    returned. A change in place in between counts up the version of the tensor, which its views share.
    """

    def __init__(self) -> None:
        self.name = ""
        self._tensor: weakref.ref[torch.Tensor] | None = None
        self._version, self._place = 0, 0

    def forget(self) -> None:
        """Forget it: the next forward begins."""
        self._tensor = None

    def take(self, name: str, output: torch.Tensor) -> None:
        """Keep the output of a layer. In inference mode torch counts no versions, so there nothing is known."""
        if output.is_inference() or type(output) is not torch.Tensor:
            self._tensor = None
            return
        self.name, self._tensor = name, weakref.ref(output)
        self._version, self._place = output._version, output.data_ptr()

    def is_same(self, output: Any) -> bool:
        """Whether an output is that tensor, unchanged."""
        last = None if self._tensor is None else self._tensor()
        return last is not None and last is output and self._unchanged(last)

    def is_viewed_by(self, output: torch.Tensor) -> bool:
        """Whether a dense output holds the numbers of that tensor in another shape of equally many samples."""
        last = None if self._tensor is None else self._tensor()
        return (
            last is not None  # otherwise its memory may hold another tensor by now
            and self._unchanged(output)
            and last.dtype is output.dtype
            and last.numel() == output.numel()
            and len(last) == len(output)
            and last.is_contiguous()
            and output.is_contiguous()
        )

    def _unchanged(self, output: torch.Tensor) -> bool:
        return not output.is_inference() and output._version == self._version and output.data_ptr() == self._place
