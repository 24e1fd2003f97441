"""Accelerator of a run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from ...capture.notes import first_line

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["TIMEOUT", "accelerator_for", "check_world"]

TIMEOUT = timedelta(minutes=15)
"""How long a process waits for another one. Not 10 minutes: accelerate takes that for its default, and drops it."""


@contextmanager
def accelerator_for(given: Accelerator | None, mixed_precision: str, ce_weight: float) -> Iterator[Accelerator]:
    """The caller's accelerator, or a new one whose settings are removed from accelerate's global state afterwards.

    Raises
    ------
    ValueError
        If the precision is unknown, is fp16 on a CPU, or is not that of the accelerator or of `accelerate launch`; or
        the launcher started more processes than accelerate knows of.
    RuntimeError
        From the block, if another process has ended or does not answer.
    """
    if given is not None:
        check_world(given)
        _check_precision(given)
        if mixed_precision not in ("no", given.mixed_precision):
            raise ValueError(
                f"mixed_precision={mixed_precision!r}, but the accelerator that you pass has "
                f"{given.mixed_precision!r}. Set it there."
            )
        with _lost_process_named():
            yield given
        return
    if mixed_precision not in ("no", "bf16", "fp16"):
        raise ValueError(f'`mixed_precision` must be "no", "bf16" or "fp16", got {mixed_precision!r}.')
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if launched not in ("no", mixed_precision):
        raise ValueError(
            f"`accelerate launch` asks for {launched!r} (ACCELERATE_MIXED_PRECISION), but mixed_precision="
            f"{mixed_precision!r} decides. Set mixed_precision={launched!r}, or launch with --mixed_precision "
            f"{mixed_precision}."
        )
    from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
    from accelerate.state import AcceleratorState

    alone = not AcceleratorState._shared_state
    if not alone and AcceleratorState().mixed_precision != mixed_precision:
        raise ValueError(
            f"mixed_precision={mixed_precision!r}, but this process already has an Accelerator with "
            f"{AcceleratorState().mixed_precision!r}, and accelerate allows one. Pass that one as `accelerator`."
        )
    # Without cross-entropy, a loss of features gives the classifier no gradient, and DDP must know that.
    unused = DistributedDataParallelKwargs(find_unused_parameters=ce_weight == 0)
    waits = InitProcessGroupKwargs(timeout=TIMEOUT)
    accelerator = Accelerator(mixed_precision=mixed_precision, kwargs_handlers=[unused, waits])
    try:
        check_world(accelerator)
        _check_precision(accelerator)
        with _lost_process_named():
            yield accelerator
    finally:
        if alone:
            AcceleratorState._reset_state()


LOST = ("gloo", "NCCL", "Application timeout", "Connection closed by peer", "Timed out waiting")
"""Words in torch's errors when another process is gone or silent."""


@contextmanager
def _lost_process_named() -> Iterator[None]:
    """Say in words what torch's errors about closed connections and timeouts mean."""
    try:
        yield
    except RuntimeError as error:
        if not any(word in str(error) for word in LOST):
            raise
        reason = first_line(error).rpartition("] ")[2].partition(". ")[0]
        raise RuntimeError(
            f"Another process of this run has ended, or did not answer in time ({reason}). Its own error says why. "
            "Start all processes again: with `output_dir` they go on from the last checkpoint."
        ) from error


def _check_precision(accelerator: Accelerator) -> None:
    """Raise ValueError for fp16 on a CPU, where accelerate would compute in float32 and not say so."""
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise ValueError(
            "mixed_precision='fp16' needs a GPU: on a CPU accelerate has no fp16 and would compute in float32. "
            "Use 'bf16' or 'no'."
        )


def check_world(accelerator: Accelerator) -> None:
    """Raise ValueError if the launcher started more processes than accelerate knows of.

    Each of them would then train on all data and write the same files.
    """
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != accelerator.num_processes:
        raise ValueError(
            f"The launcher started {started} processes (WORLD_SIZE), but accelerate counts "
            f"{accelerator.num_processes}: each process would train on all data and write the same files. On a machine "
            "without GPUs set ACCELERATE_USE_CPU=true, or use `accelerate launch --cpu`; if this process is not part "
            "of a training of several processes, unset WORLD_SIZE."
        )
