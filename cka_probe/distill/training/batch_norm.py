"""Batch norm over the samples of all processes: torch's SyncBatchNorm, for the time of a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["synchronised_batch_norm"]

# LazyBatchNorm and the subclasses of other libraries (timm's also applies the activation) would lose what they add.
_PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@contextmanager
def synchronised_batch_norm(student: nn.Module, accelerator: Accelerator, wanted: bool) -> Iterator[None]:
    """Inside the block, batch norm takes its mean and variance over the samples of all processes.

    The student gets its own modules back afterwards; they share weights and running statistics with those of the block.
    With one process nothing is changed, because batch norm sees the whole batch there.

    Parameters
    ----------
    student : torch.nn.Module
        The network, on its device.
    accelerator : Accelerator
        Gives the device and the number of processes.
    wanted : bool
        False changes nothing.

    Raises
    ------
    ValueError
        If several processes train on CPUs, where torch has no such batch norm, or a layer is a subclass of torch's
        batch norm.
    """
    if not wanted or accelerator.num_processes == 1:
        yield
        return
    if accelerator.device.type not in ("cuda", "xpu", "hpu"):
        raise ValueError(
            f"`sync_batchnorm` needs GPUs: torch's SyncBatchNorm does not run on {accelerator.device.type}. Leave it "
            "out, and batch norm uses the samples of each process alone; or train in one process."
        )
    places = [
        (parent, name, child)
        for parent in student.modules()
        for name, child in parent.named_children()
        if isinstance(child, _BatchNorm) and not isinstance(child, nn.SyncBatchNorm)
    ]
    for parent, name, child in places:
        if type(child) not in _PLAIN:
            raise ValueError(
                f"`sync_batchnorm` replaces torch's batch norm, but the student's {type(parent).__name__}.{name} is a "
                f"{type(child).__name__}, which may do more. Convert the student yourself and leave sync_batchnorm out."
            )
    for parent, name, child in places:
        setattr(parent, name, nn.SyncBatchNorm.convert_sync_batchnorm(child))
    try:
        yield
    finally:
        for parent, name, child in places:
            setattr(parent, name, child)
