"""Digest of the samples that a run has read, so that it resumes only with the same data."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ...capture.trees import tensors

__all__ = ["MOST", "SeenData", "check_same_data"]

MOST = 65_536
"""Samples of the first epoch that are digested. A resumed run reads as many again."""


class SeenData:
    """Digest of samples in the order of reading. An earlier process's digest can be continued.

    Each sample counts with 64 to 127 of its bytes and with the sum of all its bytes, so that one changed number is
    noticed. Nothing waits for a GPU until ``state`` is called.

    Parameters
    ----------
    saved : (str, int), optional
        From ``state`` of an earlier process.
    most : int or None
        Samples that are digested; None: all.
    """

    def __init__(self, saved: Iterable[Any] | None = None, most: int | None = MOST) -> None:
        self._text: str
        self.samples: int
        self._text, self.samples = ("", 0) if saved is None else saved
        self._most = most
        self._waiting: list[tuple[Tensor, Tensor]] = []

    def add(self, batch: Any) -> None:
        """Add the samples of a batch: axis 0 of each of its tensors, or, of a batch of lists, each item of its lists.

        Nothing is added after ``most`` samples.
        """
        found = [tensor.detach() for tensor in tensors(batch) if tensor.ndim and tensor.layout == torch.strided]
        if not found or (self._most is not None and self.samples >= self._most):
            return
        for tensor in found:
            if tensor.numel() == 0:  # a picture without boxes
                continue
            flat = tensor.reshape(tensor.shape[0], -1).contiguous().view(torch.uint8)
            few = flat[:, :: max(1, flat.shape[1] // 64)].clone()
            whole = flat.view(torch.int32) if flat.shape[1] % 4 == 0 else flat
            self._waiting.append((few, whole.sum(1, dtype=torch.int64)))
        first = batch[0] if isinstance(batch, list | tuple) else None
        self.samples += len(first) if isinstance(first, list) else found[0].shape[0]

    def state(self) -> tuple[str, int]:
        """Digest as text, and the number of samples in it."""
        for parts in self._waiting:
            digest = hashlib.blake2b(self._text.encode(), digest_size=16)
            for part in parts:
                digest.update(part.cpu().numpy().tobytes())
            self._text = digest.hexdigest()
        self._waiting = []
        return self._text, self.samples


def check_same_data(name: str, saved: Iterable[Any], batches: Iterable[Any], where: Any) -> None:
    """Read as many samples as an earlier process had read, and compare the digests. Every process must call it.

    Parameters
    ----------
    name : str
        The argument, "train" or "test", for the message.
    saved : (str, int)
        From ``SeenData.state`` of the earlier process.
    batches : iterable
        The batches in the order in which it read them.
    where : path
        The run's directory, for the message.

    Raises
    ------
    ValueError
        If the samples or their order differ, or if there are fewer.
    """
    from accelerate.utils import gather_object

    text, samples = saved
    seen = SeenData()
    for batch in batches if samples else ():
        seen.add(batch)
        if seen.samples >= samples:
            break
    if any(gather_object([seen.state() != (text, samples)])):
        raise ValueError(
            f"{where} holds a run with other data: `{name}` gives other samples, or another order, than when the run "
            "was started. Use another output_dir, or resume=False to start again there."
        )
