"""Cache on disk for a frozen teacher's outputs of every training sample."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ...atomic_write import atomic_write
from ...identity import identity, weights_digest
from ...progress_bar import tqdm
from ..losses.contract import Outputs
from ..taps.tapped_model import TappedModel
from .batches import Batch, DatasetBatches
from .seen_data import SeenData

if TYPE_CHECKING:
    from accelerate import Accelerator

    from .teachers import Teachers

__all__ = ["cached_teacher"]

# Samples that are read twice to check that the data set has no augmentation.
PROBES = 16
FINISHED = "cache.json"
MASK = "mask.npy"
# Changes when a folder holds other files than before: folders of version 1 have no masks.
VERSION = 2
SIGN_EVERY = 30.0
"""Seconds between two signs of the main process, for which the other processes wait, that it is at work."""


def cached_teacher(
    directory: Path | str,
    master: TappedModel | Teachers,
    teach: Callable[[Batch], Any],
    batches: Any,
    accelerator: Accelerator,
    progress: bool | str = True,
) -> Callable[[Batch], Outputs]:
    """Function like `teach` that reads the teacher's logits, features and mask from disk. They are written there first.

    The outputs are memory-mapped .npy files in a folder. Its name is a hash of the teacher's weights, the tapped
    layers, the precision and every sample of the data set, which is read once for this. The folder is either complete
    or absent.

    Parameters
    ----------
    directory : path
        Where the folder is created.
    master : TappedModel
        The frozen teacher.
    teach : callable
        Returns the outputs of the teacher for a batch.
    batches : DatasetBatches
        Batches of a data set without augmentation.
    accelerator : Accelerator
        Its main process writes; the others wait.
    progress : bool
        Whether a progress bar is shown while writing.

    Returns
    -------
    callable
        From a `Batch` to `Outputs` on the accelerator's device.

    Raises
    ------
    ValueError
        If `batches` come from a ready DataLoader, or the data set gives another sample when it is read again.
    OSError
        If the files cannot be written, for example because the disk is full. Nothing of them stays behind then.
    """
    if not isinstance(batches, DatasetBatches):
        raise ValueError(
            "`teacher_cache` needs `train` as a data set: the indices of samples from a DataLoader are unknown."
        )
    _refuse_augmentation(batches)
    parts = [
        VERSION,
        identity(master.calls),
        weights_digest(master.model),
        master.layers,
        accelerator.mixed_precision,
        _all_samples(batches, accelerator),
    ]
    folder = Path(directory) / hashlib.blake2b(repr(parts).encode(), digest_size=12).hexdigest()
    if accelerator.num_processes > 1:  # the main process writes first
        _by_main_process(accelerator, partial(_write_if_missing, folder, teach, batches, bool(progress)))
    _write_if_missing(folder, teach, batches, bool(progress))
    names = json.loads((folder / FINISHED).read_text())["files"]
    arrays = [_mapped(folder / name) for name in names]

    def read(batch: Batch) -> Outputs:
        assert batch.indices is not None  # DatasetBatches always have them
        rows = batch.indices.cpu().numpy()
        logits, *others = [torch.from_numpy(array[rows]).to(accelerator.device) for array in arrays]
        mask = others.pop() != 0 if names[-1] == MASK else None
        return Outputs(logits, tuple(others), mask)

    return read


def _refuse_augmentation(batches: DatasetBatches) -> None:
    """Raise ValueError if some samples are different when they are read again."""
    indices = np.linspace(0, batches.count - 1, PROBES).round().astype(int).tolist()
    digests = []
    for epoch in (0, 1):
        seen = SeenData()
        batch = batches.read(indices, epoch)
        seen.add((batch.inputs, batch.target))
        digests.append(seen.state())
    if digests[0] != digests[1]:
        raise ValueError(
            "`teacher_cache` is for data without augmentation, but `train` gives a different sample when it is read "
            "again. Leave out teacher_cache or the augmentation."
        )


def _all_samples(batches: DatasetBatches, accelerator: Accelerator) -> list[Any]:
    """Digest of every sample, in the order of the data set. The main process reads them."""

    def read(at_work: Callable[[], None]) -> tuple[str, int]:
        seen = SeenData(most=None)
        for indices in _chunks(batches):
            at_work()
            batch = batches.read(indices)
            seen.add((batch.inputs, batch.target))
        return seen.state()

    return [_by_main_process(accelerator, read)]


def _by_main_process(accelerator: Accelerator, job: Callable[[Callable[[], None]], Any]) -> Any:
    """What ``job`` returns in the main process, in all processes.

    ``job`` calls its argument now and then. Every ``SIGN_EVERY`` seconds this tells the others that the main process is
    at work, so that they do not wait longer than the timeout of the process group.
    """
    from accelerate.utils import broadcast_object_list

    if not accelerator.is_main_process:
        finished, result = False, None
        while not finished:
            finished, result = broadcast_object_list([None])[0]
        return result
    told = time.monotonic()

    def at_work() -> None:
        nonlocal told
        if time.monotonic() - told > SIGN_EVERY:
            told = time.monotonic()
            broadcast_object_list([(False, None)])

    result = job(at_work)
    broadcast_object_list([(True, result)])
    return result


def _chunks(batches: DatasetBatches) -> Iterator[range]:
    for start in range(0, batches.count, batches.batch_size):
        yield range(start, min(start + batches.batch_size, batches.count))


def _mapped(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise ValueError(
            f"The teacher's outputs in {path} are damaged ({error}). Delete the folder {path.parent}, and it is "
            "written again."
        ) from error


def _tensors_of(outputs: Outputs) -> list[torch.Tensor]:
    """Logits, features and mask, as far as they are there."""
    return [tensor for tensor in (outputs.logits, *outputs.features, outputs.mask) if tensor is not None]


def _write_if_missing(
    folder: Path,
    teach: Callable[[Batch], Any],
    batches: DatasetBatches,
    progress: bool,
    at_work: Callable[[], None] = lambda: None,
) -> None:
    if not (folder / FINISHED).exists():
        _write(folder, teach, batches, progress, at_work)


def _write(
    folder: Path,
    teach: Callable[[Batch], Any],
    batches: DatasetBatches,
    progress: bool,
    at_work: Callable[[], None],
) -> None:
    count = batches.count
    taught = teach(batches.read([0, 1], 0))
    shapes = [tuple(output.shape[1:]) for output in _tensors_of(taught)]
    folder.parent.mkdir(parents=True, exist_ok=True)
    needed = 4 * count * sum(int(np.prod(shape)) for shape in shapes)
    free = shutil.disk_usage(folder.parent).free
    if needed > free:
        raise OSError(
            errno.ENOSPC,
            f"the teacher's outputs take {needed / 1e9:.1f} GB and {folder.parent} has {free / 1e9:.1f} GB free. "
            "Leave teacher_cache out, or tap fewer or smaller layers",
        )
    names = ["logits.npy", *(f"feature_{i}.npy" for i in range(len(taught.features)))]
    names += [] if taught.mask is None else [MASK]
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".", suffix=".tmp"))
    try:
        # Written like any file, and mapped only when complete: a full disk ends a process that writes to a mapped file.
        with ExitStack() as stack:
            opened = [stack.enter_context((temporary / name).open("wb")) for name in names]
            for file, shape in zip(opened, shapes, strict=True):
                header = {"descr": "<f4", "fortran_order": False, "shape": (count, *shape)}
                np.lib.format.write_array_header_1_0(file, header)
            total = -(-count // batches.batch_size)
            for indices in tqdm(
                _chunks(batches), desc="teacher outputs", total=total, unit="batch", disable=not progress
            ):
                at_work()
                outputs = teach(batches.read(indices, 0))
                for file, output, shape in zip(opened, _tensors_of(outputs), shapes, strict=True):
                    if output.shape != (len(indices), *shape):
                        raise ValueError(
                            f"The teacher gives an output of shape {tuple(output.shape)} for samples {indices[0]} to "
                            f"{indices[-1]} and {(len(indices), *shape)} was expected: its outputs cannot be cached."
                        )
                    file.write(output.to("cpu", torch.float32).contiguous().numpy().astype("<f4").tobytes())
            for file in opened:
                file.flush()
                os.fsync(file.fileno())
        facts = {"files": names, "samples": count, "shapes": shapes}
        atomic_write(temporary / FINISHED, json.dumps(facts, indent=1))
        temporary.replace(folder)
    except OSError as error:
        if (folder / FINISHED).exists():
            return  # another run has written it meanwhile
        raise type(error)(error.errno, f"could not write the teacher's outputs to {folder}: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
