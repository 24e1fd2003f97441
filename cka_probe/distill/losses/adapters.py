"""Learnable 1 x 1 maps from the student's channels to the teacher's, for losses that compare entry by entry."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Adapters", "channels", "same_size"]


class Adapters(nn.Module):
    """One 1 x 1 convolution (maps) or linear layer (matrices, tokens) for each pair of features, made by `prepare`.

    Parameters
    ----------
    always : bool
        If true, a pair with equal channels gets one too.

    Examples
    --------
    >>> import torch
    >>> adapters = Adapters(always=False)
    >>> adapters.prepare([torch.zeros(2, 3, 4, 4)], [torch.zeros(2, 8, 4, 4)])
    >>> adapters(0, torch.zeros(2, 3, 4, 4)).shape
    torch.Size([2, 8, 4, 4])
    """

    def __init__(self, *, always: bool) -> None:
        super().__init__()
        self.always = always
        self.maps = nn.ModuleList()

    def prepare(self, student_features: Sequence[Tensor], teacher_features: Sequence[Tensor]) -> None:
        """Make the layers. Call it once on a sample batch, before the optimiser is built, so that they are trained.

        Parameters
        ----------
        student_features, teacher_features : sequence of Tensor (B, C, H, W), (B, d) or (B, T, d)
            Activations of a sample batch, pair by pair.
        """
        self.maps = nn.ModuleList(self._map(x, y) for x, y in zip(student_features, teacher_features, strict=True))

    def _map(self, x: Tensor, y: Tensor) -> nn.Module:
        old, new = channels(x), channels(y)
        if old == new and not self.always:
            return nn.Identity()
        layer = nn.Conv2d(old, new, 1) if x.ndim == 4 else nn.Linear(old, new)
        return layer.to(x.device, torch.float64 if x.dtype == torch.float64 else torch.float32)

    def forward(self, index: int, x: Tensor) -> Tensor:
        """Map the student's feature ``index`` to the teacher's channels.

        Raises
        ------
        RuntimeError
            If `prepare` has not been called, or saw another number of channels.
        """
        if index >= len(self.maps):
            raise RuntimeError(
                f"There is no adapter for feature {index}: call loss.prepare(student_features, teacher_features) on a "
                "sample batch before the optimiser is built. distill() does that."
            )
        adapter = self.maps[index]
        if isinstance(adapter, (nn.Conv2d, nn.Linear)) and channels(x) != adapter.weight.shape[1]:
            seen = adapter.weight.shape[1]
            raise RuntimeError(f"The student's feature {index} has {channels(x)} channels, but `prepare` saw {seen}.")
        return adapter(x.to(adapter.weight.dtype)) if isinstance(adapter, nn.Conv2d | nn.Linear) else adapter(x)


def channels(x: Tensor) -> int:
    """Number of channels of a map (B, C, H, W), or width of a matrix (B, d) or of tokens (B, T, d)."""
    return x.shape[1] if x.ndim == 4 else x.shape[-1]


def same_size(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Pool two maps (B, C, H, W) adaptively to the smaller height and width; return other shapes unchanged."""
    if x.ndim != 4 or y.ndim != 4 or x.shape[2:] == y.shape[2:]:
        return x, y
    size = (min(x.shape[2], y.shape[2]), min(x.shape[3], y.shape[3]))
    return functional.adaptive_avg_pool2d(x, size), functional.adaptive_avg_pool2d(y, size)
