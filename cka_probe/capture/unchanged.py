"""Find layers whose output is the same for different batches: a table of positions, learned prompts, a cached mask."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from .progress import Resumable
from .trees import tensors

__all__ = ["UNCHANGED", "UnchangedOutputs"]

UNCHANGED = "its output is the same in every batch, so it does not depend on the input"
"""The reason to leave such a layer out."""

RUNS, RUN = 16, 16
"""Of a longer row so many runs of neighbouring numbers are read: a number alone costs as much as its cache line."""

PATIENCE = 4
"""After this many equal batches the search ends."""

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class UnchangedOutputs(Resumable):
    """Compare the features of two different batches bit by bit.

    Such a layer may have as many rows as the batch has samples by chance, but its rows are not samples. Only layers
    with different rows count: a constant layer (a dead ReLU) is another matter.

    Attributes
    ----------
    watching : bool
        Whether two different batches are still to come. After that nothing is read, so a GPU need not wait.
    """

    lasting = ("watching", "_equal")

    def __init__(self) -> None:
        self.watching = True
        self._input: list[torch.Tensor] = []
        self._first: tuple[list[torch.Tensor], dict[str, torch.Tensor]] | None = None
        self._now: dict[str, torch.Tensor] = {}
        self._equal = 0

    def start(self, batch: Any) -> None:
        """Begin with a batch."""
        self._input = [] if not self.watching else _digests(tensors(batch))

    def begin_pass(self) -> None:
        """Begin a forward on this batch."""
        self._now = {}

    def see(self, name: str, features: torch.Tensor) -> None:
        """Take the features (n, d) of one layer."""
        if (digest := _digest(features)) is not None:
            self._now[name] = digest

    def repeat(self, name: str, of: str) -> None:
        """Take it that one layer has the features of another."""
        if of in self._now:
            self._now[name] = self._now[of]

    def end(self) -> list[str]:
        """Layers whose features in this batch are those of an earlier, different batch; empty while that is unknown."""
        before, now, self._now = self._first, self._now, {}
        if before is None:
            self._first = (self._input, now)
            self.watching = bool(self._input)
            return []
        if _all_equal(before[0], self._input):
            self._equal += 1
            self.watching = self._equal < PATIENCE
            return []
        self.watching, self._first = False, None
        return [name for name, digest in now.items() if name in before[1] and _same_rows(before[1][name], digest)]


def _digest(tensor: torch.Tensor) -> torch.Tensor | None:
    """A sum of bits (n,) for each row; None for a dtype without such a sum."""
    bits = _BITS.get(tensor.element_size())
    if bits is None or not tensor.numel():
        return None
    rows = tensor.detach().reshape(len(tensor) if tensor.ndim else 1, -1)
    step = rows.shape[1] // RUNS
    if step > 2 * RUN:
        rows = rows[:, : step * RUNS].unflatten(1, (RUNS, step))[:, :, :RUN].flatten(1)
    size = rows.element_size()
    if rows.is_contiguous() and rows.shape[1] * size % 8 == 0 and rows.storage_offset() * size % 8 == 0:
        bits = torch.int64  # a sum of few large numbers is faster
    return rows.view(bits).sum(1, dtype=torch.int64)


def _digests(found: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    plain = (one for one in found if not one.is_nested and one.layout is torch.strided and not one.is_quantized)
    return [digest for one in plain if (digest := _digest(one)) is not None]


def _all_equal(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return len(first) == len(second) and all(
        a.shape == b.shape and torch.equal(a, b) for a, b in zip(first, second, strict=True)
    )


def _same_rows(before: torch.Tensor, now: torch.Tensor) -> bool:
    return before.shape == now.shape and torch.equal(before, now) and 2 * len(now.unique()) > len(now)
